//! Computes what a call asks for.

use crate::Result;
use crate::options::{Axes, Backend, Call};
use crate::progress::shown;
use crate::tensors::{Contents, Parts, write};
use safetensors::SafeTensors;
use wgpu_attention::{DType, Error, Inputs, Problem, Runner, RunnerOptions, Shape, reference};

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
        Self { options, gpu: None, cpu: shown(Runner::cpu()) }
    }

    /// The GPU; a new device where the last one was lost.
    fn gpu(&mut self) -> Result<&Runner> {
        let made = match self.gpu.take() {
            Some(runner) => runner,
            None => shown(Runner::with_options(self.options.clone()).map_err(|e| e.to_string())?),
        };
        Ok(self.gpu.insert(made))
    }

    /// What `run` gives on the GPU or the CPU path.
    pub(crate) fn run<T>(
        &mut self,
        backend: Backend,
        run: impl FnOnce(&Runner) -> std::result::Result<T, Error>,
    ) -> Result<T> {
        let runner = if backend == Backend::Cpu { &self.cpu } else { self.gpu()? };
        run(runner).map_err(|error| {
            if matches!(error, Error::DeviceLost(_)) {
                self.gpu = None;
            }
            error.to_string()
        })
    }
}

/// Results, as a file holds them.
pub(crate) struct Answer {
    pub(crate) out: Vec<f32>,
    pub(crate) lse: Vec<f32>,
    weights: Option<Vec<f32>>,
    scores: Option<Vec<f32>>,
}

impl Call {
    pub(crate) fn answer(&self, machines: &mut Machines) -> Result<()> {
        let (input, output) = self.checked()?;
        let bytes = std::fs::read(input).map_err(|error| format!("{input}: {error}"))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| format!("{input}: {error}"))?;
        if let Some(parts) = Parts::read(&file)? {
            return self.merge(parts, output, machines);
        }
        let mut contents = Contents::read(&file)?;
        let mut problem = self.problem(&contents)?;
        let backward = self.backward(&problem, &contents)?;
        contents.round(problem.dtype);
        self.turn(&mut problem, &mut contents, machines)?;
        self.append(&problem, &mut contents, machines)?;
        let inputs = contents.inputs().seed(self.seed.unwrap_or_default());
        let answer = self.compute(&problem, &inputs, machines)?;
        let gradients = match &backward {
            Some(backward) => self.gradients(backward, &contents, &inputs, &answer, machines)?,
            None => Vec::new(),
        };

        let Shape { batch, heads, q_len, kv_len, .. } = problem.shape;
        let [out, lse] = self.results(problem.shape).map(|axes| sizes(&axes));
        let mut tensors = vec![("out", out, answer.out), ("lse", lse, answer.lse)];
        for (name, matrix) in [("weights", answer.weights), ("scores", answer.scores)] {
            tensors.extend(matrix.map(|data| (name, sizes(&[batch, heads, q_len, kv_len]), data)));
        }
        tensors.extend(gradients);
        tensors.extend(contents.cache());
        write(output, &tensors)
    }

    /// Axes of out and of lse.
    pub(crate) fn results(&self, shape: Shape) -> [Vec<u32>; 2] {
        let Shape { batch, heads, q_len, v_head_dim, .. } = shape;
        match self.axes {
            Axes::Bhsd => [vec![batch, heads, q_len, v_head_dim], vec![batch, heads, q_len]],
            Axes::Bshd => [vec![batch, q_len, heads, v_head_dim], vec![batch, heads, q_len]],
            Axes::Thd => [vec![q_len, heads, v_head_dim], vec![heads, q_len]],
        }
    }

    /// The storage type on the device.
    pub(crate) fn dtype(&self, contents: &Contents) -> DType {
        self.dtype.unwrap_or_else(|| contents.q.storage())
    }

    fn compute(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        machines: &mut Machines,
    ) -> Result<Answer> {
        if self.backend == Backend::Reference {
            return refer(problem, inputs);
        }
        let outputs = machines
            .run(self.backend, |runner| runner.forward_with(problem, self.algorithm, inputs))?;
        Ok(Answer {
            out: outputs.out,
            lse: outputs.lse.unwrap_or_default(),
            weights: outputs.weights,
            scores: outputs.scores,
        })
    }
}

/// Row by row in f64, rounded to f32 at the end.
fn refer(problem: &Problem, inputs: &Inputs<'_>) -> Result<Answer> {
    let s = problem.tensor_shape();
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
        scores: problem.scores.map(|_| zeros(s.kv_len)).transpose()?,
    };
    let positions = (0..s.batch)
        .flat_map(|b| (0..s.heads).flat_map(move |h| (0..s.q_len).map(move |i| (b, h, i))));
    for ((b, h, i), n) in positions.zip(0..) {
        let row = reference::row(problem, inputs, (b, h, i));
        let out = problem.out;
        let first = u64::from(b) * out.batch + u64::from(h) * out.head + u64::from(i) * out.row;
        let first = usize::try_from(first).map_err(|error| error.to_string())?;
        round_into(&mut answer.out[first..], &row.out);
        round_into(&mut answer.lse[n..], &[row.lse]);
        for (matrix, line) in [(&mut answer.weights, row.weights), (&mut answer.scores, row.scores)]
        {
            if let Some(matrix) = matrix {
                round_into(&mut matrix[n * s.kv_len as usize..], &line);
            }
        }
    }
    Ok(answer)
}

/// Axes, as a file counts them.
pub(crate) fn sizes(axes: &[u32]) -> Vec<usize> {
    axes.iter().map(|n| *n as usize).collect()
}

pub(crate) fn round_into(to: &mut [f32], from: &[f64]) {
    #[allow(clippy::cast_possible_truncation, reason = "the file holds f32")]
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from as f32;
    }
}
