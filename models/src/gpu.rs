//! Operations as kernels: ours, and the library's dispatches.

use crate::error::Error;
use crate::kernel::{Binding, Kernel, Launch, file};
use crate::op::{Finish, Op, Positions, Sampling};
use crate::tensor::{Stored, Tensor, Weights};
use std::collections::HashMap;
use wgpu_attention::{Attention, DeviceClass, Dispatch, Plan, Tensors, wgpu};

/// One operation, bound.
#[derive(Debug)]
pub(crate) enum Step {
    Ours(Launch),
    Library(Dispatch),
}

impl Step {
    pub(crate) fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        match self {
            Self::Ours(launch) => launch.record(pass),
            Self::Library(dispatch) => dispatch.record(pass),
        }
    }
}

/// Binds operations.
pub(crate) struct Builder<'a> {
    pub(crate) device: &'a wgpu::Device,
    pub(crate) attention: &'a Attention,
    pub(crate) pipelines: &'a mut HashMap<Kernel, wgpu::ComputePipeline>,
}

/// Workgroups of a dispatch along one axis, at most.
const MOST: usize = 65_535;

impl Builder<'_> {
    pub(crate) fn step(&mut self, op: &Op) -> Result<Step, Error> {
        match op {
            Op::Embed { tokens, table, factor, positions, out } => {
                self.embed(tokens, table, *factor, positions.as_ref(), out)
            }
            Op::Linear { x, w, bias, finish, out } => {
                self.linear(x, w, bias.as_ref(), *finish, out)
            }
            Op::Norm { x, scale, bias, epsilon, out } => {
                let (name, body) = match bias {
                    Some(_) => ("layer_norm", file!("layer_norm")),
                    None => ("rms_norm", file!("rms_norm")),
                };
                let kernel = Kernel::new(name, &[file!("total"), body]);
                let kernel = kernel.constant("THREADS", 64).constant("COLS", scale.len());
                let mut bound = Bound::default();
                bound.read("x", "f32", x.slice()).read("scale", "f32", scale.slice());
                if let Some(bias) = bias {
                    bound.read("bias", "f32", bias.slice());
                }
                bound.write("out", "f32", out.slice());
                self.ours(kernel, &[epsilon.to_bits()], bound, [x.len() / scale.len(), 1])
            }
            Op::Gate { x, out, width } => {
                let kernel = Kernel::new("gate", &[file!("gate")]);
                let kernel = kernel.constant("THREADS", 64).constant("COLS", *width);
                let mut bound = Bound::default();
                bound.read("x", "f32", x.slice()).write("out", "f32", out.slice());
                self.ours(kernel, &[0], bound, [out.len() / width, 1])
            }
            Op::Ssru { x, state, out } => {
                let kernel = Kernel::new("ssru", &[file!("ssru")]);
                let kernel = kernel.constant("THREADS", 64).constant("COLS", out.len());
                let mut bound = Bound::default();
                bound.read("x", "f32", x.slice()).write("state", "f32", state.slice());
                bound.write("out", "f32", out.slice());
                self.ours(kernel, &[0], bound, [1, 1])
            }
            Op::Pool { x, lens, seq_len, out } => {
                let batch = lens.len();
                let kernel = Kernel::new("pool", &[file!("total"), file!("pool")]);
                let kernel = kernel.constant("THREADS", 64).constant("COLS", out.len() / batch);
                let mut bound = Bound::default();
                bound.read("x", "f32", x.slice()).read("lens", "u32", lens.slice());
                bound.write("out", "f32", out.slice());
                self.ours(kernel, &[narrow(*seq_len)?], bound, [batch, 1])
            }
            Op::Choose { logits, sampling, step, token } => {
                self.choose(logits, *sampling, step, token)
            }
            Op::Rotate { embedding, x, pos_offsets, tables: [cos, sin], out } => {
                let plan = self.attention.plan_rotary(embedding);
                let tensors = Tensors::default().x(x.slice()).pos_offsets(pos_offsets.slice());
                let tensors = tensors.cos(cos.slice()).sin(sin.slice()).out(out.slice());
                self.library(plan, &tensors)
            }
            Op::Append { append, new: [k_new, v_new], cache: [k, v], kv_lens, status } => {
                let plan = self.attention.plan_append(append);
                let tensors = Tensors::default().k(k.slice()).v(v.slice()).k_new(k_new.slice());
                let tensors = tensors.v_new(v_new.slice()).kv_lens(kv_lens.slice());
                self.library(plan, &tensors.append_status(status.slice()))
            }
            Op::Attend { problem, qkv: [q, k, v], q_lens, kv_lens, weights, out } => {
                let plan = self.attention.plan(problem);
                let mut tensors = Tensors::new(q.slice(), k.slice(), v.slice(), out.slice());
                if let Some(lens) = q_lens {
                    tensors = tensors.q_lens(lens.slice());
                }
                if let Some(lens) = kv_lens {
                    tensors = tensors.kv_lens(lens.slice());
                }
                if let Some(weights) = weights {
                    tensors = tensors.weights(weights.slice());
                }
                self.library(plan, &tensors)
            }
        }
    }

    fn library(
        &self,
        plan: Result<Plan, wgpu_attention::PlanError>,
        tensors: &Tensors<'_>,
    ) -> Result<Step, Error> {
        let dispatch = self.attention.bind(&plan.map_err(Error::device)?, tensors);
        dispatch.map(Step::Library).map_err(Error::device)
    }

    fn ours(
        &mut self,
        mut kernel: Kernel,
        params: &[u32],
        bound: Bound<'_>,
        workgroups: [usize; 2],
    ) -> Result<Step, Error> {
        if workgroups.iter().any(|n| *n > MOST) {
            let name = kernel.name;
            return Err(Error::Device(format!("{workgroups:?} workgroups of {name}: too many")));
        }
        kernel.bindings = bound.bindings;
        let workgroups = [narrow(workgroups[0])?, narrow(workgroups[1])?];
        let launch = kernel.launch(self.device, self.pipelines, params, &bound.slices, workgroups);
        Ok(Step::Ours(launch))
    }

    fn embed(
        &mut self,
        tokens: &Tensor,
        table: &Weights,
        factor: f32,
        positions: Option<&Positions>,
        out: &Tensor,
    ) -> Result<Step, Error> {
        let mut bound = Bound::default();
        let weight = bound.weights(table);
        bound.read("tokens", "u32", tokens.slice());
        let mut params = vec![factor.to_bits(), 1, 1];
        let position = match positions {
            Some(Positions { table, start, seq_len }) => {
                bound.read("positions", "vec4<f32>", table.slice());
                bound.read("start", "u32", start.slice());
                params[1] = narrow(*seq_len)?;
                params[2] = narrow(table.len() * tokens.len() / out.len())?;
                file!("position/table")
            }
            None => file!("position/none"),
        };
        bound.write("out", "vec4<f32>", out.slice());
        let kernel = Kernel::new("embed", &[weight, position, file!("embed")]);
        let kernel = kernel.constant("THREADS", 64).constant("ROWS", table.rows);
        self.ours(kernel.constant("COLS", table.cols), &params, bound, [tokens.len(), 1])
    }

    fn linear(
        &mut self,
        x: &Tensor,
        w: &Weights,
        bias: Option<&Tensor>,
        finish: Finish,
        out: &Tensor,
    ) -> Result<Step, Error> {
        let mut bound = Bound::default();
        let mut files = vec![bound.weights(w)];
        bound.read("x", "vec4<f32>", x.slice());
        files.push(match bias {
            Some(bias) => {
                bound.read("bias", "f32", bias.slice());
                file!("bias/given")
            }
            None => file!("bias/none"),
        });
        bound.write("out", "f32", out.slice());
        files.push(match finish {
            Finish::Store => file!("finish/store"),
            Finish::Add => file!("finish/add"),
            Finish::Relu => file!("finish/relu"),
            Finish::Gelu => file!("finish/gelu"),
        });
        let rows = x.len() / w.cols;
        let software = self.attention.capabilities().class == DeviceClass::Software;
        // What owns how many rows and outputs.
        let (name, body, [tall, wide]) = match (rows, software) {
            (1, true) => ("row_lane", file!("row_lane"), [1, 32]),
            (1, false) => ("row_team", file!("row_team"), [1, 8]),
            (_, true) => ("linear_lane", file!("linear_lane"), [16, 32]),
            (_, false) => ("linear_tile", file!("linear_tile"), [128, 64]),
        };
        files.push(body);
        let kernel = Kernel::new(name, &files).constant("ROWS", w.rows).constant("COLS", w.cols);
        let workgroups = match rows {
            // Of the logits there may be more than one axis holds.
            1 => [w.rows.div_ceil(wide).min(1 << 15), w.rows.div_ceil(wide).div_ceil(1 << 15)],
            _ => [rows.div_ceil(tall), w.rows.div_ceil(wide)],
        };
        self.ours(kernel, &[narrow(rows)?], bound, workgroups)
    }

    fn choose(
        &mut self,
        logits: &Tensor,
        sampling: Sampling,
        step: &Tensor,
        token: &Tensor,
    ) -> Result<Step, Error> {
        let mut bound = Bound::default();
        let (kernel, params) = match sampling {
            Sampling::Greedy => {
                bound.read("logits", "f32", logits.slice());
                (Kernel::new("argmax", &[file!("next"), file!("argmax")]), vec![0])
            }
            Sampling::Random { temperature, top_p, seed } => {
                bound.write("logits", "f32", logits.slice());
                let files = [file!("total"), file!("next"), file!("sample")];
                let params = vec![temperature.recip().to_bits(), top_p.to_bits(), seed];
                (Kernel::new("sample", &files), params)
            }
        };
        bound.write("step", "u32", step.slice()).write("token", "u32", token.slice());
        let kernel = kernel.constant("THREADS", 256).constant("COLS", logits.len());
        self.ours(kernel, &params, bound, [1, 1])
    }
}

/// What a kernel binds, as WGSL declares it and as it is.
#[derive(Default)]
struct Bound<'a> {
    bindings: Vec<Binding>,
    slices: Vec<wgpu::BufferSlice<'a>>,
}

impl<'a> Bound<'a> {
    fn add(
        &mut self,
        (name, element, written): (&'static str, &'static str, bool),
        slice: wgpu::BufferSlice<'a>,
    ) -> &mut Self {
        self.bindings.push(Binding { name, element, written });
        self.slices.push(slice);
        self
    }

    fn read(
        &mut self,
        name: &'static str,
        element: &'static str,
        slice: wgpu::BufferSlice<'a>,
    ) -> &mut Self {
        self.add((name, element, false), slice)
    }

    fn write(
        &mut self,
        name: &'static str,
        element: &'static str,
        slice: wgpu::BufferSlice<'a>,
    ) -> &mut Self {
        self.add((name, element, true), slice)
    }

    /// Binds weights; the file that reads them.
    fn weights(&mut self, w: &'a Weights) -> &'static str {
        match &w.stored {
            Stored::F16(halves) => {
                self.read("w", "vec2<u32>", halves.slice(..));
                file!("weight/f16")
            }
            Stored::Blocks { codes, ranges } => {
                self.read("w", "u32", codes.slice(..)).read("ranges", "u32", ranges.slice(..));
                file!("weight/blocks")
            }
            Stored::Rows { codes, factors } => {
                self.read("w", "u32", codes.slice(..)).read("factors", "f32", factors.slice(..));
                file!("weight/rows")
            }
            Stored::Cpu(_) => unreachable!("weights of another machine"),
        }
    }
}

fn narrow(n: usize) -> Result<u32, Error> {
    u32::try_from(n).map_err(|_| Error::Device(format!("{n} is past 32 bits")))
}
