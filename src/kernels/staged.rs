//! The three stages: raw scores, scale and softmax, weighted sum of the values.

use super::features::store_lse;
use super::{AttentionParams, Binding, Element, Features, Fragments, Kernel, Uses};
use crate::problem::ScoreStage;
use crate::shader::{Source, file};
use crate::tuning::Tuning;

/// How a matrix product is tiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Product {
    /// Register tiles, operands through workgroup memory: `common/product_tile.wgsl`.
    Tile { block_m: u32, block_n: u32, tile_m: u32 },
    /// A column an invocation, rows shared: `common/product_lane.wgsl`.
    Lane { block_m: u32, block_n: u32 },
    /// Matrix units: `common/product_coop.wgsl`.
    Coop(Fragments),
}

impl Product {
    /// Rows and columns of c that a workgroup owns.
    pub(crate) fn block(self) -> (u32, u32) {
        match self {
            Self::Tile { block_m, block_n, .. } | Self::Lane { block_m, block_n } => {
                (block_m, block_n)
            }
            Self::Coop(fragments) => (fragments.rows(), fragments.rows()),
        }
    }

    /// Elements along k that are taken at a time, or a multiple: up to one of these the third stage reads past the last key
    /// that a row sees. Columns take 4, and share the second stage's kernel with tiles all the same.
    pub(crate) fn chunk(self) -> u32 {
        match self {
            Self::Tile { .. } | Self::Lane { .. } => 16,
            Self::Coop(_) => 32,
        }
    }

    pub(super) fn workgroup_size(self) -> u32 {
        match self {
            Self::Tile { block_m, block_n, tile_m } => block_n / 4 * (block_m / tile_m),
            Self::Lane { block_n, .. } => block_n / 2,
            Self::Coop(fragments) => fragments.threads(),
        }
    }

    pub(super) fn workgroup_bytes(self) -> u32 {
        match self {
            Self::Tile { block_m, block_n, .. } => (block_m + block_n) * 5 * 16,
            Self::Lane { .. } => 0,
            Self::Coop(fragments) => fragments.product_bytes(),
        }
    }

    /// Adds the product's constants and file. `guard`: some of a are 0 because a pair is excluded.
    pub(super) fn add_to(self, source: Source, guard: bool, factors: Factors) -> Source {
        let (block_m, block_n) = self.block();
        let source =
            source.constant("BLOCK_M", block_m).constant("BLOCK_N", block_n).flag("GUARD", guard);
        match self {
            Self::Tile { tile_m, .. } => source
                .constant("TILE_M", tile_m)
                .flag("A_ALONG_M", factors.a_along_m)
                .flag("B_ALONG_N", factors.b_along_n)
                .file(file!("common/product_tile.wgsl")),
            Self::Lane { .. } => source.file(file!("common/product_lane.wgsl")),
            Self::Coop(fragments) => fragments
                .add_to(source)
                .constant("THREADS", fragments.threads())
                .flag("A_ALONG_M", factors.a_along_m)
                .flag("B_ALONG_N", factors.b_along_n)
                .real("A_SCALE", if factors.weights { "32768.0" } else { "1.0" })
                .file(fragments.product()),
        }
    }
}

/// How the factors of a product lie.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Factors {
    /// a is contiguous along m, not along k.
    pub(super) a_along_m: bool,
    /// b is contiguous along n, not along k.
    pub(super) b_along_n: bool,
    /// a is of weights, 1 at most.
    pub(super) weights: bool,
}

/// First stage: `kernels/scores.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct Scores<'a> {
    pub(crate) features: &'a Features,
    pub(crate) product: Product,
    pub(crate) head_dim: u32,
    pub(crate) vec4: bool,
}

impl From<Scores<'_>> for Kernel {
    fn from(c: Scores<'_>) -> Self {
        let features = c.features;
        let (q, load_q) = features.q.read("q", c.vec4);
        let (k, load_k) = features.kv.read("k", c.vec4);
        let source = Source::default()
            .with_f16([features.q, features.kv].contains(&Element::F16))
            .constant("HEAD_DIM", c.head_dim)
            .flag("EVERY_TILE", features.every_tile());
        let source = features.add_keys(features.add_rows(source)).files(load_q).files(load_k);
        let mut bindings = vec![Binding::PARAMS, q, k, Binding::write("scores", "f32")];
        bindings.extend(features.bindings(Uses::Keys));
        Self {
            name: "scores",
            source: c
                .product
                .add_to(source, false, Factors::default())
                .file(file!("kernels/scores.wgsl")),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: c.product.workgroup_size(),
            workgroup_bytes: c.product.workgroup_bytes(),
        }
    }
}

/// Second stage: `kernels/softmax.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct Softmax<'a> {
    pub(crate) features: &'a Features,
    pub(crate) threads: u32,
    /// Of the third stage.
    pub(crate) product: Product,
    pub(crate) whole_rows: bool,
}

impl From<Softmax<'_>> for Kernel {
    fn from(c: Softmax<'_>) -> Self {
        let features = c.features;
        let (lse, lse_file) = store_lse(features.lse);
        let keep = match features.scores {
            None => file!("store/no_kept.wgsl"),
            Some(ScoreStage::Raw | ScoreStage::Capped) => file!("store/kept_within.wgsl"),
            Some(ScoreStage::Biased) => file!("store/kept_biased.wgsl"),
        };
        let mut bindings = vec![Binding::PARAMS, Binding::write("scores", "f32")];
        bindings.extend(lse);
        bindings.extend(features.scores.map(|_| Binding::write("kept", "u32")));
        bindings.extend(features.bindings(Uses::Softmax));
        let source = Source::default()
            .constant("THREADS", c.threads)
            .constant("BLOCK_M", c.product.block().0)
            .constant("CHUNK", c.product.chunk())
            .flag("WHOLE_ROWS", c.whole_rows)
            .flag("KEEP_CAPPED", features.scores == Some(ScoreStage::Capped));
        let source = features.add_sinks(features.add_pairs(features.add_rows(source)));
        Self {
            name: "softmax",
            source: source.file(keep).file(lse_file).file(file!("kernels/softmax.wgsl")),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: c.threads,
            workgroup_bytes: c.threads * 8,
        }
    }
}

/// Third stage: `kernels/values.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct Values<'a> {
    pub(crate) features: &'a Features,
    pub(crate) product: Product,
    pub(crate) v_head_dim: u32,
    pub(crate) vec4: bool,
}

impl From<Values<'_>> for Kernel {
    fn from(c: Values<'_>) -> Self {
        let features = c.features;
        let (scores, load_scores) = Element::F32.read("scores", c.vec4);
        let (v, load_v) = features.kv.read("v", false);
        let (out, mut store_out) = features.out.write_out(false);
        store_out.push(if features.out == Element::F32 {
            file!("store/sum.wgsl")
        } else {
            file!("store/put.wgsl")
        });
        let source = Source::default()
            .with_f16([features.kv, features.out].contains(&Element::F16))
            .constant("V_HEAD_DIM", c.v_head_dim)
            .flag("PAIRS", features.hides_pairs())
            .alias("OutElement", features.out.alias());
        let source = features.add_dropout(features.add_keys(features.add_rows(source)));
        let source = source.files(load_scores).files(load_v).files(store_out);
        let mut bindings = vec![Binding::PARAMS, scores, v, out];
        bindings.extend(features.bindings(Uses::Values));
        let factors = Factors { b_along_n: true, weights: true, ..Factors::default() };
        Self {
            name: "values",
            source: c
                .product
                .add_to(source, features.hides(), factors)
                .file(file!("kernels/values.wgsl")),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: c.product.workgroup_size(),
            workgroup_bytes: c.product.workgroup_bytes(),
        }
    }
}

pub(super) fn variants(tuning: &Tuning, covering: &[Features]) -> Vec<Kernel> {
    let mut kernels = Vec::new();
    let product = tuning.product;
    let threads = tuning.row_threads;
    let mut add = |features: &Features, head_dims: &[u32], vec4s: &[bool], whole_rows: &[bool]| {
        for &vec4 in vec4s {
            for &head_dim in head_dims {
                kernels.push(Kernel::from(Scores { features, product, head_dim, vec4 }));
                kernels.push(Values { features, product, v_head_dim: head_dim, vec4 }.into());
            }
        }
        for &whole_rows in whole_rows {
            kernels.push(Softmax { features, threads, product, whole_rows }.into());
        }
    };
    for rows in [super::Rows::Full, super::Rows::Band] {
        for lse in [false, true] {
            let features = Features { rows, lse, ..Features::plain() };
            let head_dims: &[u32] = if lse { &[] } else { &[32, 64, 128] };
            add(&features, head_dims, &[true, false], &[true, false]);
        }
    }
    for (i, features) in covering.iter().enumerate() {
        let features = Features { classes: false, ..features.clone() };
        add(&features, &[[64, 128, 32][i % 3]], &[i % 2 == 0], &[i % 4 < 2]);
    }
    kernels
}

/// The first and the third stage on matrix units.
pub(super) fn add_products(
    kernels: &mut Vec<Kernel>,
    fragments: Fragments,
    features: &Features,
    head_dim: u32,
) {
    let product = Product::Coop(fragments);
    for vec4 in [true, false] {
        kernels.push(Scores { features, product, head_dim, vec4 }.into());
        kernels.push(Values { features, product, v_head_dim: head_dim, vec4 }.into());
    }
}
