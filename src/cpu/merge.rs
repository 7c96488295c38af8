//! Partial results into one, a row at a time.

use crate::encoding::rounded;
use crate::error::Error;
use crate::merge::Merge;
use crate::outputs::Outputs;
use crate::reference::start;
use crate::watcher::{Meter, Watcher};
use rayon::prelude::*;

/// Rows that a thread merges before it says so.
const ROWS: usize = 256;

/// Slices and shape were checked.
pub(crate) fn merge(
    merge: &Merge,
    out_parts: &[f32],
    lse_parts: &[f32],
    watcher: &Watcher,
) -> Result<Outputs, Error> {
    let s = merge.shape;
    let out_parts = rounded(out_parts, merge.parts_dtype);
    let width = s.v_head_dim as usize;
    let rows = usize::try_from(merge.rows()).expect("of a slice in memory");
    let (heads, q_len) = (u64::from(s.heads), u64::from(s.q_len));
    let part = |stride: u64, p: u32| usize::try_from(stride * u64::from(p)).expect("in memory");
    let place = |row: usize| {
        let row = row as u64;
        let narrow = |n: u64| u32::try_from(n).expect("an index of an axis");
        (narrow(row / q_len / heads), narrow(row / q_len % heads), narrow(row % q_len))
    };

    let meter = Meter::start(watcher, merge.rows())?;
    let mut lse = vec![f32::NEG_INFINITY; rows];
    let mut merged = vec![0.0; rows * width];
    let blocks = merged.par_chunks_mut(ROWS * width).zip(lse.par_chunks_mut(ROWS)).enumerate();
    blocks.try_for_each(|(block, (merged, lse))| {
        for (i, (row, lse)) in merged.chunks_mut(width).zip(lse.iter_mut()).enumerate() {
            let at = place(block * ROWS + i);
            let of = |p: u32| lse_parts[part(merge.lse_part, p) + start(merge.lse_parts, at)];
            let seen = (0..merge.parts).filter(|p| of(*p) != f32::NEG_INFINITY);
            let max = seen.clone().map(of).fold(f32::NEG_INFINITY, f32::max);
            if max == f32::NEG_INFINITY {
                continue;
            }
            let sum: f32 = seen.clone().map(|p| (of(p) - max).exp()).sum();
            // What any x is added to without a trace, x = -0 too.
            row.fill(-0.0);
            for p in seen {
                let weight = (of(p) - max).exp() / sum;
                let first = part(merge.out_part, p) + start(merge.out_parts, at);
                for (o, x) in row.iter_mut().zip(&out_parts[first..]) {
                    *o += weight * *x;
                }
            }
            *lse = max + sum.ln();
        }
        meter.add(lse.len() as u64)
    })?;

    let s_out = merge.out.extent(s.batch, s.heads, s.q_len, s.v_head_dim).expect("validated");
    let mut out = vec![0.0; usize::try_from(s_out).expect("fits in memory")];
    for (row, merged) in merged.chunks(width).enumerate() {
        out[start(merge.out, place(row))..][..width].copy_from_slice(merged);
    }
    let out = rounded(&out, merge.out_dtype).into_owned();
    Ok(Outputs { out, lse: merge.lse.then_some(lse), weights: None, scores: None, saved: None })
}
