//! How long a larger problem takes on one device, with its result checked.

use super::noise::noise;
use std::error::Error;
use std::time::Instant;
use wgpu_attention::wgpu::util::DeviceExt as _;
use wgpu_attention::{Algorithm, Cost, Inputs, Problem, Runner, Shape, Tensors, reference, wgpu};

/// Heads and tokens, smallest first: a device goes on until the next would take too long.
const SIZES: [(u32, u32); 4] = [(1, 128), (2, 256), (12, 512), (12, 2048)];
const HEAD_DIM: u32 = 64;
/// How long one run may take.
const PATIENCE_S: f64 = 0.4;
/// How long all runs of one measurement go on together, where one run takes less.
const MEASURE_S: f64 = 0.2;

/// What one algorithm did.
pub(crate) struct Speed {
    pub(crate) shape: Shape,
    pub(crate) seconds: f64,
    pub(crate) gflops: f64,
    /// Greatest difference from the answer in f64, over some rows.
    pub(crate) error: f64,
}

/// Each algorithm on the largest size that none of them is slow at.
pub(crate) fn measure(
    runner: &Runner,
    algorithms: &[Algorithm],
) -> Result<Vec<Speed>, Box<dyn Error>> {
    let mut speeds = Vec::new();
    for (heads, len) in SIZES {
        let shape = Shape::self_attention(1, heads, len, HEAD_DIM);
        let flops = Cost::of(&Problem::new(shape)).flops as f64;
        if speeds.iter().any(|speed: &Speed| flops / (speed.gflops * 1e9) > PATIENCE_S) {
            break;
        }
        let all = algorithms.iter().map(|algorithm| one(runner, shape, *algorithm));
        speeds = all.collect::<Result<_, _>>()?;
    }
    Ok(speeds)
}

fn one(runner: &Runner, shape: Shape, algorithm: Algorithm) -> Result<Speed, Box<dyn Error>> {
    let problem = Problem::new(shape);
    let len = (shape.heads * shape.q_len * shape.head_dim) as usize;
    // Softmax of small scores is almost flat and hides mistakes.
    let [q, k, v] = [(1, 8.0), (2, 1.0), (3, 1.0)].map(|(seed, scale)| noise(seed, scale, len));
    let inputs = Inputs::new(&q, &k, &v);
    let out = runner.forward_with(&problem, algorithm, &inputs)?.out;
    let error = error(&problem, &inputs, &out);
    let seconds = if runner.device().is_some() {
        on_device(runner, &problem, algorithm, &inputs)?
    } else {
        let mut failed = None;
        let seconds = fastest(|repeats| {
            for _ in 0..repeats {
                failed = failed.take().or(runner.forward_with(&problem, algorithm, &inputs).err());
            }
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        seconds
    };
    let gflops = Cost::of(&problem).flops as f64 / seconds * 1e-9;
    Ok(Speed { shape, seconds, gflops, error })
}

/// With every tensor on the device already: no upload, no readback.
fn on_device(
    runner: &Runner,
    problem: &Problem,
    algorithm: Algorithm,
    inputs: &Inputs<'_>,
) -> Result<f64, Box<dyn Error>> {
    let (device, queue, attention) = runner.device().ok_or("a runner with a device")?;
    let [q, k, v, out] = [inputs.q, inputs.k, inputs.v, inputs.q].map(|data| {
        device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: Some("tensor"),
            contents: bytemuck::cast_slice(data),
            usage: wgpu::BufferUsages::STORAGE,
        })
    });
    let plan = attention.plan_with(problem, algorithm)?;
    let tensors = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
    let dispatch = attention.bind(&plan, &tensors)?;
    let mut waited = Ok(());
    let seconds = fastest(|repeats| {
        let mut encoder = device.create_command_encoder(&Default::default());
        for _ in 0..repeats {
            dispatch.encode(&mut encoder);
        }
        queue.submit([encoder.finish()]);
        if let Err(error) = device.poll(wgpu::PollType::wait_indefinitely()) {
            waited = Err(error);
        }
    });
    waited?;
    Ok(seconds)
}

/// Seconds of one repeat, from as many as time allows; the first, cold, does not count.
fn fastest(mut run: impl FnMut(u32)) -> f64 {
    let mut timed = |repeats: u32| {
        let start = Instant::now();
        run(repeats);
        start.elapsed().as_secs_f64()
    };
    timed(1);
    let mut best = f64::INFINITY;
    let mut spent = 0.0;
    let mut repeats = 1;
    loop {
        let seconds = timed(repeats);
        best = best.min(seconds / f64::from(repeats));
        spent += seconds;
        if spent + 2.0 * seconds > MEASURE_S {
            return best;
        }
        repeats *= 2;
    }
}

/// The first, the middle and the last row of the first and the last head.
fn error(problem: &Problem, inputs: &Inputs<'_>, out: &[f32]) -> f64 {
    let Shape { heads, q_len, v_head_dim, .. } = problem.shape;
    let mut greatest = 0.0;
    for head in [0, heads - 1] {
        for row in [0, q_len / 2, q_len - 1] {
            let expected =
                reference::row(problem, &Inputs::new(inputs.q, inputs.k, inputs.v), (0, head, row))
                    .out;
            let first = ((head * q_len + row) * v_head_dim) as usize;
            greatest = difference(&out[first..][..expected.len()], expected).max(greatest);
        }
    }
    greatest
}

/// Greatest difference; infinite where one is not a number.
pub(crate) fn difference(got: &[f32], expected: impl IntoIterator<Item = f64>) -> f64 {
    let apart = |(got, expected): (&f32, f64)| (f64::from(*got) - expected).abs();
    got.iter()
        .zip(expected)
        .map(apart)
        .fold(0.0, |most, x| if x.is_nan() { f64::INFINITY } else { most.max(x) })
}
