//! What each benchmark does at least: operations and bytes.

use wgpu_attention::{Cost, Problem, Roofs, SelfAttention};

const F32_BYTES: u64 = 4;

/// Operations of matrix products, over visible pairs only, and bytes of inputs and outputs, each once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// 0 where there is no product.
    pub(crate) flops: u64,
    pub(crate) bytes: u64,
}

impl Work {
    /// The least seconds that it takes under these roofs.
    pub(crate) fn least_seconds(self, roofs: &Roofs) -> f64 {
        (self.flops as f64 / roofs.flops_per_s).max(self.bytes as f64 / roofs.bytes_per_s)
    }

    pub(crate) fn of(cost: Cost) -> Self {
        Self { flops: cost.flops, bytes: cost.bytes }
    }

    /// One staged kernel; of the score matrix, the visible part.
    ///
    /// # Panics
    /// If the kernel is none of the three.
    pub(crate) fn of_stage(kernel: &str, problem: &Problem) -> Self {
        let s = problem.shape;
        let (head_dim, v_head_dim) = (u64::from(s.head_dim), u64::from(s.v_head_dim));
        let pairs = Cost::of(problem).flops / (2 * (head_dim + v_head_dim));
        let queries = u64::from(s.batch) * u64::from(s.heads) * u64::from(s.q_len);
        let keys = u64::from(s.batch) * u64::from(s.kv_heads) * u64::from(s.kv_len);
        let (flops, elements) = match kernel {
            "scores" => (2 * pairs * head_dim, (queries + keys) * head_dim + pairs),
            "softmax" => (0, 2 * pairs),
            "values" => (2 * pairs * v_head_dim, pairs + (keys + queries) * v_head_dim),
            other => panic!("the work of kernel {other:?} is not known"),
        };
        Self { flops, bytes: elements * F32_BYTES }
    }

    /// The four projections of a layer, each by itself.
    pub(crate) fn of_projections(layer: &SelfAttention) -> Self {
        let mut work = Self { flops: 0, bytes: 0 };
        for [rows, inputs, outputs] in projections(layer) {
            work.flops += 2 * rows * inputs * outputs;
            work.bytes += (rows * inputs + inputs * outputs + rows * outputs) * F32_BYTES;
        }
        work
    }

    /// A whole layer: its input, weights and output once, nothing in between.
    pub(crate) fn of_layer(layer: &SelfAttention) -> Self {
        let s = layer.shape;
        let attention = Cost::of(&Problem::new(s).mask(layer.mask));
        let weights: u64 =
            projections(layer).map(|[_, inputs, outputs]| inputs * outputs).iter().sum();
        let rows = u64::from(s.batch) * u64::from(s.q_len);
        let vectors = rows * (u64::from(layer.model_dim) + u64::from(layer.out_dim));
        Self {
            flops: Self::of_projections(layer).flops + attention.flops,
            bytes: (weights + vectors) * F32_BYTES,
        }
    }
}

/// Rows, inputs and outputs of `W_q`, `W_k`, `W_v` and `W_o`.
fn projections(layer: &SelfAttention) -> [[u64; 3]; 4] {
    let s = layer.shape;
    let (model, out) = (u64::from(layer.model_dim), u64::from(layer.out_dim));
    let width = |heads: u32, dim: u32| u64::from(heads) * u64::from(dim);
    let rows = |len: u32| u64::from(s.batch) * u64::from(len);
    [
        [rows(s.q_len), model, width(s.heads, s.head_dim)],
        [rows(s.kv_len), model, width(s.kv_heads, s.head_dim)],
        [rows(s.kv_len), model, width(s.kv_heads, s.v_head_dim)],
        [rows(s.q_len), width(s.heads, s.v_head_dim), out],
    ]
}
