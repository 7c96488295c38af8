//! How a tensor lies in its buffer.

use crate::problem::Problem;
use crate::shape::Shape;

/// Distances between neighbours along the outer axes of a tensor, in elements. The innermost axis
/// (`head_dim`) is contiguous. A stride of 0 repeats an input along its axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_structs, reason = "a tensor of rank 4 has three outer axes")]
pub struct Strides {
    /// From one sequence to the next.
    pub batch: u64,
    /// From one head to the next.
    pub head: u64,
    /// From one position to the next.
    pub row: u64,
}

impl Strides {
    /// Contiguous `[batch, heads, len, dim]`.
    pub const fn bhsd(heads: u32, len: u32, dim: u32) -> Self {
        let head = len as u64 * dim as u64;
        Self { batch: head.saturating_mul(heads as u64), head, row: dim as u64 }
    }

    /// Contiguous `[batch, len, heads, dim]`.
    pub const fn bshd(heads: u32, len: u32, dim: u32) -> Self {
        let row = heads as u64 * dim as u64;
        Self { batch: row.saturating_mul(len as u64), head: dim as u64, row }
    }

    /// Elements from the first to one past the last of `[batch, heads, len, dim]`; `None` past u64.
    pub(crate) fn extent(&self, batch: u32, heads: u32, len: u32, dim: u32) -> Option<u64> {
        if batch == 0 || heads == 0 || len == 0 {
            return Some(0);
        }
        let span = |n: u32, stride: u64| u64::from(n - 1).checked_mul(stride);
        span(batch, self.batch)?
            .checked_add(span(heads, self.head)?)?
            .checked_add(span(len, self.row)?)?
            .checked_add(u64::from(dim))
    }

    /// Whether no two elements of `[batch, heads, len, dim]` share a place.
    pub(crate) fn is_injective(&self, batch: u32, heads: u32, len: u32, dim: u32) -> bool {
        if batch == 0 || heads == 0 || len == 0 {
            return true;
        }
        let mut axes = [(self.batch, batch), (self.head, heads), (self.row, len)];
        axes.sort_unstable();
        let mut span = u128::from(dim);
        axes.iter().filter(|(_, n)| *n > 1).all(|&(stride, n)| {
            let fits = u128::from(stride) >= span;
            span += u128::from(n - 1) * u128::from(stride);
            fits
        })
    }
}

/// Common orders of the outer axes; the width of a head is innermost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// `[batch, heads, len, head_dim]`.
    #[default]
    Bhsd,
    /// `[batch, len, heads, head_dim]`.
    Bshd,
    /// q, k and v side by side in one buffer, `[batch, len, heads * head_dim + kv_heads * head_dim +
    /// kv_heads * v_head_dim]`, each a slice that starts at its first column and ends with the
    /// buffer; out as [`Bshd`](Self::Bshd).
    PackedQkv,
}

impl Problem {
    /// Sets the strides of q, k, v and out to those of a common layout; keys and values in pages stay as they are.
    #[must_use]
    pub fn layout(self, layout: Layout) -> Self {
        if self.pages.is_some() {
            let (k, v) = (self.k, self.v);
            return Self { k, v, pages: self.pages, ..Self { pages: None, ..self }.layout(layout) };
        }
        let Shape { heads, kv_heads, q_len, kv_len, head_dim, v_head_dim, .. } = self.shape;
        match layout {
            Layout::Bhsd => Self {
                q: Strides::bhsd(heads, q_len, head_dim),
                k: Strides::bhsd(kv_heads, kv_len, head_dim),
                v: Strides::bhsd(kv_heads, kv_len, v_head_dim),
                out: Strides::bhsd(heads, q_len, v_head_dim),
                ..self
            },
            Layout::Bshd => Self {
                q: Strides::bshd(heads, q_len, head_dim),
                k: Strides::bshd(kv_heads, kv_len, head_dim),
                v: Strides::bshd(kv_heads, kv_len, v_head_dim),
                out: Strides::bshd(heads, q_len, v_head_dim),
                ..self
            },
            Layout::PackedQkv => {
                let row = u64::from(heads) * u64::from(head_dim)
                    + u64::from(kv_heads) * (u64::from(head_dim) + u64::from(v_head_dim));
                let view = |len: u32, head: u32| Strides {
                    batch: row.saturating_mul(len.into()),
                    head: head.into(),
                    row,
                };
                Self {
                    q: view(q_len, head_dim),
                    k: view(kv_len, head_dim),
                    v: view(kv_len, v_head_dim),
                    out: Strides::bshd(heads, q_len, v_head_dim),
                    ..self
                }
            }
        }
    }
}
