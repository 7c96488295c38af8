//! Tensors in host memory, as the runner takes and gives them.

use crate::blocks::ELEMENT_BYTES;
use crate::error::{BindError, Error};
use crate::layer::SelfAttention;
use crate::problem::Problem;
use crate::tensors::Operand;

/// Inputs of one attention. Slices may be longer than the problem's strides reach: views of one packed buffer
/// run to its end.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Inputs<'a> {
    /// `[batch, heads, q_len, head_dim]`.
    pub q: &'a [f32],
    /// `[batch, kv_heads, kv_len, head_dim]`.
    pub k: &'a [f32],
    /// `[batch, kv_heads, kv_len, v_head_dim]`.
    pub v: &'a [f32],
}

impl<'a> Inputs<'a> {
    /// The inputs of every attention; shapes as the problem's layout says.
    pub fn new(q: &'a [f32], k: &'a [f32], v: &'a [f32]) -> Self {
        Self { q, k, v }
    }
}

/// Inputs of one layer. Biases are given exactly where the layer has them.
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
}

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
}

/// What goes up and what comes down, by operand; lengths in elements.
pub(crate) struct Transfer<'a> {
    pub(crate) inputs: Vec<(Operand, &'a [f32])>,
    pub(crate) outputs: Vec<(Operand, usize)>,
}

impl<'a> Transfer<'a> {
    pub(crate) fn of_problem(problem: &Problem, inputs: &Inputs<'a>) -> Result<Self, Error> {
        problem.validate()?;
        let s = problem.shape;
        let rows = u64::from(s.batch) * u64::from(s.heads) * u64::from(s.q_len);
        let extent = |strides: crate::Strides, heads, len, dim| {
            strides.extent(s.batch, heads, len, dim).expect("validated")
        };
        let mut transfer = Self { inputs: Vec::new(), outputs: Vec::new() };
        for (operand, data, required) in [
            (Operand::Q, inputs.q, extent(problem.q, s.heads, s.q_len, s.head_dim)),
            (Operand::K, inputs.k, extent(problem.k, s.kv_heads, s.kv_len, s.head_dim)),
            (Operand::V, inputs.v, extent(problem.v, s.kv_heads, s.kv_len, s.v_head_dim)),
        ] {
            transfer.give(operand, data, required, false)?;
        }
        transfer.take(Operand::Out, extent(problem.out, s.heads, s.q_len, s.v_head_dim))?;
        if problem.lse {
            transfer.take(Operand::Lse, rows)?;
        }
        if problem.weights {
            transfer.take(Operand::Weights, rows.saturating_mul(s.kv_len.into()))?;
        }
        Ok(transfer)
    }

    pub(crate) fn of_layer(layer: &SelfAttention, inputs: &LayerInputs<'a>) -> Result<Self, Error> {
        layer.validate()?;
        let s = layer.shape;
        let rows = |len: u32| u64::from(s.batch) * u64::from(len);
        let (model, out) = (u64::from(layer.model_dim), u64::from(layer.out_dim));
        let context = u64::from(layer.context_dim.unwrap_or(layer.model_dim));
        let [q, k, v] = layer.widths();
        let heads = u64::from(s.heads) * u64::from(s.v_head_dim);
        let only = |condition: bool, n: u64| if condition { n } else { 0 };
        let (split, packed) = (!layer.packed, layer.packed);
        let cross = layer.context_dim.is_some();
        let mut transfer = Self { inputs: Vec::new(), outputs: Vec::new() };
        for (operand, data, required) in [
            (Operand::X, inputs.x, rows(s.q_len).saturating_mul(model)),
            (Operand::Context, inputs.context, only(cross, rows(s.kv_len).saturating_mul(context))),
            (Operand::WQ, inputs.w_q, only(split, q.saturating_mul(model))),
            (Operand::WK, inputs.w_k, only(split, k.saturating_mul(context))),
            (Operand::WV, inputs.w_v, only(split, v.saturating_mul(context))),
            (Operand::WQkv, inputs.w_qkv, only(packed, (q + k + v).saturating_mul(model))),
            (Operand::WO, inputs.w_o, out.saturating_mul(heads)),
            (Operand::BQ, inputs.b_q, only(split && layer.biases, q)),
            (Operand::BK, inputs.b_k, only(split && layer.biases, k)),
            (Operand::BV, inputs.b_v, only(split && layer.biases, v)),
            (Operand::BQkv, inputs.b_qkv, only(packed && layer.biases, q + k + v)),
            (Operand::BO, inputs.b_o, only(layer.biases, out)),
        ] {
            transfer.give(operand, data, required, true)?;
        }
        transfer.take(Operand::Out, rows(s.q_len).saturating_mul(out))?;
        if layer.weights {
            let pairs = rows(s.q_len).saturating_mul(u64::from(s.heads) * u64::from(s.kv_len));
            transfer.take(Operand::Weights, pairs)?;
        }
        Ok(transfer)
    }

    /// `exact`: a longer slice is an error too, a bias that the layer does not have among them.
    fn give(
        &mut self,
        operand: Operand,
        data: &'a [f32],
        required: u64,
        exact: bool,
    ) -> Result<(), Error> {
        let actual = data.len() as u64;
        if actual < required || exact && actual > required {
            return Err(Error::Length { tensor: operand.name(), required, actual });
        }
        if required > 0 {
            // No longer than `data`, so it fits a usize.
            let used = usize::try_from(required).unwrap_or(data.len());
            self.inputs.push((operand, &data[..used]));
        }
        Ok(())
    }

    fn take(&mut self, operand: Operand, elements: u64) -> Result<(), Error> {
        let bytes = elements.checked_mul(ELEMENT_BYTES);
        let fits = bytes.and_then(|bytes| isize::try_from(bytes).ok());
        let tensor = operand.name();
        let elements = fits.map(|_| elements).and_then(|n| usize::try_from(n).ok());
        let elements = elements.ok_or(crate::ProblemError::Unaddressable { tensor })?;
        self.outputs.push((operand, elements));
        Ok(())
    }

    /// Every tensor becomes a buffer of its own.
    pub(crate) fn check_sizes(&self, available: u64) -> Result<(), BindError> {
        let inputs = self.inputs.iter().map(|(operand, data)| (*operand, data.len()));
        for (operand, elements) in inputs.chain(self.outputs.iter().copied()) {
            let required = elements as u64 * ELEMENT_BYTES;
            if required > available {
                let what = operand.name();
                return Err(BindError::BufferTooLarge { what, required, available });
            }
        }
        Ok(())
    }

    /// What is asked for, without elements yet.
    pub(crate) fn empty_outputs(&self) -> Outputs {
        let asked = |operand| self.outputs.iter().any(|(other, _)| *other == operand);
        Outputs {
            out: Vec::new(),
            lse: asked(Operand::Lse).then(Vec::new),
            weights: asked(Operand::Weights).then(Vec::new),
        }
    }

    /// The data given as `operand`; empty where it is not needed.
    #[cfg(feature = "cpu")]
    pub(crate) fn input(&self, operand: Operand) -> &'a [f32] {
        self.inputs.iter().find(|(other, _)| *other == operand).map_or(&[], |(_, data)| data)
    }

    /// Elements asked of `operand`.
    #[cfg(feature = "cpu")]
    pub(crate) fn output_len(&self, operand: Operand) -> Option<usize> {
        self.outputs.iter().find(|(other, _)| *other == operand).map(|(_, len)| *len)
    }
}
