//! Numbers on a machine: tensors, which a program reads and writes, and weights, which it only reads.

use std::cell::{Ref, RefCell, RefMut};
use std::rc::Rc;
use wgpu_attention::wgpu;

/// 32-bit words of one type, f32 or u32, or a view of some of them. A clone is the same memory.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(crate) place: Place,
    pub(crate) first: usize,
    pub(crate) len: usize,
}

#[derive(Clone, Debug)]
pub(crate) enum Place {
    Gpu(wgpu::Buffer),
    Cpu(Rc<RefCell<Vec<u32>>>),
}

impl Tensor {
    /// Its words.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All but the first `words`; none past the end.
    #[must_use]
    pub fn after(&self, words: usize) -> Self {
        let words = words.min(self.len);
        Self { place: self.place.clone(), first: self.first + words, len: self.len - words }
    }

    /// Words as bytes of the buffer, where it is one.
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

/// A matrix of weights, `[rows, cols]`, in the form that the machine multiplies with.
#[derive(Clone, Debug)]
pub struct Weights {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stored: Stored,
}

#[derive(Clone, Debug)]
pub(crate) enum Stored {
    /// Two a word.
    F16(wgpu::Buffer),
    /// Four a word, and of every block of 32 a word: scale and minimum as f16.
    Blocks {
        codes: wgpu::Buffer,
        ranges: wgpu::Buffer,
    },
    /// Four a word, and an f32 factor a row.
    Rows {
        codes: wgpu::Buffer,
        factors: wgpu::Buffer,
    },
    Cpu(Rc<Vec<f32>>),
}

impl Weights {
    /// Outputs of a layer, or tokens of a table.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of a layer, or the width of a table.
    pub fn cols(&self) -> usize {
        self.cols
    }
}
