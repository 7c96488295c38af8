//! The kernels on matrix units: fragments of f16, sums in f32.

use super::flash::source;
use super::{AttentionParams, Element, Features, Kernel};
use crate::shader::{File, Source, file};
use crate::unroll::{rolled, unrolled};

/// How kernels use the device's matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Fragments {
    /// Rows and columns of one.
    pub(crate) size: u32,
    /// Lanes of the largest subgroup.
    pub(crate) subgroup_size: u32,
    /// An input is the sum of two f16.
    pub(crate) split: bool,
}

impl Fragments {
    /// Keys of a tile of the fused kernel: of more, its tiles would not fit 32 KiB.
    pub(crate) const BLOCK_KV: u32 = 32;
    /// More invocations than this, WebGPU does not promise.
    const MOST_THREADS: u32 = 256;

    /// Rows that a workgroup owns: four fragments.
    pub(crate) fn rows(self) -> u32 {
        4 * self.size
    }

    /// Four subgroups, or as many as there may be.
    pub(crate) fn threads(self) -> u32 {
        (4 * self.subgroup_size).min(Self::MOST_THREADS)
    }

    /// The widest heads of the fused kernel: of more columns, the fragments of queries and sums do not fit the
    /// registers (RDNA3 spills 88 at 128 columns, split in two).
    pub(crate) fn widest(self) -> u32 {
        if self.split { 64 } else { 128 }
    }

    /// Whether a CPU emulates the matrix units: fragments are memory then, which may be indexed at run time, and a loop over
    /// them that its compiler writes out takes it seconds.
    fn on_software(self) -> bool {
        self.subgroup_size < 16
    }

    fn parts(self) -> u32 {
        if self.split { 2 } else { 1 }
    }

    /// Adds what both kernels are told.
    pub(crate) fn add_to(self, source: Source) -> Source {
        let size = self.size;
        let fragment = |ty: &str, role| format!("coop_mat{size}x{size}<{ty}, {role}>");
        source
            .with_matrices()
            .constant("SIZE", size)
            .flag("SPLIT", self.split)
            .alias("FragmentA", &fragment("f16", "A"))
            .alias("FragmentB", &fragment("f16", "B"))
            .alias("FragmentC", &fragment("f32", "C"))
            .file(file!("common/halves.wgsl"))
    }

    /// The text of a product.
    pub(super) fn product(self) -> File {
        let file = file!("common/product_coop.wgsl");
        if self.on_software() { File { text: rolled(&file.text).into(), ..file } } else { file }
    }

    /// Bytes of workgroup memory of `common/product_coop.wgsl`.
    pub(crate) fn product_bytes(self) -> u32 {
        let rows = self.rows();
        2 * self.parts() * rows * (32 + 8) * 2 + rows * (rows / 2 + 4) * 4
    }
}

/// `kernels/flash_coop.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct FlashCoop<'a> {
    pub(crate) features: &'a Features,
    pub(crate) head_dim: u32,
    pub(crate) v_head_dim: u32,
    pub(crate) fragments: Fragments,
    /// Every workgroup walks one of several ranges of keys.
    pub(crate) ranges: bool,
    pub(crate) vec4: bool,
}

impl From<FlashCoop<'_>> for Kernel {
    fn from(c: FlashCoop<'_>) -> Self {
        let FlashCoop { features, head_dim, v_head_dim, fragments, .. } = c;
        let size = fragments.size;
        let (block_q, block_kv) = (fragments.rows(), Fragments::BLOCK_KV);
        // Every invocation has four keys at least, and every row one invocation.
        let threads = fragments.threads().min(block_q * block_kv / 4).max(block_q);
        let (source, bindings) = source(features, [head_dim, v_head_dim], block_q, c.vec4);
        let source = fragments
            .add_to(source)
            .constant("BLOCK_KV", block_kv)
            .constant("THREADS", threads)
            .flag("HEAVY", features.is_heavy())
            .flag("RANGES", c.ranges);
        let s_fragments = block_kv / size;
        let v_fragments = v_head_dim.div_ceil(size);
        let mut kernel = file!("kernels/flash_coop.wgsl");
        kernel.text = if fragments.on_software() {
            rolled(&kernel.text).into()
        } else {
            // Arrays of fragments are registers: nothing may index them at run time.
            let constants = [
                ("S_FRAGMENTS", s_fragments),
                ("D_FRAGMENTS", head_dim.div_ceil(size)),
                ("V_FRAGMENTS", v_fragments),
                ("V_GROUPS", v_fragments.div_ceil(s_fragments)),
                ("Q_PARTS", block_q / block_kv),
                ("KEYS", block_kv * block_q / threads),
            ];
            unrolled(&kernel.text, &constants).into()
        };
        let pitch = head_dim.max(v_head_dim).next_multiple_of(size) + 8;
        let halves = fragments.parts() * (block_kv * pitch + block_q * (block_kv + 8));
        Self {
            name: "flash_coop",
            source: source.file(kernel),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: threads,
            workgroup_bytes: 2 * halves + block_q * (block_kv + 4) * 4 + threads * 4 + 16,
        }
    }
}

/// Inputs of a type that fragments take, others as they are.
fn of_type(features: &Features, element: Element) -> Features {
    Features { q: element, kv: element, ..features.clone() }
}

pub(super) fn variants(size: u32, subgroup_size: u32, covering: &[Features]) -> Vec<Kernel> {
    let fragments = [false, true].map(|split| Fragments { size, subgroup_size, split });
    let mut kernels = Vec::new();
    for (fragments, element) in fragments.into_iter().zip([Element::F16, Element::F32]) {
        for (rows, lse) in [(super::Rows::Full, false), (super::Rows::Band, true)] {
            let features = Features { rows, lse, ..of_type(&Features::plain(), element) };
            for head_dim in [32, 64, 128].into_iter().filter(|n| *n <= fragments.widest()) {
                let flash = |vec4| FlashCoop {
                    features: &features,
                    head_dim,
                    v_head_dim: head_dim,
                    fragments,
                    ranges: false,
                    vec4,
                };
                kernels.push(flash(true).into());
                // Elements one by one, at one width for all.
                kernels.extend((head_dim == 64).then(|| flash(false).into()));
            }
            super::staged::add_products(&mut kernels, fragments, &features, 64);
        }
    }
    for (i, features) in covering.iter().enumerate() {
        let element = [Element::F16, Element::F16, Element::PackedBf16, Element::F32][i / 2 % 4];
        let features = of_type(features, element);
        let fragments = fragments[usize::from(element == Element::F32)];
        let head_dim = [64, 128, 32, 40][i % 4].min(fragments.widest());
        let vec4 = i % 2 == 0;
        let flash = FlashCoop {
            features: &features.fused(),
            head_dim,
            v_head_dim: head_dim,
            fragments,
            ranges: i % 3 == 0,
            vec4,
        };
        kernels.push(flash.into());
        let features = Features { classes: false, ..features };
        super::staged::add_products(&mut kernels, fragments, &features, head_dim);
    }
    kernels
}
