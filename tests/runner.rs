//! Which device a runner takes, what it does when it is lost, and that waiting and blocking agree. On a GPU or
//! a software GPU.

#![cfg(feature = "cpu")]

use pollster::block_on;
use wgpu_attention::{
    Algorithm, BindError, Checks, DeviceClass, Error, Inputs, LayerInputs, Mask, Problem, Runner,
    RunnerOptions, SelfAttention, Shape, Strides,
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
