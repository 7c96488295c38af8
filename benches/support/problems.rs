//! The named problems: one layer of well-known models, batch 1, f32.

use wgpu_attention::{Mask, Problem, SelfAttention, Shape};

/// A named problem.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Milliseconds even on a software GPU.
    pub(crate) small: bool,
    shape: Shape,
    mask: Mask,
}

/// Smallest first.
pub(crate) const CASES: [Case; 6] = [
    Case::new("bert_small", Shape::self_attention(1, 4, 256, 64), Mask::FULL).small(),
    Case::new("gpt2_small", Shape::self_attention(1, 4, 384, 64), Mask::CAUSAL).small(),
    Case::new("llama_small", Shape::self_attention(1, 8, 256, 128).with_kv_heads(2), Mask::CAUSAL)
        .small(),
    Case::new("bert", Shape::self_attention(1, 12, 512, 64), Mask::FULL),
    Case::new("gpt2", Shape::self_attention(1, 12, 1024, 64), Mask::CAUSAL),
    Case::new("llama", Shape::self_attention(1, 32, 2048, 128).with_kv_heads(8), Mask::CAUSAL),
];

impl Case {
    const fn new(name: &'static str, shape: Shape, mask: Mask) -> Self {
        Self { name, small: false, shape, mask }
    }

    const fn small(self) -> Self {
        Self { small: true, ..self }
    }

    /// Whether it is measured on a CPU, or on a software GPU, where large ones take long: those only if
    /// `WGPU_ATTENTION_PROBLEMS` is `all`.
    pub(crate) fn is_wanted(&self, on_cpu: bool) -> bool {
        let all = std::env::var("WGPU_ATTENTION_PROBLEMS").is_ok_and(|value| value == "all");
        self.small || self.name == "bert" || !on_cpu || all
    }

    /// Attention alone.
    pub(crate) fn problem(&self) -> Problem {
        Problem::new(self.shape).mask(self.mask)
    }

    /// The same attention between its projections.
    pub(crate) fn layer(&self) -> SelfAttention {
        let Shape { batch, heads, kv_heads, q_len, head_dim, v_head_dim, .. } = self.shape;
        SelfAttention::new(batch, q_len, heads * head_dim, heads)
            .expect("as wide as its heads")
            .with_heads(heads, kv_heads, head_dim, v_head_dim)
            .mask(self.mask)
    }

    /// As criterion names a benchmark of this problem.
    pub(crate) fn id(&self, what: &str) -> String {
        format!("{}/{what}", self.name)
    }
}
