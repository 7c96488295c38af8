//! The model on a GPU: everything stays there, and is planned and bound once. This is the part to copy.

use crate::ahead::Ahead;
use crate::task::{
    BATCH, DIM, HEAD_AT, KEYS, LEN, PARAMETERS, Point, VALUES, W_O_AT, W_QKV_AT, constants, layer,
    parameters,
};
use std::error::Error;
use wgpu_attention::{Attention, Dispatch, Download, Operand, Tensors, wgpu};

/// A kernel of the example's own, bound.
struct Launch {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: u32,
}

impl Launch {
    fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(self.workgroups, 1, 1);
    }
}

/// A model, and what a step of its training does.
pub(crate) struct Model<'a> {
    device: &'a wgpu::Device,
    queue: &'a wgpu::Queue,
    attention: &'a Attention,
    buffers: Buffers,
    sample: Launch,
    embed: Launch,
    /// `None` of a model without attention: what it attends to stays 0.
    layer: Option<[Dispatch; 2]>,
    loss: Launch,
    /// Gradients of the head, and of the embeddings.
    gradients: [Launch; 2],
    adam: Launch,
    tally: Launch,
}

struct Buffers {
    parameters: wgpu::Buffer,
    x: wgpu::Buffer,
    attended: wgpu::Buffer,
    history: wgpu::Buffer,
}

impl<'a> Model<'a> {
    pub(crate) fn new(
        (device, queue): (&'a wgpu::Device, &'a wgpu::Queue),
        attention: &'a Attention,
        (seed, steps): (u32, usize),
        attends: bool,
    ) -> Result<Self, Box<dyn Error>> {
        let buffer = |label, words: usize| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: 4 * words as u64,
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_DST
                    | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        };
        let rows = BATCH * LEN;
        let (state, tokens, targets) =
            (buffer("state", 2), buffer("tokens", 2 * rows), buffer("targets", BATCH));
        let [x, attended, d_x, d_h] =
            ["x", "attended", "d_x", "d_h"].map(|label| buffer(label, rows * DIM));
        let (hidden, d_logits) =
            (buffer("hidden", BATCH * DIM), buffer("d_logits", BATCH * VALUES));
        let (results, history) = (buffer("results", 2 * BATCH), buffer("history", 2 * steps));
        let [weights, gradients] =
            ["parameters", "gradients"].map(|label| buffer(label, PARAMETERS));
        let moments = buffer("moments", 2 * PARAMETERS);
        queue.write_buffer(&weights, 0, bytemuck::cast_slice(&parameters(seed)));
        queue.write_buffer(&state, 0, bytemuck::cast_slice(&[seed, 0]));

        // Forward, and the gradients from what it saved: slices of the same two buffers that Adam goes through.
        let layer = layer();
        let layer = attends
            .then(|| {
                let forward = attention.plan_layer(&layer)?;
                let backward = attention.plan_layer_backward(&layer.backward())?;
                let saved = buffer("saved", forward.operand_bytes(Operand::Saved) as usize / 4);
                let inputs = read_by_layer(&x, &weights).saved(saved.slice(..));
                let outputs = inputs.clone().d_out(d_h.slice(..)).d_x(d_x.slice(..));
                let outputs = outputs.d_w_qkv(gradients.slice(bytes(W_QKV_AT, W_O_AT)));
                let outputs = outputs.d_w_o(gradients.slice(bytes(W_O_AT, HEAD_AT)));
                let forward = attention.bind(&forward, &inputs.out(attended.slice(..)))?;
                let backward = attention.bind(&backward, &outputs)?;
                Ok::<_, wgpu_attention::Error>([forward, backward])
            })
            .transpose()?;

        let launch = |name: &str, wgsl: &str, bound: &[&wgpu::Buffer], workgroups: usize| {
            launch(device, (name, &(constants(steps) + wgsl)), bound, workgroups)
        };
        Ok(Self {
            sample: launch(
                "sample",
                include_str!("sample.wgsl"),
                &[&state, &tokens, &targets],
                BATCH.div_ceil(64),
            ),
            embed: launch(
                "embed",
                include_str!("embed.wgsl"),
                &[&tokens, &weights, &x],
                (rows * DIM).div_ceil(64),
            ),
            layer,
            loss: launch(
                "loss",
                include_str!("loss.wgsl"),
                &[&x, &attended, &weights, &targets, &hidden, &d_logits, &d_h, &results],
                BATCH,
            ),
            gradients: [
                launch(
                    "head_gradient",
                    include_str!("head_gradient.wgsl"),
                    &[&d_logits, &hidden, &gradients],
                    (VALUES * DIM).div_ceil(64),
                ),
                launch(
                    "embedding_gradient",
                    include_str!("embedding_gradient.wgsl"),
                    &[&tokens, &d_x, &d_h, &gradients],
                    KEYS + VALUES,
                ),
            ],
            adam: launch(
                "adam",
                include_str!("adam.wgsl"),
                &[&state, &gradients, &moments, &weights],
                PARAMETERS.div_ceil(64),
            ),
            tally: launch("tally", include_str!("tally.wgsl"), &[&results, &state, &history], 1),
            buffers: Buffers { parameters: weights, x, attended, history },
            device,
            queue,
            attention,
        })
    }

    /// One step, as one pass: nothing is allocated or waited for. `learns`: else only answers.
    pub(crate) fn step(&self, pass: &mut wgpu::ComputePass<'_>, learns: bool) {
        self.sample.record(pass);
        self.embed.record(pass);
        if let Some([forward, _]) = &self.layer {
            forward.record(pass);
        }
        self.loss.record(pass);
        if learns {
            if let Some([_, backward]) = &self.layer {
                backward.record(pass);
            }
            self.gradients.iter().for_each(|launch| launch.record(pass));
            self.adam.record(pass);
        }
        self.tally.record(pass);
    }

    /// What came of the steps up to now.
    pub(crate) fn history(&self, steps: usize) -> Result<Vec<Point>, Box<dyn Error>> {
        let read = self.read(&self.buffers.history, 2 * steps)?;
        let point = |pair: &[f32]| Point { loss: pair[0].into(), accuracy: pair[1].into() };
        Ok(read.chunks_exact(2).map(point).collect())
    }

    /// The attention weights of the last step's sequences, `[BATCH, LEN, LEN]`.
    pub(crate) fn weights(&self) -> Result<Vec<f32>, Box<dyn Error>> {
        let mut layer = layer().with_weights();
        layer.saved = false;
        let weights = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("weights"),
            size: 4 * (BATCH * LEN * LEN) as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let Buffers { x, attended, parameters, .. } = &self.buffers;
        let tensors = read_by_layer(x, parameters).out(attended.slice(..));
        let tensors = tensors.weights(weights.slice(..));
        let dispatch = self.attention.bind(&self.attention.plan_layer(&layer)?, &tensors)?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        dispatch.encode(&mut encoder);
        self.queue.submit([encoder.finish()]);
        self.read(&weights, BATCH * LEN * LEN)
    }

    fn read(&self, buffer: &wgpu::Buffer, words: usize) -> Result<Vec<f32>, Box<dyn Error>> {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let slice = buffer.slice(..4 * words as u64);
        let download = Download::encode(self.device, &mut encoder, slice);
        self.queue.submit([encoder.finish()]);
        self.device.poll(wgpu::PollType::wait_indefinitely())?;
        Ok(pollster::block_on(download.read())?)
    }
}

/// What the layer reads, forward and backward.
fn read_by_layer<'a>(x: &'a wgpu::Buffer, parameters: &'a wgpu::Buffer) -> Tensors<'a> {
    let tensors = Tensors::default().x(x.slice(..));
    let tensors = tensors.w_qkv(parameters.slice(bytes(W_QKV_AT, W_O_AT)));
    tensors.w_o(parameters.slice(bytes(W_O_AT, HEAD_AT)))
}

/// Bytes of these elements.
fn bytes(first: usize, end: usize) -> std::ops::Range<u64> {
    4 * first as u64..4 * end as u64
}

fn launch(
    device: &wgpu::Device,
    (name, wgsl): (&str, &str),
    bound: &[&wgpu::Buffer],
    workgroups: usize,
) -> Launch {
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some(name),
        source: wgpu::ShaderSource::Wgsl(wgsl.into()),
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(name),
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: Default::default(),
        cache: None,
    });
    let entries: Vec<_> = (0..)
        .zip(bound)
        .map(|(binding, buffer)| wgpu::BindGroupEntry {
            binding,
            resource: buffer.as_entire_binding(),
        })
        .collect();
    let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(name),
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    });
    Launch { pipeline, bind_group, workgroups: u32::try_from(workgroups).expect("few") }
}

/// Steps of all models, as one submission.
pub(crate) fn step(
    queue: &mut Ahead<'_>,
    models: &[Model<'_>],
    learns: bool,
) -> Result<(), Box<dyn Error>> {
    let mut encoder = queue.device.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        models.iter().for_each(|model| model.step(&mut pass, learns));
    }
    queue.submit(encoder)
}
