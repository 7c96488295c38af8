//! What gradients need beside the three stages: rows' deltas, the softmax's gradient, sums over rows and over pairs.

use super::staged::Factors;
use super::{AttentionParams, Binding, Element, Features, Kernel, Product, Uses};
use crate::shader::{Source, file};
use crate::tuning::Tuning;

/// `kernels/delta.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delta {
    /// Of out and its gradient.
    pub(crate) out: Element,
    pub(crate) d_lse: bool,
    pub(crate) threads: u32,
    pub(crate) v_head_dim: u32,
}

impl From<Delta> for Kernel {
    fn from(c: Delta) -> Self {
        let (out, load_out) = c.out.read("out", false);
        let (d_out, load_d_out) = c.out.read("d_out", false);
        let mut bindings = vec![Binding::PARAMS, out, d_out, Binding::read("lse", "u32")];
        bindings.extend(c.d_lse.then(|| Binding::read("d_lse", "f32")));
        bindings.push(Binding::write("stats", "u32"));
        let source = Source::default()
            .with_f16(c.out == Element::F16)
            .constant("THREADS", c.threads)
            .constant("V_HEAD_DIM", c.v_head_dim);
        let d_lse =
            if c.d_lse { file!("gradient/d_lse.wgsl") } else { file!("gradient/no_d_lse.wgsl") };
        Self {
            name: "delta",
            source: Features::plain()
                .add_rows(source)
                .files(load_out)
                .files(load_d_out)
                .file(d_lse)
                .file(file!("kernels/delta.wgsl")),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: c.threads,
            workgroup_bytes: c.threads * 4,
        }
    }
}

/// `kernels/softmax_gradient.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct SoftmaxGradient<'a> {
    pub(crate) features: &'a Features,
    /// Gradients by what is added to scores are kept.
    pub(crate) d_biased: bool,
    pub(crate) threads: u32,
}

impl From<SoftmaxGradient<'_>> for Kernel {
    fn from(c: SoftmaxGradient<'_>) -> Self {
        let mut bindings = vec![
            Binding::PARAMS,
            Binding::write("scores", "f32"),
            Binding::write("d_scores", "f32"),
            Binding::read("stats", "u32"),
        ];
        bindings.extend(c.d_biased.then(|| Binding::write("d_biased", "f32")));
        bindings.extend(c.features.bindings(Uses::Gradients));
        let keep = if c.d_biased {
            file!("gradient/d_biased.wgsl")
        } else {
            file!("gradient/no_d_biased.wgsl")
        };
        let source = Source::default().constant("THREADS", c.threads);
        let source =
            c.features.add_pair_gradients(c.features.add_pairs(c.features.add_rows(source)));
        let source = c.features.add_dropout(source);
        Self {
            name: "softmax_gradient",
            source: source.file(keep).file(file!("kernels/softmax_gradient.wgsl")),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: c.threads,
            workgroup_bytes: 0,
        }
    }
}

/// `kernels/key_gradients.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct KeyGradients<'a> {
    pub(crate) features: &'a Features,
    pub(crate) product: Product,
    /// What is summed up: queries, or the gradient of out.
    pub(crate) x: Element,
    /// What is written.
    pub(crate) to: Element,
    pub(crate) x_dim: u32,
}

impl From<KeyGradients<'_>> for Kernel {
    fn from(c: KeyGradients<'_>) -> Self {
        let (x, load_x) = c.x.read("x", false);
        let (out, mut store_out) = c.to.write_out(false);
        store_out.push(if c.to == Element::F32 {
            file!("store/sum.wgsl")
        } else {
            file!("store/put.wgsl")
        });
        let source = Source::default()
            .with_f16([c.x, c.to].contains(&Element::F16))
            .constant("X_DIM", c.x_dim)
            .flag("PAIRS", c.features.hides_pairs())
            .alias("OutElement", c.to.alias());
        let source = c.features.add_rows(source).file(file!("rows/seeing.wgsl"));
        let source = source.files(load_x).files(store_out);
        let mut bindings = vec![Binding::PARAMS, Binding::read("scores", "f32"), x, out];
        bindings.extend(c.features.bindings(Uses::Rows));
        let factors = Factors { a_along_m: true, b_along_n: true, weights: true };
        Self {
            name: "key_gradients",
            source: c
                .product
                .add_to(source, c.features.hides(), factors)
                .file(file!("kernels/key_gradients.wgsl")),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: c.product.workgroup_size(),
            workgroup_bytes: c.product.workgroup_bytes(),
        }
    }
}

/// What the pairs of a [`PairSums`] add up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Summed {
    Bias,
    /// Of slopes a head, or of each sequence.
    Slopes {
        per_sequence: bool,
    },
}

/// `kernels/pair_sums.wgsl`.
#[derive(Clone, Debug)]
pub(crate) struct PairSums<'a> {
    pub(crate) features: &'a Features,
    pub(crate) summed: Summed,
    /// Keys are summed over.
    pub(crate) keys_shared: bool,
    pub(crate) threads: u32,
}

impl From<PairSums<'_>> for Kernel {
    fn from(c: PairSums<'_>) -> Self {
        let mut bindings =
            vec![Binding::PARAMS, Binding::read("d_biased", "f32"), Binding::write("sums", "f32")];
        bindings.extend(c.features.bindings(Uses::Rows));
        let packed = c.features.rows == super::Rows::Packed;
        let (summand, of_sequence) = match c.summed {
            Summed::Bias => (file!("gradient/of_bias.wgsl"), false),
            Summed::Slopes { per_sequence } => {
                (file!("gradient/of_slope.wgsl"), per_sequence && packed)
            }
        };
        let rows = if of_sequence {
            file!("gradient/rows_of_sequence.wgsl")
        } else {
            file!("gradient/rows_shared.wgsl")
        };
        let source =
            Source::default().constant("THREADS", c.threads).flag("KEYS_SHARED", c.keys_shared);
        let source = c.features.add_rows(source).file(summand).file(rows);
        Self {
            name: "pair_sums",
            source: source.file(file!("kernels/pair_sums.wgsl")),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: c.threads,
            workgroup_bytes: c.threads * 4,
        }
    }
}

/// `kernels/sink_gradients.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SinkGradients {
    pub(crate) threads: u32,
}

impl From<SinkGradients> for Kernel {
    fn from(c: SinkGradients) -> Self {
        let features = Features { sinks: true, ..Features::plain() };
        let mut bindings =
            vec![Binding::PARAMS, Binding::read("stats", "u32"), Binding::write("sums", "f32")];
        bindings.extend(features.bindings(Uses::Sinks));
        let source = Source::default().constant("THREADS", c.threads);
        Self {
            name: "sink_gradients",
            source: features.add_rows(source).file(file!("kernels/sink_gradients.wgsl")),
            bindings,
            fields: AttentionParams::FIELDS,
            workgroup_size: c.threads,
            workgroup_bytes: c.threads * 4,
        }
    }
}

pub(super) fn variants(tuning: &Tuning, covering: &[Features]) -> Vec<Kernel> {
    let mut kernels = Vec::new();
    let (product, threads) = (tuning.product, tuning.row_threads);
    let mut add = |features: &Features, x_dim: u32, d_biased: bool| {
        kernels.push(Kernel::from(SoftmaxGradient { features, d_biased, threads }));
        for x in [features.q, features.out] {
            for to in [features.kv, Element::F32] {
                kernels.push(KeyGradients { features, product, x, to, x_dim }.into());
            }
        }
        for d_lse in [false, true] {
            let delta = Delta { out: features.out, d_lse, threads, v_head_dim: x_dim };
            kernels.push(delta.into());
        }
    };
    for rows in [super::Rows::Full, super::Rows::Band] {
        let features = Features { rows, ..Features::plain() };
        for x_dim in [32, 64, 128] {
            add(&features, x_dim, false);
        }
    }
    // What has no gradient is left out.
    let covering: Vec<_> = covering.iter().map(Features::differentiable).collect();
    for (i, features) in covering.iter().enumerate() {
        add(features, [64, 128, 32][i % 3], i % 2 == 0);
    }
    for features in &covering {
        for (summed, keys_shared) in [
            (Summed::Bias, false),
            (Summed::Bias, true),
            (Summed::Slopes { per_sequence: false }, true),
            (Summed::Slopes { per_sequence: true }, true),
        ] {
            kernels.push(PairSums { features, summed, keys_shared, threads }.into());
        }
    }
    kernels.push(SinkGradients { threads }.into());
    // A given dropout mask may be one buffer too many: planning says so.
    kernels.retain(Kernel::is_portable);
    kernels
}
