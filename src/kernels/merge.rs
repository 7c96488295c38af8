//! Partial results into one, the result over no key at all, and results into their own type.

use super::features::store_lse;
use super::{AttentionParams, Binding, Element, Features, Kernel, Uses};
use crate::shader::{Source, file};
use crate::shape::DType;
use crate::tuning::Tuning;

/// `kernels/fill.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct Fill<'a> {
    pub(crate) features: &'a Features,
    pub(crate) threads: u32,
    pub(crate) v_head_dim: u32,
}

impl From<Fill<'_>> for Kernel {
    fn from(c: Fill<'_>) -> Self {
        let source = Source::default().with_f16(c.features.out == Element::F16);
        row_kernel("fill", c.features, c.threads, c.v_head_dim, Vec::new(), source)
    }
}

/// `kernels/merge.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct Merge<'a> {
    pub(crate) features: &'a Features,
    /// Of the partial results.
    pub(crate) partial: Element,
    /// Parts have their m and l apart, not a lse.
    pub(crate) sums: bool,
    pub(crate) threads: u32,
    pub(crate) v_head_dim: u32,
}

/// Columns that an invocation sums up at once, in registers.
const MOST_COLUMNS: u32 = 8;

impl From<Merge<'_>> for Kernel {
    fn from(c: Merge<'_>) -> Self {
        let (partial_out, load) = c.partial.read("partial_out", false);
        let inputs = vec![partial_out, Binding::read("partial_lse", "u32")];
        let source = Source::default()
            .with_f16(c.features.out == Element::F16 || c.partial == Element::F16)
            .flag("SUMS", c.sums)
            .constant("COLUMNS", c.v_head_dim.div_ceil(c.threads).min(MOST_COLUMNS))
            .files(load);
        row_kernel("merge", c.features, c.threads, c.v_head_dim, inputs, source)
    }
}

/// `kernels/convert.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct Convert {
    pub(crate) out: Element,
    pub(crate) threads: u32,
    pub(crate) v_head_dim: u32,
}

impl From<Convert> for Kernel {
    fn from(c: Convert) -> Self {
        let features = Features { out: c.out, ..Features::plain() };
        let source = Source::default().with_f16(c.out == Element::F16);
        let inputs = vec![Binding::read("partial_out", "f32")];
        row_kernel("convert", &features, c.threads, c.v_head_dim, inputs, source)
    }
}

/// A kernel of which a workgroup owns one row of out. `source`: what it has besides.
fn row_kernel(
    name: &'static str,
    features: &Features,
    threads: u32,
    v_head_dim: u32,
    inputs: Vec<Binding>,
    source: Source,
) -> Kernel {
    let (lse, lse_file) = store_lse(features.lse);
    let (out, store_out) = features.out.write_out(false);
    let mut bindings = vec![Binding::PARAMS];
    bindings.extend(inputs);
    bindings.push(out);
    bindings.extend(lse);
    bindings.extend(features.bindings(Uses::Sinks));
    let source = source
        .constant("THREADS", threads)
        .constant("V_HEAD_DIM", v_head_dim)
        .alias("OutElement", features.out.alias());
    let kernel = match name {
        "fill" => file!("kernels/fill.wgsl"),
        "merge" => file!("kernels/merge.wgsl"),
        _ => file!("kernels/convert.wgsl"),
    };
    let source = features.add_sinks(features.sink_rows().add_rows(source));
    Kernel {
        name,
        source: source.files(store_out).file(lse_file).file(kernel),
        bindings,
        fields: AttentionParams::FIELDS,
        workgroup_size: threads,
        workgroup_bytes: 0,
    }
}

/// `f16`: the device has a type f16.
pub(super) fn variants(tuning: &Tuning, covering: &[Features], f16: bool) -> Vec<Kernel> {
    let threads = tuning.row_threads;
    let mut kernels = Vec::new();
    for (i, features) in covering.iter().enumerate() {
        let v_head_dim = [32, 64, 128][i % 3];
        kernels.push(Fill { features, threads, v_head_dim }.into());
        kernels.push(
            Merge { features, partial: Element::F32, sums: true, threads, v_head_dim }.into(),
        );
        if features.out != Element::F32 {
            kernels.push(Convert { out: features.out, threads, v_head_dim }.into());
        }
    }
    // A caller's partial results, of any type to any type.
    let types = [DType::F32, DType::F16, DType::BF16].map(|dtype| Element::of(dtype, f16));
    for (i, out) in types.into_iter().enumerate() {
        let features = Features { out, lse: i < 2, ..Features::plain() };
        for (partial, v_head_dim) in types.into_iter().zip([128, 20, 512]) {
            kernels.push(
                Merge { features: &features, partial, sums: false, threads, v_head_dim }.into(),
            );
        }
    }
    kernels
}
