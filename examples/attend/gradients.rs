//! Gradients, where the file has those of out.

use crate::Result;
use crate::answer::{Answer, Machines, round_into, sizes};
use crate::keys::Keys;
use crate::options::{Backend, Call};
use crate::tensors::{Contents, Tensor, Written};
use wgpu_attention::{Algorithm, Backward, BackwardInputs, Inputs, Problem, reference};

/// Gradients, each as its tensor lies in the file.
struct Gradients {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    bias: Option<Vec<f32>>,
    sinks: Option<Vec<f32>>,
    alibi_slopes: Option<Vec<f32>>,
}

impl Call {
    /// The gradients that the tensors ask for, if they do.
    pub(crate) fn backward(
        &self,
        problem: &Problem,
        contents: &Contents,
    ) -> Result<Option<Backward>> {
        let Some(d_out) = &contents.d_out else {
            return match contents.d_lse {
                Some(_) => Err("tensor d_lse needs tensor d_out".to_owned()),
                None => Ok(None),
            };
        };
        if !matches!(contents.keys, Keys::Whole) {
            return Err(format!("tensor d_out does not go with tensor {}", contents.k.name));
        }
        let [out, lse] = self.results(problem.shape);
        d_out.check_shape(&out)?;
        if let Some(d_lse) = &contents.d_lse {
            d_lse.check_shape(&lse)?;
        }
        // Weights and scores are of the forward pass alone.
        let mut backward = Backward::new(problem);
        (backward.problem.weights, backward.problem.scores) = (false, None);
        backward.d_lse = contents.d_lse.is_some();
        backward.d_bias = contents.bias.is_some();
        backward.d_sinks = contents.sinks.is_some();
        backward.d_alibi_slopes = contents.alibi_slopes.is_some();
        backward.validate().map_err(|error| error.to_string())?;
        Ok(Some(backward))
    }

    /// The gradients, as a file holds them.
    pub(crate) fn gradients(
        &self,
        backward: &Backward,
        contents: &Contents,
        inputs: &Inputs<'_>,
        answer: &Answer,
        machines: &mut Machines,
    ) -> Result<Vec<Written>> {
        fn data(tensor: &Option<Tensor<f32>>) -> &[f32] {
            tensor.as_ref().map_or(&[], |tensor| &tensor.data)
        }
        let given = BackwardInputs {
            out: &answer.out,
            lse: &answer.lse,
            d_out: data(&contents.d_out),
            d_lse: data(&contents.d_lse),
        };
        let mut gradients = if self.backend == Backend::Reference {
            refer(backward, inputs, &given)
        } else {
            // Splitting the keys is a way to out and lse alone.
            let algorithm = match self.algorithm {
                Algorithm::Split => Algorithm::Auto,
                other => other,
            };
            let made = machines.run(self.backend, |runner| {
                runner.backward_with(backward, algorithm, inputs, &given)
            })?;
            let wgpu_attention::Gradients { q, k, v, bias, sinks, alibi_slopes, .. } = made;
            Gradients { q, k, v, bias, sinks, alibi_slopes }
        };
        let turned = [&mut gradients.q[..], &mut gradients.k];
        self.turn_back(&backward.problem, contents, turned, machines)?;

        let Gradients { q, k, v, bias, sinks, alibi_slopes } = gradients;
        let Contents { bias: of_bias, sinks: of_sinks, alibi_slopes: of_slopes, .. } = contents;
        let all = [
            ("d_q", Some(&contents.q), Some(q)),
            ("d_k", Some(&contents.k), Some(k)),
            ("d_v", Some(&contents.v), Some(v)),
            ("d_bias", of_bias.as_ref(), bias),
            ("d_sinks", of_sinks.as_ref(), sinks),
            ("d_alibi_slopes", of_slopes.as_ref(), alibi_slopes),
        ];
        let asked = all.into_iter().filter_map(|(name, of, data)| {
            let (of, data) = of.zip(data)?;
            Some((name, sizes(&of.shape), data))
        });
        Ok(asked.collect())
    }
}

/// In f64, rounded to f32 at the end.
fn refer(backward: &Backward, inputs: &Inputs<'_>, given: &BackwardInputs<'_>) -> Gradients {
    let made = reference::backward(backward, inputs, given.d_out, given.d_lse);
    let rounded = |exact: &[f64]| {
        let mut data = vec![0.0; exact.len()];
        round_into(&mut data, exact);
        data
    };
    Gradients {
        q: rounded(&made.q),
        k: rounded(&made.k),
        v: rounded(&made.v),
        bias: backward.d_bias.then(|| rounded(&made.bias)),
        sinks: backward.d_sinks.then(|| rounded(&made.sinks)),
        alibi_slopes: backward.d_alibi_slopes.then(|| rounded(&made.alibi_slopes)),
    }
}
