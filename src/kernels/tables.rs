//! The small inputs in one table, and the classes of tiles.

use super::{AttentionParams, Binding, Features, Kernel, Uses, params};
use crate::pairs::MaskFormat;
use crate::shader::{File, Source, file};
use crate::tuning::Tuning;

params! {
    /// Uniforms of `kernels/gather.wgsl`. Bases are filled in when buffers are bound.
    GatherParams {
        grid_width: u32, workgroup_first: u32, workgroups: u32,
        sequences: u32, rows: u32, slopes: u32, sinks: u32, pages: u32, classes: u32, seed_words: u32,
        q_len: u32, kv_len: u32, sequences_at: u32, rows_at: u32, slopes_at: u32, sinks_at: u32, pages_at: u32, classes_at: u32,
        seed_at: u32,
        q_lens_base: u32, kv_lens_base: u32, cu_seqlens_q_base: u32, cu_seqlens_k_base: u32,
        diag_offsets_base: u32, alibi_slopes_base: u32, sinks_base: u32, block_table_base: u32, block_mask_base: u32, seed_base: u32, tables_base: u32,
        diagonal: i32, bottom_right: u32, left: u32, right: u32, open: u32, last_page: u32,
    }
}

/// Which small inputs are given: `kernels/gather.wgsl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gather {
    pub(crate) q_lens: bool,
    pub(crate) kv_lens: bool,
    pub(crate) packed: bool,
    pub(crate) diag_offsets: bool,
    pub(crate) slopes: bool,
    pub(crate) sinks: bool,
    pub(crate) pages: bool,
    pub(crate) block_mask: bool,
    pub(crate) seed: bool,
}

/// Invocations of a workgroup of both kernels.
pub(crate) const THREADS: u32 = 64;

impl Gather {
    /// Every input, in the order of bindings.
    pub(crate) fn inputs(self) -> [(&'static str, bool); 10] {
        [
            ("q_lens", self.q_lens),
            ("kv_lens", self.kv_lens),
            ("cu_seqlens_q", self.packed),
            ("cu_seqlens_k", self.packed),
            ("diag_offsets", self.diag_offsets),
            ("alibi_slopes", self.slopes),
            ("sinks", self.sinks),
            ("block_table", self.pages),
            ("block_mask", self.block_mask),
            ("seed", self.seed),
        ]
    }
}

impl From<Gather> for Kernel {
    fn from(c: Gather) -> Self {
        let mut source = Source::default()
            .constant("THREADS", THREADS)
            .flag("Q_LENS", c.q_lens)
            .flag("KV_LENS", c.kv_lens)
            .flag("PACKED", c.packed)
            .flag("DIAGONALS", c.diag_offsets)
            .flag("SLOPES", c.slopes)
            .flag("SINKS", c.sinks)
            .flag("PAGES", c.pages)
            .flag("BLOCK_MASK", c.block_mask)
            .flag("SEED", c.seed);
        let mut bindings = vec![Binding::PARAMS];
        for (name, given) in c.inputs() {
            let table: File =
                if given { file!("table/given.wgsl") } else { file!("table/absent.wgsl") };
            source = source.file(table.of(name));
            bindings.extend(given.then(|| Binding::read(name, "u32")));
        }
        bindings.push(Binding::write("tables", "u32"));
        Self {
            name: "gather",
            source: source.file(file!("kernels/gather.wgsl")),
            bindings,
            fields: GatherParams::FIELDS,
            workgroup_size: THREADS,
            workgroup_bytes: 0,
        }
    }
}

/// `kernels/classify.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct Classify<'a> {
    pub(crate) features: &'a Features,
    pub(crate) block_q: u32,
    pub(crate) block_kv: u32,
}

impl From<Classify<'_>> for Kernel {
    fn from(c: Classify<'_>) -> Self {
        let source = Source::default()
            .constant("THREADS", THREADS)
            // Whole rows where there is one for every invocation; neighbours read neighbours where not.
            .constant("EACH", if c.block_q >= THREADS { c.block_kv } else { 1 })
            .constant("BLOCK_Q", c.block_q)
            .constant("BLOCK_KV", c.block_kv);
        let source = c.features.add_pairs(c.features.add_rows(source));
        let mut bindings = vec![Binding::PARAMS, Binding::write("classes", "u32")];
        bindings.extend(c.features.bindings(Uses::Pairs));
        Self {
            name: "classify",
            source: source.file(file!("kernels/classify.wgsl")),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: THREADS,
            workgroup_bytes: 4,
        }
    }
}

pub(super) fn variants(tuning: &Tuning, covering: &[Features]) -> Vec<Kernel> {
    let given = Gather {
        q_lens: true,
        kv_lens: true,
        diag_offsets: true,
        slopes: true,
        sinks: true,
        pages: true,
        block_mask: true,
        packed: false,
        // It would be the ninth buffer.
        seed: false,
    };
    let packed = Gather { q_lens: false, kv_lens: false, packed: true, ..given };
    let seed = Gather { seed: true, ..Gather::default() };
    let seeded = Gather { seed: true, pages: false, ..given };
    let mut kernels: Vec<Kernel> = [given, packed, seed, seeded].map(Kernel::from).into();
    for features in covering {
        if features.hides_pairs() {
            let (block_q, block_kv) = tuning.class_tile(64, 64);
            kernels.push(Classify { features, block_q, block_kv }.into());
        }
    }
    let features = Features { mask: Some(MaskFormat::Bytes), ..Features::plain() };
    let (block_q, block_kv) = tuning.class_tile(256, 256);
    kernels.push(Classify { features: &features, block_q, block_kv }.into());
    kernels
}
