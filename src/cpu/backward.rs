//! Gradients in f32: blocks of rows against blocks of keys, on all cores.
//!
//! ```text
//! part of the rows of a key/value head      rows -->  d_q, each row of one part alone
//!   for each block of its rows                 \
//!     for each block of the keys it sees        -->  d_k and d_v of the part, summed over parts in their order
//! ```

use super::attend::{LANES, narrow, positions, row_work, split, tasks};
use super::check_buffers;
use crate::backward::{Backward, BackwardInputs, Gradients};
use crate::encoding::rounded;
use crate::error::Error;
use crate::inputs::Inputs;
use crate::reference::start;
use crate::sequence::{Place, Sequence};
use crate::shape::{DType, Shape};
use crate::watcher::{Meter, Watcher};
use part::Part;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;
use tile::Task;

mod bias;
mod part;
mod slopes;
mod tile;
mod weigh;

/// How much larger than the rows it reads a part's gradients of keys and values may be: what parts cost in memory.
const PART: usize = 16;

/// A query row, and what its gradients start from.
#[derive(Clone, Copy)]
struct Row {
    /// Batch, head, query position.
    at: (u32, u32, u32),
    /// Where that is in its sequence; `None` where it sees nothing, and no sink either.
    place: Option<Place>,
    lse: f32,
    /// `<out, d_out> - d_lse`.
    delta: f32,
}

impl Row {
    /// Key rows that the band shows.
    fn visible(&self, task: &Task<'_>) -> Range<u32> {
        self.place.map_or(0..0, |place| place.visible(task.problem()))
    }
}

/// Of inputs that were checked.
pub(crate) fn backward(
    backward: &Backward,
    inputs: &Inputs<'_>,
    given: &BackwardInputs<'_>,
    watcher: &Watcher,
) -> Result<Gradients, Error> {
    let problem = &backward.problem;
    check_buffers(problem, inputs)?;
    let [q, k, v] =
        [(inputs.q, problem.dtype), (inputs.k, problem.kv_dtype), (inputs.v, problem.kv_dtype)]
            .map(|(data, dtype)| rounded(data, dtype));
    let bias = rounded(inputs.bias, problem.bias.map_or(DType::F32, |bias| bias.dtype));
    let inputs = Inputs { q: &q, k: &k, v: &v, bias: &bias, ..inputs.clone() };
    let [out, d_out] = [given.out, given.d_out].map(|data| rounded(data, problem.out_dtype));
    let task = Task::new(backward, &inputs, &d_out);
    let rows = rows(&task, &BackwardInputs { out: &out, d_out: &d_out, ..*given });

    let work = rows.iter().map(|row| row_work(problem, row.place)).fold(0, u64::saturating_add);
    let passes = 1 + u64::from(backward.d_bias);
    let meter = Meter::start(watcher, work.saturating_mul(passes))?;
    let mut gradients = products(&task, &rows, &meter)?;
    for (data, dtype) in [
        (&mut gradients.q, problem.dtype),
        (&mut gradients.k, problem.kv_dtype),
        (&mut gradients.v, problem.kv_dtype),
    ] {
        if let Cow::Owned(stored) = rounded(data, dtype) {
            *data = stored;
        }
    }
    if backward.d_bias {
        gradients.bias = Some(bias::gradient(&task, &rows, &meter)?);
    }
    gradients.sinks = backward.d_sinks.then(|| sinks(&task, &rows));
    Ok(gradients)
}

/// Gradients of q, k and v in f32, as a part of a run.
pub(super) fn layer_products(
    backward: &Backward,
    inputs: &Inputs<'_>,
    given: &BackwardInputs<'_>,
    meter: &Meter<'_>,
) -> Result<Gradients, Error> {
    let task = Task::new(backward, inputs, given.d_out);
    products(&task, &rows(&task, given), meter)
}

/// Every query row, in the order of [`positions`].
fn rows(task: &Task<'_>, given: &BackwardInputs<'_>) -> Vec<Row> {
    let problem = task.problem();
    let s = problem.tensor_shape();
    let dim = s.v_head_dim as usize;
    let row = |at: (u32, u32, u32)| {
        let index =
            (at.0 as usize * s.heads as usize + at.1 as usize) * s.q_len as usize + at.2 as usize;
        let lse = given.lse[index];
        let place = Sequence::place(problem, task.inputs, at.0, at.2);
        let place = place.filter(|_| lse != f32::NEG_INFINITY);
        let mut delta = 0.0;
        if place.is_some() {
            let out = &given.out[start(problem.out, at)..][..dim];
            let d_out = &given.d_out[start(task.backward.d_out, at)..][..dim];
            let products = out.iter().zip(d_out).map(|(a, b)| f64::from(*a) * f64::from(*b));
            delta = products.sum::<f64>();
            delta -= given.d_lse.get(index).copied().map_or(0.0, f64::from);
        }
        Row { at, place, lse, delta: narrow(delta) }
    };
    positions(&s).collect::<Vec<_>>().into_par_iter().map(row).collect()
}

/// Gradients of q, k, v and the slopes.
fn products(task: &Task<'_>, rows: &[Row], meter: &Meter<'_>) -> Result<Gradients, Error> {
    let (problem, backward) = (task.problem(), task.backward);
    let s = problem.tensor_shape();
    let keys = Shape { heads: s.kv_heads, q_len: s.kv_len, ..s };
    let zeros = |strides: crate::Strides, s: &Shape, dim| {
        let extent = strides.extent(s.batch, s.heads, s.q_len, dim);
        vec![0.0; extent.and_then(|n| usize::try_from(n).ok()).expect("validated")]
    };
    let mut gradients = Gradients {
        q: zeros(backward.d_q, &s, s.head_dim),
        k: zeros(backward.d_k, &keys, s.head_dim),
        v: zeros(backward.d_v, &keys, s.v_head_dim),
        ..Gradients::default()
    };
    let mut by_row = Vec::new();
    if s.batch > 0 && s.q_len > 0 && s.kv_len > 0 {
        let mut d_q = split(&s, &mut gradients.q, backward.d_q, s.head_dim);
        let mut d_k = split(&keys, &mut gradients.k, backward.d_k, s.head_dim);
        let mut d_v = split(&keys, &mut gradients.v, backward.d_v, s.v_head_dim);
        let rows_of_keys = s.q_len as usize * s.group_size() as usize;
        let kv_len = s.kv_len as usize;
        by_row = rows
            .par_chunks(rows_of_keys)
            .zip(d_q.par_chunks_mut(rows_of_keys))
            .zip(d_k.par_chunks_mut(kv_len).zip(d_v.par_chunks_mut(kv_len)))
            .map(|((rows, d_q), (d_k, d_v))| {
                let parts = parts(task, rows, d_q)
                    .into_par_iter()
                    .map(|(rows, d_q)| part::part(task, rows, d_q, meter))
                    .collect::<Result<Vec<_>, Error>>()?;
                sum(&parts, d_k, |part| &part.k);
                sum(&parts, d_v, |part| &part.v);
                Ok(parts.into_iter().flat_map(|part| part.slopes).collect::<Vec<f64>>())
            })
            .collect::<Result<Vec<_>, Error>>()?;
    }
    if backward.d_alibi_slopes {
        gradients.alibi_slopes = Some(slopes::gradient(task, rows, by_row.iter().flatten()));
    }
    Ok(gradients)
}

/// Some rows that read the same keys, and where their gradients go.
type RowsOfPart<'a, 'b> = (&'a [Row], &'a mut [&'b mut [f32]]);

/// Rows that read the same keys, cut into what threads take.
fn parts<'a, 'b>(
    task: &Task<'_>,
    rows: &'a [Row],
    d_q: &'a mut [&'b mut [f32]],
) -> Vec<RowsOfPart<'a, 'b>> {
    let problem = task.problem();
    let s = problem.tensor_shape();
    let batch = if problem.batch_invariant { 1 } else { s.batch };
    let most = tasks().div_ceil(batch as usize * s.kv_heads as usize);
    let sequence = |row: &Row| row.place.map(|place| place.sequence.batch);
    let together = |a: &Row, b: &Row| !problem.needs_rows_alone() || sequence(a) == sequence(b);
    let mut rest = d_q;
    let mut parts = Vec::new();
    for rows in rows.chunk_by(together) {
        let keys = part::seen(task, rows).len();
        let least = keys.div_ceil(PART);
        let len = rows.len().div_ceil(most).max(least).next_multiple_of(LANES);
        for rows in rows.chunks(len) {
            let (d_q, after) = rest.split_at_mut(rows.len());
            parts.push((rows, d_q));
            rest = after;
        }
    }
    parts
}

/// Adds what the parts give to rows of keys or values, in the order of the parts.
fn sum(parts: &[Part], rows: &mut [&mut [f32]], of: impl Fn(&Part) -> &[f32] + Sync) {
    rows.par_iter_mut().enumerate().with_min_len(64).for_each(|(key, row)| {
        for part in parts {
            let Some(at) = part.at(key) else { continue };
            let given = &of(part)[at * row.len()..];
            row.iter_mut().zip(given).for_each(|(x, given)| *x += given);
        }
    });
}

/// `sum exp(sink - lse) (d_lse - delta)` over rows, of each head.
fn sinks(task: &Task<'_>, rows: &[Row]) -> Vec<f32> {
    let mut sums = vec![0.0; task.problem().shape.heads as usize];
    for row in rows.iter().filter(|row| row.place.is_some()) {
        let sink = f64::from(task.inputs.sinks[row.at.1 as usize]);
        sums[row.at.1 as usize] -= (sink - f64::from(row.lse)).exp() * f64::from(row.delta);
    }
    sums.into_iter().map(narrow).collect()
}
