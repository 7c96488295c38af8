//! Tiles by device class: data, each row with its reason.

use crate::device::DeviceClass;
use crate::kernels::{Features, FlashLane, FlashTile, Kernel, Product};

/// Which fused kernel, and its tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flash {
    /// Register tiles of `block_q` rows and at most `v_columns` columns of out.
    Tile { block_q: u32, v_columns: u32 },
    /// Whole rows, `block_q` a workgroup, for heads up to `widest`; wider ones take a tile.
    Lane { block_q: u32, widest: u32 },
}

/// What the planner takes for one device class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuning {
    /// Matrix products: the first and third stage, the projections.
    pub(crate) product: Product,
    /// The fused kernel.
    pub(crate) flash: Flash,
    /// Invocations that share one row in the second stage, in merges and fills.
    pub(crate) row_threads: u32,
}

/// Rows and columns of the tile that every GPU but Apple's takes.
const TILE: (u32, u32) = (32, 128);
const WIDE_TILE: Flash = Flash::Tile { block_q: TILE.0, v_columns: TILE.1 };

impl Tuning {
    pub(crate) fn of(class: DeviceClass) -> Self {
        match class {
            // 64 x 64 with 4 x 4 an invocation: 64 FMA for 8 reads of workgroup memory, 10 KiB, no spills on
            // any compiler looked at. 32 rows in the fused kernel fit the 16 KiB that every device has.
            DeviceClass::Hardware => Self {
                product: Product::Tile { block_m: 64, block_n: 64, tile_m: 4 },
                flash: WIDE_TILE,
                row_threads: 64,
            },
            // As above, but the compiler keeps 128 columns of out in more registers than there are: 62 spills.
            DeviceClass::Apple => Self {
                flash: Flash::Tile { block_q: 32, v_columns: 64 },
                ..Self::of(DeviceClass::Hardware)
            },
            // A software GPU runs the lanes of a subgroup as one vector: a uniform address costs one load, a
            // barrier costs a switch of coroutines, a gather costs a load a lane.
            DeviceClass::Software => Self {
                product: Product::Lane { block_m: 16, block_n: 32 },
                flash: Flash::Lane { block_q: 256, widest: 128 },
                row_threads: 16,
            },
        }
    }

    /// The same for so many rows of a sequence: of whole rows, a workgroup owns fewer where there are few.
    pub(crate) fn for_rows(self, q_len: u32) -> Self {
        match self.flash {
            Flash::Lane { widest, .. } if q_len <= FlashLane::CLASS_TILE.0 => {
                Self { flash: Flash::Lane { block_q: FlashLane::CLASS_TILE.0, widest }, ..self }
            }
            _ => self,
        }
    }

    /// Rows that a workgroup of the fused kernel owns, and workgroups that share them by columns of out.
    pub(crate) fn flash_block(&self, head_dim: u32, v_head_dim: u32) -> (u32, u64) {
        let (block_q, v_columns) = match self.flash {
            Flash::Lane { block_q, widest } if head_dim.max(v_head_dim) <= widest => {
                return (block_q, 1);
            }
            Flash::Lane { .. } => TILE,
            Flash::Tile { block_q, v_columns } => (block_q, v_columns),
        };
        (block_q, v_head_dim.div_ceil(v_columns).into())
    }

    /// Rows and keys of the tiles that are skipped whole in the fused kernel for these sizes.
    pub(crate) fn class_tile(&self, head_dim: u32, v_head_dim: u32) -> (u32, u32) {
        let (block_q, _) = self.flash_block(head_dim, v_head_dim);
        match self.flash {
            Flash::Lane { widest, .. } if head_dim.max(v_head_dim) <= widest => {
                FlashLane::CLASS_TILE
            }
            _ => (block_q, FlashTile::BLOCK_KV),
        }
    }

    /// The fused kernel for these sizes.
    pub(crate) fn flash_kernel(
        &self,
        features: &Features,
        head_dim: u32,
        v_head_dim: u32,
        vec4: bool,
    ) -> Kernel {
        match self.flash {
            Flash::Lane { block_q, widest } if head_dim.max(v_head_dim) <= widest => {
                FlashLane { features, head_dim, v_head_dim, block_q, vec4 }.into()
            }
            Flash::Lane { .. } => {
                let tile = Self { flash: WIDE_TILE, ..*self };
                tile.flash_kernel(features, head_dim, v_head_dim, vec4)
            }
            Flash::Tile { block_q, v_columns } => {
                let q_resident = head_dim <= 32;
                FlashTile { features, head_dim, v_head_dim, block_q, v_columns, q_resident, vec4 }
                    .into()
            }
        }
    }
}
