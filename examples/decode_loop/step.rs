//! One step of all sequences, planned and bound once: rotate the queries, append keys and values, attend.

use crate::cache::Cache;
use crate::model::{Model, SEQUENCES};
use std::error::Error;
use std::fmt;
use wgpu_attention::{
    Append, Attention, Dispatch, Layout, Mask, Problem, RotaryEmbedding, Shape, Strides, Tensors,
    wgpu,
};

/// So many new rows of every sequence at most; of more than one, `new_lens` says how many.
pub(crate) struct Step {
    make_qkv: MakeQkv,
    rotate: Dispatch,
    append: Dispatch,
    attend: Dispatch,
    rows: u32,
    /// `[sequences, rows, heads, head_dim]`.
    pub(crate) out: wgpu::Buffer,
}

impl Step {
    pub(crate) fn new(
        device: &wgpu::Device,
        attention: &Attention,
        model: &Model,
        cache: &Cache,
        rows: u32,
    ) -> Result<Self, Box<dyn Error>> {
        let Model { heads, kv_heads, head_dim, kv_dtype, .. } = *model;
        let batch = u32::try_from(SEQUENCES)?;
        let ragged = rows > 1;

        // Plans: once a shape. Queries stand at the end of what the cache holds after the append.
        let shape = Shape::cross_attention(batch, heads, rows, model.capacity(), head_dim);
        let problem = Problem::new(shape.with_kv_heads(kv_heads))
            .mask(Mask::CAUSAL)
            .layout(Layout::Bshd)
            .with_pages(cache.pages)
            .kv_dtype(kv_dtype)
            .with_lengths(ragged, true);
        let attend = attention.plan(&problem)?;

        // q, k and v lie side by side, as one projection leaves them: nothing has to be taken apart.
        let columns = u64::from(model.columns());
        let side_by_side =
            Strides { batch: columns * u64::from(rows), head: head_dim.into(), row: columns };
        let rotary = model.rotary();
        let append = Append::to_cache_of(&problem)
            .new_strides(side_by_side, side_by_side)
            .with_rotary(rotary);
        let append = if ragged { append.with_new_lens() } else { append };
        let append = attention.plan_append(&append)?;
        let rotate = RotaryEmbedding::new(rotary, shape)
            .x_strides(side_by_side)
            .out_strides(problem.q)
            .with_offsets();
        let rotate = attention.plan_rotary(&rotate)?;
        attention.compile([&rotate, &append, &attend]);

        // Buffers of this step, and bindings: once.
        let buffer = |label, columns: u32| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: u64::from(batch) * u64::from(rows) * u64::from(columns) * 4,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        };
        let qkv = buffer("q, k and v", model.columns());
        let q = buffer("rotated q", heads * head_dim);
        let out = buffer("out", heads * head_dim);
        let from_head = |head: u32| qkv.slice(u64::from(head * head_dim) * 4..);

        // Positions of the queries are the lengths as they are before the append.
        let tensors = Tensors::default()
            .x(from_head(0))
            .pos_offsets(cache.kv_lens.slice(..))
            .cos(cache.cos.slice(..))
            .sin(cache.sin.slice(..))
            .out(q.slice(..));
        let rotate = attention.bind(&rotate, &tensors)?;

        let in_cache = Tensors::default()
            .k(cache.k.slice(..))
            .v(cache.v.slice(..))
            .kv_lens(cache.kv_lens.slice(..))
            .block_table(cache.block_table.slice(..));
        let mut tensors = in_cache
            .clone()
            .k_new(from_head(heads))
            .v_new(from_head(heads + kv_heads))
            .append_status(cache.status.slice(..))
            .cos(cache.cos.slice(..))
            .sin(cache.sin.slice(..));
        if ragged {
            tensors = tensors.new_lens(cache.new_lens.slice(..));
        }
        let append = attention.bind(&append, &tensors)?;

        let mut tensors = in_cache.q(q.slice(..)).out(out.slice(..));
        if ragged {
            tensors = tensors.q_lens(cache.new_lens.slice(..));
        }
        let attend = attention.bind(&attend, &tensors)?;
        let make_qkv = MakeQkv::new(device, model, &cache.kv_lens, &qkv, [rows, batch]);
        Ok(Self { make_qkv, rotate, append, attend, rows, out })
    }

    /// Every token: nothing is allocated, nothing asked of the host.
    pub(crate) fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        self.make_qkv.record(&mut pass);
        self.rotate.record(&mut pass);
        self.append.record(&mut pass);
        self.attend.record(&mut pass);
    }

    /// Index of a sequence's row among those of `out`.
    pub(crate) fn out_row(&self, sequence: usize, row: u32) -> u64 {
        sequence as u64 * u64::from(self.rows) + u64::from(row)
    }
}

/// The kernels in their order.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ours = [&self.rotate, &self.append, &self.attend];
        let names = ours.into_iter().flat_map(Dispatch::kernels);
        write!(f, "{}", names.collect::<Vec<_>>().join(", "))
    }
}

/// What a model does before attention; here a kernel that makes q, k and v of nothing.
struct MakeQkv {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: [u32; 2],
}

impl MakeQkv {
    fn new(
        device: &wgpu::Device,
        model: &Model,
        kv_lens: &wgpu::Buffer,
        qkv: &wgpu::Buffer,
        workgroups: [u32; 2],
    ) -> Self {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("make_qkv"),
            source: wgpu::ShaderSource::Wgsl(model.wgsl().into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("make_qkv"),
            layout: None,
            module: &module,
            entry_point: Some("make_qkv"),
            compilation_options: Default::default(),
            cache: None,
        });
        let resources = [kv_lens, qkv].map(wgpu::Buffer::as_entire_binding);
        let entries: Vec<_> = (0..)
            .zip(resources)
            .map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource })
            .collect();
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("make_qkv"),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        Self { pipeline, bind_group, workgroups }
    }

    fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        let [rows, sequences] = self.workgroups;
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(rows, sequences, 1);
    }
}
