//! The fused kernels of gradients: one of queries, one of keys and values, each with scores made anew.

use super::{AttentionParams, Binding, Element, Features, FlashTile, Kernel, Uses};
use crate::shader::{Source, file};
use crate::shape::DType;
use crate::tuning::Tuning;
use crate::unroll::unrolled;

/// Which gradients a fused kernel makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gradient {
    /// Of queries: a workgroup owns rows and walks keys.
    Queries,
    /// Of keys: a workgroup owns keys and walks rows.
    Keys,
    /// Of values: the same.
    Values,
    /// Of keys and values.
    KeysAndValues,
}

impl Gradient {
    /// Whether workgroups own keys.
    pub(crate) fn owns_keys(self) -> bool {
        self != Self::Queries
    }

    /// Products as wide as a key and as wide as a value.
    pub(crate) fn products(self) -> [u64; 2] {
        match self {
            Self::Queries | Self::Keys => [2, 1],
            Self::Values => [1, 1],
            Self::KeysAndValues => [2, 2],
        }
    }

    fn outputs(self) -> &'static [&'static str] {
        if self == Self::KeysAndValues { &["d_k", "d_v"] } else { &["out"] }
    }
}

/// What all forms compile in.
fn source(
    c: &Features,
    gradient: Gradient,
    [head_dim, v_head_dim]: [u32; 2],
    vec4: bool,
) -> (Source, Vec<Binding>) {
    let (q, load_q) = c.q.read("q", vec4);
    let (k, load_k) = c.kv.read("k", vec4);
    let (v, load_v) = c.kv.read("v", vec4);
    let (d_out, load_d_out) = c.out.read("d_out", vec4);
    let to = if gradient.owns_keys() { c.kv } else { c.q };
    let mut bindings = vec![Binding::PARAMS, q, k, v, d_out, Binding::read("stats", "u32")];
    let source = Source::default()
        .with_f16([c.q, c.kv, c.out].contains(&Element::F16))
        .constant("HEAD_DIM", head_dim)
        .constant("V_HEAD_DIM", v_head_dim)
        .flag("PAIRS", c.hides_pairs())
        .alias("OutElement", to.alias());
    let source = c.add_pair_gradients(c.add_pairs(c.add_keys(c.add_rows(source))));
    let source = c.add_dropout(source);
    let mut source = source
        .file(file!("rows/seeing.wgsl"))
        .file(file!("gradient/finite.wgsl"))
        .files(load_q)
        .files(load_k)
        .files(load_v)
        .files(load_d_out)
        .files(to.rounding());
    for name in gradient.outputs() {
        let (binding, store) = to.write(name, vec4);
        bindings.push(binding);
        source = source.file(store);
    }
    bindings.extend(c.bindings(Uses::Gradients));
    (source, bindings)
}

/// Register tiles: `kernels/gradient_tile.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct GradientTile<'a> {
    pub(crate) features: &'a Features,
    pub(crate) gradient: Gradient,
    pub(crate) head_dim: u32,
    pub(crate) v_head_dim: u32,
    /// Rows or keys of a workgroup.
    pub(crate) block: u32,
    /// Columns of the result that a workgroup owns at most: more would not fit the registers.
    pub(crate) columns: u32,
    pub(crate) vec4: bool,
}

impl From<GradientTile<'_>> for Kernel {
    fn from(c: GradientTile<'_>) -> Self {
        let GradientTile { head_dim, v_head_dim, block, gradient, .. } = c;
        let (source, bindings) = source(c.features, gradient, [head_dim, v_head_dim], c.vec4);
        let width = if gradient == Gradient::Values { v_head_dim } else { head_dim };
        let columns = width.next_multiple_of(32).min(c.columns);
        let side = if gradient.owns_keys() {
            file!("gradient/own_keys.wgsl")
        } else {
            file!("gradient/own_rows.wgsl")
        };
        let mut kernel = file!("kernels/gradient_tile.wgsl");
        // The registers that sums are in must not be indexed: no compiler unrolls loops around as much as these.
        let mut constants = vec![("C_CHUNKS", columns / 32)];
        if source.is_checked() {
            constants.push(("TILE_M", FlashTile::TILE_M));
        }
        kernel.text = unrolled(&kernel.text, &constants).into();
        Self {
            name: "gradient_tile",
            source: source
                .constant("TILE_M", FlashTile::TILE_M)
                .constant("BLOCK", block)
                .constant("COLUMNS", columns)
                .flag("OF_VALUES", gradient == Gradient::Values)
                .file(side)
                .file(kernel),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: block / FlashTile::TILE_M * 8,
            workgroup_bytes: (block + FlashTile::BLOCK_KV) * FlashTile::PITCH * 4,
        }
    }
}

/// Whole rows, or whole keys: `kernels/d_q_lane.wgsl` and `kernels/d_kv_lane.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct GradientsLane<'a> {
    pub(crate) features: &'a Features,
    pub(crate) gradient: Gradient,
    pub(crate) head_dim: u32,
    pub(crate) v_head_dim: u32,
    /// Rows or keys of a workgroup.
    pub(crate) block: u32,
    pub(crate) rolled: bool,
    pub(crate) vec4: bool,
}

impl GradientsLane<'_> {
    /// Rows of an invocation, and of those walked that it takes at a time, as in the forward kernel.
    fn pairs_each(&self) -> (u32, u32) {
        match self.head_dim.max(self.v_head_dim) {
            0..=64 => (2, 4),
            _ => (1, 4),
        }
    }
}

impl From<GradientsLane<'_>> for Kernel {
    fn from(c: GradientsLane<'_>) -> Self {
        let GradientsLane { head_dim, v_head_dim, block, .. } = c;
        let (source, bindings) = source(c.features, c.gradient, [head_dim, v_head_dim], c.vec4);
        let (rows, walked) = c.pairs_each();
        let (name, mut kernel, walk, rounds) = if c.gradient.owns_keys() {
            ("d_kv_lane", file!("kernels/d_kv_lane.wgsl"), "QUERIES", ["Q_ROUNDS", "O_ROUNDS"])
        } else {
            ("d_q_lane", file!("kernels/d_q_lane.wgsl"), "KEYS", ["K_ROUNDS", "V_ROUNDS"])
        };
        let (d4, v4) = (head_dim.div_ceil(4), v_head_dim.div_ceil(4));
        // What is summed up is there twice.
        let tiles = if c.gradient.owns_keys() { 2 * (d4 + v4) } else { 2 * d4 + v4 };
        let rounds_of = |columns: u32| (walked * columns).div_ceil(block / rows);
        let constants = [
            ("D4", d4),
            ("V4", v4),
            ("ROWS", rows),
            (walk, walked),
            (rounds[0], rounds_of(d4)),
            (rounds[1], rounds_of(v4)),
        ];
        if !c.rolled {
            kernel.text = unrolled(&kernel.text, &constants).into();
        }
        Self {
            name,
            source: source
                .constant("BLOCK", block)
                .constant("ROWS", rows)
                .constant(walk, walked)
                .file(kernel),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: block / rows,
            workgroup_bytes: walked * 16 * tiles,
        }
    }
}

pub(super) fn variants(tuning: &Tuning, covering: &[Features], native_f16: bool) -> Vec<Kernel> {
    let mut kernels = Vec::new();
    let f16 = Element::of(DType::F16, native_f16);
    let common =
        [super::Rows::Full, super::Rows::Band].map(|rows| Features { rows, ..Features::plain() });
    let halves = common.clone().map(|c| Features { q: f16, kv: f16, out: f16, ..c });
    for features in common.iter().chain(&halves) {
        for dim in [32, 64, 128] {
            if !tuning.has_gradients(features, [dim; 2]) {
                continue;
            }
            for gradient in tuning.gradients() {
                let kernel = |vec4| tuning.gradient_kernel(features, *gradient, [dim; 2], vec4);
                kernels.extend([true, false].map(kernel));
            }
        }
    }
    for (i, features) in covering.iter().enumerate() {
        let features = features.differentiable();
        let dim = [64, 128, 32][i % 3];
        if tuning.has_gradients(&features, [dim; 2]) {
            for gradient in tuning.gradients() {
                kernels.push(tuning.gradient_kernel(&features, *gradient, [dim; 2], i % 2 == 0));
            }
        }
    }
    // Of more buffers than every device has, the five products do with fewer at a time.
    kernels.retain(Kernel::is_portable);
    kernels
}
