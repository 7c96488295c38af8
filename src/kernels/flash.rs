//! The fused kernels: scores, softmax and weighted sum in one pass, without a score matrix.

use super::features::store_lse;
use super::{AttentionParams, Binding, Element, Features, Kernel, Uses};
use crate::dropout::DropoutMask;
use crate::shader::{Source, file};
use crate::shape::DType;
use crate::tuning::{Flash, Tuning};
use crate::unroll::unrolled;

/// What all forms compile in.
pub(super) fn source(
    c: &Features,
    [head_dim, v_head_dim]: [u32; 2],
    block_q: u32,
    vec4: bool,
) -> (Source, Vec<Binding>) {
    let (lse, lse_file) = store_lse(c.lse);
    let lse_file = if c.sums { file!("store/sums.wgsl") } else { lse_file };
    let (q, load_q) = c.q.read("q", vec4);
    let (k, load_k) = c.kv.read("k", vec4);
    let (v, load_v) = c.kv.read("v", vec4);
    let (out, store_out) = c.out.write_out(vec4);
    let source = Source::default()
        .with_f16([c.q, c.kv, c.out].contains(&Element::F16))
        .constant("HEAD_DIM", head_dim)
        .constant("V_HEAD_DIM", v_head_dim)
        .constant("BLOCK_Q", block_q)
        .flag("PAIRS", c.hides_pairs())
        .alias("OutElement", c.out.alias());
    let source = c.add_dropout(c.add_sinks(c.add_pairs(c.add_keys(c.add_rows(source)))));
    let source = source
        .file(if c.classes { file!("classes/table.wgsl") } else { file!("classes/none.wgsl") })
        .files(load_q)
        .files(load_k)
        .files(load_v)
        .files(store_out)
        .file(lse_file);
    let mut bindings = vec![Binding::PARAMS, q, k, v, out];
    bindings.extend(lse);
    bindings.extend(c.bindings(Uses::Fused));
    (source, bindings)
}

/// Register tiles: `kernels/flash_tile.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct FlashTile<'a> {
    pub(crate) features: &'a Features,
    pub(crate) head_dim: u32,
    pub(crate) v_head_dim: u32,
    pub(crate) block_q: u32,
    /// Columns of out that a workgroup owns at most: more would not fit the registers.
    pub(crate) v_columns: u32,
    /// Invocations that share a row are joined by shuffles: subgroups are of at least 8.
    pub(crate) subgroups: bool,
    /// Every workgroup walks one of several ranges of keys.
    pub(crate) ranges: bool,
    pub(crate) vec4: bool,
}

impl FlashTile<'_> {
    /// Keys of a tile.
    pub(crate) const BLOCK_KV: u32 = 32;
    /// Rows of an invocation.
    pub(crate) const TILE_M: u32 = 4;
    /// Elements of a row of a chunk in workgroup memory, padded.
    pub(super) const PITCH: u32 = 36;
}

impl From<FlashTile<'_>> for Kernel {
    fn from(c: FlashTile<'_>) -> Self {
        let FlashTile { head_dim, v_head_dim, block_q, v_columns, .. } = c;
        let (source, bindings) = source(c.features, [head_dim, v_head_dim], block_q, c.vec4);
        let v_columns = v_head_dim.next_multiple_of(32).min(v_columns);
        let heavy = c.features.is_heavy();
        // Heavy rows come one by one, through workgroup memory.
        let subgroups = c.subgroups && !heavy;
        let (lanes, lane_bytes) = if subgroups {
            (file!("lanes/subgroup.wgsl"), 0)
        } else {
            (file!("lanes/shared.wgsl"), block_q * 8 * 4)
        };
        let mut kernel = file!("kernels/flash_tile.wgsl");
        // The registers that out is in must not be indexed: no compiler unrolls loops around as much as these.
        let mut constants = vec![("V_CHUNKS", v_columns / 32)];
        if source.is_checked() {
            constants.push(("TILE_M", FlashTile::TILE_M));
        }
        kernel.text = unrolled(&kernel.text, &constants).into();
        Self {
            name: "flash_tile",
            source: source
                .constant("TILE_M", FlashTile::TILE_M)
                .constant("V_COLUMNS", v_columns)
                .flag("HEAVY", heavy)
                .flag("RANGES", c.ranges)
                .flag("ROLLED", heavy || !c.vec4)
                .file(lanes)
                .file(kernel),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: block_q / FlashTile::TILE_M * 8,
            workgroup_bytes: (block_q + FlashTile::BLOCK_KV) * FlashTile::PITCH * 4 + lane_bytes,
        }
    }
}

/// Whole rows: `kernels/flash_lane.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct FlashLane<'a> {
    pub(crate) features: &'a Features,
    pub(crate) head_dim: u32,
    pub(crate) v_head_dim: u32,
    pub(crate) block_q: u32,
    pub(crate) rolled: bool,
    /// Every workgroup walks one of several ranges of keys.
    pub(crate) ranges: bool,
    pub(crate) vec4: bool,
}

/// What `flash_lane.wgsl` has for a loop of no rounds: from `params.rows_each`, which no compiler knows, to 4.
const _: () = assert!(FlashTile::TILE_M >= 4);

impl FlashLane<'_> {
    /// Rows and keys of a tile that is skipped where none is visible.
    pub(crate) const CLASS_TILE: (u32, u32) = (64, 16);

    /// Rows of an invocation, and keys that it takes at a time. What is written out grows with their product and the
    /// columns, and compiling it more than that: more of both is faster, and takes seconds where this takes half of one.
    fn pairs_each(&self) -> (u32, u32) {
        match self.head_dim.max(self.v_head_dim) {
            0..=32 => (2, 8),
            33..=64 => (2, 4),
            _ => (1, 4),
        }
    }
}

impl From<FlashLane<'_>> for Kernel {
    fn from(c: FlashLane<'_>) -> Self {
        let FlashLane { head_dim, v_head_dim, block_q, .. } = c;
        let (source, bindings) = source(c.features, [head_dim, v_head_dim], block_q, c.vec4);
        let mut kernel = file!("kernels/flash_lane.wgsl");
        let (d4, v4) = (head_dim.div_ceil(4), v_head_dim.div_ceil(4));
        let (rows, keys) = c.pairs_each();
        // Old compilers would keep loops inside of loops, and some end a shader after 65,535 rounds of all its loops.
        let rounds = |columns: u32| (keys * columns).div_ceil(block_q / rows);
        let constants = [
            ("D4", d4),
            ("V4", v4),
            ("ROWS", rows),
            ("KEYS", keys),
            ("QUADS", keys / 4),
            ("K_ROUNDS", rounds(d4)),
            ("V_ROUNDS", rounds(v4)),
        ];
        if !c.rolled {
            kernel.text = unrolled(&kernel.text, &constants).into();
        }
        let (class_q, class_kv) = FlashLane::CLASS_TILE;
        Self {
            name: "flash_lane",
            source: source
                .constant("ROWS", rows)
                .constant("KEYS", keys)
                .constant("CLASS_Q", class_q)
                .constant("CLASS_KV", class_kv)
                .flag("GUARD", c.features.hides())
                .flag("RANGES", c.ranges)
                .file(kernel),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: block_q / rows,
            workgroup_bytes: keys * (d4 + v4) * 16,
        }
    }
}

pub(super) fn variants(tuning: &Tuning, covering: &[Features], native_f16: bool) -> Vec<Kernel> {
    let mut kernels = Vec::new();
    // What is asked for most, at every width; every pair of features, at widths by turns.
    let common =
        [super::Rows::Full, super::Rows::Band].map(|rows| Features { rows, ..Features::plain() });
    for features in common.iter().flat_map(|c| [c.clone(), Features { lse: true, ..c.clone() }]) {
        for head_dim in [32, 64, 128] {
            for vec4 in [true, false] {
                kernels.push(tuning.flash_kernel(&features, head_dim, head_dim, false, vec4));
            }
        }
    }
    let f16 = Element::of(DType::F16, native_f16);
    for features in &common {
        for head_dim in [64, 128] {
            let half = Features { q: f16, kv: f16, out: f16, ..features.clone() };
            kernels.push(tuning.flash_kernel(&half, head_dim, head_dim, false, true));
            // What the same GPU takes on the web.
            let web = Tuning { subgroups: 0, ..*tuning };
            kernels.push(web.flash_kernel(features, head_dim, head_dim, false, true));
            // What training takes.
            let dropout = Some(DropoutMask::Seeded);
            let dropped = Features { dropout, lse: true, ..features.clone() };
            kernels.push(tuning.flash_kernel(&dropped, head_dim, head_dim, false, true));
        }
    }
    for (i, features) in covering.iter().enumerate() {
        let head_dim = [64, 128, 32][i % 3];
        let sums = i % 3 == 0 && features.lse;
        let features = Features { sums, ..features.fused() };
        let tuning = tuning.for_rows(u32::MAX, &features);
        kernels.push(tuning.flash_kernel(&features, head_dim, head_dim, i % 3 == 0, i % 2 == 0));
    }
    if matches!(tuning.flash, Flash::Lane { .. }) {
        for features in &common {
            let few = tuning.for_rows(1, features);
            kernels.extend([64, 128].map(|dim| few.flash_kernel(features, dim, dim, false, true)));
        }
        // What heads too wide for whole rows get.
        let features = Features { lse: true, ..common[1].clone() };
        kernels.push(tuning.flash_kernel(&features, 192, 192, false, true));
    }
    kernels
}
