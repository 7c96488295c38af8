//! Gradients of some rows that read the same keys, and of those keys by these rows.

use super::super::attend::{LANES, row_work};
use super::super::product::Matrix;
use super::super::weighted::{add_rows, wild_rows};
use super::Row;
use super::tile::{Pairs, Rows, Task};
use crate::error::Error;
use crate::watcher::Meter;
use std::ops::Range;

/// Most query rows of a block.
pub(super) const ROWS: usize = 96;
/// Keys of a block: the weights of a block of rows and the gradients of its scores stay in a core's L2 cache.
pub(super) const KEYS: u32 = 128;

/// Gradients of the keys that some rows see, by these rows.
pub(super) struct Part {
    /// From the first key that a row sees to the last.
    keys: Range<u32>,
    /// `[keys, head_dim]`.
    pub(super) k: Vec<f32>,
    /// `[keys, v_head_dim]`.
    pub(super) v: Vec<f32>,
    /// Of every row, where asked for: what it gives to the gradient of its slope.
    pub(super) slopes: Vec<f64>,
}

impl Part {
    /// Where in it a key is.
    pub(super) fn at(&self, key: usize) -> Option<usize> {
        let at = key.checked_sub(self.keys.start as usize)?;
        (at < self.keys.len()).then_some(at)
    }
}

/// From the first key that some row sees to the last.
pub(super) fn seen(task: &Task<'_>, rows: &[Row]) -> Range<u32> {
    let visible = rows.iter().map(|row| row.visible(task)).filter(|keys| !keys.is_empty());
    visible.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
}

/// `d_q`: where gradients of the rows go.
pub(super) fn part(
    task: &Task<'_>,
    rows: &[Row],
    d_q: &mut [&mut [f32]],
    meter: &Meter<'_>,
) -> Result<Part, Error> {
    let problem = task.problem();
    let (dim, v_dim) = (problem.shape.head_dim as usize, problem.shape.v_head_dim as usize);
    let keys = seen(task, rows);
    let mut part = Part {
        k: vec![0.0; keys.len() * dim],
        v: vec![0.0; keys.len() * v_dim],
        slopes: Vec::new(),
        keys,
    };
    let mut pairs = Pairs::default();
    let blocks = rows.len().div_ceil(ROWS);
    let block = rows.len().div_ceil(blocks).next_multiple_of(LANES);
    for (rows, d_q) in rows.chunks(block).zip(d_q.chunks_mut(block)) {
        part.add(task, &Rows::new(task, rows), &mut pairs, d_q);
        if task.backward.d_alibi_slopes {
            part.slopes.append(&mut pairs.slopes);
        }
        meter.add(rows.iter().map(|row| row_work(problem, row.place)).sum())?;
    }
    Ok(part)
}

impl Part {
    /// A block of its rows.
    fn add(&mut self, task: &Task<'_>, rows: &Rows<'_>, pairs: &mut Pairs, d_q: &mut [&mut [f32]]) {
        let shape = task.problem().shape;
        let (dim, v_dim) = (shape.head_dim as usize, shape.v_head_dim as usize);
        let (count, lanes) = (rows.count(), rows.lanes());
        let scale = task.problem().effective_scale();
        let mut sums = vec![0.0; count * dim];
        pairs.begin(rows);
        for block in rows.blocks() {
            let n = block.len();
            let keys =
                pairs.of(task, rows, &block, |derived| derived.by_raw * f64::from(scale), scale);
            let weights = &pairs.weights[..lanes * n];
            let d_scores = &pairs.d_scores[..lanes * n];
            let by_key = |data| Matrix { data, strides: (lanes, 1) };
            let by_row = |data| Matrix { data, strides: (1, lanes) };
            let wild = if task.hides || !rows.see_all(&block) {
                wild_rows(keys, (n, dim))
            } else {
                Vec::new()
            };
            add_rows((count, n, dim), &mut sums, by_key(d_scores), keys, &wild);
            let first = (block.start - self.keys.start) as usize;
            let (q, d_out) = (&rows.q, &rows.d_out);
            let d_k = &mut self.k[first * dim..][..n * dim];
            add_rows((n, count, dim), d_k, by_row(d_scores), q.matrix(), &q.wild);
            let d_v = &mut self.v[first * v_dim..][..n * v_dim];
            add_rows((n, count, v_dim), d_v, by_row(weights), d_out.matrix(), &d_out.wild);
        }
        for (d_q, sums) in d_q.iter_mut().zip(sums.chunks_exact(dim)) {
            d_q.copy_from_slice(sums);
        }
    }
}
