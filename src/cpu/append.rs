//! Appending and turning rows in f32.

use crate::append::{Append, AppendInputs};
use crate::append_host::AppendOutputs;
use crate::chunks::Progress;
use crate::encoding::rounded;
use crate::error::Error;
use crate::layout::Strides;
use crate::reference::start;
use crate::rotary::{Rotary, RotaryEmbedding, RotaryInputs};
use crate::watcher::Watcher;

/// Of inputs that were checked.
pub(crate) fn append(
    append: &Append,
    inputs: &AppendInputs<'_>,
    watcher: &Watcher,
) -> Result<AppendOutputs, Error> {
    watcher.report(Progress { done: 0, total: 1 })?;
    let Append { batch, kv_heads, head_dim, v_head_dim, dtype, kv_dtype, .. } = *append;
    let [k_new, v_new] = [inputs.k_new, inputs.v_new].map(|data| rounded(data, dtype));
    let (cache_batch, cache_len) = append.cache_extents();
    let cache = |data: &[f32], strides: Strides, dim: u32| {
        let extent = strides.extent(cache_batch, kv_heads, cache_len, dim).expect("validated");
        rounded(&data[..usize::try_from(extent).expect("within data")], kv_dtype).into_owned()
    };
    let mut out = AppendOutputs {
        k: cache(inputs.k, append.k, head_dim),
        v: cache(inputs.v, append.v, v_head_dim),
        kv_lens: inputs.kv_lens.to_vec(),
    };
    for b in 0..batch {
        let kv_len = &mut out.kv_lens[b as usize];
        let new_len = inputs.new_lens.get(b as usize).copied().unwrap_or(append.new_len);
        if append.is_refused(inputs, b) {
            continue;
        }
        let first = *kv_len - if append.counted { new_len } else { 0 };
        for i in 0..new_len {
            let pos = first + i;
            let (at, slot) = append.pages.map_or((b, pos), |pages| {
                let entry = (b * append.table_row() + pos / pages.page_len) as usize;
                (inputs.block_table[entry], pos % pages.page_len)
            });
            for h in 0..kv_heads {
                let mut row = line(&k_new, append.k_new, (b, h, i), head_dim).to_vec();
                if let Some(rotary) = &append.rotary {
                    turn(rotary, inputs.cos, inputs.sin, pos, &mut row);
                }
                let place = start(append.k, (at, h, slot));
                out.k[place..][..row.len()].copy_from_slice(&rounded(&row, kv_dtype));
                let row = line(&v_new, append.v_new, (b, h, i), v_head_dim);
                let place = start(append.v, (at, h, slot));
                out.v[place..][..row.len()].copy_from_slice(&rounded(row, kv_dtype));
            }
        }
        *kv_len = first + new_len;
    }
    watcher.report(Progress { done: 1, total: 1 })?;
    Ok(out)
}

/// Of inputs that were checked.
pub(crate) fn rotary_embedding(
    embedding: &RotaryEmbedding,
    inputs: &RotaryInputs<'_>,
    watcher: &Watcher,
) -> Result<Vec<f32>, Error> {
    watcher.report(Progress { done: 0, total: 1 })?;
    let RotaryEmbedding { batch, heads, len, head_dim, dtype, out_dtype, .. } = *embedding;
    let x = rounded(inputs.x, dtype);
    let extent = embedding.out.extent(batch, heads, len, head_dim);
    let mut out = vec![0.0; extent.and_then(|n| usize::try_from(n).ok()).expect("checked")];
    for b in 0..batch {
        let offset = inputs.pos_offsets.get(b as usize).copied().unwrap_or(0);
        let rows = inputs.new_lens.get(b as usize).copied().unwrap_or(len);
        let first = offset - if embedding.counted { rows } else { 0 };
        for h in 0..heads {
            for i in 0..len {
                let mut row = line(&x, embedding.x, (b, h, i), head_dim).to_vec();
                // Rows past a sequence's own may be past the tables.
                let pos = first.saturating_add(i).min(embedding.rotary.positions - 1);
                turn(&embedding.rotary, inputs.cos, inputs.sin, pos, &mut row);
                let place = start(embedding.out, (b, h, i));
                out[place..][..row.len()].copy_from_slice(&rounded(&row, out_dtype));
            }
        }
    }
    watcher.report(Progress { done: 1, total: 1 })?;
    Ok(out)
}

/// A row at a position that the tables have.
fn turn(rotary: &Rotary, cos: &[f32], sin: &[f32], pos: u32, row: &mut [f32]) {
    let half = rotary.dim / 2;
    let first = pos as usize * half as usize;
    for (i, (c, s)) in (0..half).zip(cos[first..].iter().zip(&sin[first..])) {
        let [at_x, at_y] = rotary.pair(i);
        let (x, y) = (row[at_x], row[at_y]);
        row[at_x] = x * c - y * s;
        row[at_y] = y * c + x * s;
    }
}

fn line(data: &[f32], strides: Strides, at: (u32, u32, u32), dim: u32) -> &[f32] {
    &data[start(strides, at)..][..dim as usize]
}
