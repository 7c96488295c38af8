//! Gradients of the bias: those of the scores, summed over the axes that it shares.
//!
//! A pass of its own, so that what the other gradients are cut into does not decide in which order a bias that heads
//! share is summed.

use super::super::attend::{narrow, row_work};
use super::Row;
use super::part::ROWS;
use super::tile::{Pairs, Rows, Task};
use crate::error::Error;
use crate::watcher::Meter;
use rayon::prelude::*;
use std::ops::Range;

/// Rows of scores whose gradients one thread sums.
struct Piece {
    batches: Range<u32>,
    kv_heads: Range<u32>,
    queries: Range<u32>,
}

/// The axes of the bias, contiguous.
pub(super) fn gradient(
    task: &Task<'_>,
    rows: &[Row],
    meter: &Meter<'_>,
) -> Result<Vec<f32>, Error> {
    let Some(bias) = task.problem().bias else { return Ok(Vec::new()) };
    let to = bias.gradient();
    let extent = to.extent(to.axes).and_then(|n| usize::try_from(n).ok()).expect("validated");
    let pieces = pieces(task);
    let sums = pieces.par_iter().map(|piece| sum(task, rows, piece, meter));
    let sums = sums.collect::<Result<Vec<_>, Error>>()?;
    let mut gradient = vec![0.0; extent];
    for (piece, sums) in pieces.iter().zip(&sums) {
        let layout = Layout::new(task, piece);
        let mut sums = sums.iter();
        for head in layout.heads.clone() {
            for query in layout.queries.clone() {
                let at = to.index([piece.batches.start, head, query, 0]);
                let row = &mut gradient[usize::try_from(at).expect("in memory")..];
                row.iter_mut().zip(sums.by_ref().take(layout.keys)).for_each(|(x, y)| *x += y);
            }
        }
    }
    Ok(gradient.into_iter().map(narrow).collect())
}

/// Where queries have biases of their own, of some of them all that share one; else of one key/value head all.
fn pieces(task: &Task<'_>) -> Vec<Piece> {
    let s = task.problem().shape;
    let axes = task.problem().bias.map_or([1; 4], |bias| bias.pairs.axes);
    let own_queries = axes[2] != 1;
    let cut = |n: u32, whole: bool, len: u32| -> Vec<Range<u32>> {
        let len = if whole { n.max(1) } else { len };
        (0..n).step_by(len as usize).map(|first| first..n.min(first + len)).collect()
    };
    let most = u32::try_from(ROWS).expect("few").div_ceil(s.group_size());
    let queries = cut(s.q_len, !own_queries, most);
    let kv_heads = cut(s.kv_heads, own_queries && axes[1] == 1, 1);
    let batches = cut(s.batch, own_queries && axes[0] == 1, 1);
    let mut pieces = Vec::new();
    for batches in &batches {
        for kv_heads in &kv_heads {
            let (batches, kv_heads) = (batches.clone(), kv_heads.clone());
            pieces.extend(queries.iter().map(|queries| Piece {
                batches: batches.clone(),
                kv_heads: kv_heads.clone(),
                queries: queries.clone(),
            }));
        }
    }
    pieces
}

/// What of the bias a piece sums: one of an axis that it shares.
struct Layout {
    heads: Range<u32>,
    queries: Range<u32>,
    keys: usize,
}

impl Layout {
    fn new(task: &Task<'_>, piece: &Piece) -> Self {
        let group = task.problem().shape.group_size();
        let axes = task.problem().bias.map_or([1; 4], |bias| bias.pairs.axes);
        let own = |axis: usize, all: Range<u32>| if axes[axis] == 1 { 0..1 } else { all };
        Self {
            heads: own(1, piece.kv_heads.start * group..piece.kv_heads.end * group),
            queries: own(2, piece.queries.clone()),
            keys: axes[3] as usize,
        }
    }

    /// Index of the sum of a row's first key.
    fn first(&self, (_, head, query): (u32, u32, u32)) -> usize {
        let of = |at: u32, axis: &Range<u32>| at.clamp(axis.start, axis.end - 1) - axis.start;
        let (head, query) = (of(head, &self.heads), of(query, &self.queries));
        (head as usize * self.queries.len() + query as usize) * self.keys
    }
}

/// `[heads, queries, keys]` of the piece's layout.
fn sum(task: &Task<'_>, rows: &[Row], piece: &Piece, meter: &Meter<'_>) -> Result<Vec<f64>, Error> {
    let problem = task.problem();
    let s = problem.shape;
    let layout = Layout::new(task, piece);
    let mut sums = vec![0.0; layout.heads.len() * layout.queries.len() * layout.keys];
    let mut pairs = Pairs::default();
    for batch in piece.batches.clone() {
        for kv_head in piece.kv_heads.clone() {
            let head = u64::from(batch) * u64::from(s.kv_heads) + u64::from(kv_head);
            let row = |query: u32| {
                let row =
                    (head * u64::from(s.q_len) + u64::from(query)) * u64::from(s.group_size());
                usize::try_from(row).expect("in memory")
            };
            for rows in rows[row(piece.queries.start)..row(piece.queries.end)].chunks(ROWS) {
                add(task, &Rows::new(task, rows), &mut pairs, &layout, &mut sums);
                meter.add(rows.iter().map(|row| row_work(problem, row.place)).sum())?;
            }
        }
    }
    Ok(sums)
}

fn add(task: &Task<'_>, rows: &Rows<'_>, pairs: &mut Pairs, layout: &Layout, sums: &mut [f64]) {
    pairs.begin(rows);
    for block in rows.blocks() {
        pairs.of(task, rows, &block, |derived| derived.by_bias, 1.0);
        for (lane, row, visible) in rows.visible(&block) {
            let sums = &mut sums[layout.first(row.at)..];
            for j in visible {
                let key = if layout.keys == 1 { 0 } else { block.start as usize + j };
                sums[key] += f64::from(pairs.d_scores[j * rows.lanes() + lane]);
            }
        }
    }
}
