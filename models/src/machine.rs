//! Where models run: a GPU by compute shaders, or the CPU; and the tensors that lie there.

use crate::error::Error;
use crate::matrix::{Form, Matrix};
use std::cell::{Ref, RefCell, RefMut};
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

/// A device, and what is compiled for it. A clone is the same machine.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(crate) runner: Rc<Runner>,
    /// By their whole text.
    pub(crate) pipelines: Rc<RefCell<HashMap<String, wgpu::ComputePipeline>>>,
}

/// 32-bit words of one type, f32 or u32, or a view of some of them. A clone is the same memory.
#[derive(Clone, Debug)]
pub struct Tensor {
    place: Place,
    first: usize,
    len: usize,
}

#[derive(Clone, Debug)]
enum Place {
    Gpu(wgpu::Buffer),
    Cpu(Rc<RefCell<Vec<u32>>>),
}

/// A matrix of weights, `[rows, cols]`, in the form that the machine multiplies with: as it is stored on a GPU, f32 on the
/// CPU.
#[derive(Clone, Debug)]
pub struct Weights {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) form: Form,
    pub(crate) codes: Tensor,
    pub(crate) ranges: Tensor,
}

impl Machine {
    /// A machine of the wanted kind.
    ///
    /// # Errors
    /// There is no such device, or it cannot be opened.
    pub fn new(choice: Choice) -> Result<Self, Error> {
        let mut options = RunnerOptions::default();
        (options.software, options.gpu_only) = (choice == Choice::Gpu, choice == Choice::Gpu);
        match choice {
            Choice::Cpu => Ok(Self::of(Runner::cpu())),
            _ => Runner::with_options(options).map(Self::of).map_err(Error::device),
        }
    }

    /// The machine that a runner runs on.
    pub fn of(runner: Runner) -> Self {
        Self { runner: Rc::new(runner), pipelines: Rc::default() }
    }

    /// What it is called.
    pub fn name(&self) -> String {
        self.runner.adapter_info().map_or_else(|| "the CPU".to_owned(), |info| info.name)
    }

    /// So many words, all 0.
    ///
    /// # Errors
    /// They do not fit the device.
    pub fn zeros(&self, len: usize) -> Result<Tensor, Error> {
        let place = match self.runner.device() {
            Some((device, ..)) => Place::Gpu(buffer(device, len, &[])?),
            None => Place::Cpu(Rc::new(RefCell::new(vec![0; len]))),
        };
        Ok(Tensor { place, first: 0, len })
    }

    /// These numbers; bytes are filled up to words.
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros).
    pub fn tensor<T: bytemuck::Pod>(&self, values: &[T]) -> Result<Tensor, Error> {
        let len = size_of_val(values).div_ceil(4);
        let place = match self.runner.device() {
            Some((device, ..)) => Place::Gpu(buffer(device, len, bytemuck::cast_slice(values))?),
            None => Place::Cpu(Rc::new(RefCell::new(bytemuck::pod_collect_to_vec(values)))),
        };
        Ok(Tensor { place, first: 0, len })
    }

    /// Weights in the form that the machine multiplies with.
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros).
    pub fn weights(&self, matrix: &Matrix) -> Result<Weights, Error> {
        let Matrix { rows, cols, form, .. } = *matrix;
        let (codes, ranges) = match self.runner.device() {
            Some(_) => (self.tensor(&matrix.codes)?, self.tensor(&matrix.ranges)?),
            None => (self.tensor(&matrix.weights())?, self.zeros(0)?),
        };
        Ok(Weights { rows, cols, form, codes, ranges })
    }

    /// Writes the first words of a tensor, before the next run.
    ///
    /// # Panics
    /// If it has fewer.
    pub fn write<T: bytemuck::Pod>(&self, tensor: &Tensor, values: &[T]) {
        let bytes = bytemuck::cast_slice(values);
        assert!(bytes.len() <= tensor.len * 4);
        match (&tensor.place, self.runner.device()) {
            (Place::Gpu(buffer), Some((_, queue, _))) => {
                queue.write_buffer(buffer, tensor.first as u64 * 4, bytes);
            }
            _ => tensor.words_mut()[..bytes.len() / 4].copy_from_slice(bytemuck::cast_slice(bytes)),
        }
    }

    /// What a tensor holds, after all that was run.
    ///
    /// # Errors
    /// The device was lost.
    pub fn read<T: bytemuck::Pod>(&self, tensor: &Tensor) -> Result<Vec<T>, Error> {
        let Some((device, queue, _)) = self.runner.device() else {
            return Ok(bytemuck::pod_collect_to_vec(&tensor.words()));
        };
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let download = Download::encode(device, &mut encoder, tensor.slice());
        queue.submit([encoder.finish()]);
        device.poll(wgpu::PollType::wait_indefinitely()).map_err(Error::device)?;
        pollster::block_on(download.read()).map_err(Error::device)
    }
}

impl Tensor {
    /// Its words.
    #[allow(clippy::len_without_is_empty, reason = "none is empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// All but the first `words`; none past the end.
    #[must_use]
    pub fn after(&self, words: usize) -> Self {
        let words = words.min(self.len);
        Self { place: self.place.clone(), first: self.first + words, len: self.len - words }
    }

    pub(crate) fn slice(&self) -> wgpu::BufferSlice<'_> {
        let Place::Gpu(buffer) = &self.place else { unreachable!("a tensor of another machine") };
        buffer.slice(self.first as u64 * 4..(self.first + self.len) as u64 * 4)
    }

    pub(crate) fn words(&self) -> Ref<'_, [u32]> {
        let Place::Cpu(words) = &self.place else { unreachable!("a tensor of another machine") };
        Ref::map(words.borrow(), |words| &words[self.first..][..self.len])
    }

    pub(crate) fn numbers(&self) -> Ref<'_, [f32]> {
        Ref::map(self.words(), |words| bytemuck::cast_slice(words))
    }

    pub(crate) fn words_mut(&self) -> RefMut<'_, [u32]> {
        let Place::Cpu(words) = &self.place else { unreachable!("a tensor of another machine") };
        RefMut::map(words.borrow_mut(), |words| &mut words[self.first..][..self.len])
    }

    pub(crate) fn numbers_mut(&self) -> RefMut<'_, [f32]> {
        RefMut::map(self.words_mut(), |words| bytemuck::cast_slice_mut(words))
    }
}

/// A buffer of `len` words: these, or none and all 0.
fn buffer(device: &wgpu::Device, len: usize, contents: &[u8]) -> Result<wgpu::Buffer, Error> {
    let (size, limits) = (len.max(1) as u64 * 4, device.limits());
    let most = limits.max_buffer_size.min(limits.max_storage_buffer_binding_size);
    if size > most {
        return Err(Error::Device(format!("{size} bytes at once: the device binds {most}")));
    }
    let buffer = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("tensor"),
        size,
        usage: wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: !contents.is_empty(),
    });
    if !contents.is_empty() {
        if let Ok(mut view) = buffer.slice(..).get_mapped_range_mut() {
            view.slice(..contents.len()).copy_from_slice(contents);
        }
        buffer.unmap();
    }
    Ok(buffer)
}
