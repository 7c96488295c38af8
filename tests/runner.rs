//! Which device a runner takes, what it does when it is lost, and that waiting and blocking agree. On a GPU or
//! a software GPU.

#![cfg(feature = "cpu")]

use pollster::block_on;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use wgpu_attention::{
    Algorithm, BindError, Checks, DeviceClass, Error, Inputs, LayerInputs, Mask, Problem, Progress,
    Runner, RunnerOptions, SelfAttention, Shape, Strides,
};

fn options() -> RunnerOptions {
    let mut options = RunnerOptions::default();
    options.software = true;
    options.gpu_only = true;
    options
}

fn gpu() -> Runner {
    Runner::with_options(options()).expect("a GPU or a software GPU")
}

fn problem() -> Problem {
    Problem::new(Shape::self_attention(1, 4, 19, 16).with_kv_heads(2)).mask(Mask::CAUSAL).with_lse()
}

fn ramp(len: usize) -> Vec<f32> {
    (0u16..).take(len).map(|i| f32::from(i % 61) / 61.0 - 0.5).collect()
}

/// The same as the CPU path gives, up to rounding.
fn agrees_with_the_cpu(runner: &Runner, algorithms: &[Algorithm]) {
    let (q, kv) = (ramp(4 * 19 * 16), ramp(2 * 19 * 16));
    let inputs = Inputs::new(&q, &kv, &kv);
    let cpu = Runner::cpu().forward(&problem(), &inputs).expect("a result");
    for algorithm in algorithms {
        let gpu = runner.forward_with(&problem(), *algorithm, &inputs).expect("a result");
        assert_eq!(gpu.out.len(), cpu.out.len());
        for (a, b) in gpu.out.iter().zip(&cpu.out) {
            assert!((a - b).abs() < 1e-5, "{algorithm:?}: {a} and {b}");
        }
        for (a, b) in gpu.lse.iter().flatten().zip(cpu.lse.iter().flatten()) {
            assert!((a - b).abs() < 1e-5, "{algorithm:?}: {a} and {b}");
        }
    }
}

#[test]
fn a_runner_computes_on_the_adapter_that_there_is() {
    let runner = gpu();
    assert!(runner.device().is_some());
    let name = runner.adapter_info().expect("an adapter").name;
    agrees_with_the_cpu(&runner, &[Algorithm::Auto, Algorithm::Staged, Algorithm::Flash]);

    let mut named = RunnerOptions::default();
    named.adapter = Some(name.clone());
    let runner = Runner::with_options(named).expect("the adapter by its name");
    assert!(runner.adapter_info().expect("an adapter").name.contains(&name));
}

#[test]
fn an_adapter_that_is_not_there_is_an_error_that_lists_those_that_are() {
    let here = gpu().adapter_info().expect("an adapter").name;
    for gpu_only in [false, true] {
        let mut named = options();
        named.gpu_only = gpu_only;
        named.adapter = Some("no such card".to_owned());
        let error = Runner::with_options(named).expect_err("no such adapter");
        let Error::NoAdapter(why) = &error else { panic!("{error:?}") };
        assert!(why.starts_with("none of ["), "{why}");
        assert!(why.contains(&format!("{here:?}")), "{why}");
        assert!(why.ends_with("] is named \"no such card\""), "{why}");
        assert_eq!(error.to_string(), format!("no adapter: {why}"));
    }
}

#[test]
fn software_is_taken_only_when_asked_for() {
    let software = |runner: &Runner| {
        let info = runner.adapter_info().expect("an adapter");
        info.device_type == wgpu::DeviceType::Cpu
    };
    let only_software = software(&gpu());
    let mut hardware = RunnerOptions::default();
    hardware.gpu_only = true;
    match Runner::with_options(hardware) {
        Ok(runner) => assert!(!only_software && !software(&runner)),
        Err(Error::NoAdapter(why)) => {
            assert!(only_software);
            assert!(why.starts_with("only software was found: ["), "{why}");
        }
        Err(error) => panic!("{error}"),
    }
    let any = Runner::new().expect("a GPU or the CPU path");
    assert_eq!(any.device().is_none(), only_software);
    agrees_with_the_cpu(&any, &[Algorithm::Auto]);
}

#[test]
fn the_cpu_path_has_no_adapter() {
    let cpu = Runner::cpu();
    assert!(cpu.adapter_info().is_none());
    assert!(cpu.device().is_none());
    let renewed = block_on(cpu.renew()).expect("the same again");
    assert!(renewed.device().is_none());
    agrees_with_the_cpu(&renewed, &[Algorithm::Auto]);
}

#[test]
fn waiting_and_blocking_give_the_same_bits() {
    let (q, kv) = (ramp(4 * 19 * 16), ramp(2 * 19 * 16));
    let inputs = Inputs::new(&q, &kv, &kv);
    let layer = SelfAttention::new(2, 19, 16, 4).expect("even heads");
    let (x, w) = (ramp(2 * 19 * 16), ramp(16 * 16));
    let layer_inputs =
        LayerInputs { x: &x, w_q: &w, w_k: &w, w_v: &w, w_o: &w, ..Default::default() };
    let opened = block_on(Runner::with_options_async(options())).expect("an adapter");
    for runner in [opened, Runner::cpu()] {
        for algorithm in [Algorithm::Staged, Algorithm::Flash] {
            let blocking = runner.forward_with(&problem(), algorithm, &inputs).expect("a result");
            let waiting = block_on(runner.forward_async(&problem(), algorithm, &inputs));
            assert_eq!(waiting, Ok(blocking));
            let blocking = runner.layer(&layer, algorithm, &layer_inputs).expect("a result");
            let waiting = block_on(runner.layer_async(&layer, algorithm, &layer_inputs));
            assert_eq!(waiting, Ok(blocking));
        }
    }
}

#[test]
fn default_limits_checked_shaders_and_any_class_compute_the_same() {
    // Software GPUs take seconds to compile a kernel: one algorithm a class.
    for (class, algorithm) in
        [(DeviceClass::Hardware, Algorithm::Staged), (DeviceClass::Software, Algorithm::Flash)]
    {
        let mut careful = options();
        careful.default_limits = true;
        careful.checks = Checks::On;
        careful.class = Some(class);
        let runner = Runner::with_options(careful).expect("an adapter");
        let (device, _, attention) = runner.device().expect("a GPU");
        let default = wgpu::Limits::default();
        assert!(device.limits().max_buffer_size <= default.max_buffer_size);
        assert_eq!(attention.capabilities().class, class);
        agrees_with_the_cpu(&runner, &[algorithm]);
    }
}

#[test]
fn a_lost_device_is_an_error_until_the_runner_is_renewed() {
    let runner = gpu();
    agrees_with_the_cpu(&runner, &[Algorithm::Auto]);
    runner.device().expect("a GPU").0.destroy();
    let (q, kv) = (ramp(4 * 19 * 16), ramp(2 * 19 * 16));
    let inputs = Inputs::new(&q, &kv, &kv);
    for call in 1..=3 {
        let error = runner.forward(&problem(), &inputs).expect_err("no device");
        assert!(matches!(error, Error::DeviceLost(_)), "call {call}: {error:?}");
        assert!(error.to_string().starts_with("the device was lost: Destroyed"), "{error}");
    }
    let error = block_on(runner.forward_async(&problem(), Algorithm::Auto, &inputs));
    assert!(matches!(error, Err(Error::DeviceLost(_))), "{error:?}");
    let renewed = block_on(runner.renew()).expect("the adapter is still there");
    agrees_with_the_cpu(&renewed, &[Algorithm::Auto]);
}

#[test]
fn a_tensor_larger_than_any_buffer_is_an_error_and_the_next_call_works() {
    let mut limited = options();
    limited.default_limits = true;
    let runner = Runner::with_options(limited).expect("an adapter");
    // Two sequences so far apart that a buffer of both is too large.
    let far = Strides { batch: 1 << 26, head: 4, row: 4 };
    let problem = Problem::new(Shape::self_attention(2, 1, 1, 4)).q_strides(far);
    let (q, kv) = (vec![0.0; (1 << 26) + 4], [0.0; 8]);
    let error = runner.forward(&problem, &Inputs::new(&q, &kv, &kv)).expect_err("too large");
    let (required, available) = ((1 << 28) + 16, 1 << 28);
    assert_eq!(
        error,
        Error::Bind(BindError::BufferTooLarge { what: "q".into(), required, available })
    );
    assert_eq!(error.to_string(), "q needs max_buffer_size >= 268435472, the device has 268435456");
    agrees_with_the_cpu(&runner, &[Algorithm::Auto]);
}

/// What a runner's callback saw, and when it is to break.
#[derive(Clone, Default)]
struct Seen {
    progress: Arc<Mutex<Vec<Progress>>>,
    until: Arc<Mutex<Option<f64>>>,
}

impl Seen {
    fn watch(&self, runner: Runner) -> Runner {
        let Self { progress, until } = self.clone();
        runner.on_progress(move |now| {
            progress.lock().expect("a list").push(now);
            match *until.lock().expect("a share") {
                Some(share) if now.share() >= share => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        })
    }

    fn break_at(&self, share: Option<f64>) {
        *self.until.lock().expect("a share") = share;
    }

    /// Since the last call; from nothing to everything, unless the run was ended.
    fn take(&self, ended: bool) -> Vec<Progress> {
        let seen = std::mem::take(&mut *self.progress.lock().expect("a list"));
        assert_eq!(seen[0].done, 0);
        assert!(seen.iter().all(|now| now.total == seen[0].total));
        assert!(seen.windows(2).all(|two| two[0].done < two[1].done), "{seen:?}");
        assert_eq!(seen[seen.len() - 1].done == seen[0].total, !ended, "{seen:?}");
        seen
    }
}

/// A problem that takes several submissions, the larger the faster the device.
fn long(runner: &Runner) -> Problem {
    let info = runner.adapter_info();
    let software = info.is_none_or(|info| info.device_type == wgpu::DeviceType::Cpu);
    let len = if software { 768 } else { 6144 };
    Problem::new(Shape::self_attention(1, 16, len, 64)).mask(Mask::CAUSAL)
}

#[test]
fn a_short_run_is_one_submission() {
    let seen = Seen::default();
    let runner = seen.watch(gpu());
    for _ in 0..2 {
        agrees_with_the_cpu(&runner, &[Algorithm::Auto]);
        assert_eq!(seen.take(false).len(), 2);
    }
}

#[test]
fn a_long_run_is_submitted_in_parts_and_can_be_cancelled_between_them() {
    let seen = Seen::default();
    let runner = seen.watch(gpu());
    let problem = long(&runner);
    let data = ramp((problem.shape.heads * problem.shape.q_len * 64) as usize);
    let inputs = Inputs::new(&data, &data, &data);
    let whole = runner.forward(&problem, &inputs).expect("a result");
    let parts = seen.take(false);
    assert!(parts.len() > 2, "{parts:?}");
    // The first is small enough for a slow device; none grows beyond what was measured before it.
    assert!(parts[1].done <= 10_000_000_000, "{parts:?}");
    for three in parts.windows(3) {
        let work = [three[1].done - three[0].done, three[2].done - three[1].done];
        assert!(work[1] / 4 <= parts[1].done.max(work[0]), "{parts:?}");
    }

    for share in [0.0, 1e-9, 1.0] {
        for waiting in [false, true] {
            let runner = block_on(runner.renew()).expect("another device");
            seen.break_at(Some(share));
            let result = if waiting {
                block_on(runner.forward_async(&problem, Algorithm::Auto, &inputs))
            } else {
                runner.forward(&problem, &inputs)
            };
            assert_eq!(result, Err(Error::Cancelled));
            let parts = seen.take(share < 1.0);
            // At the first call that may, and at once.
            assert!(parts.iter().filter(|now| now.share() >= share).count() == 1, "{parts:?}");
            seen.break_at(None);
            assert!(runner.forward(&problem, &inputs).as_ref() == Ok(&whole));
            seen.take(false);
        }
    }
}

#[test]
fn layers_show_progress_and_can_be_cancelled() {
    let layer = SelfAttention::new(2, 300, 64, 4).expect("even heads").mask(Mask::CAUSAL);
    let (x, w) = (ramp(2 * 300 * 64), ramp(64 * 64));
    let inputs = LayerInputs { x: &x, w_q: &w, w_k: &w, w_v: &w, w_o: &w, ..Default::default() };
    for runner in [gpu(), Runner::cpu()] {
        let seen = Seen::default();
        let runner = seen.watch(runner);
        let whole = runner.layer(&layer, Algorithm::Auto, &inputs).expect("a result");
        seen.take(false);
        seen.break_at(Some(1e-9));
        let cancelled = block_on(runner.layer_async(&layer, Algorithm::Auto, &inputs));
        assert_eq!(cancelled, Err(Error::Cancelled));
        seen.progress.lock().expect("a list").clear();
        seen.break_at(None);
        assert_eq!(runner.layer(&layer, Algorithm::Auto, &inputs), Ok(whole));
    }
}

#[test]
fn the_cpu_path_shows_progress_and_can_be_cancelled() {
    let seen = Seen::default();
    let runner = seen.watch(Runner::cpu());
    let problem = long(&runner);
    let data = ramp((problem.shape.heads * problem.shape.q_len * 64) as usize);
    let inputs = Inputs::new(&data, &data, &data);
    let whole = runner.forward(&problem, &inputs).expect("a result");
    assert!(seen.take(false).len() > 16);
    seen.break_at(Some(0.3));
    assert_eq!(runner.forward(&problem, &inputs), Err(Error::Cancelled));
    // No part that others were still at is counted after the break.
    let parts = seen.take(true);
    assert!(parts.iter().filter(|now| now.share() >= 0.3).count() == 1, "{parts:?}");
    seen.break_at(None);
    assert!(runner.forward(&problem, &inputs) == Ok(whole));
}

#[test]
fn a_run_without_work_is_done_at_once() {
    for runner in [gpu(), Runner::cpu()] {
        let seen = Seen::default();
        let runner = seen.watch(runner);
        let problem = Problem::new(Shape::cross_attention(1, 2, 0, 3, 4));
        let kv = [0.0; 24];
        let outputs = runner.forward(&problem, &Inputs::new(&[], &kv, &kv)).expect("nothing");
        assert!(outputs.out.is_empty());
        let seen = seen.progress.lock().expect("a list");
        assert!(seen.iter().all(|now| now.total == 0 && now.share() >= 1.0), "{seen:?}");
        assert!(!seen.is_empty());
    }
}
