//! Rotary embedding and appending, by their definitions, one row at a time.

use super::{line, start};
use crate::append::{Append, AppendInputs};
use crate::rotary::{Rotary, RotaryEmbedding, RotaryInputs, RotaryPairs};

/// A cache with what was appended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Appended {
    /// As `k` of the inputs, rows not rounded to the cache's type.
    pub k: Vec<f64>,
    /// As `v` of the inputs, rows not rounded to the cache's type.
    pub v: Vec<f64>,
    /// `[batch]`.
    pub kv_lens: Vec<u32>,
    /// `[batch]`: new rows that have no place; of a sequence that has one of them nothing is appended.
    pub status: Vec<u32>,
}

/// A row at `position`, turned. `cos` and `sin` are `[positions, dim / 2]`; past them, the last counts.
///
/// # Panics
/// If a table, or the row, is shorter than `rotary` says.
pub fn rotated(rotary: &Rotary, cos: &[f32], sin: &[f32], position: u64, row: &[f32]) -> Vec<f64> {
    let half = (rotary.dim / 2) as usize;
    let position = position.min(u64::from(rotary.positions - 1));
    let first = usize::try_from(position).expect("a row of a table in memory") * half;
    let mut turned: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
    for i in 0..half {
        let (c, s) = (f64::from(cos[first + i]), f64::from(sin[first + i]));
        let (at_x, at_y) = match rotary.pairs {
            RotaryPairs::HalfSplit => (i, i + half),
            RotaryPairs::Interleaved => (2 * i, 2 * i + 1),
        };
        let (x, y) = (turned[at_x], turned[at_y]);
        turned[at_x] = x * c - y * s;
        turned[at_y] = y * c + x * s;
    }
    turned
}

/// Every row turned, as `out` is laid out; 0 in gaps between rows.
///
/// # Panics
/// If a slice is shorter than the embedding says.
pub fn rotary_embedding(embedding: &RotaryEmbedding, inputs: &RotaryInputs<'_>) -> Vec<f64> {
    let RotaryEmbedding { rotary, batch, heads, len, head_dim, .. } = embedding;
    let extent = embedding.out.extent(*batch, *heads, *len, *head_dim);
    let mut out = vec![0.0; extent.and_then(|n| usize::try_from(n).ok()).expect("fits in memory")];
    for b in 0..*batch {
        let offset = if embedding.offsets { inputs.pos_offsets[b as usize] } else { 0 };
        let rows = if embedding.new_lens { inputs.new_lens[b as usize].min(*len) } else { *len };
        let counted = if embedding.counted { u64::from(rows) } else { 0 };
        for h in 0..*heads {
            for i in 0..*len {
                let row = line(inputs.x, embedding.x, (b, h, i), *head_dim);
                let position = (u64::from(offset) + u64::from(i)).saturating_sub(counted);
                let row = rotated(rotary, inputs.cos, inputs.sin, position, row);
                out[start(embedding.out, (b, h, i))..][..row.len()].copy_from_slice(&row);
            }
        }
    }
    out
}

/// New rows at the positions that sequences have reached.
///
/// # Panics
/// If a slice is shorter than the append says.
pub fn append(append: &Append, inputs: &AppendInputs<'_>) -> Appended {
    let wide = |cache: &[f32]| cache.iter().map(|x| f64::from(*x)).collect();
    let mut all = Appended {
        k: wide(inputs.k),
        v: wide(inputs.v),
        kv_lens: inputs.kv_lens.to_vec(),
        status: Vec::new(),
    };
    for b in 0..append.batch {
        let kv_len = inputs.kv_lens[b as usize];
        let new_len = if append.new_lens {
            inputs.new_lens[b as usize].min(append.new_len)
        } else {
            append.new_len
        };
        let counted = if append.counted { u64::from(new_len) } else { 0 };
        let position = |i: u32| (u64::from(kv_len) + u64::from(i)).checked_sub(counted);
        let places: Vec<_> = (0..new_len).map(|i| place(append, inputs, b, position(i)?)).collect();
        let lacking = places.iter().map(|place| u32::from(place.is_none())).sum();
        let earlier = inputs.append_status.get(b as usize).filter(|_| append.counted);
        let status = earlier.copied().filter(|earlier| *earlier > 0).unwrap_or(lacking);
        all.status.push(status);
        if status > 0 {
            continue;
        }
        if !append.counted {
            all.kv_lens[b as usize] += new_len;
        }
        for (i, place) in (0..).zip(places) {
            let (page, slot) = place.expect("all have one");
            for h in 0..append.kv_heads {
                let k_row = line(inputs.k_new, append.k_new, (b, h, i), append.head_dim);
                let position = position(i).expect("it has a place");
                let k_row = match &append.rotary {
                    Some(rotary) => rotated(rotary, inputs.cos, inputs.sin, position, k_row),
                    None => wide(k_row),
                };
                let v_row = wide(line(inputs.v_new, append.v_new, (b, h, i), append.v_head_dim));
                all.k[start(append.k, (page, h, slot))..][..k_row.len()].copy_from_slice(&k_row);
                all.v[start(append.v, (page, h, slot))..][..v_row.len()].copy_from_slice(&v_row);
            }
        }
    }
    all
}

/// The sequence or page, and the position in it, of a row that stands at `position`.
fn place(append: &Append, inputs: &AppendInputs<'_>, b: u32, position: u64) -> Option<(u32, u32)> {
    let position = u32::try_from(position).ok().filter(|position| *position < append.capacity)?;
    let Some(pages) = append.pages else { return Some((b, position)) };
    let entry = b * append.table_row() + position / pages.page_len;
    let page = inputs.block_table[entry as usize];
    (page < pages.pages).then_some((page, position % pages.page_len))
}
