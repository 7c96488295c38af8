//! What comes back of a run.

use crate::host::Transfer;
use crate::operand::Operand;
use crate::shape::DType;

/// Results of one attention or layer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Outputs {
    /// As the problem lays out `out` (0 in gaps between rows), or of a layer `[batch, q_len, out_dim]`.
    pub out: Vec<f32>,
    /// `[batch, heads, q_len]`, where the problem has `lse`.
    pub lse: Option<Vec<f32>>,
    /// `[batch, heads, q_len, kv_len]`, where the problem has `weights`.
    pub weights: Option<Vec<f32>>,
    /// `[batch, heads, q_len, kv_len]`, where the problem has `scores`; -inf where there is none.
    pub scores: Option<Vec<f32>>,
    /// What the gradients need, of a layer [`with_saved`](crate::SelfAttention::with_saved).
    pub saved: Option<Vec<f32>>,
}

/// What comes down, put together.
pub(crate) trait FromOutputs {
    /// What is asked for, without elements yet.
    fn empty(transfer: &Transfer<'_>) -> Self;
    /// Puts in what came of an operand.
    fn set(&mut self, operand: Operand, data: Vec<f32>);
}

impl FromOutputs for Outputs {
    fn empty(transfer: &Transfer<'_>) -> Self {
        let asked = |operand| transfer.asks(operand).then(Vec::new);
        Self {
            out: Vec::new(),
            lse: asked(Operand::Lse),
            weights: asked(Operand::Weights),
            scores: asked(Operand::Scores),
            saved: asked(Operand::Saved),
        }
    }

    fn set(&mut self, operand: Operand, data: Vec<f32>) {
        match operand {
            Operand::Lse => self.lse = Some(data),
            Operand::Weights => self.weights = Some(data),
            Operand::Scores => self.scores = Some(data),
            Operand::Saved => self.saved = Some(data),
            _ => self.out = data,
        }
    }
}

/// An output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) operand: Operand,
    pub(crate) elements: usize,
    pub(crate) dtype: DType,
}

impl Output {
    pub(crate) fn bytes(&self) -> u64 {
        self.dtype.bytes_of(self.elements as u64).expect("checked when it was asked for")
    }
}
