//! Partial results into one, and the result over no key at all.

use super::staged::store_lse;
use super::{Access, AttentionParams, Binding, Kernel};
use crate::shader::{Source, file};
use crate::tuning::Tuning;

/// `kernels/fill.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    pub(crate) threads: u32,
    pub(crate) v_head_dim: u32,
    pub(crate) lse: bool,
}

impl From<Fill> for Kernel {
    fn from(c: Fill) -> Self {
        let (lse, store_lse) = store_lse(c.lse);
        let mut bindings = vec![Binding::PARAMS, Binding::write("out", false)];
        bindings.extend(lse);
        Self {
            name: "fill",
            source: row_source(c.threads, c.v_head_dim)
                .file(store_lse)
                .file(file!("kernels/fill.wgsl")),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: c.threads,
            workgroup_bytes: 0,
        }
    }
}

/// `kernels/merge.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Merge {
    pub(crate) threads: u32,
    pub(crate) v_head_dim: u32,
    pub(crate) lse: bool,
}

impl From<Merge> for Kernel {
    fn from(c: Merge) -> Self {
        let (lse, store_lse) = store_lse(c.lse);
        let mut bindings = vec![
            Binding::PARAMS,
            Binding::read("partial_out", false),
            Binding { name: "partial_lse", access: Access::Read, element: "u32" },
            Binding::write("out", false),
        ];
        bindings.extend(lse);
        Self {
            name: "merge",
            source: row_source(c.threads, c.v_head_dim)
                .file(store_lse)
                .file(file!("kernels/merge.wgsl")),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: c.threads,
            workgroup_bytes: 0,
        }
    }
}

fn row_source(threads: u32, v_head_dim: u32) -> Source {
    Source::default()
        .constant("THREADS", threads)
        .constant("V_HEAD_DIM", v_head_dim)
        .file(file!("common/attention.wgsl"))
        .file(super::staged::mask(false))
}

pub(super) fn variants(tuning: &Tuning) -> Vec<Kernel> {
    let threads = tuning.row_threads;
    [32, 64, 128]
        .into_iter()
        .flat_map(|v_head_dim| {
            [false, true].into_iter().flat_map(move |lse| {
                [
                    Fill { threads, v_head_dim, lse }.into(),
                    Merge { threads, v_head_dim, lse }.into(),
                ]
            })
        })
        .collect()
}
