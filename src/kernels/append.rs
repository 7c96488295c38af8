//! New rows into a cache, rows turned by their positions, and the lengths that grow.

use super::{Access, Binding, Element, Kernel, params};
use crate::rotary::{Rotary, RotaryPairs};
use crate::shader::{Source, file};
use std::borrow::Cow;

params! {
    /// Uniforms of `kernels/advance.wgsl`. Bases are filled in when buffers are bound.
    AdvanceParams {
        grid_width: u32, workgroup_first: u32, workgroups: u32,
        new_len: u32, capacity: u32, pages: u32, page_len: u32, table_row: u32,
        kv_lens_base: u32, new_lens_base: u32, block_table_base: u32, append_status_base: u32, admitted_base: u32,
    }
}

params! {
    /// Uniforms of `kernels/append.wgsl`. Bases are filled in when buffers are bound.
    AppendParams {
        grid_width: u32, workgroup_first: u32, workgroups: u32,
        heads: u32, rows: u32, row_first: u32, pos_first: u32, pos_end: u32,
        x_base: u32, x_batch: u32, x_head: u32, x_row: u32,
        out_base: u32, out_words: u32, out_batch: u32, out_head: u32, out_row: u32,
        admitted_base: u32, block_table_base: u32, table_row: u32, page_len: u32, last_page: u32,
        cos_table_base: u32, sin_table_base: u32, last_pos: u32,
    }
}

params! {
    /// Uniforms of `kernels/rotate.wgsl`. Bases are filled in when buffers are bound.
    RotateParams {
        grid_width: u32, workgroup_first: u32, workgroups: u32,
        heads: u32, rows: u32, row_first: u32,
        x_base: u32, x_batch: u32, x_head: u32, x_row: u32,
        out_base: u32, out_batch: u32, out_head: u32, out_row: u32,
        pos_offsets_base: u32, new_lens_base: u32, counted: u32, cos_table_base: u32, sin_table_base: u32, last_pos: u32,
    }
}

/// Invocations of a workgroup of all three kernels.
const THREADS: u32 = 64;

/// Which sequences have room: `kernels/advance.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Advance {
    pub(crate) new_lens: bool,
    pub(crate) pages: bool,
    /// Lengths count the new rows already.
    pub(crate) counted: bool,
}

impl From<Advance> for Kernel {
    fn from(c: Advance) -> Self {
        let mut source = Source::default()
            .constant("THREADS", THREADS)
            .flag("NEW_LENS", c.new_lens)
            .flag("PAGES", c.pages);
        let kv_lens = if c.counted { Binding::read } else { Binding::write };
        let mut bindings = vec![Binding::PARAMS, kv_lens("kv_lens", "u32")];
        for (name, given) in [("new_lens", c.new_lens), ("block_table", c.pages)] {
            let table = if given { file!("table/given.wgsl") } else { file!("table/absent.wgsl") };
            source = source.file(table.of(name));
            bindings.extend(given.then(|| Binding::read(name, "u32")));
        }
        let lens = if c.counted { file!("lens/counted.wgsl") } else { file!("lens/advance.wgsl") };
        bindings.extend(["append_status", "admitted"].map(|name| Binding::write(name, "u32")));
        Self {
            name: "advance",
            source: source.file(lens).file(file!("kernels/advance.wgsl")),
            bindings,
            fields: AdvanceParams::FIELDS,
            workgroup_size: THREADS,
            workgroup_bytes: 4,
        }
    }
}

/// Rows of one tensor into its cache: `kernels/append.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Append {
    pub(crate) x: Element,
    pub(crate) cache: Element,
    /// Elements of a row.
    pub(crate) dim: u32,
    pub(crate) rotary: Option<Rotary>,
    pub(crate) paged: bool,
    pub(crate) vec4: bool,
}

impl Append {
    /// Whether elements of the cache come in blocks that share a scale.
    fn is_blocks(&self) -> bool {
        matches!(self.cache, Element::Q8 | Element::Q4)
    }
}

impl From<Append> for Kernel {
    fn from(c: Append) -> Self {
        let (x, load) = c.x.read("x", c.vec4);
        let (out, store) = c.cache.write_out(c.vec4);
        let mut bindings = vec![Binding::PARAMS, x, out, Binding::read("admitted", "u32")];
        bindings.extend(c.paged.then(|| Binding::read("block_table", "u32")));
        let mut source = elements(c.x, c.cache, c.dim).files(load);
        source = add_rotary(source, c.rotary, &mut bindings);
        source = if c.is_blocks() {
            source
                .file(file!("cache/half_above.wgsl"))
                .files(store)
                .file(file!("cache/blocks.wgsl"))
        } else {
            source.files(store).file(file!("cache/elements.wgsl"))
        };
        source = source.file(if c.paged {
            file!("cache/paged.wgsl")
        } else {
            file!("cache/contiguous.wgsl")
        });
        Self {
            name: "append",
            source: source.file(file!("kernels/append.wgsl")),
            bindings,
            fields: AppendParams::FIELDS,
            workgroup_size: THREADS,
            workgroup_bytes: 0,
        }
    }
}

/// Rows turned by their positions: `kernels/rotate.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rotate {
    pub(crate) x: Element,
    pub(crate) out: Element,
    /// Elements of a row.
    pub(crate) dim: u32,
    pub(crate) rotary: Rotary,
    pub(crate) offsets: bool,
    /// Offsets count as many rows as these say.
    pub(crate) new_lens: bool,
    pub(crate) vec4: bool,
}

impl From<Rotate> for Kernel {
    fn from(c: Rotate) -> Self {
        let (x, load) = c.x.read("x", c.vec4);
        let (out, store) = c.out.write_out(c.vec4);
        let mut bindings = vec![Binding::PARAMS, x, out];
        let mut source = elements(c.x, c.out, c.dim).flag("NEW_LENS", c.new_lens);
        source = source.files(load).files(store);
        for (name, given) in [("pos_offsets", c.offsets), ("new_lens", c.new_lens)] {
            let table = if given { file!("table/given.wgsl") } else { file!("table/absent.wgsl") };
            source = source.file(table.of(name));
            bindings.extend(given.then(|| Binding::read(name, "u32")));
        }
        let source = add_rotary(source, Some(c.rotary), &mut bindings);
        Self {
            name: "rotate",
            source: source.file(file!("kernels/rotate.wgsl")),
            bindings,
            fields: RotateParams::FIELDS,
            workgroup_size: THREADS,
            workgroup_bytes: 0,
        }
    }
}

fn elements(x: Element, out: Element, dim: u32) -> Source {
    Source::default()
        .with_f16([x, out].contains(&Element::F16))
        .constant("THREADS", THREADS)
        .constant("DIM", dim)
        .alias("OutElement", out.alias())
}

/// Adds what turns rows, and the tables it reads.
fn add_rotary(source: Source, rotary: Option<Rotary>, bindings: &mut Vec<Binding>) -> Source {
    let Some(rotary) = rotary else { return source.file(file!("rotary/none.wgsl")) };
    bindings.extend(["cos_table", "sin_table"].map(|name| Binding {
        name: Cow::Borrowed(name),
        access: Access::Read,
        element: "f32",
        bits: 32,
    }));
    source.constant("ROTARY_HALF", rotary.dim / 2).file(match rotary.pairs {
        RotaryPairs::HalfSplit if rotary.is_vec4() => file!("rotary/half.wgsl"),
        RotaryPairs::HalfSplit => file!("rotary/half_each.wgsl"),
        RotaryPairs::Interleaved => file!("rotary/interleaved.wgsl"),
    })
}

/// Every two choices meet in some variant.
pub(super) fn variants(f16: bool) -> Vec<Kernel> {
    let half = if f16 { Element::F16 } else { Element::PackedF16 };
    let elements = [Element::F32, half, Element::PackedBf16, Element::Q8, Element::Q4];
    let rotaries = [
        Some(Rotary::new(RotaryPairs::HalfSplit, 64, 1024)),
        Some(Rotary::new(RotaryPairs::HalfSplit, 36, 1024)),
        Some(Rotary::new(RotaryPairs::Interleaved, 64, 1024)),
        None,
    ];
    let mut kernels: Vec<Kernel> = Vec::new();
    for (new_lens, pages) in [(false, false), (false, true), (true, false), (true, true)] {
        for counted in [false, true] {
            kernels.push(Advance { new_lens, pages, counted }.into());
        }
    }
    for (i, cache) in elements.into_iter().enumerate() {
        for (j, rotary) in rotaries.into_iter().enumerate() {
            let vec4 = (i + j) % 2 == 0 && rotary.is_none_or(|rotary| rotary.is_vec4());
            let (x, paged) = (elements[(i + j) % 3], (i + j / 2) % 2 == 0);
            let dim = if j == 3 { 128 } else { 64 };
            kernels.push(Append { x, cache, dim, rotary, paged, vec4 }.into());
            if let Some(rotary) = rotary.filter(|_| i < 3) {
                let offsets = (i + j / 2) % 2 == 0;
                let new_lens = offsets && j == 1;
                let rotate = Rotate { x, out: cache, dim, rotary, offsets, new_lens, vec4 };
                kernels.push(rotate.into());
            }
        }
    }
    kernels
}
