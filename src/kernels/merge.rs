//! Partial results into one, the result over no key at all, and results into their own type.

use super::features::store_lse;
use super::{AttentionParams, Binding, Element, Features, Kernel, Uses};
use crate::shader::{Source, file};
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
        row_kernel("fill", c.features, c.threads, c.v_head_dim, &[])
    }
}

/// `kernels/merge.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct Merge<'a> {
    pub(crate) features: &'a Features,
    pub(crate) threads: u32,
    pub(crate) v_head_dim: u32,
}

impl From<Merge<'_>> for Kernel {
    fn from(c: Merge<'_>) -> Self {
        let inputs = [("partial_out", "f32"), ("partial_lse", "u32")];
        row_kernel("merge", c.features, c.threads, c.v_head_dim, &inputs)
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
        row_kernel("convert", &features, c.threads, c.v_head_dim, &[("partial_out", "f32")])
    }
}

/// A kernel of which a workgroup owns one row of out.
fn row_kernel(
    name: &'static str,
    features: &Features,
    threads: u32,
    v_head_dim: u32,
    inputs: &[(&'static str, &'static str)],
) -> Kernel {
    let (lse, lse_file) = store_lse(features.lse);
    let (out, store_out) = features.out.write_out(false);
    let mut bindings = vec![Binding::PARAMS];
    bindings.extend(inputs.iter().map(|(name, element)| Binding::read(name, element)));
    bindings.push(out);
    bindings.extend(lse);
    bindings.extend(features.bindings(Uses::Sinks));
    let source = Source::default()
        .with_f16(features.out == Element::F16)
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

pub(super) fn variants(tuning: &Tuning, covering: &[Features]) -> Vec<Kernel> {
    let threads = tuning.row_threads;
    let mut kernels = Vec::new();
    for (i, features) in covering.iter().enumerate() {
        let v_head_dim = [32, 64, 128][i % 3];
        kernels.push(Fill { features, threads, v_head_dim }.into());
        kernels.push(Merge { features, threads, v_head_dim }.into());
        if features.out != Element::F32 {
            kernels.push(Convert { out: features.out, threads, v_head_dim }.into());
        }
    }
    kernels
}
