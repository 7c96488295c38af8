//! Attention of blocks of rows against blocks of keys, on all cores.

use super::alibi::Alibi;
use super::dropout::drop_weights;
use super::product::{Matrix, product};
use super::softmax::Softmax;
use super::state::State;
use crate::error::Error;
use crate::inputs::{Inputs, PairValue};
use crate::layout::Strides;
use crate::problem::{Problem, ScoreStage};
use crate::reference::start;
use crate::sequence::{Place, Sequence};
use crate::shape::Shape;
use crate::watcher::Meter;
use pulp::Arch;
use rayon::prelude::*;
use std::cell::Cell;
use std::mem::take;
use std::ops::Range;

/// Most query rows of a block: their scores against [`KEYS`] keys stay in a core's L2 cache.
const ROWS: usize = 96;
/// Keys of a block.
const KEYS: u32 = 256;
/// f32 lanes of the widest vectors in use; each holds a query row's score.
pub(super) const LANES: usize = 8;
/// Where the results of a problem go.
pub(super) struct Results<'a> {
    /// As the problem lays it out.
    pub(super) out: &'a mut [f32],
    /// `[batch, heads, q_len]`.
    pub(super) lse: Option<&'a mut [f32]>,
    /// `[batch, heads, q_len, kv_len]`.
    pub(super) weights: Option<&'a mut [f32]>,
    /// `[batch, heads, q_len, kv_len]`.
    pub(super) scores: Option<&'a mut [f32]>,
}

/// Attention of the whole problem. Slices are as long as the problem's strides reach.
pub(super) fn forward(
    problem: &Problem,
    inputs: &Inputs<'_>,
    results: Results<'_>,
    meter: &Meter<'_>,
) -> Result<(), Error> {
    let s = problem.tensor_shape();
    if s.batch == 0 || s.q_len == 0 {
        return Ok(());
    }
    let split_dense = |data, width| split(&s, data, Strides::bhsd(s.heads, s.q_len, width), width);
    let mut lse = results.lse.map(|lse| split_dense(lse, 1).into_iter());
    let mut weights = results.weights.map(|weights| split_dense(weights, s.kv_len).into_iter());
    let mut scores = results.scores.map(|scores| split_dense(scores, s.kv_len).into_iter());
    let mut rows: Vec<Row> = positions(&s)
        .zip(split(&s, results.out, problem.out, s.v_head_dim))
        .map(|(at, out)| Row {
            at,
            place: Sequence::place(problem, inputs, at.0, at.2),
            out,
            lse: lse.as_mut().and_then(Iterator::next),
            weights: weights.as_mut().and_then(Iterator::next),
            scores: scores.as_mut().and_then(Iterator::next),
        })
        .collect();

    // Where blocks end decides how sums round.
    let block_of = |rows: usize| rows.div_ceil(tasks()).next_multiple_of(LANES).min(ROWS);
    let group = s.group_size() as usize;
    let shared = if problem.batch_invariant { rows.len() / s.batch as usize } else { rows.len() };
    let attend = |rows: &mut [Row]| {
        attend(problem, inputs, rows);
        meter.add(rows.iter().map(|row| row_work(problem, row.place)).sum())
    };
    rows.par_chunks_mut(s.q_len as usize * group).try_for_each(|same_keys| {
        if problem.needs_rows_alone() {
            let sequence = |row: &Row| row.place.map(|place| place.sequence.batch);
            for rows in same_keys.chunk_by_mut(|a, b| sequence(a) == sequence(b)) {
                let block = block_of(rows.len());
                rows.par_chunks_mut(block).try_for_each(attend)?;
            }
            Ok(())
        } else {
            same_keys.par_chunks_mut(block_of(shared)).try_for_each(attend)
        }
    })
}

/// Work of the whole problem, in floating-point operations.
pub(super) fn work(problem: &Problem, inputs: &Inputs<'_>) -> u64 {
    let s = problem.tensor_shape();
    let rows = (0..s.batch).flat_map(|batch| (0..s.q_len).map(move |q_pos| (batch, q_pos)));
    let of = |(batch, q_pos)| row_work(problem, Sequence::place(problem, inputs, batch, q_pos));
    rows.map(of).fold(0, u64::saturating_add).saturating_mul(s.heads.into())
}

/// Work of a row: its products, and something where it sees no key.
pub(super) fn row_work(problem: &Problem, place: Option<Place>) -> u64 {
    let s = problem.shape;
    let keys = place.map_or(0, |place| place.visible(problem).len() as u64);
    1 + 2 * keys * (u64::from(s.head_dim) + u64::from(s.v_head_dim))
}

/// Enough of them that threads finish together although causal rows differ in work.
pub(super) fn tasks() -> usize {
    4 * rayon::current_num_threads()
}

/// Where the results of one query go.
pub(super) struct Row<'a> {
    /// Batch, head, query position.
    pub(super) at: (u32, u32, u32),
    /// Where that is in its sequence; `None` past its end.
    pub(super) place: Option<Place>,
    /// `[v_head_dim]`.
    pub(super) out: &'a mut [f32],
    /// One element.
    pub(super) lse: Option<&'a mut [f32]>,
    /// `[kv_len]`.
    pub(super) weights: Option<&'a mut [f32]>,
    /// `[kv_len]`.
    pub(super) scores: Option<&'a mut [f32]>,
}

/// Every query: those that read the same keys together, and of these, neighbours in position
/// together, so that a block of them sees about the same keys in prefill and in decode.
pub(super) fn positions(shape: &Shape) -> impl Iterator<Item = (u32, u32, u32)> {
    let Shape { batch, kv_heads, q_len, .. } = *shape;
    let group = shape.group_size();
    let heads = move |kv_head: u32| kv_head * group..(kv_head + 1) * group;
    (0..batch)
        .flat_map(move |batch| (0..kv_heads).map(move |kv_head| (batch, kv_head)))
        .flat_map(move |(batch, kv_head)| (0..q_len).map(move |q_pos| (batch, kv_head, q_pos)))
        .flat_map(move |(batch, kv_head, q_pos)| {
            heads(kv_head).map(move |head| (batch, head, q_pos))
        })
}

/// Cuts an output into its rows, in the order of [`positions`]. Threads then write rows of any
/// strides in place, without `unsafe` and without a copy, for one pointer a row.
pub(super) fn split<'a>(
    shape: &Shape,
    data: &'a mut [f32],
    strides: Strides,
    width: u32,
) -> Vec<&'a mut [f32]> {
    let mut starts: Vec<_> =
        positions(shape).enumerate().map(|(i, at)| (start(strides, at), i)).collect();
    starts.par_sort_unstable();
    let mut rows: Vec<&mut [f32]> = starts.iter().map(|_| Default::default()).collect();
    let (mut rest, mut rest_start) = (data, 0);
    for (start, i) in starts {
        let from_row = &mut take(&mut rest)[start - rest_start..];
        (rows[i], rest) = from_row.split_at_mut(width as usize);
        rest_start = start + width as usize;
    }
    rows
}

thread_local! {
    /// A thread's scores, written anew for every block.
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Attention of rows that read the same keys.
fn attend(problem: &Problem, inputs: &Inputs<'_>, rows: &mut [Row]) {
    let Inputs { q, k, v, .. } = *inputs;
    let s = problem.shape;
    let (dim, v_dim) = (s.head_dim as usize, s.v_head_dim as usize);
    let (batch, head, _) = rows[0].at;
    let kv_head = head / s.group_size();
    let mut state = State::new(problem, rows);
    let lanes = state.max.len();
    // Transposed, so that gemm reads queries, keys and scores with unit stride.
    let mut queries = vec![0.0; dim * lanes];
    for (first, rows) in (0..).step_by(LANES).zip(rows.chunks(LANES)) {
        // Rows past the last repeat it.
        let row = |i: usize| &q[start(problem.q, rows[i.min(rows.len() - 1)].at)..][..dim];
        let together: [&[f32]; LANES] = std::array::from_fn(row);
        for (d, queries) in queries.chunks_exact_mut(lanes).enumerate() {
            let queries = queries[first..].iter_mut().zip(&together);
            queries.for_each(|(query, row)| *query = row[d]);
        }
    }
    for row in rows.iter_mut() {
        row.weights.iter_mut().for_each(|weights| weights.fill(0.0));
        row.scores.iter_mut().for_each(|scores| scores.fill(f32::NEG_INFINITY));
    }
    let queries = Matrix { data: &queries, strides: (1, lanes) };

    let pairs = Pairs::new(problem, inputs, rows, lanes);
    let within = rows.iter().filter_map(|row| row.place.map(|place| place.within()));
    let seen = match problem.scores {
        None => state.band.seen(),
        Some(_) => within.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0),
    };
    let (mut key_rows, mut value_rows) = (Vec::new(), Vec::new());
    let mut scratch = SCRATCH.take();
    let needed = lanes * seen.len().min(KEYS as usize);
    scratch.resize(scratch.len().max(needed), 0.0);
    for first in seen.clone().step_by(KEYS as usize) {
        let block = first..seen.end.min(first + KEYS);
        let scores = &mut scratch[..lanes * block.len()];
        let place = (batch, kv_head, block.clone());
        let keys = rows_of(problem, inputs, (k, problem.k, dim), place.clone(), &mut key_rows);
        let shape = (lanes, block.len(), dim);
        product(shape, scores, 0.0, problem.effective_scale(), queries, keys);
        pairs.change(&state, scores, &block, rows);
        for (lane, row) in rows.iter_mut().enumerate() {
            let Some(weights) = &mut row.weights else { continue };
            for j in state.band.visible(lane, &block) {
                weights[first as usize + j] = scores[j * lanes + lane];
            }
        }
        Arch::new().dispatch(Softmax { state: &mut state, scores, first });
        drop_weights(problem, inputs, rows, scores, &block);
        let values = rows_of(problem, inputs, (v, problem.v, v_dim), place, &mut value_rows);
        state.add_values(scores, values, v_dim, &block, pairs.hides);
    }
    SCRATCH.set(scratch);
    let sink = if problem.sinks { inputs.sinks } else { &[] };
    let keep_scale = problem.drops().map_or(1.0, |dropout| dropout.keep_scale());
    state.store(rows, sink, keep_scale);
}

/// The keys or values of a block, a column each. Those in pages are copied out of them.
fn rows_of<'a>(
    problem: &Problem,
    inputs: &Inputs<'_>,
    (data, strides, dim): (&'a [f32], Strides, usize),
    (batch, kv_head, block): (u32, u32, Range<u32>),
    copies: &'a mut Vec<f32>,
) -> Matrix<'a> {
    if problem.pages.is_none() {
        return rows_in_place(data, strides, (batch, kv_head, block));
    }
    copies.clear();
    for key in block {
        let (page, row) = inputs.key_at(problem, batch, key);
        copies.extend_from_slice(&data[start(strides, (page, kv_head, row))..][..dim]);
    }
    Matrix { data: copies, strides: (1, dim) }
}

/// Rows of a head as they lie, a column each.
pub(super) fn rows_in_place(
    data: &[f32],
    strides: Strides,
    (batch, head, block): (u32, u32, Range<u32>),
) -> Matrix<'_> {
    let data = &data[start(strides, (batch, head, block.start))..];
    Matrix { data, strides: (1, stride(strides.row, block.len())) }
}

/// What happens to a block's scores between the products.
struct Pairs<'a> {
    value: PairValue<'a>,
    /// Anything but slopes.
    changes: bool,
    alibi: Option<Alibi>,
    /// Some pairs of the band may be hidden.
    hides: bool,
}

impl<'a> Pairs<'a> {
    fn new(problem: &'a Problem, inputs: &'a Inputs<'a>, rows: &[Row], lanes: usize) -> Self {
        let hides = problem.hides_pairs();
        let changes = hides || problem.softcap.is_some() || problem.score_function.is_some();
        let rows = rows.iter().map(|row| (row.place, row.at.1));
        let alibi = Alibi::new(problem, inputs, rows, lanes);
        Self { value: PairValue { problem, inputs }, changes, alibi, hides }
    }

    /// Scaled scores `[keys, lanes]` into those that softmax takes, -inf where a pair is hidden; those of the stage
    /// that the problem asks for go to their rows.
    fn change(&self, state: &State, scores: &mut [f32], block: &Range<u32>, rows: &mut [Row]) {
        let lanes = state.max.len();
        let stage = self.value.problem.scores;
        if !self.changes && stage.is_none() {
            self.alibi.iter().for_each(|alibi| alibi.bias(scores, block.start));
            return;
        }
        for (lane, row) in rows.iter_mut().enumerate() {
            let Some(place) = row.place else { continue };
            let mut keep = |j: u32, score: f64| {
                if let Some(scores) = &mut row.scores {
                    scores[j as usize] = narrow(score);
                }
            };
            let visible = state.band.visible(lane, block);
            let visible = block.start + to_u32(visible.start)..block.start + to_u32(visible.end);
            let within = place.within();
            let range = match stage {
                Some(ScoreStage::Raw | ScoreStage::Capped) => {
                    within.start.max(block.start)..within.end.min(block.end)
                }
                _ => visible.clone(),
            };
            for j in range {
                let score = &mut scores[(j - block.start) as usize * lanes + lane];
                let raw = f64::from(*score);
                let capped = self.value.capped(raw);
                match stage {
                    Some(ScoreStage::Raw) => keep(j, raw),
                    Some(ScoreStage::Capped) => keep(j, capped),
                    _ => {}
                }
                if !visible.contains(&j) {
                    continue;
                }
                let biased = self.value.biased(capped, &place, row.at.1, j);
                *score = biased.map_or(f32::NEG_INFINITY, |score| narrow(score).max(f32::MIN));
                if stage == Some(ScoreStage::Biased) {
                    keep(j, biased.unwrap_or(f64::NEG_INFINITY));
                }
            }
        }
    }
}

#[allow(clippy::cast_possible_truncation, reason = "rounded once")]
pub(super) fn narrow(score: f64) -> f32 {
    score as f32
}

fn to_u32(key: usize) -> u32 {
    u32::try_from(key).expect("a key of a block")
}

/// Distance of neighbours on an axis; the stride of an axis of one element may be anything.
fn stride(elements: u64, len: usize) -> usize {
    if len > 1 { usize::try_from(elements).expect("a slice in memory") } else { 0 }
}
