//! Operations on the CPU: attention and rotary embedding by the library's CPU path, products by `gemm`.

use crate::error::Error;
use crate::op::{Finish, Op, Positions, Sampling};
use crate::product::product;
use crate::tensor::{Stored, Tensor, Weights};
use wgpu_attention::{Append, Inputs, Problem, RotaryInputs, Runner};

/// One operation.
pub(crate) fn run(op: &Op, runner: &Runner) -> Result<(), Error> {
    match op {
        Op::Embed { tokens, table, factor, positions, out } => {
            embed(tokens, table, *factor, positions.as_ref(), out);
        }
        Op::Linear { x, w, bias, finish, out } => {
            let bias = bias.as_ref().map(Tensor::numbers);
            linear(&x.numbers(), w, bias.as_deref(), *finish, &mut out.numbers_mut());
        }
        Op::Norm { x, scale, bias, epsilon, out } => {
            let bias = bias.as_ref().map(Tensor::numbers);
            let (x, scale, mut out) = (x.numbers(), scale.numbers(), out.numbers_mut());
            for (x, out) in x.chunks(scale.len()).zip(out.chunks_mut(scale.len())) {
                norm(x, &scale, bias.as_deref(), *epsilon, out);
            }
        }
        Op::Gate { x, out, width } => {
            let (x, mut out) = (x.numbers(), out.numbers_mut());
            for (x, out) in x.chunks(2 * width).zip(out.chunks_mut(*width)) {
                let (gate, up) = x.split_at(*width);
                for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                    *out = gate / (1.0 + (-gate).min(80.0).exp()) * up;
                }
            }
        }
        Op::Ssru { x, state, out } => {
            let (x, mut state, mut out) = (x.numbers(), state.numbers_mut(), out.numbers_mut());
            let (candidate, gate) = x.split_at(out.len());
            for (i, out) in out.iter_mut().enumerate() {
                let forget = 1.0 / (1.0 + (-gate[i]).clamp(-80.0, 80.0).exp());
                state[i] = forget.mul_add(state[i] - candidate[i], candidate[i]);
                *out += state[i].max(0.0);
            }
        }
        Op::Rotate { embedding, x, pos_offsets, tables: [cos, sin], out } => {
            let (x, cos, sin) = (x.numbers(), cos.numbers(), sin.numbers());
            let offsets = pos_offsets.words();
            let inputs =
                RotaryInputs { x: &x, cos: &cos, sin: &sin, pos_offsets: &offsets, new_lens: &[] };
            let turned = runner.rotary_embedding(embedding, &inputs).map_err(Error::device)?;
            out.numbers_mut()[..turned.len()].copy_from_slice(&turned);
        }
        Op::Append { append, new, cache, kv_lens, status } => {
            self::append(append, new, cache, kv_lens, status);
        }
        Op::Attend { problem, qkv, q_lens, kv_lens, weights, out } => {
            let lens = [q_lens.as_ref(), kv_lens.as_ref()];
            attend(runner, problem, qkv, lens, weights.as_ref(), out)?;
        }
        Op::Pool { x, lens, seq_len, out } => {
            let (x, lens, mut out) = (x.numbers(), lens.words(), out.numbers_mut());
            let width = out.len() / lens.len();
            let sequences = x.chunks(seq_len * width).zip(lens.iter());
            for ((x, len), out) in sequences.zip(out.chunks_mut(width)) {
                let rows = x.chunks(width).take((*len).max(1) as usize);
                out.fill(0.0);
                rows.for_each(|row| out.iter_mut().zip(row).for_each(|(out, x)| *out += x));
                let length = out.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
                out.iter_mut().for_each(|out| *out /= length);
            }
        }
        Op::Choose { logits, sampling, step, token } => {
            let mut step = step.words_mut();
            let choice = choose(&mut logits.numbers_mut(), *sampling, step[0]);
            token.words_mut()[0] = choice;
            step[0] += 1;
        }
    }
    Ok(())
}

fn stored(w: &Weights) -> &[f32] {
    let Stored::Cpu(weights) = &w.stored else { unreachable!("weights of another machine") };
    weights
}

fn embed(
    tokens: &Tensor,
    table: &Weights,
    factor: f32,
    positions: Option<&Positions>,
    out: &Tensor,
) {
    let (tokens, width, mut out) = (tokens.words(), table.cols, out.numbers_mut());
    let rows = stored(table).chunks_exact(width);
    for (token, out) in tokens.iter().zip(out.chunks_mut(width)) {
        match rows.clone().nth(*token as usize) {
            Some(row) => out.iter_mut().zip(row).for_each(|(out, x)| *out = factor * x),
            None => out.fill(0.0),
        }
    }
    let Some(Positions { table, start, seq_len }) = positions else { return };
    let (table, start) = (table.numbers(), start.words()[0] as usize);
    let last = table.len() / width - 1;
    for (row, out) in out.chunks_mut(width).enumerate() {
        let position = (start.min(last) + row % seq_len).min(last);
        let position = &table[position * width..][..width];
        out.iter_mut().zip(position).for_each(|(out, x)| *out += x);
    }
}

fn linear(x: &[f32], w: &Weights, bias: Option<&[f32]>, finish: Finish, out: &mut [f32]) {
    let mut sums = product(x, stored(w), w.cols);
    for (sums, out) in sums.chunks_mut(w.rows).zip(out.chunks_mut(w.rows)) {
        if let Some(bias) = bias {
            sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
        }
        for (sum, out) in sums.iter().zip(out) {
            *out = match finish {
                Finish::Store => *sum,
                Finish::Add => *out + sum,
                Finish::Relu => sum.max(0.0),
                Finish::Gelu => gelu(*sum),
            };
        }
    }
}

/// With the error function of Abramowitz and Stegun 7.1.26, as `finish/gelu.wgsl` has it.
fn gelu(y: f32) -> f32 {
    let x = y * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / 0.327_591_1_f32.mul_add(x.abs(), 1.0);
    let factors = [1.061_405_4_f32, -1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];
    let poly = factors.into_iter().reduce(|sum, factor| sum.mul_add(t, factor)).unwrap_or(0.0) * t;
    let erf = (1.0 - poly * (-x * x).exp()).copysign(x);
    0.5 * y * (1.0 + erf)
}

fn norm(x: &[f32], scale: &[f32], bias: Option<&[f32]>, epsilon: f32, out: &mut [f32]) {
    let count = x.len() as f32;
    let mean = bias.map_or(0.0, |_| x.iter().sum::<f32>() / count);
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / count;
    let factor = (variance + epsilon).sqrt().recip();
    for (i, out) in out.iter_mut().enumerate() {
        *out = (x[i] - mean) * factor * scale[i] + bias.map_or(0.0, |bias| bias[i]);
    }
}

/// As the library's own, of one sequence: the whole or nothing.
fn append(
    append: &Append,
    [k_new, v_new]: &[Tensor; 2],
    [k, v]: &[Tensor; 2],
    kv_lens: &Tensor,
    status: &Tensor,
) {
    let (mut lens, mut status) = (kv_lens.words_mut(), status.words_mut());
    let room =
        if append.counted { lens[0] } else { append.capacity - lens[0].min(append.capacity) };
    if !append.counted {
        status[0] = append.new_len.saturating_sub(room);
    }
    if status[0] > 0 || room < append.new_len {
        return;
    }
    let first = lens[0] - if append.counted { append.new_len } else { 0 };
    for (new, cache, from, to, dim) in [
        (k_new, k, append.k_new, append.k, append.head_dim),
        (v_new, v, append.v_new, append.v, append.v_head_dim),
    ] {
        let (new, mut cache) = (new.numbers(), cache.numbers_mut());
        for row in 0..append.new_len {
            for head in 0..append.kv_heads {
                let at = |head_stride: u64, row_stride: u64, row: u32| {
                    let index = head_stride * u64::from(head) + row_stride * u64::from(row);
                    usize::try_from(index).expect("within a tensor")
                };
                let source = &new[at(from.head, from.row, row)..][..dim as usize];
                let target = at(to.head, to.row, first + row);
                cache[target..][..dim as usize].copy_from_slice(source);
            }
        }
    }
    if !append.counted {
        lens[0] += append.new_len;
    }
}

fn attend(
    runner: &Runner,
    problem: &Problem,
    [q, k, v]: &[Tensor; 3],
    [q_lens, kv_lens]: [Option<&Tensor>; 2],
    weights: Option<&Tensor>,
    out: &Tensor,
) -> Result<(), Error> {
    let (q, k, v) = (q.numbers(), k.numbers(), v.numbers());
    let (q_lens, kv_lens) = (q_lens.map(Tensor::words), kv_lens.map(Tensor::words));
    let inputs = Inputs::new(&q, &k, &v)
        .q_lens(q_lens.as_deref().unwrap_or(&[]))
        .kv_lens(kv_lens.as_deref().unwrap_or(&[]));
    let outputs = runner.forward(problem, &inputs).map_err(Error::device)?;
    out.numbers_mut()[..outputs.out.len()].copy_from_slice(&outputs.out);
    if let (Some(tensor), Some(weights)) = (weights, outputs.weights) {
        tensor.numbers_mut()[..weights.len()].copy_from_slice(&weights);
    }
    Ok(())
}

fn choose(logits: &mut [f32], sampling: Sampling, step: u32) -> u32 {
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
