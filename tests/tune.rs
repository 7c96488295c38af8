//! Tuning: what it keeps, what it ignores, how long it takes, and that results stay what they were.

#![cfg(all(feature = "cpu", feature = "tune"))]

use crate::device::{CLASSES, classes};
use std::cell::RefCell;
use std::sync::Once;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};
use wgpu_attention::{
    Attention, BufferElement, DType, DeviceClass, Diagonal, Error, Inputs, Mask, MaskFormat,
    MaskFunction, Pairs, PlanError, Problem, Runner, RunnerOptions, Shape, Slopes, TuneOptions,
    TuningRecord, wgpu,
};

/// A GPU, or a software GPU, of this test's own: what is tuned on it stays here.
fn runner(class: DeviceClass) -> Runner {
    let mut options = RunnerOptions::default();
    options.software = true;
    options.gpu_only = true;
    options.class = Some(class);
    Runner::with_options(options).expect("a GPU or a software GPU")
}

fn within(time: Duration) -> TuneOptions {
    let mut options = TuneOptions::default();
    options.time = time;
    options
}

fn noise(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9);
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn json(record: &TuningRecord) -> serde_json::Value {
    serde_json::from_str(&record.to_json()).expect("JSON")
}

/// The same record with another choice.
fn choosing(record: &TuningRecord, candidate: &str) -> TuningRecord {
    let mut value = json(record);
    value["entries"][0]["choice"] = candidate.into();
    TuningRecord::from_json(&value.to_string()).expect("a record")
}

/// Names of the candidates that were timed.
fn timed(record: &TuningRecord) -> Vec<String> {
    let value = json(record);
    let times = value["entries"][0]["times"].as_array().expect("times").clone();
    times.iter().map(|time| time["candidate"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn every_candidate_gives_the_untuned_result() {
    for class in classes() {
        let shape = Shape::self_attention(1, 4, 70, 36).with_kv_heads(2);
        for problem in [Problem::new(shape).mask(Mask::CAUSAL).with_lse(), Problem::new(shape)] {
            let runner = runner(class);
            let (_, queue, attention) = runner.device().expect("a GPU");
            let (q, k, v) = (noise(1, 4 * 70 * 36), noise(2, 2 * 70 * 36), noise(3, 2 * 70 * 36));
            let inputs = Inputs::new(&q, &k, &v);
            let untuned = runner.forward(&problem, &inputs).expect("a result");
            let all = within(Duration::from_secs(120));
            let record = attention.tune_with(queue, &problem, &all).expect("a record");
            let names = timed(&record);
            assert!(names.len() > 4, "{class:?}: {record}");
            assert_eq!(json(&record)["entries"][0]["left_out"], 0, "{record}");
            let mut plans = Vec::new();
            for name in &names {
                attention.load(&choosing(&record, name));
                plans.push(attention.plan(&problem).expect("a plan"));
                let tuned = runner.forward(&problem, &inputs).expect("a result");
                let results = [(&tuned.out, &untuned.out)].into_iter();
                let results = results.chain(tuned.lse.iter().zip(&untuned.lse));
                for (tuned, untuned) in results {
                    assert_eq!(tuned.len(), untuned.len());
                    for (a, b) in tuned.iter().zip(untuned) {
                        assert!((a - b).abs() <= 1e-5, "{class:?}, {name}: {a} is not {b}");
                    }
                }
            }
            for (i, plan) in plans.iter().enumerate() {
                let again = plans[..i].contains(plan);
                assert!(!again, "{class:?}: {} changed nothing", names[i]);
            }
        }
    }
}

#[test]
fn plans_take_the_choice_of_a_tuning_and_of_its_record() {
    let runner = runner(DeviceClass::Software);
    let (device, queue, attention) = runner.device().expect("a GPU");
    let problem = Problem::new(Shape::self_attention(1, 2, 64, 16));
    let untuned = attention.plan(&problem).expect("a plan");
    let record = attention.tune(queue, &problem).expect("a record");
    assert_eq!(record.len(), 1);
    let tuned = attention.plan(&problem).expect("a plan");

    // Another `Attention`, as in another run of the program.
    let class = attention.capabilities().class;
    let other = Attention::new(device).with_class(class);
    let read = TuningRecord::from_json(&record.to_json()).expect("a record");
    assert_eq!(read, record);
    other.load(&read);
    assert_eq!(other.plan(&problem).expect("a plan"), tuned);

    // A choice that is not the untuned one shows where it reaches.
    let staged = timed(&record).into_iter().find(|name| name.starts_with("staged"));
    let Some(staged) = staged else { return assert_eq!(timed(&record).len(), 1, "{record}") };
    other.load(&choosing(&record, &staged));
    let chosen = other.plan(&problem).expect("a plan");
    assert_ne!(chosen, untuned);
    let alike = Problem::new(Shape::self_attention(3, 5, 40, 16));
    let names = |problem: &Problem| other.plan(problem).expect("a plan").kernels().count();
    assert_eq!(names(&alike), 3, "as {staged}");
    for different in [
        Problem::new(Shape::self_attention(1, 2, 65, 16)),
        Problem::new(Shape::self_attention(1, 2, 64, 36)),
        problem.clone().mask(Mask::CAUSAL),
        problem.clone().softcap(9.0),
    ] {
        assert_eq!(names(&different), 1, "untuned: {different:?}");
    }
    // With wgpu's checks other kernels are compiled: they were not tuned.
    let checked = other.clone().with_checks(wgpu_attention::Checks::On);
    assert_eq!(checked.plan(&problem).expect("a plan"), untuned);
}

/// Lines that this thread logged since its last call.
fn log_lines() -> Vec<String> {
    thread_local!(static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) });
    struct Log;
    impl log::Log for Log {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            if record.level() <= log::Level::Warn && record.target().starts_with("wgpu_attention") {
                LINES.with_borrow_mut(|lines| lines.push(record.args().to_string()));
            }
        }
        fn flush(&self) {}
    }
    static SET: Once = Once::new();
    SET.call_once(|| {
        log::set_logger(&Log).expect("no other logger");
        log::set_max_level(log::LevelFilter::Warn);
    });
    LINES.take()
}

#[test]
fn foreign_and_stale_records_are_ignored_with_a_line_in_the_log() {
    log_lines();
    let (device, queue) = wgpu::Device::noop(&Default::default());
    let attention = Attention::new(&device);
    let problem = Problem::new(Shape::self_attention(1, 2, 64, 16));
    let record = attention.tune(&queue, &problem).expect("a record");
    let staged = timed(&record).into_iter().find(|name| name.starts_with("staged"));
    let record = choosing(&record, &staged.expect("the noop device is fast"));

    let fresh = Attention::new(&device);
    let untuned = fresh.plan(&problem).expect("a plan");
    for field in ["version", "adapter", "driver", "driver_info", "backend", "class", "capabilities"]
    {
        let mut value = json(&record);
        let was = value["entries"][0]["device"][field].take();
        let other = format!("{} 2", was.as_str().expect("a text"));
        value["entries"][0]["device"][field] = other.clone().into();
        let foreign = TuningRecord::from_json(&value.to_string()).expect("a record");
        fresh.load(&foreign);
        assert_eq!(fresh.plan(&problem).expect("a plan"), untuned, "{field}");
        let lines = log_lines();
        assert!(lines.iter().any(|line| line.contains("ignored")), "{field}: {lines:?}");
    }
    fresh.load(&choosing(&record, "fused, by hand"));
    assert_eq!(fresh.plan(&problem).expect("a plan"), untuned);
    let lines = log_lines();
    assert!(lines.iter().any(|line| line.contains("fused, by hand")), "{lines:?}");

    let newer = record.to_json().replace("\"format\": 1", "\"format\": 2");
    fresh.load(&TuningRecord::from_json(&newer).expect("no error"));
    assert_eq!(fresh.plan(&problem).expect("a plan"), untuned);
    assert!(log_lines().iter().any(|line| line.contains("format 2")));

    // The control: as it was written, it is taken, without a word.
    fresh.load(&record);
    assert_ne!(fresh.plan(&problem).expect("a plan"), untuned);
    let lines = log_lines();
    assert!(!lines.iter().any(|line| line.contains("ignored")), "{lines:?}");
}

#[test]
fn no_time_is_time_for_the_first_candidate() {
    let runner = runner(DeviceClass::Software);
    let (_, queue, attention) = runner.device().expect("a GPU");
    // Seconds on a software GPU, whole; larger than most buffers are.
    let problem = Problem::new(Shape::self_attention(64, 32, 8192, 64));
    let start = Instant::now();
    let options = within(Duration::from_millis(1));
    let record = attention.tune_with(queue, &problem, &options).expect("a record");
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    assert_eq!(timed(&record).len(), 1, "{record}");
    assert!(json(&record)["entries"][0]["left_out"].as_u64() > Some(3), "{record}");
}

#[test]
fn memory_is_bounded() {
    let runner = runner(DeviceClass::Software);
    let (_, queue, attention) = runner.device().expect("a GPU");
    let problem = Problem::new(Shape::self_attention(1, 1, 4096, 64));
    let mut options = within(Duration::ZERO);
    options.memory_bytes = 1 << 16;
    let error = attention.tune_with(queue, &problem, &options).expect_err("keys are 1 MiB");
    assert!(matches!(error, Error::Bind(_)), "{error}");
    options.memory_bytes = 4 << 20;
    attention.tune_with(queue, &problem, &options).expect("a record");
}

/// Every feature has inputs that wgpu accepts, of every candidate.
#[test]
fn every_feature_can_be_tuned() {
    let (device, queue) = wgpu::Device::noop(&Default::default());
    let shape = Shape::self_attention(2, 4, 50, 16).with_kv_heads(2);
    let plain = Problem::new(shape);
    let pairs = Pairs::new([1, 4, 50, 50]);
    let function = MaskFunction::new(
        "documents",
        "fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {
            return documents[q_pos] == documents[kv_pos];
        }",
        |_| true,
    )
    .with_buffer("documents", BufferElement::U32);
    let problems = [
        plain.clone().dtype(DType::F16),
        plain.clone().dtype(DType::BF16),
        plain.clone().mask(Mask::CAUSAL.along(Diagonal::PerSequence)),
        plain.clone().with_lengths(true, true),
        Problem::packed(Shape::self_attention(3, 4, 100, 16)).mask(Mask::CAUSAL),
        plain.clone().with_boolean_mask(MaskFormat::Bytes, pairs),
        plain.clone().with_boolean_mask(MaskFormat::Bits, pairs),
        plain.clone().with_bias(DType::F16, pairs),
        plain.clone().with_alibi(Slopes::PerSequence).with_sinks().softcap(20.0),
        plain.clone().with_mask_function(function.clone()),
        plain.clone().with_lse().with_weights(),
        plain.clone().batch_invariant(),
    ];
    for class in CLASSES {
        let attention = Attention::new(&device).with_class(class);
        for problem in &problems {
            let record =
                attention.tune(&queue, problem).unwrap_or_else(|e| panic!("{e}: {problem:?}"));
            assert!(!timed(&record).is_empty(), "{problem:?}");
        }
    }
}

#[test]
fn what_cannot_be_tuned_says_so() {
    let (device, queue) = wgpu::Device::noop(&Default::default());
    let attention = Attention::new(&device);
    let shape = Shape::self_attention(1, 2, 50, 16);
    let masked =
        Problem::new(shape).with_boolean_mask(MaskFormat::Bytes, Pairs::new([1, 1, 50, 50]));
    let error = attention.tune(&queue, &masked.with_block_mask()).expect_err("tiles are given");
    assert!(matches!(error, Error::Plan(PlanError::NotSupported { .. })), "{error}");
    let uneven = Problem::new(shape.with_kv_heads(3));
    let error = attention.tune(&queue, &uneven).expect_err("3 does not divide 2");
    assert!(matches!(error, Error::Plan(PlanError::Problem(_))), "{error}");
    let nothing = Problem::new(Shape::self_attention(0, 2, 50, 16));
    assert!(attention.tune(&queue, &nothing).expect("nothing to do").is_empty());
}

#[test]
fn tuning_need_not_block() {
    let runner = runner(DeviceClass::Software);
    let (_, queue, attention) = runner.device().expect("a GPU");
    let problem = Problem::new(Shape::self_attention(1, 2, 64, 16));
    let options = within(Duration::ZERO);
    let record = pollster::block_on(attention.tune_async(queue, &problem, &options));
    assert_eq!(timed(&record.expect("a record")).len(), 1);
}

#[test]
fn a_tuning_that_is_given_up_leaves_nothing_behind() {
    let runner = runner(DeviceClass::Software);
    let (_, queue, attention) = runner.device().expect("a GPU");
    let problem = Problem::new(Shape::self_attention(1, 2, 64, 16));
    let untuned = attention.plan(&problem).expect("a plan");
    let options = within(Duration::from_secs(60));
    {
        let mut tuning = std::pin::pin!(attention.tune_async(queue, &problem, &options));
        let pending = tuning.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending();
        assert!(pending, "it waits for the device");
    }
    assert_eq!(attention.plan(&problem).expect("a plan"), untuned);
    // And the device still works.
    attention.tune_with(queue, &problem, &within(Duration::ZERO)).expect("a record");
}
