//! The fused kernels of few rows over many keys: rows that share a key/value head share its loads.

use super::flash::source;
use super::{AttentionParams, Element, Features, Kernel};
use crate::shader::file;
use crate::tuning::{Decode, Tuning};
use crate::unroll::unrolled;

/// Invocations work together on a row: `kernels/decode_team.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct DecodeTeam<'a> {
    pub(crate) features: &'a Features,
    pub(crate) head_dim: u32,
    pub(crate) v_head_dim: u32,
    /// Rows of a workgroup.
    pub(crate) rows: u32,
    /// Invocations of a team.
    pub(crate) lanes: u32,
    /// They are joined by shuffles: subgroups are of at least as many.
    pub(crate) shuffles: bool,
    pub(crate) ranges: bool,
    pub(crate) vec4: bool,
}

impl DecodeTeam<'_> {
    const THREADS: u32 = 128;

    /// Keys that a team takes at a time: more of them keep more loads in flight, and take registers.
    fn keys(&self) -> u32 {
        if self.features.is_heavy() {
            return 1;
        }
        // Elements that are read one by one take registers for where they are.
        let pairs = if self.shuffles && self.vec4 { 16 } else { 8 };
        (pairs / self.rows).clamp(1, 4)
    }
}

impl From<DecodeTeam<'_>> for Kernel {
    fn from(c: DecodeTeam<'_>) -> Self {
        let DecodeTeam { head_dim, v_head_dim, rows, lanes, .. } = c;
        let (source, bindings) = source(c.features, [head_dim, v_head_dim], rows, c.vec4);
        let keys = c.keys();
        let teams = DecodeTeam::THREADS / lanes;
        let join = if c.shuffles {
            file!("lanes/team_subgroup.wgsl")
        } else {
            file!("lanes/team_shared.wgsl")
        };
        let pitch = |width: u32| width.div_ceil(4).next_multiple_of(lanes);
        let part_bytes = if c.shuffles { 0 } else { DecodeTeam::THREADS * rows * keys * 4 };
        let mut kernel = file!("kernels/decode_team.wgsl");
        // Sums and scores are registers: nothing may index them at run time.
        let constants = [
            ("ROWS", rows),
            ("KEYS", keys),
            ("D_STEPS", pitch(head_dim) / lanes),
            ("V_STEPS", pitch(v_head_dim) / lanes),
        ];
        kernel.text = unrolled(&kernel.text, &constants).into();
        Self {
            name: "decode_team",
            source: source
                .constant("THREADS", DecodeTeam::THREADS)
                .constant("LANES", lanes)
                .constant("ROWS", rows)
                .constant("KEYS", keys)
                .flag("RANGES", c.ranges)
                .file(join)
                .file(file!("common/few_rows.wgsl"))
                .file(kernel),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: DecodeTeam::THREADS,
            workgroup_bytes: (rows * pitch(head_dim)).max(teams * pitch(v_head_dim)) * 16
                + 2 * teams * rows * 4
                + part_bytes,
        }
    }
}

/// A row an invocation: `kernels/decode_lane.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct DecodeLane<'a> {
    pub(crate) features: &'a Features,
    pub(crate) head_dim: u32,
    pub(crate) v_head_dim: u32,
    /// Rows of a workgroup.
    pub(crate) rows: u32,
    pub(crate) rolled: bool,
    pub(crate) ranges: bool,
    pub(crate) vec4: bool,
}

impl DecodeLane<'_> {
    /// Keys that are taken at a time: more repay what blocks take to unpack.
    fn keys(&self) -> u32 {
        if matches!(self.features.kv, Element::Q8 | Element::Q4) { 8 } else { 4 }
    }
}

impl From<DecodeLane<'_>> for Kernel {
    fn from(c: DecodeLane<'_>) -> Self {
        let DecodeLane { head_dim, v_head_dim, rows, .. } = c;
        let keys = c.keys();
        let (source, bindings) = source(c.features, [head_dim, v_head_dim], rows, c.vec4);
        let mut kernel = file!("kernels/decode_lane.wgsl");
        // Old compilers would keep loops inside of loops, and some end a shader after 65,535 rounds of all its loops.
        if !c.rolled {
            let constants =
                [("D4", head_dim.div_ceil(4)), ("V4", v_head_dim.div_ceil(4)), ("KEYS", keys)];
            kernel.text = unrolled(&kernel.text, &constants).into();
        }
        Self {
            name: "decode_lane",
            source: source
                .constant("THREADS", rows)
                .constant("KEYS", keys)
                .flag("GUARD", c.features.hides())
                .flag("RANGES", c.ranges)
                .file(file!("common/few_rows.wgsl"))
                .file(kernel),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: rows,
            workgroup_bytes: 0,
        }
    }
}

pub(super) fn variants(tuning: &Tuning, covering: &[Features]) -> Vec<Kernel> {
    let mut kernels = Vec::new();
    let mut add = |features: &Features, dim: u32, rows: u32, ranges: bool, vec4: bool| {
        let features = &Features { lse: features.lse || ranges, sums: ranges, ..features.clone() };
        let rows = tuning.decode_rows(features, [dim, dim], rows);
        kernels.extend(
            rows.map(|rows| tuning.decode_kernel(features, [dim, dim], rows, ranges, vec4)),
        );
    };
    let plain = Features::plain();
    for dim in [32, 64, 128] {
        for rows in [1, 4, 8] {
            add(&plain, dim, rows, true, true);
        }
        add(&Features { rows: super::Rows::Sequences, ..plain.clone() }, dim, 4, true, true);
        add(&plain, dim, 4, false, false);
    }
    for (i, features) in covering.iter().enumerate() {
        let (dim, rows) = ([64, 128, 32][i % 3], [1, 4, 8, 2][i % 4]);
        let features = Features { classes: false, ..features.fused() };
        let packed = features.rows == super::Rows::Packed;
        if !packed {
            add(&features, dim, rows, features.lse, i % 3 == 0);
        }
    }
    if matches!(tuning.decode, Decode::Team { .. }) {
        // What the same GPU takes on the web.
        let web = Tuning { subgroups: 0, ..*tuning };
        for rows in [1, 4] {
            let rows = web.decode_rows(&plain, [128, 128], rows);
            kernels
                .extend(rows.map(|rows| web.decode_kernel(&plain, [128, 128], rows, true, true)));
        }
    }
    kernels
}
