//! A block of rows against a block of keys: weights, and gradients of scores.

use super::super::alibi::Alibi;
use super::super::attend::{narrow, rows_in_place};
use super::super::band::Band;
use super::super::dropout::Streams;
use super::super::product::{Matrix, product};
use super::super::softmax::exp;
use super::super::weighted::wild_rows;
use super::Row;
use super::part::KEYS;
use super::weigh::Weigh;
use crate::backward::Backward;
use crate::dropout::DropoutMask;
use crate::inputs::{Derived, Inputs, PairValue};
use crate::layout::Strides;
use crate::problem::Problem;
use crate::reference::start;
use crate::sequence::Place;
use pulp::{Arch, Scalar};
use std::ops::Range;

/// What is asked for.
pub(super) struct Task<'a> {
    pub(super) backward: &'a Backward,
    pub(super) inputs: &'a Inputs<'a>,
    pub(super) d_out: &'a [f32],
    /// Anything but slopes and random numbers has a say in a pair.
    changes: bool,
    /// Some pairs of the band may be hidden.
    pub(super) hides: bool,
}

impl<'a> Task<'a> {
    pub(super) fn new(backward: &'a Backward, inputs: &'a Inputs<'a>, d_out: &'a [f32]) -> Self {
        let problem = &backward.problem;
        let hides = problem.hides_pairs();
        let given = problem.drops().is_some_and(|dropout| dropout.mask == DropoutMask::Given);
        let changes =
            hides || given || problem.softcap.is_some() || problem.score_function.is_some();
        Self { backward, inputs, d_out, changes, hides }
    }

    pub(super) fn problem(&self) -> &'a Problem {
        &self.backward.problem
    }
}

/// Rows of one tensor; those that see nothing are 0.
pub(super) struct Copied {
    /// `[rows, dim]`.
    rows: Vec<f32>,
    /// `[dim, lanes]`, so that gemm reads rows and pairs with unit stride.
    transposed: Vec<f32>,
    dim: usize,
    /// Which rows are not finite.
    pub(super) wild: Vec<usize>,
}

impl Copied {
    fn new(data: &[f32], strides: Strides, dim: u32, rows: &[Row], lanes: usize) -> Self {
        let dim = dim as usize;
        let mut copied = vec![0.0; rows.len() * dim];
        let mut transposed = vec![0.0; dim * lanes];
        for (lane, (row, copied)) in rows.iter().zip(copied.chunks_exact_mut(dim)).enumerate() {
            if row.place.is_none() {
                continue;
            }
            copied.copy_from_slice(&data[start(strides, row.at)..][..dim]);
            let column = transposed[lane..].iter_mut().step_by(lanes);
            column.zip(copied).for_each(|(to, x)| *to = *x);
        }
        let matrix = Matrix { data: &copied, strides: (1, dim) };
        let wild = wild_rows(matrix, (rows.len(), dim));
        Self { rows: copied, transposed, dim, wild }
    }

    /// A row each column.
    pub(super) fn matrix(&self) -> Matrix<'_> {
        Matrix { data: &self.rows, strides: (1, self.dim) }
    }

    fn transposed(&self) -> Matrix<'_> {
        Matrix { data: &self.transposed, strides: (1, self.transposed.len() / self.dim) }
    }
}

/// Where rows are, with their head.
fn places(rows: &[Row]) -> impl Iterator<Item = (Option<Place>, u32)> + '_ {
    rows.iter().map(|row| (row.place, row.at.1))
}

/// A block of rows that read the same keys.
pub(super) struct Rows<'a> {
    rows: &'a [Row],
    band: Band,
    pub(super) q: Copied,
    pub(super) d_out: Copied,
    /// One a lane.
    lse: Vec<f32>,
    /// One a lane.
    delta: Vec<f32>,
    alibi: Option<Alibi>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(task: &Task<'_>, rows: &'a [Row]) -> Self {
        let problem = task.problem();
        let s = problem.shape;
        let band = Band::new(rows.iter().map(|row| row.visible(task)));
        let lanes = band.lanes();
        let lane = |of: fn(&Row) -> f32| {
            let mut all: Vec<f32> = rows.iter().map(of).collect();
            all.resize(lanes, 0.0);
            all
        };
        Self {
            rows,
            q: Copied::new(task.inputs.q, problem.q, s.head_dim, rows, lanes),
            d_out: Copied::new(task.d_out, task.backward.d_out, s.v_head_dim, rows, lanes),
            lse: lane(|row| row.lse),
            delta: lane(|row| row.delta),
            alibi: Alibi::new(problem, task.inputs, places(rows), lanes),
            band,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn lanes(&self) -> usize {
        self.band.lanes()
    }

    /// Whether every row sees every key of the block.
    pub(super) fn see_all(&self, block: &Range<u32>) -> bool {
        self.band.whole(block.start, block.len())[..self.count()].iter().all(|whole| *whole)
    }

    /// Blocks of the keys that they see.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Range<u32>> + use<> {
        let seen = self.band.seen();
        let end = seen.end;
        seen.step_by(KEYS as usize).map(move |first| first..end.min(first + KEYS))
    }

    /// Of each row and the keys of the block that it sees: lane, row, key counted from the block's first.
    pub(super) fn visible(
        &self,
        block: &Range<u32>,
    ) -> impl Iterator<Item = (usize, &'a Row, Range<usize>)> {
        let block = block.clone();
        let rows = self.rows.iter().enumerate();
        rows.map(move |(lane, row)| (lane, row, self.band.visible(lane, &block)))
    }
}

/// What comes of the pairs of a block, written anew for each.
#[derive(Default)]
pub(super) struct Pairs {
    /// `[keys, lanes]`: weights as they multiply values.
    pub(super) weights: Vec<f32>,
    /// `[keys, lanes]`: gradients of scores, at the place asked for.
    pub(super) d_scores: Vec<f32>,
    /// `[keys, lanes]`: what dropout multiplies weights by.
    kept: Vec<f32>,
    /// Of each row of the block, what its pairs so far give to the gradient of its slope.
    pub(super) slopes: Vec<f64>,
}

/// Multiplies by what dropout does, 0 where it drops, whatever was there.
fn keep(data: &mut [f32], kept: &[f32]) {
    let pairs = data.iter_mut().zip(kept);
    pairs.for_each(|(x, kept)| *x = if *kept == 0.0 { 0.0 } else { *x * kept });
}

impl Pairs {
    /// For a block of rows.
    pub(super) fn begin(&mut self, rows: &Rows<'_>) {
        let needed = rows.lanes() * KEYS as usize;
        self.weights.resize(self.weights.len().max(needed), 0.0);
        self.d_scores.resize(self.d_scores.len().max(needed), 0.0);
        self.slopes.clear();
        self.slopes.resize(rows.count(), 0.0);
    }

    /// Of a block of keys. `at` says which gradient of scores: what that of the last is multiplied by, which is
    /// `factor` where nothing but the band has a say. Gives the keys, a column each.
    pub(super) fn of<'a>(
        &mut self,
        task: &Task<'a>,
        rows: &Rows<'_>,
        block: &Range<u32>,
        at: impl Fn(&Derived) -> f64,
        factor: f32,
    ) -> Matrix<'a> {
        let problem = task.problem();
        let s = problem.shape;
        let (lanes, n) = (rows.lanes(), block.len());
        let (batch, head, _) = rows.rows[0].at;
        let place = (batch, head / s.group_size(), block.clone());
        let keys = rows_in_place(task.inputs.k, problem.k, place.clone());
        let values = rows_in_place(task.inputs.v, problem.v, place);
        let weights = &mut self.weights[..lanes * n];
        let d_scores = &mut self.d_scores[..lanes * n];
        let (dim, v_dim) = (s.head_dim as usize, s.v_head_dim as usize);
        let scale = problem.effective_scale();
        product((lanes, n, dim), weights, 0.0, scale, rows.q.transposed(), keys);
        product((lanes, n, v_dim), d_scores, 0.0, 1.0, rows.d_out.transposed(), values);
        if !task.changes {
            let kept = &mut self.kept;
            kept.clear();
            if let Some(dropout) = problem.drops() {
                kept.resize(weights.len(), dropout.keep_scale());
                let seed = task.inputs.seed;
                let mut streams = Streams::new(dropout, seed, places(rows.rows), lanes);
                streams.drop_weights(kept, block.start);
                keep(d_scores, kept);
            }
            let (lse, delta, alibi) = (&rows.lse, &rows.delta, &rows.alibi);
            let first = block.start;
            let band = &rows.band;
            alibi.iter().for_each(|alibi| alibi.bias(weights, first));
            // Gradients of slopes are of scores as they are.
            let of_score = if alibi.is_some() { 1.0 } else { factor };
            {
                let (weights, d_scores, factor) = (&mut *weights, &mut *d_scores, of_score);
                Arch::new().dispatch(Weigh { band, lse, delta, weights, d_scores, first, factor });
            }
            if let Some(alibi) = alibi {
                alibi.add_gradients(&mut self.slopes, d_scores, first);
                d_scores.iter_mut().for_each(|d_score| *d_score *= factor);
            }
            if !kept.is_empty() {
                keep(weights, kept);
            }
            return keys;
        }
        let pairs = PairValue { problem, inputs: task.inputs };
        for (lane, row, visible) in rows.visible(block) {
            for j in 0..n {
                let pair = j * lanes + lane;
                let key = block.start + u32::try_from(j).expect("a key of a block");
                let place = row.place.filter(|_| visible.contains(&j));
                let derived = place.and_then(|place| {
                    let raw = f64::from(weights[pair]);
                    pairs.derived(raw, &place, row.at.1, key).map(|derived| (place, derived))
                });
                let Some((place, derived)) = derived else {
                    (weights[pair], d_scores[pair]) = (0.0, 0.0);
                    continue;
                };
                let score = narrow(derived.score).max(f32::MIN);
                let p = exp(Scalar::new(), score - row.lse);
                let kept = narrow(pairs.kept(&place, row.at.1, key));
                let d_score = f64::from(p * (kept * d_scores[pair] - row.delta));
                weights[pair] = kept * p;
                d_scores[pair] = narrow(d_score * at(&derived));
                self.slopes[lane] += d_score * derived.by_slope;
            }
        }
        keys
    }
}
