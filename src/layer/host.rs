//! Tensors of a layer in host memory.

use super::backward::gradient_of;
use super::plan::Inside;
use super::{LayerBackward, SelfAttention};
use crate::encoding::Data;
use crate::error::{BindError, Error};
use crate::host::{Transfer, checked};
use crate::operand::Operand;
use crate::outputs::FromOutputs;
use crate::shape::DType;

/// Inputs of one layer. Biases are given exactly where the layer has them, as is a seed.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "filled in by field name, with ..Default::default()")]
pub struct LayerInputs<'a> {
    /// `[batch, q_len, model_dim]`.
    pub x: &'a [f32],
    /// `[batch, kv_len, context_dim]`, for cross-attention.
    pub context: &'a [f32],
    /// `[heads * head_dim, model_dim]`.
    pub w_q: &'a [f32],
    /// `[kv_heads * head_dim, context_dim]`.
    pub w_k: &'a [f32],
    /// `[kv_heads * v_head_dim, context_dim]`.
    pub w_v: &'a [f32],
    /// The three above, one below the other, where the layer is packed.
    pub w_qkv: &'a [f32],
    /// `[out_dim, heads * v_head_dim]`.
    pub w_o: &'a [f32],
    /// `[heads * head_dim]`.
    pub b_q: &'a [f32],
    /// `[kv_heads * head_dim]`.
    pub b_k: &'a [f32],
    /// `[kv_heads * v_head_dim]`.
    pub b_v: &'a [f32],
    /// The three above, one after the other, where the layer is packed.
    pub b_qkv: &'a [f32],
    /// `[out_dim]`.
    pub b_o: &'a [f32],
    /// Seed of dropout, where the layer has it: the same for its gradients.
    pub seed: Option<u64>,
}

/// The gradient of a layer's output in host memory, and what the layer saved.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "filled in by field name, with ..Default::default()")]
pub struct LayerBackwardInputs<'a> {
    /// `[batch, q_len, out_dim]`.
    pub d_out: &'a [f32],
    /// As the layer gave it, exactly where it is [`with_saved`](SelfAttention::with_saved).
    pub saved: &'a [f32],
}

/// Gradients of a layer in host memory, each as what it is the gradient of; those that the layer does not have are
/// empty.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LayerGradients {
    /// `[batch, q_len, model_dim]`.
    pub x: Vec<f32>,
    /// `[batch, kv_len, context_dim]`.
    pub context: Vec<f32>,
    /// `[heads * head_dim, model_dim]`.
    pub w_q: Vec<f32>,
    /// `[kv_heads * head_dim, context_dim]`.
    pub w_k: Vec<f32>,
    /// `[kv_heads * v_head_dim, context_dim]`.
    pub w_v: Vec<f32>,
    /// The three above, one below the other, where the layer is packed.
    pub w_qkv: Vec<f32>,
    /// `[out_dim, heads * v_head_dim]`.
    pub w_o: Vec<f32>,
    /// `[heads * head_dim]`.
    pub b_q: Vec<f32>,
    /// `[kv_heads * head_dim]`.
    pub b_k: Vec<f32>,
    /// `[kv_heads * v_head_dim]`.
    pub b_v: Vec<f32>,
    /// The three above, one after the other, where the layer is packed.
    pub b_qkv: Vec<f32>,
    /// `[out_dim]`.
    pub b_o: Vec<f32>,
}

impl FromOutputs for LayerGradients {
    fn empty(_: &Transfer<'_>) -> Self {
        Self::default()
    }

    fn set(&mut self, operand: Operand, data: Vec<f32>) {
        let place = match operand {
            Operand::DContext => &mut self.context,
            Operand::DWQ => &mut self.w_q,
            Operand::DWK => &mut self.w_k,
            Operand::DWV => &mut self.w_v,
            Operand::DWQkv => &mut self.w_qkv,
            Operand::DWO => &mut self.w_o,
            Operand::DBQ => &mut self.b_q,
            Operand::DBK => &mut self.b_k,
            Operand::DBV => &mut self.b_v,
            Operand::DBQkv => &mut self.b_qkv,
            Operand::DBO => &mut self.b_o,
            _ => &mut self.x,
        };
        *place = data;
    }
}

impl SelfAttention {
    /// Every input, and the elements that it has: 0 of one that the layer has not.
    fn inputs_in<'a>(&self, inputs: &LayerInputs<'a>) -> [(Operand, &'a [f32], u64); 12] {
        let s = self.shape;
        let rows = |len: u32| u64::from(s.batch) * u64::from(len);
        let (model, out) = (u64::from(self.model_dim), u64::from(self.out_dim));
        let context = u64::from(self.context_dim.unwrap_or(self.model_dim));
        let [q, k, v] = self.widths();
        let heads = u64::from(s.heads) * u64::from(s.v_head_dim);
        let only = |condition: bool, n: u64| if condition { n } else { 0 };
        let (split, packed) = (!self.packed, self.packed);
        let cross = self.context_dim.is_some();
        [
            (Operand::X, inputs.x, rows(s.q_len).saturating_mul(model)),
            (Operand::Context, inputs.context, only(cross, rows(s.kv_len).saturating_mul(context))),
            (Operand::WQ, inputs.w_q, only(split, q.saturating_mul(model))),
            (Operand::WK, inputs.w_k, only(split, k.saturating_mul(context))),
            (Operand::WV, inputs.w_v, only(split, v.saturating_mul(context))),
            (Operand::WQkv, inputs.w_qkv, only(packed, (q + k + v).saturating_mul(model))),
            (Operand::WO, inputs.w_o, out.saturating_mul(heads)),
            (Operand::BQ, inputs.b_q, only(split && self.biases, q)),
            (Operand::BK, inputs.b_k, only(split && self.biases, k)),
            (Operand::BV, inputs.b_v, only(split && self.biases, v)),
            (Operand::BQkv, inputs.b_qkv, only(packed && self.biases, q + k + v)),
            (Operand::BO, inputs.b_o, only(self.biases, out)),
        ]
    }

    /// Elements of its output.
    fn out_elements(&self) -> u64 {
        let s = self.shape;
        (u64::from(s.batch) * u64::from(s.q_len)).saturating_mul(self.out_dim.into())
    }
}

impl<'a> Transfer<'a> {
    pub(crate) fn of_layer(layer: &SelfAttention, inputs: &LayerInputs<'a>) -> Result<Self, Error> {
        layer.validate()?;
        let s = layer.shape;
        let mut transfer = Self::of_layer_inputs(layer, inputs)?;
        transfer.take(Operand::Out, layer.out_elements(), DType::F32)?;
        if layer.weights {
            let rows = u64::from(s.batch) * u64::from(s.q_len);
            let pairs = rows.saturating_mul(u64::from(s.heads) * u64::from(s.kv_len));
            transfer.take(Operand::Weights, pairs, DType::F32)?;
        }
        if layer.saved {
            transfer.take(Operand::Saved, Inside::saved(layer).1, DType::F32)?;
        }
        Ok(transfer)
    }

    pub(crate) fn of_layer_backward(
        backward: &LayerBackward,
        inputs: &LayerInputs<'a>,
        given: &LayerBackwardInputs<'a>,
    ) -> Result<Self, Error> {
        backward.validate()?;
        let layer = &backward.layer;
        let mut transfer = Self::of_layer_inputs(layer, inputs)?;
        let saved = if layer.saved { Inside::saved(layer).1 } else { 0 };
        for (operand, data, required) in [
            (Operand::DOut, given.d_out, layer.out_elements()),
            (Operand::Saved, given.saved, saved),
        ] {
            transfer.give(operand, Data::F32(checked(operand, data, required, true)?));
        }
        for (operand, _, elements) in layer.inputs_in(inputs) {
            if elements > 0 {
                transfer.take(gradient_of(operand), elements, DType::F32)?;
            }
        }
        Ok(transfer)
    }

    fn of_layer_inputs(layer: &SelfAttention, inputs: &LayerInputs<'a>) -> Result<Self, Error> {
        let mut transfer = Self { inputs: Vec::new(), buffers: Vec::new(), outputs: Vec::new() };
        for (operand, data, required) in layer.inputs_in(inputs) {
            transfer.give(operand, Data::F32(checked(operand, data, required, true)?));
        }
        let tensor = || Operand::Seed.name().into();
        match (layer.dropout, inputs.seed) {
            (Some(_), Some(seed)) => transfer.give_seed(seed),
            (None, Some(_)) => return Err(BindError::Unused { tensor: tensor() }.into()),
            (Some(p), None) if p > 0.0 => {
                return Err(BindError::Missing { tensor: tensor() }.into());
            }
            // Nothing is drawn.
            (_, None) => {}
        }
        Ok(transfer)
    }
}
