//! The fused kernels: scores, softmax and weighted sum in one pass, without a score matrix.

use super::staged::{load, mask, store_lse};
use super::{AttentionParams, Binding, Kernel};
use crate::shader::{File, Source, file};
use crate::tuning::{Flash, Tuning};

/// What both forms compile in.
#[derive(Clone, Copy, Debug)]
struct Fused {
    head_dim: u32,
    v_head_dim: u32,
    banded: bool,
    lse: bool,
    vec4: bool,
}

impl Fused {
    fn source(self, block_q: u32) -> (Source, Vec<Binding>) {
        let (lse, store_lse) = store_lse(self.lse);
        let source = Source::default()
            .constant("HEAD_DIM", self.head_dim)
            .constant("V_HEAD_DIM", self.v_head_dim)
            .constant("BLOCK_Q", block_q)
            .file(file!("common/attention.wgsl"))
            .file(mask(self.banded))
            .file(file!("score/scale.wgsl"))
            .file(load("q", self.vec4))
            .file(load("k", self.vec4))
            .file(load("v", self.vec4))
            .file(store_out(self.vec4))
            .file(store_lse);
        let mut bindings = vec![
            Binding::PARAMS,
            Binding::read("q", self.vec4),
            Binding::read("k", self.vec4),
            Binding::read("v", self.vec4),
            Binding::write("out", self.vec4),
        ];
        bindings.extend(lse);
        (source, bindings)
    }
}

fn store_out(vec4: bool) -> File {
    if vec4 { file!("store/vec4.wgsl") } else { file!("store/scalar.wgsl") }
}

/// Register tiles: `kernels/flash_tile.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlashTile {
    pub(crate) head_dim: u32,
    pub(crate) v_head_dim: u32,
    pub(crate) block_q: u32,
    /// Columns of out that a workgroup owns at most: more would not fit the registers.
    pub(crate) v_columns: u32,
    pub(crate) q_resident: bool,
    pub(crate) banded: bool,
    pub(crate) lse: bool,
    pub(crate) vec4: bool,
}

impl From<FlashTile> for Kernel {
    fn from(c: FlashTile) -> Self {
        let FlashTile { head_dim, v_head_dim, block_q, v_columns, q_resident, banded, lse, vec4 } =
            c;
        let (source, bindings) =
            Fused { head_dim, v_head_dim, banded, lse, vec4 }.source(c.block_q);
        let q_chunks = if q_resident { head_dim.div_ceil(32) } else { 1 };
        Self {
            name: "flash_tile",
            source: source
                .constant("V_COLUMNS", v_head_dim.next_multiple_of(32).min(v_columns))
                .flag("Q_RESIDENT", q_resident)
                .file(file!("kernels/flash_tile.wgsl")),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: block_q * 2,
            workgroup_bytes: ((q_chunks + 1) * block_q + 32) * 9 * 16 + block_q * 8 * 4,
        }
    }
}

/// Whole rows: `kernels/flash_lane.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlashLane {
    pub(crate) head_dim: u32,
    pub(crate) v_head_dim: u32,
    pub(crate) block_q: u32,
    pub(crate) banded: bool,
    pub(crate) lse: bool,
    pub(crate) vec4: bool,
}

impl From<FlashLane> for Kernel {
    fn from(c: FlashLane) -> Self {
        let FlashLane { head_dim, v_head_dim, block_q, banded, lse, vec4 } = c;
        let (source, bindings) =
            Fused { head_dim, v_head_dim, banded, lse, vec4 }.source(c.block_q);
        Self {
            name: "flash_lane",
            source: source.file(file!("kernels/flash_lane.wgsl")),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: block_q / 2,
            workgroup_bytes: 16 * (head_dim.div_ceil(4) + v_head_dim.div_ceil(4)) * 16,
        }
    }
}

pub(super) fn variants(tuning: &Tuning) -> Vec<Kernel> {
    let mut kernels = Vec::new();
    for head_dim in [32, 64, 128] {
        for (banded, lse) in [(false, false), (false, true), (true, false), (true, true)] {
            for vec4 in [true, false] {
                kernels.push(tuning.flash_kernel(head_dim, head_dim, banded, lse, vec4));
            }
        }
    }
    if matches!(tuning.flash, Flash::Lane { .. }) {
        // What heads too wide for whole rows get.
        kernels.push(tuning.flash_kernel(192, 192, true, true, true));
    }
    kernels
}
