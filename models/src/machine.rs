//! Where models run: a GPU by compute shaders, or the CPU. The same programs run on both.

use crate::cpu;
use crate::error::Error;
use crate::gpu::{self, Step};
use crate::kernel::{Kernel, upload};
use crate::matrix::{Codes, Matrix};
use crate::op::Op;
use crate::tensor::{Place, Stored, Tensor, Weights};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use wgpu_attention::{Download, Runner, RunnerOptions, wgpu};

/// Which machine is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "one option of the command line each")]
pub enum Choice {
    /// A hardware GPU, else the CPU.
    #[default]
    Auto,
    /// A GPU, a software one where there is no other, never the CPU.
    Gpu,
    /// The CPU.
    Cpu,
}

/// A device, and what is compiled for it.
#[derive(Debug)]
pub struct Machine {
    runner: Runner,
    pipelines: RefCell<HashMap<Kernel, wgpu::ComputePipeline>>,
}

/// Operations made ready for a machine: bound once, run as often as is wanted.
#[derive(Debug)]
pub struct Program {
    ops: Vec<Op>,
    /// Of a GPU.
    steps: Vec<Step>,
}

impl Program {
    /// What it runs.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }
}

impl Machine {
    /// A machine of the wanted kind.
    ///
    /// # Errors
    /// There is no such device, or it cannot be opened.
    pub fn new(choice: Choice) -> Result<Self, Error> {
        let mut options = RunnerOptions::default();
        (options.software, options.gpu_only) = (choice == Choice::Gpu, choice == Choice::Gpu);
        let runner = match choice {
            Choice::Cpu => Runner::cpu(),
            _ => Runner::with_options(options).map_err(Error::device)?,
        };
        Ok(Self::of(runner))
    }

    /// The machine that a runner runs on.
    pub fn of(runner: Runner) -> Self {
        Self { runner, pipelines: RefCell::default() }
    }

    /// What it is called.
    pub fn name(&self) -> String {
        self.runner.adapter_info().map_or_else(|| "the CPU".to_owned(), |info| info.name)
    }

    /// The library's runner on the same device.
    pub fn runner(&self) -> &Runner {
        &self.runner
    }

    fn device(&self) -> Option<(&wgpu::Device, &wgpu::Queue)> {
        self.runner.device().map(|(device, queue, _)| (device, queue))
    }

    /// So many words, all 0.
    ///
    /// # Errors
    /// They do not fit the device.
    pub fn zeros(&self, len: usize) -> Result<Tensor, Error> {
        let place = match self.device() {
            Some((device, _)) => Place::Gpu(buffer(device, len as u64 * 4)?),
            None => Place::Cpu(Rc::new(RefCell::new(vec![0; len]))),
        };
        Ok(Tensor { place, first: 0, len })
    }

    /// These numbers or words.
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros).
    pub fn tensor<T: bytemuck::Pod>(&self, values: &[T]) -> Result<Tensor, Error> {
        assert!(size_of::<T>() == 4, "words");
        let tensor = self.zeros(values.len())?;
        self.write(&tensor, values);
        Ok(tensor)
    }

    /// Writes the first words of a tensor, before the next run.
    ///
    /// # Panics
    /// If it has fewer.
    pub fn write<T: bytemuck::Pod>(&self, tensor: &Tensor, values: &[T]) {
        let bytes = bytemuck::cast_slice(values);
        assert!(bytes.len() <= tensor.len * 4);
        match (&tensor.place, self.device()) {
            (Place::Gpu(buffer), Some((_, queue))) => {
                queue.write_buffer(buffer, tensor.first as u64 * 4, bytes);
            }
            _ => tensor.words_mut()[..values.len()].copy_from_slice(bytemuck::cast_slice(bytes)),
        }
    }

    /// Weights in the form that the machine multiplies with: as the matrix has them on a GPU, f32 on the CPU.
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros).
    pub fn weights(&self, matrix: &Matrix) -> Result<Weights, Error> {
        let Matrix { rows, cols, .. } = *matrix;
        let Some((device, _)) = self.device() else {
            return Ok(Weights { rows, cols, stored: Stored::Cpu(Rc::new(matrix.weights())) });
        };
        let usage = wgpu::BufferUsages::STORAGE;
        let up = |bytes: &[u8]| {
            check_size(device, bytes.len() as u64)?;
            Ok::<_, Error>(upload(device, bytes, usage))
        };
        let stored = match &matrix.codes {
            Codes::F16(halves) => Stored::F16(up(bytemuck::cast_slice(halves))?),
            Codes::Blocks { codes, ranges } => {
                let ranges = up(bytemuck::cast_slice(ranges))?;
                Stored::Blocks { codes: up(bytemuck::cast_slice(codes))?, ranges }
            }
            Codes::Rows { codes, factors } => {
                let factors = up(bytemuck::cast_slice(factors))?;
                Stored::Rows { codes: up(bytemuck::cast_slice(codes))?, factors }
            }
        };
        Ok(Weights { rows, cols, stored })
    }

    /// Makes operations ready to run.
    ///
    /// # Errors
    /// The library or the device cannot do one of them.
    pub fn program(&self, ops: Vec<Op>) -> Result<Program, Error> {
        let steps = match self.runner.device() {
            Some((device, _, attention)) => {
                let pipelines = &mut *self.pipelines.borrow_mut();
                let mut builder = gpu::Builder { device, attention, pipelines };
                ops.iter().map(|op| builder.step(op)).collect::<Result<_, _>>()?
            }
            None => Vec::new(),
        };
        Ok(Program { ops, steps })
    }

    /// Runs a program; on a GPU, returns before it is done.
    ///
    /// # Errors
    /// The CPU path refuses something.
    pub fn run(&self, program: &Program) -> Result<(), Error> {
        let Some((device, queue)) = self.device() else {
            return program.ops.iter().try_for_each(|op| cpu::run(op, &self.runner));
        };
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        program.steps.iter().for_each(|step| step.record(&mut pass));
        drop(pass);
        queue.submit([encoder.finish()]);
        Ok(())
    }

    /// What a tensor holds, after all that was run.
    ///
    /// # Errors
    /// The device was lost.
    pub fn read<T: bytemuck::Pod>(&self, tensor: &Tensor) -> Result<Vec<T>, Error> {
        let Some((device, queue)) = self.device() else {
            return Ok(bytemuck::pod_collect_to_vec(&tensor.words()));
        };
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let download = Download::encode(device, &mut encoder, tensor.slice());
        queue.submit([encoder.finish()]);
        device.poll(wgpu::PollType::wait_indefinitely()).map_err(Error::device)?;
        pollster::block_on(download.read()).map_err(Error::device)
    }
}

fn check_size(device: &wgpu::Device, bytes: u64) -> Result<(), Error> {
    let limits = device.limits();
    let most = limits.max_buffer_size.min(limits.max_storage_buffer_binding_size);
    if bytes > most {
        return Err(Error::Device(format!("{bytes} bytes at once: the device binds {most}")));
    }
    Ok(())
}

fn buffer(device: &wgpu::Device, size: u64) -> Result<wgpu::Buffer, Error> {
    check_size(device, size)?;
    let (storage, from) = (wgpu::BufferUsages::STORAGE, wgpu::BufferUsages::COPY_SRC);
    Ok(device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("tensor"),
        size: size.max(4),
        usage: storage | from | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    }))
}
