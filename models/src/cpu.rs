//! Operations on the CPU, as the kernels under `shaders/` define them; products by the `gemm` crate.

use crate::program::{Finish, Sampling};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;
use wgpu_attention::Append;

/// Outputs of a task of one row.
const OUTPUTS: usize = 64;

pub(crate) fn embed(tokens: &[u32], table: &[f32], width: usize, factor: f32, out: &mut [f32]) {
    let rows = table.chunks_exact(width);
    for (token, out) in tokens.iter().zip(out.chunks_mut(width)) {
        match rows.clone().nth(*token as usize) {
            Some(row) => out.iter_mut().zip(row).for_each(|(out, x)| *out = factor * x),
            None => out.fill(0.0),
        }
    }
}

/// A position past the last is the last.
pub(crate) fn add_places(places: &[f32], positions: &[u32], width: usize, out: &mut [f32]) {
    for (position, out) in positions.iter().zip(out.chunks_mut(width)) {
        let first = (*position as usize * width).min(places.len() - width);
        out.iter_mut().zip(&places[first..]).for_each(|(out, x)| *out += x);
    }
}

/// What is stored of sums `[rows, outputs]`.
pub(crate) fn finish(mut sums: Vec<f32>, bias: Option<&[f32]>, finish: Finish, out: &mut [f32]) {
    if let Some(bias) = bias {
        for sums in sums.chunks_mut(bias.len()) {
            sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
        }
    }
    for (sum, out) in sums.into_iter().zip(out) {
        *out = match finish {
            Finish::Store => sum,
            Finish::Add => *out + sum,
            Finish::Relu => sum.max(0.0),
            Finish::Gelu => gelu(sum),
        };
    }
}

/// `[rows, outputs]`: `x w^T` of x `[rows, inputs]` and w `[outputs, inputs]`.
#[allow(unsafe_code, reason = "gemm takes pointers")]
#[rustfmt::skip] // One line of arguments, not nineteen.
pub(crate) fn product(x: &[f32], w: &[f32], inputs: usize) -> Vec<f32> {
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    assert!(x.len() == rows * inputs && w.len() == outputs * inputs);
    let mut out = vec![0.0; rows * outputs];
    if rows == 1 {
        let tasks = out.par_chunks_mut(OUTPUTS).zip(w.par_chunks(OUTPUTS * inputs));
        tasks.for_each(|(out, w)| {
            out.iter_mut().zip(w.chunks(inputs)).for_each(|(out, w)| *out = dot(x, w));
        });
        return out;
    }
    let [x_pitch, w_pitch, out_pitch] = [inputs, inputs, outputs].map(usize::cast_signed);
    let (to, x, w) = (out.as_mut_ptr(), x.as_ptr(), w.as_ptr());
    let threads = Parallelism::Rayon(0);
    // SAFETY: out is `[rows, outputs]`, x `[rows, inputs]`, w transposed `[inputs, outputs]`: what the strides reach
    // lies in the slices, as just asserted, and out is borrowed by nobody else.
    unsafe {
        gemm(
            rows, outputs, inputs, to, 1, out_pitch, false, x, 1, x_pitch, w, w_pitch, 1, 0.0, 1.0,
            false, false, false, threads,
        );
    }
    out
}

/// In sixteen sums, which compilers keep in registers side by side.
fn dot(x: &[f32], w: &[f32]) -> f32 {
    let mut sums = [0.0; 16];
    for (x, w) in x.as_chunks::<16>().0.iter().zip(w.as_chunks::<16>().0) {
        for i in 0..16 {
            sums[i] += x[i] * w[i];
        }
    }
    sums.iter().sum()
}

/// With the error function of Abramowitz and Stegun 7.1.26, as `finish/gelu.wgsl` has it.
fn gelu(y: f32) -> f32 {
    let x = y * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (0.327_591_1 * x.abs() + 1.0);
    let factors = [1.061_405_4_f32, -1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];
    let poly = factors.into_iter().fold(0.0, |sum, factor| sum * t + factor) * t;
    let erf = (1.0 - poly * (-x * x).exp()).copysign(x);
    0.5 * y * (1.0 + erf)
}

pub(crate) fn norm(x: &[f32], scale: &[f32], bias: Option<&[f32]>, epsilon: f32, out: &mut [f32]) {
    let (width, count) = (scale.len(), scale.len() as f32);
    for (x, out) in x.chunks(width).zip(out.chunks_mut(width)) {
        let mean = bias.map_or(0.0, |_| x.iter().sum::<f32>() / count);
        let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / count;
        let factor = (variance + epsilon).sqrt().recip();
        for (i, out) in out.iter_mut().enumerate() {
            *out = (x[i] - mean) * factor * scale[i] + bias.map_or(0.0, |bias| bias[i]);
        }
    }
}

fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + (-x).clamp(-80.0, 80.0).exp())
}

pub(crate) fn gate(x: &[f32], width: usize, out: &mut [f32]) {
    for (x, out) in x.chunks(2 * width).zip(out.chunks_mut(width)) {
        let (gate, up) = x.split_at(width);
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * logistic(*gate) * up;
        }
    }
}

pub(crate) fn ssru(x: &[f32], state: &mut [f32], out: &mut [f32]) {
    let (candidate, gate) = x.split_at(out.len());
    for (i, out) in out.iter_mut().enumerate() {
        state[i] = logistic(gate[i]) * (state[i] - candidate[i]) + candidate[i];
        *out += state[i].max(0.0);
    }
}

pub(crate) fn pool(x: &[f32], lens: &[u32], out: &mut [f32]) {
    let (width, sequence) = (out.len() / lens.len(), x.len() / lens.len());
    for ((x, len), out) in x.chunks(sequence).zip(lens).zip(out.chunks_mut(width)) {
        out.fill(0.0);
        for row in x.chunks(width).take((*len).max(1) as usize) {
            out.iter_mut().zip(row).for_each(|(out, x)| *out += x);
        }
        let length = out.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
        out.iter_mut().for_each(|out| *out /= length);
    }
}

/// Keys and values as the last rows of `kv_len`; heads of a row lie side by side.
pub(crate) fn append(append: &Append, new: [&[f32]; 2], caches: [&mut [f32]; 2], kv_len: usize) {
    let width = (append.kv_heads * append.head_dim) as usize;
    let first = kv_len - append.new_len as usize;
    for ((new, cache), pitch) in
        new.into_iter().zip(caches).zip([append.k_new.row, append.v_new.row])
    {
        let rows = new.chunks(usize::try_from(pitch).expect("within a tensor"));
        for (row, to) in rows.zip(cache.chunks_mut(width).skip(first)) {
            to.copy_from_slice(&row[..width]);
        }
    }
}

pub(crate) fn choose(logits: &mut [f32], sampling: Sampling, step: u32) -> u32 {
    let mut choice = 0;
    match sampling {
        Sampling::Greedy => {
            for (index, logit) in logits.iter().enumerate() {
                if *logit > logits[choice] {
                    choice = index;
                }
            }
        }
        Sampling::Random { temperature, top_p, seed } => {
            let most = logits.iter().copied().fold(f32::MIN, f32::max);
            logits.iter_mut().for_each(|logit| *logit = ((*logit - most) / temperature).exp());
            let least = least_probable(logits, top_p);
            let all: f32 = logits.iter().filter(|p| **p >= least).sum();
            let mut left = (hash(seed ^ hash(step)) >> 8) as f32 / 16_777_216.0 * all;
            for (index, p) in logits.iter().enumerate().filter(|(_, p)| **p >= least) {
                choice = index;
                left -= p;
                if left < 0.0 {
                    break;
                }
            }
        }
    }
    u32::try_from(choice).expect("a token")
}

/// How probable a token must be at least, so that all that are have `top_p` together.
fn least_probable(probabilities: &[f32], top_p: f32) -> f32 {
    let mut sorted = probabilities.to_vec();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    let wanted = sorted.iter().sum::<f32>() * top_p;
    let mut mass = 0.0;
    let enough = sorted.iter().position(|p| {
        mass += p;
        mass >= wanted
    });
    enough.map_or(0.0, |index| sorted[index])
}

/// PCG, by Jarzynski and Olano, as `sample.wgsl` has it.
fn hash(x: u32) -> u32 {
    let state = x.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let word = ((state >> ((state >> 28) + 4)) ^ state).wrapping_mul(277_803_737);
    (word >> 22) ^ word
}
