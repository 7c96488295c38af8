//! A layer: projections around attention.

use super::attend::{self, Results};
use super::product;
use crate::error::Error;
use crate::host::Transfer;
use crate::inputs::Inputs;
use crate::layer::{Inside, SelfAttention};
use crate::operand::Operand;
use crate::outputs::Outputs;
use crate::plan::Algorithm;
use crate::watcher::{Meter, Watcher};
use std::borrow::Cow;

/// One layer.
pub(crate) fn run_layer(
    layer: &SelfAttention,
    algorithm: Algorithm,
    transfer: &Transfer<'_>,
    watcher: &Watcher,
) -> Result<Outputs, Error> {
    let problem = layer.problem();
    algorithm.check(&problem)?;
    let total = layer.projection_flops().saturating_add(attend::work(&problem, &Inputs::default()));
    let meter = Meter::start(watcher, total)?;
    let mut weights = transfer.output_len(Operand::Weights).map(|n| vec![0.0; n]);
    let heads = Heads::of(layer, transfer, weights.as_deref_mut(), &meter)?;

    let (w, bias) = (transfer.input(Operand::WO), transfer.input(Operand::BO));
    let mut out = vec![0.0; transfer.output_len(Operand::Out).unwrap_or(0)];
    let (inputs, outputs) = (count(problem.out.row)?, count(layer.out_dim.into())?);
    let bias = (!bias.is_empty()).then_some(bias);
    let rows = heads.out.len() / inputs;
    product::linear(&heads.out, w, bias, rows, inputs, outputs, &mut out, outputs, &meter)?;
    let saved = transfer.output_len(Operand::Saved);
    let saved = saved.map(|elements| heads.saved(layer, elements)).transpose()?;
    Ok(Outputs { out, lse: None, weights, scores: None, saved })
}

/// What is between the projections.
pub(super) struct Heads<'a> {
    /// Rows of q; in self-attention of k and v beside them.
    q: Cow<'a, [f32]>,
    /// Rows of k and v, in cross-attention.
    kv: Cow<'a, [f32]>,
    /// `[batch, q_len, heads * v_head_dim]`.
    pub(super) out: Cow<'a, [f32]>,
    /// `[batch, heads, q_len]`.
    pub(super) lse: Cow<'a, [f32]>,
}

impl<'a> Heads<'a> {
    /// By the projections and the attention.
    pub(super) fn of(
        layer: &SelfAttention,
        transfer: &Transfer<'_>,
        weights: Option<&mut [f32]>,
        meter: &Meter<'_>,
    ) -> Result<Self, Error> {
        let (problem, s) = (layer.problem(), layer.shape);
        let rows = |len: u32| u64::from(s.batch) * u64::from(len);
        let [q_width, k_width, v_width] = layer.widths();
        let (q_row, kv_row) = (count(problem.q.row)?, count(problem.k.row)?);
        let mut q = vec![0.0; count(rows(s.q_len).saturating_mul(problem.q.row))?];
        let mut kv = match layer.context_dim {
            None => Vec::new(),
            Some(_) => vec![0.0; count(rows(s.kv_len).saturating_mul(problem.k.row))?],
        };
        let project =
            |x: Operand, w: Operand, bias: Operand, y: &mut [f32], y_row: usize, outputs: u64| {
                let (x, w, bias) = (transfer.input(x), transfer.input(w), transfer.input(bias));
                let outputs = count(outputs)?;
                let inputs = w.len() / outputs;
                let bias = (!bias.is_empty()).then_some(bias);
                product::linear(x, w, bias, x.len() / inputs, inputs, outputs, y, y_row, meter)
            };
        if layer.packed {
            project(Operand::X, Operand::WQkv, Operand::BQkv, &mut q, q_row, problem.q.row)?;
        } else {
            project(Operand::X, Operand::WQ, Operand::BQ, &mut q, q_row, q_width)?;
            let (context, kv) = match layer.context_dim {
                None => (Operand::X, &mut q),
                Some(_) => (Operand::Context, &mut kv),
            };
            let [k_first, v_first] = keys_first(layer)?;
            for (w, bias, first, width) in [
                (Operand::WK, Operand::BK, k_first, k_width),
                (Operand::WV, Operand::BV, v_first, v_width),
            ] {
                let y = kv.get_mut(first..).unwrap_or_default();
                project(context, w, bias, y, kv_row, width)?;
            }
        }
        let mut out = vec![0.0; count(rows(s.q_len).saturating_mul(problem.out.row))?];
        let mut lse = vec![0.0; count(rows(s.q_len).saturating_mul(s.heads.into()))?];
        let heads =
            Self { q: q.into(), kv: kv.into(), out: Cow::Borrowed(&[]), lse: Cow::Borrowed(&[]) };
        let [q, k, v] = heads.qkv(layer)?;
        let results = Results { out: &mut out, lse: Some(&mut lse), weights, scores: None };
        let inputs = Inputs::new(q, k, v).seed(transfer.seed());
        attend::forward(&problem, &inputs, results, meter)?;
        Ok(Self { out: out.into(), lse: lse.into(), ..heads })
    }

    /// As the layer saved it.
    pub(super) fn from_saved(layer: &SelfAttention, saved: &'a [f32]) -> Result<Self, Error> {
        let firsts = saved_firsts(layer)?;
        let part = |i: usize| {
            let end = firsts.get(i + 1).copied().unwrap_or(saved.len());
            Cow::Borrowed(&saved[firsts[i]..end])
        };
        Ok(Self { q: part(0), kv: part(1), out: part(2), lse: part(3) })
    }

    /// As the layer saves it.
    fn saved(&self, layer: &SelfAttention, elements: usize) -> Result<Vec<f32>, Error> {
        let mut saved = vec![0.0; elements];
        for (first, data) in
            saved_firsts(layer)?.into_iter().zip([&self.q, &self.kv, &self.out, &self.lse])
        {
            saved[first..][..data.len()].copy_from_slice(data);
        }
        Ok(saved)
    }

    /// q, k and v as the problem lays them out.
    pub(super) fn qkv(&self, layer: &SelfAttention) -> Result<[&[f32]; 3], Error> {
        let kv = if layer.context_dim.is_some() { &self.kv } else { &self.q };
        let [k_first, v_first] = keys_first(layer)?;
        Ok([&self.q, kv.get(k_first..).unwrap_or(&[]), kv.get(v_first..).unwrap_or(&[])])
    }
}

/// Where keys and values begin in the rows that they lie in.
fn keys_first(layer: &SelfAttention) -> Result<[usize; 2], Error> {
    let [q_width, k_width, _] = layer.widths();
    let k_first = count(layer.context_dim.map_or(q_width, |_| 0))?;
    Ok([k_first, k_first + count(k_width)?])
}

/// Where q, k and v of a context, out and lse begin in what is saved.
fn saved_firsts(layer: &SelfAttention) -> Result<[usize; 4], Error> {
    let (inside, _) = Inside::saved(layer);
    let kv = if layer.context_dim.is_some() { inside.k.first } else { inside.heads.first };
    let [q, kv, out, lse] = [inside.q.first, kv, inside.heads.first, inside.lse.first].map(count);
    Ok([q?, kv?, out?, lse?])
}

/// Elements that a slice may have.
pub(super) fn count(n: u64) -> Result<usize, Error> {
    let bytes = n.checked_mul(crate::blocks::ELEMENT_BYTES);
    let fits = bytes.is_some_and(|bytes| isize::try_from(bytes).is_ok());
    let n = if fits { usize::try_from(n).ok() } else { None };
    n.ok_or(crate::ProblemError::Unaddressable { tensor: "q" }.into())
}
