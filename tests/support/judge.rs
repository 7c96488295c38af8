//! The rule: a result may be off by twice what the plain formula in f32 is off, and 1e-6.

use super::At;
use super::case::{Case, Tensors, extent, rows, start};
use super::emulation::{self, Got, Precision};
use super::random::Random;
use wgpu_attention::{Problem, Shape, reference};

/// What f32 cannot do better than, whatever the case.
pub(crate) const FLOOR: f64 = 1e-6;
/// Multiply-adds of the definition that a case may cost; larger cases are looked at in sampled rows.
const BUDGET: u64 = 30_000_000;
/// Rows that the largest error of the plain formula is taken from. The largest of few samples is a matter of
/// luck, in the formula and in the kernel alike: a case with fewer rows is evaluated for further inputs.
const POOL: u64 = 768;

/// The right results of a case, and how far off a result may be.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    what: String,
    problem: Problem,
    /// Where, what, and which keys it sees.
    rows: Vec<(At, reference::Row, Vec<bool>)>,
    pub(crate) bounds: Bounds,
}

/// Of one element of each output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) out: f64,
    pub(crate) lse: f64,
    pub(crate) weights: f64,
    pub(crate) scores: f64,
}

impl Answer {
    /// The answer for the case's own inputs, draw 0.
    pub(crate) fn of(case: &Case) -> Self {
        Self::within(case, Precision::Full)
    }

    /// The answer for kernels of this precision.
    pub(crate) fn within(case: &Case, precision: Precision) -> Self {
        let s = case.problem.tensor_shape();
        let row_work = (u64::from(s.kv_len) * u64::from(s.head_dim + s.v_head_dim)).max(1);
        let at = sampled(&s, usize::try_from((BUDGET / row_work).max(48)).unwrap_or(usize::MAX));
        let name = case.to_string();
        let answer = Self::rows_within(name, &case.problem, &case.tensors(0), &at, precision);
        let work = row_work * at.len().max(1) as u64;
        // A row that sees nothing is no sample, nor one of which dropout keeps nothing.
        let says = |(_, want, visible): &&(At, reference::Row, Vec<bool>)| {
            visible.contains(&true) && want.out.iter().any(|x| *x != 0.0)
        };
        let samples = answer.rows.iter().filter(says).count().max(1) as u64;
        let draws = POOL.div_ceil(samples).min(BUDGET / work);
        (1..draws).fold(answer, |mut answer, draw| {
            let tensors = case.tensors(draw);
            let other = Self::rows_within(String::new(), &case.problem, &tensors, &at, precision);
            let Bounds { out, lse, weights, scores } = &mut answer.bounds;
            *scores = scores.max(other.bounds.scores);
            *out = out.max(other.bounds.out);
            *lse = lse.max(other.bounds.lse);
            *weights = weights.max(other.bounds.weights);
            answer
        })
    }

    /// The answer for given inputs and rows.
    pub(crate) fn for_rows(what: String, problem: &Problem, tensors: &Tensors, at: &[At]) -> Self {
        Self::rows_within(what, problem, tensors, at, Precision::Full)
    }

    /// The answer for given inputs, rows and precision.
    pub(crate) fn rows_within(
        what: String,
        problem: &Problem,
        tensors: &Tensors,
        at: &[At],
        precision: Precision,
    ) -> Self {
        let inputs = tensors.inputs();
        let mut off = Bounds { out: 0.0, lse: 0.0, weights: 0.0, scores: 0.0 };
        let rows: Vec<_> = (at.iter())
            .map(|&at| {
                let want = reference::row(problem, &inputs, at);
                let plain = emulation::row(problem, tensors, at, precision);
                off.out = largest(off.out, &plain.out, &want.out);
                off.lse = largest(off.lse, &[plain.lse], &[want.lse]);
                off.weights = largest(off.weights, &plain.weights, &want.weights);
                off.scores = largest(off.scores, &plain.scores, &want.scores);
                (at, want, reference::visible(problem, &inputs, at))
            })
            .collect();
        let bound = |off: f64| 2.0 * off + FLOOR;
        let bounds = Bounds {
            out: bound(off.out),
            lse: bound(off.lse),
            weights: bound(off.weights),
            scores: bound(off.scores),
        };
        Self { what, problem: problem.clone(), rows, bounds }
    }

    /// Judges every output asked for, each by itself. The error names the case and the worst element.
    pub(crate) fn check(&self, got: &Got) -> Result<(), String> {
        let s = self.problem.tensor_shape();
        let mut worst = Worst::default();
        let rows = s.batch as usize * s.heads as usize * s.q_len as usize;
        let widths = [
            (self.problem.lse, got.lse.as_ref(), rows, "lse"),
            (self.problem.weights, got.weights.as_ref(), rows * s.kv_len as usize, "weights"),
            (
                self.problem.scores.is_some(),
                got.scores.as_ref(),
                rows * s.kv_len as usize,
                "scores",
            ),
        ];
        for (asked, given, len, name) in widths {
            let actual = given.map(Vec::len);
            if asked && actual != Some(len) {
                return Err(format!("{name} of length {actual:?}, not {len}: {}", self.what));
            }
        }
        self.check_places(&got.out)?;
        for (at, want, visible) in &self.rows {
            let within = |bound: f64, exact: bool| if exact { 0.0 } else { bound };
            let nothing = !visible.contains(&true);
            let out = &got.out[start(self.problem.out, *at)..][..s.v_head_dim as usize];
            let bound = within(self.bounds.out, nothing);
            worst.see("out", *at, out, &want.out, |_| bound);
            let row = ((at.0 * s.heads + at.1) * s.q_len + at.2) as usize;
            if let Some(lse) = got.lse.as_ref().filter(|_| self.problem.lse) {
                let bound = within(self.bounds.lse, want.lse == f64::NEG_INFINITY);
                worst.see("lse", *at, &lse[row..=row], &[want.lse], |_| bound);
            }
            let of_row =
                |matrix: &'_ [f32]| matrix[row * s.kv_len as usize..][..s.kv_len as usize].to_vec();
            if let Some(weights) = got.weights.as_ref().filter(|_| self.problem.weights) {
                worst.see("weights", *at, &of_row(weights), &want.weights, |j| {
                    within(self.bounds.weights, !visible[j as usize])
                });
            }
            if let Some(scores) = got.scores.as_ref().filter(|_| self.problem.scores.is_some()) {
                worst.see("scores", *at, &of_row(scores), &want.scores, |j| {
                    within(self.bounds.scores, want.scores[j as usize] == f64::NEG_INFINITY)
                });
            }
        }
        worst.message.map_or(Ok(()), |message| Err(format!("{message}: {}", self.what)))
    }

    /// Elements of `out` between rows are 0; those of rows are no NaN, also where a row is not sampled.
    fn check_places(&self, out: &[f32]) -> Result<(), String> {
        let s = self.problem.tensor_shape();
        let len = extent(self.problem.out, [s.batch, s.heads, s.q_len], s.v_head_dim);
        if out.len() != len {
            return Err(format!("out of length {}, not {len}: {}", out.len(), self.what));
        }
        let mut gap = vec![true; len];
        for at in rows(&s) {
            gap[start(self.problem.out, at)..][..s.v_head_dim as usize].fill(false);
        }
        match gap.iter().zip(out).position(|(gap, x)| if *gap { *x != 0.0 } else { x.is_nan() }) {
            None => Ok(()),
            Some(i) => Err(format!("out holds {} at {i}, gap {}: {}", out[i], gap[i], self.what)),
        }
    }
}

/// The element that is furthest off, in bounds.
#[derive(Default)]
struct Worst {
    excess: f64,
    message: Option<String>,
}

impl Worst {
    fn see(&mut self, name: &str, at: At, got: &[f32], want: &[f64], bound: impl Fn(u32) -> f64) {
        for (i, (got, want)) in (0..).zip(got.iter().zip(want)) {
            let (off, bound) = (error(*got, *want), bound(i));
            // A bound of 0 makes any error infinitely many of them.
            if off > bound && off / bound > self.excess {
                self.excess = off / bound;
                self.message = Some(format!(
                    "{name} of row {at:?} at {i} is {got:e}, not {want:e}: off by {off:.3e}, more than {bound:.3e}"
                ));
            }
        }
    }
}

/// How far off; a NaN or an infinity on one side only is infinitely far off.
pub(crate) fn error(got: f32, want: f64) -> f64 {
    let got = f64::from(got);
    if got == want || got.is_nan() && want.is_nan() {
        return 0.0;
    }
    let off = (got - want).abs();
    if off.is_nan() { f64::INFINITY } else { off }
}

fn largest(most: f64, got: &[f32], want: &[f64]) -> f64 {
    got.iter().zip(want).map(|(got, want)| error(*got, *want)).fold(most, f64::max)
}

/// All rows, or `most` of them with the first and the last of all.
pub(crate) fn sampled(shape: &Shape, most: usize) -> Vec<At> {
    let count = u64::from(shape.batch) * u64::from(shape.heads) * u64::from(shape.q_len);
    if count <= most as u64 {
        return rows(shape).collect();
    }
    let mut random = Random::new(99);
    let mut at = vec![(0, 0, 0), (shape.batch - 1, shape.heads - 1, shape.q_len - 1)];
    at.extend((2..most).map(|_| {
        (random.below(shape.batch), random.below(shape.heads), random.below(shape.q_len))
    }));
    at
}
