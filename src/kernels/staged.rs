//! The three stages: raw scores, scale and softmax, weighted sum of the values.

use super::{Access, AttentionParams, Binding, Kernel};
use crate::shader::{File, Source, file};
use crate::tuning::Tuning;

/// How a matrix product is tiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Product {
    /// Register tiles, operands through workgroup memory: `common/product_tile.wgsl`.
    Tile { block_m: u32, block_n: u32, tile_m: u32 },
    /// A column an invocation, rows shared: `common/product_lane.wgsl`.
    Lane { block_m: u32, block_n: u32 },
}

impl Product {
    /// Rows and columns of c that a workgroup owns.
    pub(crate) fn block(self) -> (u32, u32) {
        match self {
            Self::Tile { block_m, block_n, .. } | Self::Lane { block_m, block_n } => {
                (block_m, block_n)
            }
        }
    }

    pub(super) fn workgroup_size(self) -> u32 {
        match self {
            Self::Tile { block_m, block_n, tile_m } => block_n / 4 * (block_m / tile_m),
            Self::Lane { block_n, .. } => block_n / 2,
        }
    }

    pub(super) fn workgroup_bytes(self) -> u32 {
        match self {
            Self::Tile { block_m, block_n, .. } => (block_m + block_n) * 5 * 16,
            Self::Lane { .. } => 0,
        }
    }

    /// Adds the product's constants and file. `along_n`: b is contiguous along n.
    pub(super) fn add_to(self, source: Source, guard: bool, along_n: bool) -> Source {
        let (block_m, block_n) = self.block();
        let source =
            source.constant("BLOCK_M", block_m).constant("BLOCK_N", block_n).flag("GUARD", guard);
        match self {
            Self::Tile { tile_m, .. } => source
                .constant("TILE_M", tile_m)
                .flag("B_ALONG_N", along_n)
                .file(file!("common/product_tile.wgsl")),
            Self::Lane { .. } => source.file(file!("common/product_lane.wgsl")),
        }
    }
}

/// The file that loads four elements of a tensor.
pub(super) fn load(name: &str, vec4: bool) -> File {
    if vec4 { file!("load/vec4.wgsl").of(name) } else { file!("load/scalar.wgsl").of(name) }
}

/// The file that says which keys a row sees.
pub(super) fn mask(banded: bool) -> File {
    if banded { file!("mask/band.wgsl") } else { file!("mask/full.wgsl") }
}

/// The binding and the file that store the lse, or do not.
pub(super) fn store_lse(asked: bool) -> (Option<Binding>, File) {
    let binding = Binding { name: "lse", access: Access::ReadWrite, element: "u32" };
    if asked {
        (Some(binding), file!("store/lse.wgsl"))
    } else {
        (None, file!("store/no_lse.wgsl"))
    }
}

/// First stage: `kernels/scores.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scores {
    pub(crate) product: Product,
    pub(crate) head_dim: u32,
    pub(crate) banded: bool,
    pub(crate) vec4: bool,
}

impl From<Scores> for Kernel {
    fn from(c: Scores) -> Self {
        let source = Source::default()
            .constant("HEAD_DIM", c.head_dim)
            .file(file!("common/attention.wgsl"))
            .file(mask(c.banded))
            .file(load("q", c.vec4))
            .file(load("k", c.vec4));
        Self {
            name: "scores",
            source: c.product.add_to(source, false, false).file(file!("kernels/scores.wgsl")),
            bindings: vec![
                Binding::PARAMS,
                Binding::read("q", c.vec4),
                Binding::read("k", c.vec4),
                Binding::write("scores", false),
            ],
            fields: AttentionParams::FIELDS,
            workgroup_size: c.product.workgroup_size(),
            workgroup_bytes: c.product.workgroup_bytes(),
        }
    }
}

/// Second stage: `kernels/softmax.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Softmax {
    pub(crate) threads: u32,
    /// Rows that the third stage takes at a time.
    pub(crate) block_m: u32,
    pub(crate) whole_rows: bool,
    pub(crate) banded: bool,
    pub(crate) lse: bool,
}

impl From<Softmax> for Kernel {
    fn from(c: Softmax) -> Self {
        let (lse, store_lse) = store_lse(c.lse);
        let mut bindings = vec![Binding::PARAMS, Binding::write("scores", false)];
        bindings.extend(lse);
        Self {
            name: "softmax",
            source: Source::default()
                .constant("THREADS", c.threads)
                .constant("BLOCK_M", c.block_m)
                .flag("WHOLE_ROWS", c.whole_rows)
                .file(file!("common/attention.wgsl"))
                .file(mask(c.banded))
                .file(file!("score/scale.wgsl"))
                .file(store_lse)
                .file(file!("kernels/softmax.wgsl")),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: c.threads,
            workgroup_bytes: c.threads * 8,
        }
    }
}

/// Third stage: `kernels/values.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Values {
    pub(crate) product: Product,
    pub(crate) v_head_dim: u32,
    pub(crate) banded: bool,
    pub(crate) vec4: bool,
}

impl From<Values> for Kernel {
    fn from(c: Values) -> Self {
        let source = Source::default()
            .constant("V_HEAD_DIM", c.v_head_dim)
            .file(file!("common/attention.wgsl"))
            .file(mask(c.banded))
            .file(load("scores", c.vec4));
        Self {
            name: "values",
            source: c.product.add_to(source, c.banded, true).file(file!("kernels/values.wgsl")),
            bindings: vec![
                Binding::PARAMS,
                Binding::read("scores", c.vec4),
                Binding::read("v", false),
                Binding::write("out", false),
            ],
            fields: AttentionParams::FIELDS,
            workgroup_size: c.product.workgroup_size(),
            workgroup_bytes: c.product.workgroup_bytes(),
        }
    }
}

pub(super) fn variants(tuning: &Tuning) -> Vec<Kernel> {
    let mut kernels = Vec::new();
    let product = tuning.product;
    for banded in [false, true] {
        for vec4 in [true, false] {
            for head_dim in [32, 64, 128] {
                kernels.push(Scores { product, head_dim, banded, vec4 }.into());
                kernels.push(Values { product, v_head_dim: head_dim, banded, vec4 }.into());
            }
        }
        for (whole_rows, lse) in [(false, false), (false, true), (true, false), (true, true)] {
            let (threads, block_m) = (tuning.row_threads, product.block().0);
            kernels.push(Softmax { threads, block_m, whole_rows, banded, lse }.into());
        }
    }
    kernels
}
