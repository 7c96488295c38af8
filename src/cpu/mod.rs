//! The CPU path of the runner: blocked, on all cores, for machines without a GPU.

use crate::encoding::rounded;
use crate::error::Error;
use crate::host::Transfer;
use crate::inputs::Inputs;
use crate::layer::SelfAttention;
use crate::operand::Operand;
use crate::outputs::Outputs;
use crate::plan::Algorithm;
use crate::problem::Problem;
use crate::shape::DType;
use crate::watcher::{Meter, Watcher};

mod append;
mod attend;
mod backward;
mod band;
mod dropout;
mod merge;
mod product;
mod softmax;
mod state;
mod weighted;

pub(crate) use append::{append, rotary_embedding};
pub(crate) use backward::backward;
pub(crate) use merge::merge;

/// One attention, of inputs rounded to their storage types.
pub(crate) fn run(
    problem: &Problem,
    algorithm: Algorithm,
    inputs: &Inputs<'_>,
    transfer: &Transfer<'_>,
    watcher: &Watcher,
) -> Result<Outputs, Error> {
    algorithm.check(problem)?;
    check_buffers(problem, inputs)?;
    let [q, k, v] =
        [(inputs.q, problem.dtype), (inputs.k, problem.kv_dtype), (inputs.v, problem.kv_dtype)]
            .map(|(data, dtype)| rounded(data, dtype));
    let bias = rounded(inputs.bias, problem.bias.map_or(DType::F32, |bias| bias.dtype));
    let inputs = Inputs { q: &q, k: &k, v: &v, bias: &bias, ..inputs.clone() };
    let meter = Meter::start(watcher, attend::work(problem, &inputs))?;
    let mut outputs = attention(problem, &inputs, transfer, &meter)?;
    if let std::borrow::Cow::Owned(out) = rounded(&outputs.out, problem.out_dtype) {
        outputs.out = out;
    }
    Ok(outputs)
}

/// Closures do not read the buffers of the caller's functions, but kernels would.
fn check_buffers(problem: &Problem, inputs: &Inputs<'_>) -> Result<(), Error> {
    let given = |name: &str| inputs.buffers.iter().any(|(given, _)| *given == name);
    match problem.function_buffers()?.iter().find(|(name, _)| !given(name)) {
        Some((name, _)) => {
            Err(crate::BindError::Missing { tensor: name.to_string().into() }.into())
        }
        None => Ok(()),
    }
}

/// One layer.
pub(crate) fn run_layer(
    layer: &SelfAttention,
    algorithm: Algorithm,
    transfer: &Transfer<'_>,
    watcher: &Watcher,
) -> Result<Outputs, Error> {
    let problem = layer.problem();
    algorithm.check(&problem)?;
    let s = problem.shape;
    let count = |n: u64| {
        let bytes = n.checked_mul(crate::blocks::ELEMENT_BYTES);
        let fits = bytes.is_some_and(|bytes| isize::try_from(bytes).is_ok());
        let n = if fits { usize::try_from(n).ok() } else { None };
        n.ok_or(crate::ProblemError::Unaddressable { tensor: "q" })
    };
    let rows = |len: u32| u64::from(s.batch) * u64::from(len);
    let [q_width, k_width, v_width] = layer.widths();
    let (q_row, kv_row) = (count(problem.q.row)?, count(problem.k.row)?);
    let mut q = vec![0.0; count(rows(s.q_len).saturating_mul(problem.q.row))?];
    let mut kv = match layer.context_dim {
        None => Vec::new(),
        Some(_) => vec![0.0; count(rows(s.kv_len).saturating_mul(problem.k.row))?],
    };
    let total = layer.projection_flops().saturating_add(attend::work(&problem, &Inputs::default()));
    let meter = Meter::start(watcher, total)?;
    let project =
        |x: Operand, w: Operand, bias: Operand, y: &mut [f32], y_row: usize, outputs: u64| {
            let (x, w, bias) = (transfer.input(x), transfer.input(w), transfer.input(bias));
            let outputs = count(outputs)?;
            let inputs = w.len() / outputs;
            let bias = (!bias.is_empty()).then_some(bias);
            product::linear(x, w, bias, x.len() / inputs, inputs, outputs, y, y_row, &meter)
        };

    // Side by side in one buffer where the sequence is one and the same.
    let k_first = count(layer.context_dim.map_or(q_width, |_| 0))?;
    let v_first = k_first + count(k_width)?;
    if layer.packed {
        project(Operand::X, Operand::WQkv, Operand::BQkv, &mut q, q_row, problem.q.row)?;
    } else {
        project(Operand::X, Operand::WQ, Operand::BQ, &mut q, q_row, q_width)?;
        let (context, kv) = match layer.context_dim {
            None => (Operand::X, &mut q),
            Some(_) => (Operand::Context, &mut kv),
        };
        for (w, bias, first, width) in [
            (Operand::WK, Operand::BK, k_first, k_width),
            (Operand::WV, Operand::BV, v_first, v_width),
        ] {
            let y = kv.get_mut(first..).unwrap_or_default();
            project(context, w, bias, y, kv_row, width)?;
        }
    }

    let kv = if layer.context_dim.is_some() { &kv } else { &q };
    let (k, v) = (kv.get(k_first..).unwrap_or(&[]), kv.get(v_first..).unwrap_or(&[]));
    let heads = attention(&problem, &Inputs::new(&q, k, v), transfer, &meter)?;
    let (w, bias) = (transfer.input(Operand::WO), transfer.input(Operand::BO));
    let mut out = vec![0.0; transfer.output_len(Operand::Out).unwrap_or(0)];
    let (inputs, outputs) = (count(problem.out.row)?, count(layer.out_dim.into())?);
    let bias = (!bias.is_empty()).then_some(bias);
    let rows = heads.out.len() / inputs;
    product::linear(&heads.out, w, bias, rows, inputs, outputs, &mut out, outputs, &meter)?;
    Ok(Outputs { out, ..heads })
}

fn attention(
    problem: &Problem,
    inputs: &Inputs<'_>,
    transfer: &Transfer<'_>,
    meter: &Meter<'_>,
) -> Result<Outputs, Error> {
    let s = problem.tensor_shape();
    let extent = problem.out.extent(s.batch, s.heads, s.q_len, s.v_head_dim);
    let zeros = |n: usize| vec![0.0; n];
    let mut outputs = Outputs {
        out: zeros(extent.and_then(|n| usize::try_from(n).ok()).expect("validated")),
        lse: transfer.output_len(Operand::Lse).map(zeros),
        weights: transfer.output_len(Operand::Weights).map(zeros),
        scores: transfer.output_len(Operand::Scores).map(zeros),
    };
    let Outputs { out, lse, weights, scores } = &mut outputs;
    let results = attend::Results {
        out,
        lse: lse.as_deref_mut(),
        weights: weights.as_deref_mut(),
        scores: scores.as_deref_mut(),
    };
    attend::forward(problem, inputs, results, meter)?;
    Ok(outputs)
}
