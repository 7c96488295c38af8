//! Tiles by device class: data, each row with its reason.

use crate::device::{Capabilities, DeviceClass};
use crate::kernels::{
    DecodeLane, DecodeTeam, Features, FlashCoop, FlashLane, FlashTile, Fragments, Gradient,
    GradientTile, GradientsLane, Kernel, Product,
};

/// Which fused kernel, and its tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flash {
    /// Register tiles of `block_q` rows and at most `v_columns` columns of out.
    Tile { block_q: u32, v_columns: u32 },
    /// Whole rows, `block_q` a workgroup, for heads up to `widest`; wider ones take a tile.
    Lane { block_q: u32, widest: u32 },
    /// Matrix units, where the planner found that they may be used.
    Coop(Fragments),
}

/// Which kernel few rows over many keys take, and how many rows that share a key/value head are few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decode {
    /// Invocations work together on a row: each has at most so many `sums` of four columns of out.
    Team { most: u32, sums: u32 },
    /// A row an invocation, for heads up to `widest`.
    Lane { most: u32, widest: u32 },
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
    /// The kernel of few rows over many keys.
    pub(crate) decode: Decode,
    /// The least invocations of a subgroup; 0 where shaders may not use any.
    pub(crate) subgroups: u32,
    /// Loops of whole rows stay loops: written out, they take the compiler gigabytes.
    pub(crate) rolled: bool,
}

/// A class's row of the table.
struct Row {
    class: DeviceClass,
    tuning: Tuning,
    /// Families of kernels, and how many subgroups of one a core, as the class's compilers count it, has room for at
    /// least: what their registers and workgroup memory leave. `ci/isa-record` reads it.
    waves: &'static [(&'static str, u32)],
}

/// Rows and columns of the tile that every GPU but Apple's takes.
const TILE: (u32, u32) = (64, 128);
const WIDE_TILE: Flash = Flash::Tile { block_q: TILE.0, v_columns: TILE.1 };

/// What fits the 16 KiB of workgroup memory and the 256 invocations that every device has. Products: 128 x 64 with
/// 8 x 4 an invocation, 128 multiply-adds for 12 reads of workgroup memory. The fused kernel: 64 rows with 4 x 4 an
/// invocation; 8 x 4 would need 176 registers on NVIDIA and 250 on RDNA, half the subgroups, and spill on Apple's.
const GENERAL: Tuning = Tuning {
    product: Product::Tile { block_m: 128, block_n: 64, tile_m: 8 },
    flash: WIDE_TILE,
    row_threads: 64,
    decode: Decode::Team { most: 16, sums: 16 },
    subgroups: 0,
    rolled: false,
};

/// A class without a row takes the first. Classes whose compiler is not at hand have none of their own.
const TABLE: &[Row] = &[
    Row { class: DeviceClass::Hardware, tuning: GENERAL, waves: &[] },
    // 128 registers at width 128: 16 subgroups of 48. What hides pairs takes up to 200, with keys in pages on matrix units
    // too.
    Row {
        class: DeviceClass::Nvidia,
        tuning: GENERAL,
        waves: &[
            ("decode_team", 8),
            ("flash_tile", 8),
            ("scores", 32),
            ("values", 32),
            ("linear", 32),
            ("flash_coop", 8),
            ("product_coop", 16),
        ],
    },
    Row {
        class: DeviceClass::AmdRdna,
        tuning: GENERAL,
        waves: &[
            ("decode_team", 6),
            ("flash_tile", 6),
            ("scores", 12),
            ("values", 12),
            ("linear", 12),
            ("flash_coop", 6),
            ("product_coop", 4),
        ],
    },
    Row {
        class: DeviceClass::AmdGcn,
        tuning: GENERAL,
        waves: &[("flash_tile", 1), ("decode_team", 1)],
    },
    // Its compiler keeps 128 columns of out in more registers than there are: 70 spills. So it does with 16 sums of a
    // team's invocation: 20 to 60. Dropout of packed sequences leaves room for 18 subgroups of `values`, all else for 20.
    Row {
        class: DeviceClass::Apple,
        tuning: Tuning {
            flash: Flash::Tile { block_q: 64, v_columns: 64 },
            decode: Decode::Team { most: 16, sums: 8 },
            ..GENERAL
        },
        waves: &[
            ("decode_team", 12),
            ("flash_tile", 12),
            ("scores", 20),
            ("values", 18),
            ("linear", 24),
        ],
    },
    Row {
        class: DeviceClass::Adreno,
        tuning: Tuning { decode: Decode::Team { most: 16, sums: 8 }, ..GENERAL },
        waves: &[
            ("decode_team", 4),
            ("flash_tile", 4),
            ("scores", 6),
            ("values", 8),
            ("linear", 8),
        ],
    },
    // A software GPU runs the lanes of a subgroup as one vector: a uniform address costs one load, a barrier costs a
    // switch of coroutines, a gather costs a load a lane.
    Row {
        class: DeviceClass::Software,
        tuning: Tuning {
            product: Product::Lane { block_m: 16, block_n: 32 },
            flash: Flash::Lane { block_q: 256, widest: 128 },
            row_threads: 16,
            decode: Decode::Lane { most: 16, widest: 128 },
            subgroups: 0,
            rolled: false,
        },
        waves: &[],
    },
];

fn row(class: DeviceClass) -> &'static Row {
    TABLE.iter().find(|row| row.class == class).unwrap_or(&TABLE[0])
}

/// How many subgroups of a kernel a core of the class has room for at least, as its compiler counts; `None` where
/// nothing is said.
pub(crate) fn least_waves(class: DeviceClass, kernel: &str) -> Option<u32> {
    row(class).waves.iter().find(|(name, _)| *name == kernel).map(|(_, waves)| *waves)
}

impl Tuning {
    pub(crate) fn of(capabilities: &Capabilities) -> Self {
        let (subgroups, rolled) = (capabilities.subgroup_size, capabilities.rolled);
        Self { subgroups, rolled, ..row(capabilities.class).tuning }
    }

    /// The same for so many rows of a sequence: of whole rows, a workgroup owns fewer where there are few, and where
    /// some keys may be hidden from all of them, which need not be brought then.
    pub(crate) fn for_rows(self, q_len: u32, features: &Features) -> Self {
        match self.flash {
            Flash::Lane { widest, .. }
                if q_len <= FlashLane::CLASS_TILE.0 || features.hides_pairs() =>
            {
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
            Flash::Coop(fragments) => return (fragments.rows(), 1),
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
            Flash::Coop(_) => (block_q, Fragments::BLOCK_KV),
            _ => (block_q, FlashTile::BLOCK_KV),
        }
    }

    /// Of so many rows that share a key/value head, those that a workgroup of the kernel of few rows takes; `None` where
    /// that kernel is not for them.
    pub(crate) fn decode_rows(
        &self,
        features: &Features,
        [head_dim, v_head_dim]: [u32; 2],
        rows: u32,
    ) -> Option<u32> {
        match self.decode {
            Decode::Lane { most, widest } => {
                let suits = rows <= most && head_dim.max(v_head_dim) <= widest;
                suits.then(|| rows.next_multiple_of(8))
            }
            Decode::Team { most, .. } => {
                // What happens to heavy pairs takes the registers that more rows would.
                let limit = if features.is_heavy() { 4 } else { 8 };
                let wanted = rows.next_power_of_two().min(limit);
                let mut tried = [8, 4, 2, 1].into_iter().filter(|n| rows <= most && *n <= wanted);
                // 8 KiB of workgroup memory for the queries.
                tried.find(|n| n * head_dim <= 2048 && self.team(v_head_dim, *n).is_some())
            }
        }
    }

    /// Invocations that work together on so many rows, and have their sums in registers and in 8 KiB of workgroup memory.
    fn team(&self, v_head_dim: u32, rows: u32) -> Option<u32> {
        let Decode::Team { sums, .. } = self.decode else { return None };
        let fits =
            |lanes: &u32| rows * v_head_dim.div_ceil(4 * lanes) <= sums && v_head_dim <= 16 * lanes;
        [8, 16, 32].into_iter().find(fits)
    }

    /// The kernel of few rows, `rows` a workgroup.
    pub(crate) fn decode_kernel(
        &self,
        features: &Features,
        [head_dim, v_head_dim]: [u32; 2],
        rows: u32,
        ranges: bool,
        vec4: bool,
    ) -> Kernel {
        match self.decode {
            Decode::Lane { .. } => {
                let rolled = self.rolled;
                DecodeLane { features, head_dim, v_head_dim, rows, rolled, ranges, vec4 }.into()
            }
            Decode::Team { .. } => {
                let lanes = self.team(v_head_dim, rows).unwrap_or(32);
                // A caller's text is checked as one that may not use subgroups.
                let callers = features.score.is_some() || features.visible.is_some();
                let shuffles = lanes <= self.subgroups && !callers;
                DecodeTeam { features, head_dim, v_head_dim, rows, lanes, shuffles, ranges, vec4 }
                    .into()
            }
        }
    }

    /// What fused kernels of gradients there are: of keys and values apart where both sums do not fit the registers.
    pub(crate) fn gradients(&self) -> &'static [Gradient] {
        match self.flash {
            Flash::Lane { .. } => &[Gradient::Queries, Gradient::KeysAndValues],
            _ => &[Gradient::Queries, Gradient::Keys, Gradient::Values],
        }
    }

    /// Whether fused kernels of gradients are for these: what happens to heavy pairs takes the registers that sums would,
    /// and whole rows are of heads that the forward kernel takes whole.
    pub(crate) fn has_gradients(&self, features: &Features, dims: [u32; 2]) -> bool {
        match self.flash {
            Flash::Lane { widest, .. } => dims.into_iter().max() <= Some(widest),
            // Of one chunk of columns, Apple's compiler loads everything at once: 16 spilled.
            Flash::Tile { v_columns: 64, .. } if dims.into_iter().max() <= Some(32) => false,
            _ => !features.is_heavy(),
        }
    }

    /// Rows or keys of a workgroup of a fused kernel of gradients, and workgroups that share them by columns.
    pub(crate) fn gradient_block(&self, gradient: Gradient, dims: [u32; 2]) -> (u32, u64) {
        let columns = match self.flash {
            Flash::Lane { block_q, .. } => return (block_q, 1),
            Flash::Tile { v_columns, .. } => v_columns,
            Flash::Coop(_) => TILE.1,
        };
        let width = dims[usize::from(gradient == Gradient::Values)];
        (TILE.0, width.div_ceil(columns).into())
    }

    /// A fused kernel of gradients.
    pub(crate) fn gradient_kernel(
        &self,
        features: &Features,
        gradient: Gradient,
        [head_dim, v_head_dim]: [u32; 2],
        vec4: bool,
    ) -> Kernel {
        let (block, _) = self.gradient_block(gradient, [head_dim, v_head_dim]);
        let columns = match self.flash {
            Flash::Lane { .. } => {
                let rolled = self.rolled;
                return GradientsLane {
                    features,
                    gradient,
                    head_dim,
                    v_head_dim,
                    block,
                    rolled,
                    vec4,
                }
                .into();
            }
            Flash::Tile { v_columns, .. } => v_columns,
            Flash::Coop(_) => TILE.1,
        };
        GradientTile { features, gradient, head_dim, v_head_dim, block, columns, vec4 }.into()
    }

    /// The fused kernel for these sizes.
    pub(crate) fn flash_kernel(
        &self,
        features: &Features,
        head_dim: u32,
        v_head_dim: u32,
        ranges: bool,
        vec4: bool,
    ) -> Kernel {
        match self.flash {
            Flash::Lane { block_q, widest } if head_dim.max(v_head_dim) <= widest => {
                let rolled = self.rolled;
                FlashLane { features, head_dim, v_head_dim, block_q, rolled, ranges, vec4 }.into()
            }
            Flash::Coop(fragments) => {
                FlashCoop { features, head_dim, v_head_dim, fragments, ranges, vec4 }.into()
            }
            Flash::Lane { .. } => {
                let tile = Self { flash: WIDE_TILE, ..*self };
                tile.flash_kernel(features, head_dim, v_head_dim, ranges, vec4)
            }
            Flash::Tile { block_q, v_columns } => {
                let subgroups = self.subgroups >= 8;
                FlashTile {
                    features,
                    head_dim,
                    v_head_dim,
                    block_q,
                    v_columns,
                    subgroups,
                    ranges,
                    vec4,
                }
                .into()
            }
        }
    }
}
