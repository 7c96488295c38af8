//! The gradients of a layer: products around those of its attention.

use super::attend;
use super::layer::{Heads, count};
use super::product::{Factor, add_columns, add_product};
use crate::backward::{BackwardInputs, Gradients};
use crate::error::Error;
use crate::host::Transfer;
use crate::inputs::Inputs;
use crate::layer::{LayerBackward, LayerGradients, SelfAttention};
use crate::layout::Strides;
use crate::operand::Operand;
use crate::outputs::FromOutputs as _;
use crate::watcher::{Meter, Watcher};

/// The gradients of one layer.
pub(crate) fn layer_backward(
    backward: &LayerBackward,
    transfer: &Transfer<'_>,
    watcher: &Watcher,
) -> Result<LayerGradients, Error> {
    let layer = &backward.layer;
    let (problem, s) = (layer.problem(), layer.shape);
    let attention = attend::work(&problem, &Inputs::default());
    let (projections, last) = (layer.projection_flops(), layer.last_projection_flops());
    let again = if layer.saved { 0 } else { attention.saturating_add(projections - last) };
    let total = projections.saturating_mul(2).saturating_add(attention).saturating_add(again);
    let meter = Meter::start(watcher, total)?;
    let heads = if layer.saved {
        Heads::from_saved(layer, transfer.input(Operand::Saved))?
    } else {
        Heads::of(layer, transfer, None, &meter)?
    };

    let mut gradients = LayerGradients::default();
    for output in &transfer.outputs {
        gradients.set(output.operand, vec![0.0; output.elements]);
    }
    let mut d_heads = vec![0.0; heads.out.len()];
    let back = Projection {
        d_y: transfer.input(Operand::DOut),
        outputs: count(layer.out_dim.into())?,
        x: &heads.out,
        w: transfer.input(Operand::WO),
    };
    back.add(&mut d_heads, &mut gradients.w_o, &mut gradients.b_o, &meter)?;

    // Without gaps, whatever lies beside q, k and v.
    let attention = (backward.attention())
        .d_q_strides(Strides::bshd(s.heads, s.q_len, s.head_dim))
        .d_k_strides(Strides::bshd(s.kv_heads, s.kv_len, s.head_dim))
        .d_v_strides(Strides::bshd(s.kv_heads, s.kv_len, s.v_head_dim));
    let [q, k, v] = heads.qkv(layer)?;
    let (out, lse) = (&heads.out[..], &heads.lse[..]);
    let given = BackwardInputs { out, lse, d_out: &d_heads, ..BackwardInputs::default() };
    let inputs = Inputs::new(q, k, v).seed(transfer.seed());
    let inside = super::backward::layer_products(&attention, &inputs, &given, &meter)?;
    first_projections(layer, transfer, &inside, &mut gradients, &meter)?;
    Ok(gradients)
}

/// Of q, k and v, by their gradients.
fn first_projections(
    layer: &SelfAttention,
    transfer: &Transfer<'_>,
    inside: &Gradients,
    gradients: &mut LayerGradients,
    meter: &Meter<'_>,
) -> Result<(), Error> {
    let [q, k, v] = layer.widths().map(count);
    let widths = [q?, k?, v?];
    let x = transfer.input(Operand::X);
    let mut w = [Operand::WQ, Operand::WK, Operand::WV].map(|w| transfer.input(w));
    let LayerGradients { w_q, w_k, w_v, w_qkv, b_q, b_k, b_v, b_qkv, .. } = gradients;
    let mut d_w = [&mut w_q[..], w_k, w_v];
    let mut d_b = [&mut b_q[..], b_k, b_v];
    if layer.packed {
        w = split(transfer.input(Operand::WQkv), widths);
        (d_w, d_b) = (split_mut(w_qkv, widths), split_mut(b_qkv, widths));
    }
    let d_y = [&inside.q, &inside.k, &inside.v];
    for (i, (d_w, d_b)) in d_w.into_iter().zip(d_b).enumerate() {
        let (x, d_x) = if i > 0 && layer.context_dim.is_some() {
            (transfer.input(Operand::Context), &mut gradients.context)
        } else {
            (x, &mut gradients.x)
        };
        let projection = Projection { d_y: d_y[i], outputs: widths[i], x, w: w[i] };
        projection.add(d_x, d_w, d_b, meter)?;
    }
    Ok(())
}

/// One `y = x w^T + b`, and the gradient of y.
#[derive(Clone, Copy)]
struct Projection<'a> {
    /// `[rows, outputs]`.
    d_y: &'a [f32],
    outputs: usize,
    /// `[rows, inputs]`.
    x: &'a [f32],
    /// `[outputs, inputs]`.
    w: &'a [f32],
}

impl Projection<'_> {
    /// Adds the gradients of x, w and b, where there is one.
    fn add(
        self,
        d_x: &mut [f32],
        d_w: &mut [f32],
        d_b: &mut [f32],
        meter: &Meter<'_>,
    ) -> Result<(), Error> {
        let Self { d_y, outputs, x, w } = self;
        let inputs = w.len() / outputs;
        add_product(d_w, inputs, Factor::transposed(d_y, outputs), x, meter)?;
        add_columns(d_b, d_y);
        add_product(d_x, inputs, Factor::rows(d_y, outputs), w, meter)
    }
}

/// Rows of a packed matrix, or elements of a packed vector, by the widths of q, k and v.
fn split(packed: &[f32], [q, k, v]: [usize; 3]) -> [&[f32]; 3] {
    let row = packed.len() / (q + k + v);
    let (of_q, rest) = packed.split_at(q * row);
    let (of_k, of_v) = rest.split_at(k * row);
    [of_q, of_k, of_v]
}

fn split_mut(packed: &mut [f32], [q, k, v]: [usize; 3]) -> [&mut [f32]; 3] {
    let row = packed.len() / (q + k + v);
    let (of_q, rest) = packed.split_at_mut(q * row);
    let (of_k, of_v) = rest.split_at_mut(k * row);
    [of_q, of_k, of_v]
}
