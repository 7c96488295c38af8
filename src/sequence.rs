//! Which tokens belong to one sequence, and what its queries see: from lengths in host memory.

use crate::function::Pair;
use crate::inputs::Inputs;
use crate::problem::{Lengths, Problem};
use std::ops::Range;

/// One sequence of a problem, in the coordinates of its tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sequence {
    pub(crate) batch: u32,
    /// First query row, and how many.
    pub(crate) q_start: u32,
    pub(crate) q_len: u32,
    /// First key row, and how many.
    pub(crate) kv_start: u32,
    pub(crate) kv_len: u32,
    /// The key that query 0 stands at.
    pub(crate) diagonal: i64,
}

/// A query row: its sequence and its place in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place {
    pub(crate) sequence: Sequence,
    pub(crate) q_pos: u32,
}

impl Place {
    /// The row and a key, in tensor coordinates and within the length, as positions in the sequence.
    pub(crate) fn pair(&self, head: u32, key: u32) -> Pair {
        let Sequence { batch, kv_start, diagonal, .. } = self.sequence;
        Pair { batch, head, q_pos: self.q_pos, kv_pos: key - kv_start, diagonal }
    }

    /// Key rows, in tensor coordinates, that the band shows.
    pub(crate) fn visible(&self, problem: &Problem) -> Range<u32> {
        let Sequence { kv_start, kv_len, diagonal, .. } = self.sequence;
        let range = problem.mask.kv_range(kv_len, diagonal, self.q_pos);
        kv_start + range.start..kv_start + range.end
    }

    /// Key rows within the length.
    pub(crate) fn within(&self) -> Range<u32> {
        let Sequence { kv_start, kv_len, .. } = self.sequence;
        kv_start..kv_start + kv_len
    }
}

impl Sequence {
    /// Sequence `batch`. Lengths past the tensor's are cut.
    pub(crate) fn of(problem: &Problem, inputs: &Inputs<'_>, batch: u32) -> Self {
        let s = problem.shape;
        let at = batch as usize;
        let (mut q, mut kv) = (0..s.q_len, 0..s.kv_len);
        match problem.lengths {
            Lengths::Full => {}
            Lengths::PerSequence { q: q_given, kv: kv_given } => {
                if q_given {
                    q = 0..inputs.q_lens[at].min(s.q_len);
                }
                if kv_given {
                    kv = 0..inputs.kv_lens[at].min(s.kv_len);
                }
            }
            Lengths::Packed => {
                let part = |cu: &[u32], total: u32| {
                    let start = cu[at].min(total);
                    start..cu[at + 1].min(total).max(start)
                };
                q = part(inputs.cu_seqlens_q, s.q_len);
                kv = part(inputs.cu_seqlens_k, s.kv_len);
            }
        }
        let (q_len, kv_len) = (q.end - q.start, kv.end - kv.start);
        let diagonal = problem.mask.diagonal(q_len, kv_len);
        let diagonal = diagonal.unwrap_or_else(|| inputs.diag_offsets[at].into());
        Self { batch, q_start: q.start, q_len, kv_start: kv.start, kv_len, diagonal }
    }

    /// The row `row` of `batch` in tensor coordinates; `None` past its sequence's end.
    pub(crate) fn place(
        problem: &Problem,
        inputs: &Inputs<'_>,
        batch: u32,
        row: u32,
    ) -> Option<Place> {
        let batch = match problem.lengths {
            Lengths::Packed => {
                let starts = &inputs.cu_seqlens_q[..problem.shape.batch as usize];
                let after = starts.partition_point(|start| *start <= row);
                u32::try_from(after.checked_sub(1)?).ok()?
            }
            _ => batch,
        };
        let sequence = Self::of(problem, inputs, batch);
        let q_pos = row.checked_sub(sequence.q_start)?;
        (q_pos < sequence.q_len).then_some(Place { sequence, q_pos })
    }
}
