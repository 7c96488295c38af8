//! What models are made of: operations on tensors, each on a GPU a kernel and on the CPU a function.

use crate::cpu;
use crate::error::Error;
use crate::kernel::{Kernel, Launch, file};
use crate::machine::{Machine, Tensor, Weights};
use std::ops::Range;
use wgpu_attention::{
    Append, DeviceClass, Dispatch, Inputs, Plan, PlanError, Problem, RotaryEmbedding, RotaryInputs,
    Runner, Tensors,
};

/// Operations in the order in which they run, bound once, run as often as is wanted.
pub struct Program {
    pub(crate) machine: Machine,
    steps: Vec<Step>,
    /// Attention among them, each with the number of its step.
    pub attention: Vec<(usize, Attention)>,
}

enum Step {
    Kernel(Launch),
    Library(Dispatch),
    Cpu(Function),
}

/// What an operation is on the CPU; its tensors are its own.
type Function = Box<dyn Fn(&Runner) -> Result<(), Error>>;

/// A layer: `x w^T + bias`.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "filled in by field name")]
pub struct Linear {
    /// `[outputs, inputs]`.
    pub w: Weights,
    /// `[outputs]`.
    pub bias: Option<Tensor>,
}

/// `(x - mean) / sqrt(variance + epsilon) * scale + bias` of every row; without a bias
/// `x / sqrt(mean of squares + epsilon) * scale`.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "filled in by field name")]
pub struct Norm {
    /// `[width]`.
    pub scale: Tensor,
    /// `[width]`: a layer norm. `None`: an RMS norm.
    pub bias: Option<Tensor>,
    /// Added to the variance.
    pub epsilon: f32,
}

/// What happens to a sum before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "one file a variant")]
pub enum Finish {
    /// Nothing.
    Store,
    /// It is added to what is there: a residual.
    Add,
    /// `max(y, 0)`.
    Relu,
    /// `y` times the share of a normal distribution below `y`.
    Gelu,
}

/// The library's attention of a problem.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "filled in by field name")]
pub struct Attention {
    /// What is asked.
    pub problem: Problem,
    /// Queries, keys and values, as the problem says.
    pub qkv: [Tensor; 3],
    /// `[batch]` u32, where the problem has them: lengths of queries and of keys.
    pub lens: [Option<Tensor>; 2],
    /// Where the problem has them.
    pub weights: Option<Tensor>,
    /// As the problem says.
    pub out: Tensor,
}

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(clippy::exhaustive_enums, reason = "there are two ways")]
pub enum Sampling {
    /// The most probable one.
    Greedy,
    /// One of the most probable that together have `top_p`.
    Random {
        /// Above 0; 1 leaves the model's probabilities as they are.
        temperature: f32,
        /// Above 0, 1 at most.
        top_p: f32,
        /// The same seed draws the same tokens.
        seed: u32,
    },
}

/// Every operation fails where the device or the library cannot.
#[allow(clippy::missing_errors_doc, reason = "said once for all")]
impl Program {
    /// Nothing yet.
    pub fn new(machine: &Machine) -> Self {
        Self { machine: machine.clone(), steps: Vec::new(), attention: Vec::new() }
    }

    /// Runs it; on a GPU, returns before it is done.
    pub fn run(&self) -> Result<(), Error> {
        self.run_steps(0..self.steps.len())
    }

    /// Runs some of it.
    pub fn run_steps(&self, range: Range<usize>) -> Result<(), Error> {
        let runner = &self.machine.runner;
        let mut encoder =
            runner.device().map(|(device, ..)| device.create_command_encoder(&Default::default()));
        let mut pass =
            encoder.as_mut().map(|encoder| encoder.begin_compute_pass(&Default::default()));
        for step in &self.steps[range] {
            match (step, &mut pass) {
                (Step::Kernel(launch), Some(pass)) => launch.record(pass),
                (Step::Library(dispatch), Some(pass)) => dispatch.record(pass),
                (Step::Cpu(function), _) => function(runner)?,
                _ => unreachable!("a program of another machine"),
            }
        }
        drop(pass);
        if let (Some(encoder), Some((_, queue, _))) = (encoder, runner.device()) {
            queue.submit([encoder.finish()]);
        }
        Ok(())
    }

    /// One of ours: a kernel with its workgroups, or a function.
    fn ours(
        &mut self,
        kernel: Kernel,
        workgroups: [usize; 2],
        function: impl Fn() + 'static,
    ) -> Result<(), Error> {
        match self.machine.runner.device() {
            Some((device, ..)) => {
                let launch = kernel.launch(&self.machine, device, workgroups)?;
                self.steps.push(Step::Kernel(launch));
                Ok(())
            }
            None => self.on_cpu(move |_| {
                function();
                Ok(())
            }),
        }
    }

    fn on_cpu(
        &mut self,
        function: impl Fn(&Runner) -> Result<(), Error> + 'static,
    ) -> Result<(), Error> {
        self.steps.push(Step::Cpu(Box::new(function)));
        Ok(())
    }

    /// One of the library's, on a GPU.
    fn library(
        &mut self,
        library: &wgpu_attention::Attention,
        plan: Result<Plan, PlanError>,
        tensors: &Tensors<'_>,
    ) -> Result<(), Error> {
        let dispatch = library.bind(&plan.map_err(Error::device)?, tensors);
        self.steps.push(Step::Library(dispatch.map_err(Error::device)?));
        Ok(())
    }

    /// `out[i] = factor * table[tokens[i]]`, `[rows, width]`; plus `places[positions[i]]`, where there are places. A token
    /// that the table does not have is a row of zeros.
    pub fn embed(
        &mut self,
        tokens: &Tensor,
        (table, factor): (&Weights, f32),
        places: Option<(&Tensor, &Tensor)>,
        out: &Tensor,
    ) -> Result<(), Error> {
        let kernel = Kernel::new("embed", &[file!("embed")]).weights(table);
        let kernel = kernel.number("FACTOR", factor).read("tokens", "u32", tokens);
        let kernel = match places {
            Some((places, positions)) => (kernel.read("places", "vec4<f32>", places))
                .read("positions", "u32", positions)
                .file(file!("position/table")),
            None => kernel.file(file!("position/none")),
        };
        let kernel = kernel.write("out", "vec4<f32>", out);
        let (tokens, table, out) = (tokens.clone(), table.clone(), out.clone());
        let places = places.map(|(places, positions)| (places.clone(), positions.clone()));
        self.ours(kernel, [tokens.len(), 1], move || {
            let mut out = out.numbers_mut();
            cpu::embed(&tokens.words(), &table.codes.numbers(), table.cols, factor, &mut out);
            if let Some((places, positions)) = &places {
                cpu::add_places(&places.numbers(), &positions.words(), table.cols, &mut out);
            }
        })
    }

    /// `out = finish(x w^T + bias)` of x `[rows, inputs]`: `[rows, outputs]`.
    pub fn linear(
        &mut self,
        x: &Tensor,
        Linear { w, bias }: &Linear,
        finish: Finish,
        out: &Tensor,
    ) -> Result<(), Error> {
        let rows = x.len() / w.cols;
        let device = self.machine.runner.device();
        let software = device.is_some_and(|(_, _, attention)| {
            attention.capabilities().class == DeviceClass::Software
        });
        // What owns how many rows and outputs.
        let (name, body, [tall, wide]) = match (rows, software) {
            (1, true) => ("row_lane", file!("row_lane"), [1, 32]),
            (1, false) => ("row_team", file!("row_team"), [1, 8]),
            (_, true) => ("linear_lane", file!("linear_lane"), [16, 32]),
            (_, false) => ("linear_tile", file!("linear_tile"), [128, 64]),
        };
        let finished = match finish {
            Finish::Store => file!("finish/store"),
            Finish::Add => file!("finish/add"),
            Finish::Relu => file!("finish/relu"),
            Finish::Gelu => file!("finish/gelu"),
        };
        let kernel = Kernel::new(name, &[body, finished]).weights(w).read("x", "vec4<f32>", x);
        let kernel = match bias {
            Some(bias) => kernel.read("bias", "f32", bias).file(file!("bias/given")),
            None => kernel.file(file!("bias/none")),
        };
        let across = w.rows.div_ceil(wide);
        let workgroups = match rows {
            // Of the logits there may be more than one axis holds.
            1 => [across.min(1 << 15), across.div_ceil(1 << 15)],
            _ => [rows.div_ceil(tall), across],
        };
        let (x, w, bias) = (x.clone(), w.clone(), bias.clone());
        let kernel = kernel.write("out", "f32", out);
        let out = out.clone();
        self.ours(kernel, workgroups, move || {
            let bias = bias.as_ref().map(Tensor::numbers);
            let sums = cpu::product(&x.numbers(), &w.codes.numbers(), w.cols);
            cpu::finish(sums, bias.as_deref(), finish, &mut out.numbers_mut());
        })
    }

    /// `out = norm(x)`, `[rows, width]`.
    pub fn norm(&mut self, x: &Tensor, norm: &Norm, out: &Tensor) -> Result<(), Error> {
        let Norm { scale, bias, epsilon } = norm.clone();
        let (name, body) = match bias {
            Some(_) => ("layer_norm", file!("layer_norm")),
            None => ("rms_norm", file!("rms_norm")),
        };
        let mut kernel = Kernel::new(name, &[file!("total"), body]).size("COLS", scale.len());
        kernel = kernel.number("EPSILON", epsilon).read("x", "f32", x).read("scale", "f32", &scale);
        if let Some(bias) = &bias {
            kernel = kernel.read("bias", "f32", bias);
        }
        let kernel = kernel.write("out", "f32", out);
        let (x, out) = (x.clone(), out.clone());
        self.ours(kernel, [x.len() / scale.len(), 1], move || {
            let bias = bias.as_ref().map(Tensor::numbers);
            let scale = scale.numbers();
            cpu::norm(&x.numbers(), &scale, bias.as_deref(), epsilon, &mut out.numbers_mut());
        })
    }

    /// `out = silu(gate) * up` of rows of gate and up side by side, `[rows, 2 * width]`: `[rows, width]`.
    pub fn gate(&mut self, x: &Tensor, width: usize, out: &Tensor) -> Result<(), Error> {
        let kernel = Kernel::new("gate", &[file!("gate")]).size("COLS", width);
        let kernel = kernel.read("x", "f32", x).write("out", "f32", out);
        let (x, out) = (x.clone(), out.clone());
        self.ours(kernel, [out.len() / width, 1], move || {
            cpu::gate(&x.numbers(), width, &mut out.numbers_mut());
        })
    }

    /// The recurrence of one token: `state = f state + (1 - f) c`, `out += max(state, 0)`, all `[width]`; x is the candidate
    /// c and what f is the logistic function of, `[2 * width]`.
    pub fn ssru(&mut self, x: &Tensor, state: &Tensor, out: &Tensor) -> Result<(), Error> {
        let kernel = Kernel::new("ssru", &[file!("ssru")]).size("COLS", out.len());
        let kernel =
            kernel.read("x", "f32", x).write("state", "f32", state).write("out", "f32", out);
        let (x, state, out) = (x.clone(), state.clone(), out.clone());
        self.ours(kernel, [1, 1], move || {
            cpu::ssru(&x.numbers(), &mut state.numbers_mut(), &mut out.numbers_mut());
        })
    }

    /// The mean of a sequence's rows, one long, `[batch, width]`, of x `[batch, seq_len, width]` and lens `[batch]` u32.
    pub fn pool(&mut self, x: &Tensor, lens: &Tensor, out: &Tensor) -> Result<(), Error> {
        let width = out.len() / lens.len();
        let kernel = Kernel::new("pool", &[file!("total"), file!("pool")]).size("COLS", width);
        let kernel = kernel.read("x", "f32", x).read("lens", "u32", lens).write("out", "f32", out);
        let (x, lens, out) = (x.clone(), lens.clone(), out.clone());
        self.ours(kernel, [lens.len(), 1], move || {
            cpu::pool(&x.numbers(), &lens.words(), &mut out.numbers_mut());
        })
    }

    /// The next token, `[1]` u32, by logits, which may be overwritten. Of each `step`, `[1]` u32, another is drawn.
    pub fn choose(
        &mut self,
        logits: &Tensor,
        sampling: Sampling,
        step: &Tensor,
        token: &Tensor,
    ) -> Result<(), Error> {
        let kernel = match sampling {
            Sampling::Greedy => {
                Kernel::new("argmax", &[file!("argmax")]).read("logits", "f32", logits)
            }
            Sampling::Random { temperature, top_p, seed } => {
                Kernel::new("sample", &[file!("total"), file!("sample")])
                    .number("INVERSE_TEMPERATURE", temperature.recip())
                    .number("TOP_P", top_p)
                    .size("SEED", seed as usize)
                    .write("logits", "f32", logits)
                    .read("step", "u32", step)
            }
        };
        let kernel = kernel.size("COLS", logits.len()).write("token", "u32", token);
        let (logits, step, token) = (logits.clone(), step.clone(), token.clone());
        self.ours(kernel, [1, 1], move || {
            let choice = cpu::choose(&mut logits.numbers_mut(), sampling, step.words()[0]);
            token.words_mut()[0] = choice;
        })
    }

    /// The library's rotary embedding of x, by tables of cosines and sines `[positions, rotary_dim / 2]` and positions
    /// `[1]` u32.
    pub fn rotate(
        &mut self,
        embedding: RotaryEmbedding,
        x: &Tensor,
        [cos, sin]: [&Tensor; 2],
        pos_offsets: &Tensor,
        out: &Tensor,
    ) -> Result<(), Error> {
        if let Some((.., library)) = self.machine.clone().runner.device() {
            let tensors = Tensors::default().x(x.slice()).cos(cos.slice()).sin(sin.slice());
            let tensors = tensors.pos_offsets(pos_offsets.slice()).out(out.slice());
            return self.library(library, library.plan_rotary(&embedding), &tensors);
        }
        let [x, cos, sin, offsets, out] = [x, cos, sin, pos_offsets, out].map(Tensor::clone);
        self.on_cpu(move |runner| {
            let (x, cos, sin) = (&x.numbers(), &cos.numbers(), &sin.numbers());
            let inputs = RotaryInputs { x, cos, sin, pos_offsets: &offsets.words(), new_lens: &[] };
            let turned = runner.rotary_embedding(&embedding, &inputs).map_err(Error::device)?;
            out.numbers_mut()[..turned.len()].copy_from_slice(&turned);
            Ok(())
        })
    }

    /// The library's append of keys and values to a cache, whose `kv_lens`, `[1]` u32, count the new ones already.
    pub fn append(
        &mut self,
        append: Append,
        new: [&Tensor; 2],
        [k, v]: [&Tensor; 2],
        [kv_lens, status]: [&Tensor; 2],
    ) -> Result<(), Error> {
        if let Some((.., library)) = self.machine.clone().runner.device() {
            let tensors = Tensors::default().k(k.slice()).v(v.slice()).k_new(new[0].slice());
            let tensors = tensors.v_new(new[1].slice()).kv_lens(kv_lens.slice());
            let tensors = tensors.append_status(status.slice());
            return self.library(library, library.plan_append(&append), &tensors);
        }
        let (new, caches, kv_lens) =
            (new.map(Tensor::clone), [k, v].map(Tensor::clone), kv_lens.clone());
        self.on_cpu(move |_| {
            let (new, mut caches) =
                (new.each_ref().map(Tensor::numbers), caches.each_ref().map(Tensor::numbers_mut));
            let [new_k, new_v] = &new;
            let [k, v] = &mut caches;
            cpu::append(&append, [new_k, new_v], [k, v], kv_lens.words()[0] as usize);
            Ok(())
        })
    }

    /// The library's attention.
    pub fn attend(&mut self, attention: Attention) -> Result<(), Error> {
        self.attention.push((self.steps.len(), attention.clone()));
        if let Some((.., library)) = self.machine.clone().runner.device() {
            let Attention { problem, qkv: [q, k, v], lens, weights, out } = &attention;
            let mut tensors = Tensors::new(q.slice(), k.slice(), v.slice(), out.slice());
            if let Some(lens) = &lens[0] {
                tensors = tensors.q_lens(lens.slice());
            }
            if let Some(lens) = &lens[1] {
                tensors = tensors.kv_lens(lens.slice());
            }
            if let Some(weights) = weights {
                tensors = tensors.weights(weights.slice());
            }
            return self.library(library, library.plan(problem), &tensors);
        }
        self.on_cpu(move |runner| {
            let Attention { problem, qkv, lens, weights, out } = &attention;
            let [q, k, v] = qkv.each_ref().map(Tensor::numbers);
            let lens = lens.each_ref().map(|lens| lens.as_ref().map(Tensor::words));
            let inputs = Inputs::new(&q, &k, &v)
                .q_lens(lens[0].as_deref().unwrap_or(&[]))
                .kv_lens(lens[1].as_deref().unwrap_or(&[]));
            let outputs = runner.forward(problem, &inputs).map_err(Error::device)?;
            out.numbers_mut()[..outputs.out.len()].copy_from_slice(&outputs.out);
            if let (Some(tensor), Some(weights)) = (weights, outputs.weights) {
                tensor.numbers_mut()[..weights.len()].copy_from_slice(&weights);
            }
            Ok(())
        })
    }
}
