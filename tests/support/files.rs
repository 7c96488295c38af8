//! The `attend` example on generated files, as another language uses it.

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Where cargo puts examples when it builds tests.
pub(crate) fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a test is a file");
    let folder = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let program = folder.join("examples/attend");
    assert!(program.exists(), "{} is not built: `cargo build --examples`", program.display());
    program
}

pub(crate) fn attend(arguments: &str) -> Output {
    Command::new(program())
        .args(arguments.split_whitespace())
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .output()
        .expect("it runs")
}

pub(crate) fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

pub(crate) fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from((state >> 16) as u16 as i16) / 8192.0
        })
        .collect()
}

pub(crate) type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

pub(crate) fn f32s(name: &'static str, shape: &[usize], seed: u32) -> Tensor {
    floats(name, Dtype::F32, shape, &values(shape.iter().product(), seed))
}

pub(crate) fn floats(name: &'static str, dtype: Dtype, shape: &[usize], data: &[f32]) -> Tensor {
    let bytes = match dtype {
        Dtype::F16 => data.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::BF16 => data.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    assert_eq!(shape.iter().product::<usize>(), data.len(), "{name}");
    (name, dtype, shape.into(), bytes)
}

/// A bias, whose largest values are -inf.
pub(crate) fn bias(dtype: Dtype, shape: &[usize], seed: u32) -> Tensor {
    let data = values(shape.iter().product(), seed);
    let hide = |x: &f32| if *x > 3.0 { f32::NEG_INFINITY } else { *x };
    floats("bias", dtype, shape, &data.iter().map(hide).collect::<Vec<_>>())
}

/// Three of four pairs attend.
pub(crate) fn mask(dtype: Dtype, shape: &[usize], seed: u32) -> Tensor {
    let data = values(shape.iter().product(), seed);
    // Whatever is not 0 is true.
    let shown = if dtype == Dtype::U8 { 7 } else { 1 };
    let bytes = data.iter().map(|x| if *x > -2.0 { shown } else { 0 }).collect();
    ("mask", dtype, shape.into(), bytes)
}

pub(crate) fn i32s(name: &'static str, data: &[i32]) -> Tensor {
    let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
    (name, Dtype::I32, vec![data.len()], bytes)
}

pub(crate) fn write(name: &str, tensors: &[Tensor]) {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (*name, TensorView::new(*dtype, shape.clone(), data).expect("a tensor"))
    });
    let bytes = safetensors::serialize(views, None).expect("a file");
    std::fs::write(file(name), bytes).expect("written");
}

pub(crate) fn read(name: &str, tensor: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(file(name)).expect("written");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let view = tensors.tensor(tensor).expect("the tensor");
    assert_eq!(view.dtype(), Dtype::F32, "{tensor}");
    let data = view.data().as_chunks().0.iter().copied().map(f32::from_le_bytes).collect();
    (view.shape().to_vec(), data)
}

pub(crate) fn answers(arguments: &str) {
    let got = attend(arguments);
    let message = String::from_utf8_lossy(&got.stderr);
    assert_eq!(got.status.code(), Some(0), "{arguments}: {message}");
}

/// Exit status 2, one line that says `what`, and nothing written.
pub(crate) fn refuses(arguments: &str, what: &str) {
    let out = file("refused-out");
    let _ = std::fs::remove_file(&out);
    let got = attend(&format!("{arguments} refused-out"));
    let message = String::from_utf8_lossy(&got.stderr);
    assert_eq!(got.status.code(), Some(2), "{arguments}: {message}");
    // Drivers may write there too.
    let lines: Vec<_> = message.lines().filter(|line| line.starts_with("attend: ")).collect();
    assert_eq!(lines.len(), 1, "{arguments}: {message}");
    assert!(lines[0].contains(what), "{arguments}: {message} lacks {what}");
    assert!(!out.exists(), "{arguments}: wrote {}", out.display());
}

pub(crate) fn close(a: &[f32], b: &[f32]) -> bool {
    within(2e-5, a, b)
}

pub(crate) fn within(tolerance: f32, a: &[f32], b: &[f32]) -> bool {
    let near = |a: &f32, b: &f32| a == b || (a - b).abs() < tolerance * b.abs().max(1.0);
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| near(a, b))
}

/// A file's tensors with one of them changed, added or, of none, left out.
pub(crate) fn with(all: Vec<Tensor>, name: &str, tensor: Option<Tensor>) -> Vec<Tensor> {
    let mut tensors: Vec<_> = all.into_iter().filter(|(other, ..)| *other != name).collect();
    tensors.extend(tensor);
    tensors
}

/// Slow software drivers compile for seconds.
pub(crate) fn few<T>(all: &[T]) -> &[T] {
    &all[..if super::small() { 2 } else { all.len() }]
}
