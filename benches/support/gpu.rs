//! A device, its clock and its roof; plans bound to buffers on it.

use super::class;
use super::clock::{Clock, Pass};
use super::copy::Copy;
use super::data::{LayerTensors, Tensors};
use std::time::Duration;
use wgpu::util::DeviceExt as _;
use wgpu_attention::{
    Attention, DType, Dispatch, Download, MatrixKernel, Plan, Runner, RunnerOptions, wgpu,
};

/// Of the adapter that `WGPU_ADAPTER_NAME` names, with tiles of `WGPU_ATTENTION_CLASS`; a software GPU will do.
///
/// # Panics
/// If the adapter gives no device.
pub(crate) fn runner() -> Runner {
    Runner::with_options(options()).expect("a device")
}

fn options() -> RunnerOptions {
    let mut options = RunnerOptions::default();
    options.software = true;
    options.adapter = std::env::var("WGPU_ADAPTER_NAME").ok();
    options.class = class::from_env();
    options
}

/// The same with cooperative matrices, where the adapter has them and kernels on them agree with the plain ones.
///
/// # Panics
/// As [`runner`].
pub(crate) fn runner_on_matrices() -> Option<Runner> {
    // SAFETY: shaders of this crate and its benches.
    #[allow(unsafe_code, reason = "cooperative matrices are experimental")]
    let options = unsafe { options().with_cooperative_matrices() };
    let runner = Runner::with_options(options).expect("a device");
    let matrices = runner.device()?.2.capabilities().matrices?;
    matrices.unlocked.contains(MatrixKernel::Fused).then_some(runner)
}

/// A device to measure on.
pub(crate) struct Gpu<'a> {
    pub(crate) attention: &'a Attention,
    pub(crate) info: wgpu::AdapterInfo,
    pub(crate) clock: Clock<'a>,
    device: &'a wgpu::Device,
    queue: &'a wgpu::Queue,
    fma: Fma,
}

impl<'a> Gpu<'a> {
    /// The device of `runner`, where it is not the CPU path.
    pub(crate) fn of(runner: &'a Runner) -> Option<Self> {
        let (device, queue, attention) = runner.device()?;
        let fma = Fma::new(device, queue);
        let clock = Clock::wall(device, queue).trusted(&fma.passes());
        Some(Self { attention, info: runner.adapter_info()?, clock, device, queue, fma })
    }

    /// Whether a CPU runs the kernels.
    pub(crate) fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// The f32 rate of registers alone, the best of some runs, in FLOP/s; a software GPU has that of its CPU.
    pub(crate) fn roof(&self) -> Option<f64> {
        let best = || self.clock.times(&self.fma.passes(), 10).into_iter().min();
        let time = (!self.is_software()).then(best)??;
        Some(self.fma.flops() / time.as_secs_f64())
    }

    /// Bytes a second that a copy reads and writes, the best of some runs of two ways to copy.
    pub(crate) fn bandwidth(&self) -> Option<f64> {
        const RUNS: u64 = 10;
        let copy = Copy::new(self.device, self.is_software());
        let mut times = self.clock.times(&copy.passes(), RUNS);
        times.extend((0..RUNS).map(|_| self.clock.wall_time_of(copy.commands(self.device))));
        let time = times.into_iter().min()?;
        Some(copy.bytes() / time.as_secs_f64())
    }

    fn upload(&self, label: &str, data: &[u8], more: wgpu::BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: Some(label),
            contents: data,
            usage: wgpu::BufferUsages::STORAGE | more,
        })
    }

    fn input(&self, label: &str, data: &[f32]) -> wgpu::Buffer {
        self.upload(label, bytemuck::cast_slice(data), wgpu::BufferUsages::empty())
    }

    /// NaN until it is written.
    fn output(&self, elements: usize) -> wgpu::Buffer {
        let poison = vec![f32::NAN; elements];
        self.upload("out", bytemuck::cast_slice(&poison), wgpu::BufferUsages::COPY_SRC)
    }
}

/// A plan bound to its inputs.
pub(crate) struct Bound {
    dispatch: Dispatch,
    out: wgpu::Buffer,
}

impl Bound {
    /// q, k and v are stored as `dtype`, f32 or f16.
    pub(crate) fn attention(gpu: &Gpu<'_>, plan: &Plan, tensors: &Tensors, dtype: DType) -> Self {
        let [q, k, v] =
            [("q", &tensors.q), ("k", &tensors.k), ("v", &tensors.v)].map(|(label, data)| {
                match dtype {
                    DType::F16 => {
                        let halves: Vec<_> = data.iter().map(|&x| half::f16::from_f32(x)).collect();
                        gpu.upload(
                            label,
                            bytemuck::cast_slice(&halves),
                            wgpu::BufferUsages::empty(),
                        )
                    }
                    _ => gpu.input(label, data),
                }
            });
        // Values are as wide as queries in every named problem.
        let out = gpu.output(tensors.q.len());
        let all = [&q, &k, &v, &out].map(|buffer| buffer.slice(..));
        let tensors = wgpu_attention::Tensors::new(all[0], all[1], all[2], all[3]);
        let dispatch = gpu.attention.bind(plan, &tensors).expect("buffers that fit");
        Self { dispatch, out }
    }

    pub(crate) fn layer(gpu: &Gpu<'_>, plan: &Plan, tensors: &LayerTensors) -> Self {
        let LayerTensors { x, w_q, w_k, w_v, w_o } = tensors;
        let inputs = [("x", x), ("w_q", w_q), ("w_k", w_k), ("w_v", w_v), ("w_o", w_o)]
            .map(|(label, data)| gpu.input(label, data));
        let [x_in, w_q, w_k, w_v, w_o] = inputs.each_ref().map(|buffer| buffer.slice(..));
        // Outputs are as wide as inputs in every named problem.
        let out = gpu.output(x.len());
        let tensors = wgpu_attention::Tensors::default()
            .x(x_in)
            .w_q(w_q)
            .w_k(w_k)
            .w_v(w_v)
            .w_o(w_o)
            .out(out.slice(..));
        let dispatch = gpu.attention.bind(plan, &tensors).expect("buffers that fit");
        Self { dispatch, out }
    }

    /// Runs once, for the result.
    pub(crate) fn run(&self, gpu: &Gpu<'_>) -> Vec<f32> {
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        self.dispatch.encode(&mut encoder);
        let download = Download::encode(gpu.device, &mut encoder, self.out.slice(..));
        gpu.queue.submit([encoder.finish()]);
        gpu.device.poll(wgpu::PollType::wait_indefinitely()).expect("the device is alive");
        pollster::block_on(download.read()).expect("a result")
    }

    /// The whole plan, of which kernels of some names count: each has its true inputs.
    pub(crate) fn passes(&self, timed: impl Fn(&str) -> bool) -> Vec<Pass<'_>> {
        let steps: Vec<(usize, bool)> = self.dispatch.kernels().map(timed).enumerate().collect();
        let alike = steps.chunk_by(|(_, a), (_, b)| a == b);
        let pass = |steps: &[(usize, bool)]| {
            let (steps, timed) = (steps.to_vec(), steps[0].1);
            let record = move |pass: &mut wgpu::ComputePass<'_>| {
                for (index, _) in &steps {
                    self.dispatch.record_step(*index, pass);
                }
            };
            Pass { timed, record: Box::new(record) }
        };
        alike.map(pass).collect()
    }
}

/// A kernel of multiplications and additions in registers.
struct Fma {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: u32,
}

impl Fma {
    const WORKGROUP_SIZE: u32 = 256;
    const ROUNDS: u32 = 512;
    /// Times that a round's chains advance.
    const UNROLLED: u32 = 8;
    /// Independent chains of an invocation, each of four lanes: more than any FMA unit is deep.
    const CHAINS: u32 = 8;
    /// Long beside what a submission costs.
    const LONG: Duration = Duration::from_millis(20);

    /// As many workgroups as keep the device busy for long.
    fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("fma"),
            source: wgpu::ShaderSource::Wgsl(Self::wgsl().into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("fma"),
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: Default::default(),
            cache: None,
        });
        let data = device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: Some("fma"),
            contents: bytemuck::cast_slice(&[[0.5_f32; 4], [0.25; 4]]),
            usage: wgpu::BufferUsages::STORAGE,
        });
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("fma"),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[wgpu::BindGroupEntry { binding: 0, resource: data.as_entire_binding() }],
        });
        let mut fma = Self { pipeline, bind_group, workgroups: 1 };
        let wall = Clock::wall(device, queue);
        let most = device.limits().max_compute_workgroups_per_dimension;
        while fma.workgroups <= most / 2 && wall.times(&fma.passes(), 1)[0] < Self::LONG {
            fma.workgroups *= 2;
        }
        fma
    }

    fn wgsl() -> String {
        let each = |text: fn(u32) -> String| (0..Self::CHAINS).map(text).collect::<String>();
        let start = each(|i| format!("    var x{i} = a + f32(id.x * {}u + {i}u);\n", Self::CHAINS));
        let advance = each(|i| format!("        x{i} = fma(x{i}, a, b);\n"));
        let sum = each(|i| format!(" + x{i}"));
        format!(
            "@group(0) @binding(0) var<storage, read_write> data: array<vec4<f32>>;\n\
             @compute @workgroup_size({size})\n\
             fn fma_kernel(@builtin(global_invocation_id) id: vec3<u32>) {{\n    \
                 let a = data[0];\n    let b = data[1];\n{start}    \
                 for (var round = 0u; round < {rounds}u; round++) {{\n{advances}    }}\n    \
                 let sum = a{sum};\n    \
                 // Never, which the compiler cannot know.\n    \
                 if dot(sum, sum) < 0.0 {{ data[0] = sum; }}\n}}\n",
            size = Self::WORKGROUP_SIZE,
            rounds = Self::ROUNDS,
            advances = advance.repeat(Self::UNROLLED as usize),
        )
    }

    fn passes(&self) -> [Pass<'_>; 1] {
        let record = |pass: &mut wgpu::ComputePass<'_>| {
            pass.set_pipeline(&self.pipeline);
            pass.set_bind_group(0, &self.bind_group, &[]);
            pass.dispatch_workgroups(self.workgroups, 1, 1);
        };
        [Pass { timed: true, record: Box::new(record) }]
    }

    fn flops(&self) -> f64 {
        let lanes = u64::from(self.workgroups * Self::WORKGROUP_SIZE) * u64::from(4 * Self::CHAINS);
        (2 * lanes * u64::from(Self::ROUNDS * Self::UNROLLED)) as f64
    }
}
