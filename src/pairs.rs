//! Inputs that have a value for every pair of a query and a key: boolean masks and additive biases.

use crate::error::ProblemError;
use crate::shape::{DType, Shape};

/// How a tensor `[batch, heads, q_len, kv_len]` of pairs lies in its buffer. Each axis is exact or 1; an axis of 1
/// has stride 0 and stands for all: it is never materialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Pairs {
    /// Extents: batch, heads, queries, keys.
    pub axes: [u32; 4],
    /// Distances between neighbours along each axis, in elements.
    pub strides: [u64; 4],
}

impl Pairs {
    /// Contiguous, of these extents: batch, heads, queries, keys.
    pub const fn new(axes: [u32; 4]) -> Self {
        let mut strides = [0; 4];
        let mut stride: u64 = 1;
        let mut axis = 4;
        while axis > 0 {
            axis -= 1;
            if axes[axis] != 1 {
                strides[axis] = stride;
                stride = stride.saturating_mul(axes[axis] as u64);
            }
        }
        Self { axes, strides }
    }

    /// The same extents with other strides. Those of axes of 1 are 0.
    #[must_use]
    pub const fn with_strides(self, strides: [u64; 4]) -> Self {
        let mut kept = [0; 4];
        let mut axis = 0;
        while axis < 4 {
            if self.axes[axis] != 1 {
                kept[axis] = strides[axis];
            }
            axis += 1;
        }
        Self { strides: kept, ..self }
    }

    /// Elements from the first to one past the last of a part with these extents; `None` past u64.
    pub(crate) fn extent(&self, part: [u32; 4]) -> Option<u64> {
        if part.contains(&0) {
            return Some(0);
        }
        let spans = part.iter().zip(self.strides);
        spans
            .map(|(n, stride)| u64::from(n - 1).checked_mul(stride))
            .try_fold(1u64, |sum, span| sum.checked_add(span?))
    }

    /// Index of a pair's element.
    pub(crate) fn index(&self, at: [u32; 4]) -> u64 {
        at.iter().zip(self.strides).map(|(i, stride)| u64::from(*i) * stride).sum()
    }

    pub(crate) fn validate(&self, tensor: &'static str, shape: &Shape) -> Result<(), ProblemError> {
        let exact = [shape.batch, shape.heads, shape.q_len, shape.kv_len];
        let names = ["batch", "heads", "q_len", "kv_len"];
        for ((axis, found), needed) in names.into_iter().zip(self.axes).zip(exact) {
            if found != needed && found != 1 {
                return Err(ProblemError::Broadcast { tensor, axis, needed, found });
            }
        }
        let fits = |n: u64| n <= 1 << 58;
        if !self.extent(exact).is_some_and(fits) {
            return Err(ProblemError::Unaddressable { tensor });
        }
        Ok(())
    }
}

/// How a boolean mask is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MaskFormat {
    /// A byte a pair: 0 hides it, anything else shows it.
    #[default]
    Bytes,
    /// A bit a pair, 1 shows it; the first is the lowest of a 32-bit word.
    Bits,
}

impl MaskFormat {
    /// Bits of one element.
    pub(crate) const fn bits(self) -> u64 {
        match self {
            Self::Bytes => 8,
            Self::Bits => 1,
        }
    }
}

/// A boolean mask: which pairs may attend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct BooleanMask {
    /// How it lies in its buffer.
    pub pairs: Pairs,
    /// What an element is.
    pub format: MaskFormat,
}

/// An additive bias. One of -inf, by its bits, hides the pair; any other number is added, the lowest too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Bias {
    /// How it lies in its buffer.
    pub pairs: Pairs,
    /// What an element is.
    pub dtype: DType,
}

impl Bias {
    /// How its gradient lies: the same axes, contiguous.
    pub(crate) fn gradient(&self) -> Pairs {
        Pairs::new(self.pairs.axes)
    }
}
