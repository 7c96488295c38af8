//! The CPU path of the runner: blocked, on all cores, for machines without a GPU.

use crate::encoding::rounded;
use crate::error::Error;
use crate::host::Transfer;
use crate::inputs::Inputs;
use crate::operand::Operand;
use crate::outputs::Outputs;
use crate::plan::Algorithm;
use crate::problem::Problem;
use crate::shape::DType;
use crate::watcher::{Meter, Watcher};

mod alibi;
mod append;
mod attend;
mod backward;
mod band;
mod dropout;
mod layer;
mod layer_gradients;
mod merge;
mod product;
mod softmax;
mod state;
mod weighted;

pub(crate) use append::{append, rotary_embedding};
pub(crate) use backward::backward;
pub(crate) use layer::run_layer;
pub(crate) use layer_gradients::layer_backward;
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
        saved: None,
    };
    let Outputs { out, lse, weights, scores, .. } = &mut outputs;
    let results = attend::Results {
        out,
        lse: lse.as_deref_mut(),
        weights: weights.as_deref_mut(),
        scores: scores.as_deref_mut(),
    };
    attend::forward(problem, inputs, results, meter)?;
    Ok(outputs)
}
