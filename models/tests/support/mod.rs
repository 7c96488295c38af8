//! What tests share: machines, and weights where there are any.

pub(crate) mod files;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use wgpu_attention::{DeviceClass, Runner, RunnerOptions};
use wgpu_attention_models::Machine;

/// Where weights are: `WGPU_ATTENTION_MODELS`, else `models/weights`. Where those of `model` are missing, says that `test`
/// is skipped: not by `println!`, which a test that passes does not show.
pub(crate) fn weights(test: &str, model: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let given = std::env::var_os("WGPU_ATTENTION_MODELS").map(|given| root.join(given));
    let folder = given.unwrap_or_else(|| root.join("models/weights")).join(model);
    if folder.is_dir() {
        return Some(folder);
    }
    skipped(&format!("{test}: no weights in {}", folder.display()));
    None
}

/// In one piece: other tests write too.
fn skipped(what: &str) {
    let _ = std::io::stderr().write_all(format!("\nSKIPPED {what}\n").as_bytes());
}

/// The CPU, and a GPU: a software one where there is no other.
pub(crate) fn machines(test: &str) -> Vec<(String, Machine)> {
    let mut machines = vec![("the CPU".to_owned(), Machine::of(Runner::cpu()))];
    machines.extend(gpu(test, None));
    machines
}

/// A GPU with the kernels of its own class, or of another.
pub(crate) fn gpu(test: &str, class: Option<DeviceClass>) -> Option<(String, Machine)> {
    let mut options = RunnerOptions::default();
    (options.software, options.gpu_only, options.class) = (true, true, class);
    match Runner::with_options(options) {
        Ok(runner) => {
            let machine = Machine::of(runner);
            Some((format!("{} {class:?}", machine.name()), machine))
        }
        Err(error) => {
            skipped(&format!("{test} on a GPU: {error}"));
            None
        }
    }
}

/// Numbers between -1 and 1, the same every time.
pub(crate) fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let mut next = || {
        state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        let word = ((state >> ((state >> 28) + 4)) ^ state).wrapping_mul(277_803_737);
        ((word >> 22) ^ word) as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// The largest difference, as a share of the largest number.
pub(crate) fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(1e-6_f32, |most, x| most.max(x.abs()));
    // A NaN stays: `f32::max` would drop it.
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    off.fold(0.0_f32, |most, x| if x > most || x.is_nan() { x } else { most }) / largest
}
