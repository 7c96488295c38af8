//! Computes what a call asks for.

use crate::Result;
use crate::options::{Backend, Call, unsupported};
use crate::tensors::{Contents, write};
use safetensors::Dtype;
use wgpu_attention::{
    DType, Diagonal, Inputs, Layout, Mask, Problem, Runner, RunnerOptions, Shape, reference,
};

/// Runners, made at their first use and kept.
pub(crate) struct Machines {
    options: RunnerOptions,
    gpu: Option<Runner>,
    cpu: Runner,
}

impl Machines {
    pub(crate) fn new(adapter: Option<String>, default_limits: bool) -> Self {
        let mut options = RunnerOptions::default();
        options.software = true;
        options.gpu_only = true;
        options.adapter = adapter;
        options.default_limits = default_limits;
        Self { options, gpu: None, cpu: Runner::cpu() }
    }

    /// The GPU; a new device where the last one was lost.
    fn gpu(&mut self) -> Result<&Runner> {
        let made = match self.gpu.take() {
            Some(runner) => runner,
            None => Runner::with_options(self.options.clone()).map_err(|e| e.to_string())?,
        };
        Ok(self.gpu.insert(made))
    }
}

/// Results, as a file holds them.
struct Answer {
    out: Vec<f32>,
    lse: Vec<f32>,
    weights: Option<Vec<f32>>,
}

impl Call {
    pub(crate) fn answer(&self, machines: &mut Machines) -> Result<()> {
        let (input, output) = self.checked()?;
        let contents = Contents::read(input)?;
        self.check_dtype(contents.q_dtype)?;
        let problem = self.problem(&contents)?;
        let answer = self.compute(&problem, &contents, machines)?;

        let Shape { batch, heads, q_len, kv_len, v_head_dim, .. } = problem.shape;
        let sizes = |axes: &[u32]| axes.iter().map(|n| *n as usize).collect::<Vec<_>>();
        let out = match self.layout {
            Layout::Bshd => sizes(&[batch, q_len, heads, v_head_dim]),
            _ => sizes(&[batch, heads, q_len, v_head_dim]),
        };
        let mut tensors =
            vec![("out", out, answer.out), ("lse", sizes(&[batch, heads, q_len]), answer.lse)];
        let weights = answer.weights;
        tensors.extend(weights.map(|w| ("weights", sizes(&[batch, heads, q_len, kv_len]), w)));
        write(output, &tensors)
    }

    fn check_dtype(&self, of_q: Dtype) -> Result<()> {
        let dtype = self.dtype.unwrap_or(match of_q {
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            _ => DType::F32,
        });
        match dtype {
            DType::F32 => Ok(()),
            DType::F16 => Err(unsupported("--dtype f16")),
            _ => Err(unsupported("--dtype bf16")),
        }
    }

    fn problem(&self, contents: &Contents) -> Result<Problem> {
        // [batch, heads, len, dim], whatever the layout.
        let axes = |[batch, a, b, dim]: [u32; 4]| match self.layout {
            Layout::Bshd => [batch, b, a, dim],
            _ => [batch, a, b, dim],
        };
        let Contents { q, k, v, .. } = contents;
        let [batch, heads, q_len, head_dim] = axes(q.shape);
        let [k_batch, kv_heads, kv_len, k_dim] = axes(k.shape);
        let [v_batch, v_heads, v_len, v_head_dim] = axes(v.shape);
        for (what, tensor, found, needed) in [
            ("batch", "k", k_batch, batch),
            ("batch", "v", v_batch, batch),
            ("heads", "v", v_heads, kv_heads),
            ("length", "v", v_len, kv_len),
            ("head_dim", "k", k_dim, head_dim),
        ] {
            if found != needed {
                return Err(format!("tensor {tensor}: {what} is {found}, needed is {needed}"));
            }
        }
        let shape = Shape::cross_attention(batch, heads, q_len, kv_len, head_dim)
            .with_kv_heads(kv_heads)
            .with_v_head_dim(v_head_dim);

        let right = self.causal.map_or(self.window_right, |_| Some(0));
        let mut mask = Mask::band(self.window_left, right).along(self.causal.unwrap_or_default());
        if let Some(offsets) = &contents.diag_offset {
            if offsets.len() != batch as usize {
                let n = offsets.len();
                return Err(format!("tensor diag_offset: length is {n}, needed is {batch}"));
            }
            if offsets.iter().any(|offset| *offset != offsets[0]) {
                return Err(unsupported("tensor diag_offset that differs by batch entry"));
            }
            mask = mask.along(
                offsets.first().map_or(Diagonal::BottomRight, |first| Diagonal::Offset(*first)),
            );
        }
        let mut problem = Problem::new(shape).mask(mask).layout(self.layout).with_lse();
        problem.scale = self.scale;
        problem.weights = self.weights;
        problem.validate().map_err(|error| error.to_string())?;
        Ok(problem)
    }

    fn compute(
        &self,
        problem: &Problem,
        contents: &Contents,
        machines: &mut Machines,
    ) -> Result<Answer> {
        let inputs = Inputs::new(&contents.q.data, &contents.k.data, &contents.v.data);
        let runner = match self.backend {
            Backend::Reference => return refer(problem, &inputs),
            Backend::Cpu => &machines.cpu,
            Backend::Gpu => machines.gpu()?,
        };
        let outputs = match runner.forward_with(problem, self.algorithm, &inputs) {
            Ok(outputs) => outputs,
            Err(error) => {
                if matches!(error, wgpu_attention::Error::DeviceLost(_)) {
                    machines.gpu = None;
                }
                return Err(error.to_string());
            }
        };
        let lse = outputs.lse.unwrap_or_default();
        Ok(Answer { out: outputs.out, lse, weights: outputs.weights })
    }
}

/// Row by row in f64, rounded to f32 at the end.
fn refer(problem: &Problem, inputs: &Inputs<'_>) -> Result<Answer> {
    let s = problem.shape;
    #[allow(clippy::cast_possible_truncation, reason = "the file holds f32")]
    let round = |x: &f64| *x as f32;
    let rows = u64::from(s.batch) * u64::from(s.heads) * u64::from(s.q_len);
    let zeros = |width: u32| {
        let size = rows.checked_mul(width.into()).and_then(|n| usize::try_from(n).ok());
        let mut zeros = Vec::new();
        let reserved = size.is_some_and(|n| zeros.try_reserve_exact(n).is_ok());
        let size = size.filter(|_| reserved).ok_or("the results do not fit in memory")?;
        zeros.resize(size, 0.0f32);
        Ok::<_, String>(zeros)
    };
    let mut answer = Answer {
        out: zeros(s.v_head_dim)?,
        lse: zeros(1)?,
        weights: problem.weights.then(|| zeros(s.kv_len)).transpose()?,
    };
    let positions = (0..s.batch)
        .flat_map(|b| (0..s.heads).flat_map(move |h| (0..s.q_len).map(move |i| (b, h, i))));
    for ((b, h, i), n) in positions.zip(0..) {
        let row = reference::row(problem, inputs.q, inputs.k, inputs.v, (b, h, i));
        let out = problem.out;
        let first = u64::from(b) * out.batch + u64::from(h) * out.head + u64::from(i) * out.row;
        let first = usize::try_from(first).map_err(|error| error.to_string())?;
        for (to, from) in answer.out[first..].iter_mut().zip(&row.out) {
            *to = round(from);
        }
        answer.lse[n] = round(&row.lse);
        if let Some(weights) = &mut answer.weights {
            let first = n * s.kv_len as usize;
            for (to, from) in weights[first..].iter_mut().zip(&row.weights) {
                *to = round(from);
            }
        }
    }
    Ok(answer)
}
