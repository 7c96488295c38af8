//! A plan bound to buffers, ready to record.

use crate::error::BindError;
use crate::kernels::{Access, Kernel};
use crate::operand::Operand;
use crate::plan::{Plan, REGION_ALIGNMENT, Step};
use crate::tensors::Tensors;
use crate::upload::upload;
use crate::work::Work;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;

/// Commands of one plan over one set of buffers; record it as often as you like.
#[derive(Clone, Debug)]
pub struct Dispatch {
    device: wgpu::Device,
    launches: Vec<Launch>,
    /// What each launch was made of.
    steps: Arc<[Resolved]>,
}

/// A step, or a part of one, ready to record.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    name: &'static str,
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: [u32; 2],
}

impl Launch {
    pub(crate) fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        let [x, y] = self.workgroups;
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(x, y, 1);
    }
}

impl Dispatch {
    pub(crate) fn new(
        device: &wgpu::Device,
        pipeline: impl Fn(&Kernel) -> wgpu::ComputePipeline,
        limits: &wgpu::Limits,
        plan: &Plan,
        tensors: &Tensors<'_>,
    ) -> Result<Self, BindError> {
        tensors.check(plan, limits)?;
        let workspace = Workspace::new(device, limits, plan, tensors)?;
        let resolved: Arc<[_]> = plan
            .steps
            .iter()
            .map(|step| Resolved::new(plan, step, limits, tensors, &workspace))
            .collect();
        let uniforms = Uniforms::new(device, limits, &resolved)?;
        let launches = resolved
            .iter()
            .enumerate()
            .map(|(index, step)| {
                let pipeline = pipeline(&step.kernel);
                step.launch(device, pipeline, uniforms.binding(index, step), step.workgroups)
            })
            .collect();
        Ok(Self { device: device.clone(), launches, steps: resolved })
    }

    /// Records one compute pass.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        self.record(&mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("attention"),
            timestamp_writes: None,
        }));
    }

    /// Records into a pass that the caller has open. Changes its pipeline and its bind group 0.
    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        for index in 0..self.launches.len() {
            self.record_step(index, pass);
        }
    }

    /// Records one step alone, in the order of [`Plan::kernels`](crate::Plan::kernels): to measure it.
    ///
    /// # Panics
    /// If there is no such step.
    pub fn record_step(&self, index: usize, pass: &mut wgpu::ComputePass<'_>) {
        self.launches[index].record(pass);
    }

    /// Names of the kernels, in launch order.
    pub fn kernels(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.launches.iter().map(|launch| launch.name)
    }

    /// What every step is estimated to do.
    pub(crate) fn works(&self) -> impl Iterator<Item = &Work> {
        self.steps.iter().map(|step| &step.work)
    }

    pub(crate) fn work_of(&self, index: usize) -> Option<&Work> {
        self.steps.get(index).map(|step| &step.work)
    }

    /// A range of a step's workgroups: the step itself if that is all of them.
    pub(crate) fn part(&self, index: usize, range: Range<u64>) -> Launch {
        let (launch, step) = (&self.launches[index], &self.steps[index]);
        if range == (0..step.work.workgroups) {
            return launch.clone();
        }
        let narrow = |id: u64| u32::try_from(id).expect("within what can be counted");
        let (first, end) = (narrow(range.start), narrow(range.end));
        // No wider than the whole, which fits the device.
        let width = (end - first).min(step.workgroups[0]);
        let mut params = step.params.clone();
        for (name, value) in
            [("workgroup_first", first), ("workgroups", end), ("grid_width", width)]
        {
            step.field(&mut params, name).copy_from_slice(&value.to_ne_bytes());
        }
        let usage = wgpu::BufferUsages::UNIFORM;
        let uniform = upload(&self.device, "attention params", &params, usage);
        let workgroups = [width, (end - first).div_ceil(width)];
        step.launch(&self.device, launch.pipeline.clone(), uniform.as_entire_binding(), workgroups)
    }
}

/// Scratch: where each region of the plan lies.
struct Workspace {
    regions: Vec<(wgpu::Buffer, u64)>,
}

impl Workspace {
    fn new(
        device: &wgpu::Device,
        limits: &wgpu::Limits,
        plan: &Plan,
        tensors: &Tensors<'_>,
    ) -> Result<Self, BindError> {
        let mut offset = 0;
        let regions = plan.regions.iter().map(|&size| {
            if let Some(slice) = tensors.given_workspace() {
                let at = slice.offset() + offset;
                offset += size.next_multiple_of(REGION_ALIGNMENT);
                return Ok((slice.buffer().clone(), at));
            }
            check_size("the workspace", size, limits)?;
            let buffer = device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("attention workspace"),
                size,
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            });
            Ok((buffer, 0))
        });
        Ok(Self { regions: regions.collect::<Result<_, BindError>>()? })
    }
}

fn check_size(what: &'static str, required: u64, limits: &wgpu::Limits) -> Result<(), BindError> {
    let available = limits.max_buffer_size;
    if required > available {
        return Err(BindError::BufferTooLarge { what: what.into(), required, available });
    }
    Ok(())
}

/// What one binding of a step is bound to.
#[derive(Debug)]
struct Slot {
    buffer: wgpu::Buffer,
    bytes: Range<u64>,
}

impl Slot {
    fn resource(&self) -> wgpu::BindingResource<'_> {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &self.buffer,
            offset: self.bytes.start,
            size: NonZeroU64::new(self.bytes.end - self.bytes.start),
        })
    }
}

/// A step whose buffers are known: the variant that fits them, and the bases that they leave.
#[derive(Debug)]
struct Resolved {
    kernel: Kernel,
    params: Vec<u8>,
    slots: Vec<Slot>,
    workgroups: [u32; 2],
    work: Work,
}

impl Resolved {
    fn new(
        plan: &Plan,
        step: &Step,
        limits: &wgpu::Limits,
        tensors: &Tensors<'_>,
        workspace: &Workspace,
    ) -> Self {
        let located: Vec<(wgpu::Buffer, Range<u64>)> = step
            .bound
            .iter()
            .map(|bound| {
                let (buffer, offset) = match bound.operand {
                    Operand::Workspace(region) => workspace.regions[region].clone(),
                    operand => {
                        let slice =
                            tensors.get(plan, operand).expect("`check` found every operand");
                        if matches!(operand, Operand::Buffer(_)) {
                            // All that there is: only the function knows how much it reads.
                            let bytes = slice.offset()..slice.offset() + slice.size() / 4 * 4;
                            return (slice.buffer().clone(), bytes);
                        }
                        (slice.buffer().clone(), slice.offset())
                    }
                };
                (buffer, offset + bound.bytes.start..offset + bound.bytes.end)
            })
            .collect();

        let aligned = (step.kernel.bindings[1..].iter().zip(&located))
            .all(|(binding, (_, bytes))| bytes.start.is_multiple_of(binding.element_bytes()));
        let mut kernel = match &step.scalar {
            Some(scalar) if !aligned => scalar.clone(),
            _ => step.kernel.clone(),
        };
        share_written_buffers(&mut kernel, &located);

        let mut params = step.params.clone();
        let alignment = u64::from(limits.min_storage_buffer_offset_alignment.max(16));
        let mut slots = Vec::new();
        for (binding, (buffer, bytes)) in kernel.bindings[1..].iter().zip(located) {
            let start = bytes.start / alignment * alignment;
            // Bindings end at whole words.
            let end = bytes.end.next_multiple_of(4);
            slots.push(Slot { buffer, bytes: start..end });
            if binding.bits == 0 {
                continue;
            }
            // Blocks are of words, and start at any.
            let (suffix, bits) =
                if binding.is_blocks() { ("_words", 32) } else { ("_base", binding.bits) };
            let base = (bytes.start - start) * 8 / u64::from(bits);
            let field = (kernel.fields.iter())
                .find(|(field, ..)| field.strip_suffix(suffix) == Some(&*binding.name))
                .expect("every binding has a base");
            let field = &mut params[field.1 as usize..][..4];
            // Some tensors start within a word.
            let within = u32::from_ne_bytes(field.try_into().expect("four bytes"));
            let base = within + u32::try_from(base).expect("less than an alignment");
            field.copy_from_slice(&base.to_ne_bytes());
        }
        Self { kernel, params, slots, workgroups: step.workgroups, work: step.work }
    }

    /// Where a field lies in the params.
    fn field<'a>(&self, params: &'a mut [u8], name: &str) -> &'a mut [u8] {
        let fields = self.kernel.fields;
        let (_, offset, _) = fields
            .iter()
            .find(|(field, ..)| *field == name)
            .expect("every kernel's params have it");
        &mut params[*offset as usize..][..4]
    }

    fn launch(
        &self,
        device: &wgpu::Device,
        pipeline: wgpu::ComputePipeline,
        uniform: wgpu::BindingResource<'_>,
        workgroups: [u32; 2],
    ) -> Launch {
        let name = self.kernel.name;
        let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource: uniform }];
        for (binding, slot) in (1..).zip(&self.slots) {
            entries.push(wgpu::BindGroupEntry { binding, resource: slot.resource() });
        }
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(name),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        Launch { name, pipeline, bind_group, workgroups }
    }
}

/// wgpu lets no dispatch bind a buffer for reading alone and for writing, even in disjoint parts: what shares
/// a written buffer is declared `read_write` too.
fn share_written_buffers(kernel: &mut Kernel, located: &[(wgpu::Buffer, Range<u64>)]) {
    let written: Vec<&wgpu::Buffer> = (kernel.bindings[1..].iter().zip(located))
        .filter(|(binding, _)| binding.access == Access::ReadWrite)
        .map(|(_, (buffer, _))| buffer)
        .collect();
    for (binding, (buffer, _)) in kernel.bindings[1..].iter_mut().zip(located) {
        if written.contains(&buffer) {
            binding.access = Access::ReadWrite;
        }
    }
}

/// One buffer with the params of every step.
struct Uniforms {
    buffer: Option<wgpu::Buffer>,
    stride: u64,
}

impl Uniforms {
    fn new(
        device: &wgpu::Device,
        limits: &wgpu::Limits,
        steps: &[Resolved],
    ) -> Result<Self, BindError> {
        let longest = steps.iter().map(|step| step.params.len()).max().unwrap_or(0);
        let stride =
            (longest as u64).next_multiple_of(limits.min_uniform_buffer_offset_alignment.into());
        let size = stride * steps.len() as u64;
        if size == 0 {
            return Ok(Self { buffer: None, stride });
        }
        check_size("the uniform buffer", size, limits)?;
        let mut contents = Vec::new();
        for step in steps {
            contents.extend_from_slice(&step.params);
            contents.resize(
                contents.len().next_multiple_of(usize::try_from(stride).expect("small")),
                0,
            );
        }
        let usage = wgpu::BufferUsages::UNIFORM;
        let buffer = upload(device, "attention params", &contents, usage);
        Ok(Self { buffer: Some(buffer), stride })
    }

    fn binding(&self, index: usize, step: &Resolved) -> wgpu::BindingResource<'_> {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: self.buffer.as_ref().expect("there are steps"),
            offset: self.stride * index as u64,
            size: NonZeroU64::new(step.params.len() as u64),
        })
    }
}
