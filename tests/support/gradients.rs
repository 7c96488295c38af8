//! Gradients: what they start from, the plain formula in f32, and the rule that judges them.

use super::At;
use super::case::{Case, Tensors, extent, positions, rounded, rows, start};
use super::emulation::{self, Place, Precision};
use super::judge::{FLOOR, error};
use super::random::Random;
use wgpu_attention::{Backward, BackwardInputs, Gradients, Pairs, Problem, Strides, reference};

/// Rows that the largest error of the plain formula is taken from, as with results.
const POOL: u64 = 768;
/// Elements of each gradient that it is taken from at the least, whatever that costs: those of sinks, slopes and a
/// broadcast bias are few, and each a sum over all rows.
const ELEMENTS: usize = 32;
/// Multiply-adds of the definition that a case may cost.
pub(crate) const BUDGET: u64 = 8_000_000;

/// Everything that the problem has a gradient of. Inputs that repeat rows have one for each.
pub(crate) fn all_of(problem: &Problem) -> Backward {
    let s = problem.tensor_shape();
    let mut backward = Backward::new(problem);
    for (strides, dim) in [(&mut backward.d_k, s.head_dim), (&mut backward.d_v, s.v_head_dim)] {
        if [strides.batch, strides.head, strides.row].contains(&0) {
            *strides = Strides::bhsd(s.kv_heads, s.kv_len, dim);
        }
    }
    backward.d_bias = problem.bias.is_some();
    backward.d_sinks = problem.sinks;
    backward.d_alibi_slopes = problem.alibi.is_some();
    backward
}

/// The multiply-adds of one evaluation.
pub(crate) fn work(problem: &Problem) -> u64 {
    let s = problem.tensor_shape();
    let pairs = u64::from(s.batch * s.heads) * u64::from(s.q_len) * u64::from(s.kv_len);
    pairs * u64::from(3 * s.head_dim + 2 * s.v_head_dim)
}

/// What gradients start from besides the inputs.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) out: Vec<f32>,
    pub(crate) lse: Vec<f32>,
    pub(crate) d_out: Vec<f32>,
    pub(crate) d_lse: Vec<f32>,
}

impl Given {
    /// What the definition gives, as it is stored, and random gradients of that. NaN in gaps, and where a row sees
    /// nothing.
    pub(crate) fn of(backward: &Backward, tensors: &Tensors, draw: u64) -> Self {
        let problem = &backward.problem;
        let s = problem.tensor_shape();
        let forward = reference::forward(problem, &tensors.inputs());
        #[allow(clippy::cast_possible_truncation, reason = "as it is stored")]
        let narrow = |data: &[f64]| data.iter().map(|x| *x as f32).collect::<Vec<_>>();
        let (out, lse) = (rounded(narrow(&forward.out), problem.out_dtype), narrow(&forward.lse));
        let mut random = Random::new(draw + 1000);
        let axes = [s.batch, s.heads, s.q_len];
        let mut d_out = vec![f32::NAN; extent(backward.d_out, axes, s.v_head_dim)];
        let mut d_lse = vec![f32::NAN; lse.len()];
        for (row, at) in rows(&s).enumerate().filter(|(row, _)| lse[*row] > f32::NEG_INFINITY) {
            let d_out = &mut d_out[start(backward.d_out, at)..][..s.v_head_dim as usize];
            d_out.iter_mut().for_each(|x| *x = random.unit());
            d_lse[row] = random.unit();
        }
        let d_out = rounded(d_out, problem.out_dtype);
        Self { out, lse, d_out, d_lse: if backward.d_lse { d_lse } else { Vec::new() } }
    }

    /// The same, but out and lse are the plain formula's in f32: what gradients start from where they follow a forward
    /// pass that no one corrects.
    pub(crate) fn after_forward(backward: &Backward, tensors: &Tensors, draw: u64) -> Self {
        let forward = emulation::forward(&backward.problem, tensors);
        let lse = forward.lse.expect("of every row");
        Self { out: forward.out, lse, ..Self::of(backward, tensors, draw) }
    }

    pub(crate) fn inputs(&self) -> BackwardInputs<'_> {
        let Self { out, lse, d_out, d_lse } = self;
        BackwardInputs { out, lse, d_out, d_lse }
    }
}

/// The formula in f32, one row at a time, in the plain order; gradients as they are stored.
pub(crate) fn emulated(backward: &Backward, tensors: &Tensors, given: &Given) -> Gradients {
    emulated_within(backward, tensors, given, Precision::Full)
}

/// The same, where the weights that values are multiplied with keep this much.
fn emulated_within(
    backward: &Backward,
    tensors: &Tensors,
    given: &Given,
    precision: Precision,
) -> Gradients {
    let problem = &backward.problem;
    let s = problem.tensor_shape();
    let e = &tensors.extra;
    // The score before the caller's function.
    let mut plain = problem.clone();
    plain.score_function = None;
    let zeros = |strides, heads, len, dim| vec![0.0; extent(strides, [s.batch, heads, len], dim)];
    let mut q = zeros(backward.d_q, s.heads, s.q_len, s.head_dim);
    let mut k = zeros(backward.d_k, s.kv_heads, s.kv_len, s.head_dim);
    let mut v = zeros(backward.d_v, s.kv_heads, s.kv_len, s.v_head_dim);
    let dense = problem.bias.map(|bias| Pairs::new(bias.pairs.axes));
    let mut bias = dense.map(|pairs| vec![0.0; super::extra::elements(pairs)]);
    let (mut sinks, mut slopes) = (vec![0.0; e.sinks.len()], vec![0.0; e.alibi_slopes.len()]);
    let scale = problem.effective_scale();
    for (row, at) in rows(&s).enumerate().filter(|(row, _)| given.lse[*row] > f32::NEG_INFINITY) {
        let (batch, head, _) = at;
        let lse = given.lse[row];
        let place = Place::of(problem, tensors, at);
        let line = |data, strides, at, dim| line(data, strides, at, dim);
        let query = line(&tensors.q, problem.q, at, s.head_dim);
        let d_out = line(&given.d_out, backward.d_out, at, s.v_head_dim);
        // From the last on: a product and its like would else cancel to the bit where a row sees one key.
        let out = line(&given.out, problem.out, at, s.v_head_dim);
        let delta = out.iter().zip(d_out).rev().fold(0.0, |sum, (a, b)| sum + a * b);
        let d_lse = given.d_lse.get(row).copied().unwrap_or(0.0);
        if problem.sinks {
            sinks[head as usize] += (e.sinks[head as usize] - lse).exp() * (d_lse - delta);
        }
        let visible = reference::visible(problem, &tensors.inputs(), at);
        for j in (0..s.kv_len).filter(|j| visible[*j as usize]) {
            let key_at = (batch, head / s.group_size(), j);
            let key = line(&tensors.k, problem.k, key_at, s.head_dim);
            let value = line(&tensors.v, problem.v, key_at, s.v_head_dim);
            let raw = dot(query, key) * scale;
            let tanh = problem.softcap.map(|cap| (raw / cap).tanh());
            let capped = problem.softcap.zip(tanh).map_or(raw, |(cap, tanh)| cap * tanh);
            let summed = place.summed(&plain, tensors, capped, head, j);
            let pair = place.pair(head, j);
            #[allow(clippy::cast_possible_truncation, reason = "rounded once")]
            let function = problem.score_function.as_ref().map(|function| {
                let derivative = function.derivative(summed.into(), pair).expect("a derivative");
                (function.apply(summed.into(), pair) as f32, derivative as f32)
            });
            let (score, by_sum) = function.unwrap_or((summed, 1.0));
            let p = (score - lse).exp();
            let kept = place.kept(problem, tensors, head, j);
            let d_score = p * (kept * dot(d_out, value) - delta + d_lse) * by_sum;
            if let (Some(bias), Some(pairs)) = (&mut bias, dense) {
                bias[index(pairs, [place.batch, head, place.q_pos, pair.kv_pos])] += d_score;
            }
            if problem.alibi.is_some() {
                slopes[place.slope(problem, head)] -= d_score * place.distance(j);
            }
            let d_dot = d_score * tanh.map_or(1.0, |tanh| 1.0 - tanh * tanh) * scale;
            add(&mut q[start(backward.d_q, at)..], d_dot, key);
            add(&mut k[start(backward.d_k, key_at)..], d_dot, query);
            let weight = match precision {
                Precision::HalfWeights => precision.of(p * 32768.0) / 32768.0,
                _ => p,
            };
            add(&mut v[start(backward.d_v, key_at)..], kept * weight, d_out);
        }
    }
    let mut gradients = Gradients::default();
    gradients.q = rounded(q, problem.dtype);
    gradients.k = rounded(k, problem.kv_dtype);
    gradients.v = rounded(v, problem.kv_dtype);
    gradients.bias = bias.filter(|_| backward.d_bias);
    gradients.sinks = backward.d_sinks.then_some(sinks);
    gradients.alibi_slopes = backward.d_alibi_slopes.then_some(slopes);
    gradients
}

fn line(data: &[f32], strides: Strides, at: At, dim: u32) -> &[f32] {
    &data[start(strides, at)..][..dim as usize]
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| sum + a * b)
}

fn add(to: &mut [f32], factor: f32, data: &[f32]) {
    to.iter_mut().zip(data).for_each(|(to, x)| *to += factor * x);
}

/// Index of a pair's element.
fn index(pairs: Pairs, at: [u32; 4]) -> usize {
    let at = at.iter().zip(pairs.strides).map(|(i, stride)| u64::from(*i) * stride);
    usize::try_from(at.sum::<u64>()).expect("in memory")
}

/// The right gradients of a case, and how far off gradients may be.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    what: String,
    /// Elements, how far off they may be, and which are exactly 0: gaps, and what no row sees.
    wanted: Vec<Wanted>,
}

#[derive(Clone, Debug)]
struct Wanted {
    elements: Vec<f64>,
    bound: f64,
    zero: Vec<bool>,
    /// How many elements say something of how far off the plain formula is: not those that are 0 to it, too.
    samples: usize,
}

impl Answer {
    /// For the case's own inputs, draw 0; of a small one, errors of further draws count too.
    pub(crate) fn of(case: &Case, backward: &Backward) -> (Self, Tensors, Given) {
        Self::drawn(case, backward, Given::of, Precision::Full)
    }

    /// The same, from what `given` says of a draw.
    pub(crate) fn from(
        case: &Case,
        backward: &Backward,
        given: fn(&Backward, &Tensors, u64) -> Given,
    ) -> (Self, Tensors, Given) {
        Self::drawn(case, backward, given, Precision::Full)
    }

    /// The same, for kernels whose weights keep this much.
    pub(crate) fn within(
        case: &Case,
        backward: &Backward,
        precision: Precision,
    ) -> (Self, Tensors, Given) {
        Self::drawn(case, backward, Given::of, precision)
    }

    fn drawn(
        case: &Case,
        backward: &Backward,
        given: fn(&Backward, &Tensors, u64) -> Given,
        precision: Precision,
    ) -> (Self, Tensors, Given) {
        let draw = |draw: u64| {
            let tensors = case.tensors(draw);
            let given = given(backward, &tensors, draw);
            let plain = emulated_within(backward, &tensors, &given, precision);
            (Self::judging(case.to_string(), backward, &tensors, &given, &plain), tensors, given)
        };
        let s = backward.problem.tensor_shape();
        let rows = u64::from(s.batch) * u64::from(s.heads) * u64::from(s.q_len);
        let most = BUDGET / (work(&backward.problem) + rows * 64).max(1);
        let (mut answer, tensors, given) = draw(0);
        let samples = answer.wanted.iter().map(|wanted| wanted.samples).filter(|n| *n > 0).min();
        let least = samples.map_or(1, |n| ELEMENTS.div_ceil(n) as u64);
        // Of few weights that dropout keeps, the largest error is a matter of luck as of few rows.
        let kept = 100.0 * backward.problem.dropout.map_or(1.0, |dropout| 1.0 - dropout.p);
        let kept = (1..=100_u8).filter(|percent| f32::from(*percent) <= kept).count().max(1) as u64;
        let draws = (100 * POOL).div_ceil(rows.max(1) * kept).min(most).max(least);
        for other in (1..draws).map(|n| draw(n).0) {
            for (wanted, other) in answer.wanted.iter_mut().zip(other.wanted) {
                wanted.bound = wanted.bound.max(other.bound);
            }
        }
        (answer, tensors, given)
    }

    /// For given inputs.
    pub(crate) fn for_inputs(
        what: String,
        backward: &Backward,
        tensors: &Tensors,
        given: &Given,
    ) -> Self {
        Self::judging(what, backward, tensors, given, &emulated(backward, tensors, given))
    }

    /// By how far the plain formula's gradients are off.
    fn judging(
        what: String,
        backward: &Backward,
        tensors: &Tensors,
        given: &Given,
        plain: &Gradients,
    ) -> Self {
        let inputs = tensors.inputs();
        let want = reference::backward(backward, &inputs, &given.d_out, &given.d_lse);
        let zeros = zeros(backward, tensors);
        let reference::Gradients { q, k, v, bias, sinks, alibi_slopes, .. } = want;
        let wanted = listed(plain).into_iter().zip([q, k, v, bias, sinks, alibi_slopes]);
        let wanted = wanted.zip(zeros).map(|(((_, plain), elements), zero)| {
            let pairs = plain.iter().zip(&elements);
            let samples = pairs.clone().filter(|(got, want)| **got != 0.0 || **want != 0.0).count();
            let off = pairs.map(|(got, want)| error(*got, *want)).fold(0.0, f64::max);
            Wanted { bound: 2.0 * off + FLOOR, elements, zero, samples }
        });
        Self { what, wanted: wanted.collect() }
    }

    /// How far off each gradient may be.
    pub(crate) fn bounds(&self) -> Vec<f64> {
        self.wanted.iter().map(|wanted| wanted.bound).collect()
    }

    /// Judges every gradient, each by itself. The error names the case and the worst element.
    pub(crate) fn check(&self, got: &Gradients) -> Result<(), String> {
        let mut worst = (1.0, None);
        for (wanted, (name, got)) in self.wanted.iter().zip(listed(got)) {
            let (len, needed) = (got.len(), wanted.elements.len());
            if len != needed {
                return Err(format!("d_{name} of length {len}, not {needed}: {}", self.what));
            }
            for (i, (got, want)) in got.iter().zip(&wanted.elements).enumerate() {
                let exact = wanted.zero.get(i).is_some_and(|zero| *zero);
                let (off, bound) = (error(*got, *want), if exact { 0.0 } else { wanted.bound });
                // A bound of 0 makes any error infinitely many of them.
                if off > bound && off / bound > worst.0 {
                    let message = format!(
                        "d_{name} at {i} is {got:e}, not {want:e}: off by {off:.3e}, more than {bound:.3e}"
                    );
                    worst = (off / bound, Some(message));
                }
            }
        }
        worst.1.map_or(Ok(()), |message| Err(format!("{message}: {}", self.what)))
    }
}

/// By name; empty where there is none.
fn listed(gradients: &Gradients) -> [(&'static str, &[f32]); 6] {
    let Gradients { q, k, v, bias, sinks, alibi_slopes, .. } = gradients;
    [
        ("q", q),
        ("k", k),
        ("v", v),
        ("bias", bias.as_deref().unwrap_or_default()),
        ("sinks", sinks.as_deref().unwrap_or_default()),
        ("alibi_slopes", alibi_slopes.as_deref().unwrap_or_default()),
    ]
}

/// Of q, k, v and the bias, elements of gaps and those that no visible pair has a part in.
fn zeros(backward: &Backward, tensors: &Tensors) -> [Vec<bool>; 6] {
    let problem = &backward.problem;
    let s = problem.tensor_shape();
    let all = |strides, heads, len, dim| vec![true; extent(strides, [s.batch, heads, len], dim)];
    let mut q = all(backward.d_q, s.heads, s.q_len, s.head_dim);
    let mut k = all(backward.d_k, s.kv_heads, s.kv_len, s.head_dim);
    let mut v = all(backward.d_v, s.kv_heads, s.kv_len, s.v_head_dim);
    let dense = problem.bias.filter(|_| backward.d_bias);
    let dense = dense.map(|bias| Pairs::new(bias.pairs.axes));
    let mut bias = vec![true; dense.map_or(0, super::extra::elements)];
    let mut seen = vec![false; (s.batch * s.kv_heads * s.kv_len) as usize];
    for at in rows(&s) {
        let visible = reference::visible(problem, &tensors.inputs(), at);
        if visible.contains(&true) {
            q[start(backward.d_q, at)..][..s.head_dim as usize].fill(false);
        }
        let first = (at.0 * s.kv_heads + at.1 / s.group_size()) * s.kv_len;
        for (j, shown) in (0..s.kv_len).zip(visible) {
            seen[(first + j) as usize] |= shown;
            if let Some(pairs) = dense.filter(|_| shown) {
                bias[index(pairs, [at.0, at.1, at.2, j])] = false;
            }
        }
    }
    let keys = positions([s.batch, s.kv_heads, s.kv_len]).zip(seen);
    for (at, _) in keys.filter(|(_, seen)| *seen) {
        k[start(backward.d_k, at)..][..s.head_dim as usize].fill(false);
        v[start(backward.d_v, at)..][..s.v_head_dim as usize].fill(false);
    }
    [q, k, v, bias, Vec::new(), Vec::new()]
}
