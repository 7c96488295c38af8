//! Partial results over ranges of keys into one: attention whose keys are on several devices.

use crate::blocks::ELEMENT_BYTES;
use crate::cost::Cost;
use crate::error::ProblemError;
use crate::layout::Strides;
use crate::problem::Problem;
use crate::shape::{DType, MAX_LEN, Shape};

/// Results of attention over ranges of keys, `parts` of them, into the result over all these keys:
///
/// ```text
/// lse = ln sum_p exp(lse_p)        out = sum_p exp(lse_p - lse) out_p
/// ```
///
/// It is exact, whoever saw which keys and in which order: merges of merges equal the merge of all. A part whose lse is
/// -inf saw no key and adds nothing, whatever is in its out; of no part that saw one, out is 0 and lse is -inf. A row
/// that one part alone saw comes back bit for bit where the types of parts and out are the same.
///
/// Parts come with their lse: [`Problem::with_lse`]. Attention sinks count once: give them to one part alone. A causal
/// mask or a window of a part is [`along`](crate::Mask::along) a diagonal that counts from the part's own first key.
///
/// ```
/// # use wgpu_attention::{Diagonal, Error, Inputs, Mask, Merge, Problem, Runner, Shape};
/// # fn main() -> Result<(), Error> {
/// # let runner = Runner::cpu();
/// # let (q, k, v) = ([0.5; 4 * 8], [0.25; 10 * 8], [2.0; 10 * 8]);
/// // 4 queries, the last of which sees all of 10 keys. These are in two places: 7 and 3.
/// let whole = Shape::cross_attention(1, 1, 4, 10, 8);
/// let (mut out_parts, mut lse_parts) = (Vec::new(), Vec::new());
/// for (first, end) in [(0, 7), (7, 10)] {
///     // Query 0 stands at key 6 of all, at key 6 - first of these.
///     let mask = Mask::CAUSAL.along(Diagonal::Offset(6 - first));
///     let shape = Shape::cross_attention(1, 1, 4, (end - first) as u32, 8);
///     let keys = first as usize * 8..end as usize * 8;
///     let inputs = Inputs::new(&q, &k[keys.clone()], &v[keys]);
///     let part = runner.forward(&Problem::new(shape).mask(mask).with_lse(), &inputs)?;
///     out_parts.extend(part.out);
///     lse_parts.extend(part.lse.unwrap_or_default());
/// }
/// let merged = runner.merge(&Merge::new(2, whole), &out_parts, &lse_parts)?;
/// assert!(merged.out.iter().all(|x| (x - 2.0).abs() < 1e-6));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Merge {
    /// Partial results; none is allowed.
    pub parts: u32,
    /// Extents of the attention, of which batch, heads, `q_len` and `v_head_dim` count.
    pub shape: Shape,
    /// Strides of the parts' out, within a part.
    pub out_parts: Strides,
    /// From one part's out to the next, in elements.
    pub out_part: u64,
    /// Strides of the parts' lse, within a part; its rows are of one element.
    pub lse_parts: Strides,
    /// From one part's lse to the next, in elements.
    pub lse_part: u64,
    /// Strides of out.
    pub out: Strides,
    /// Storage type of the parts' out: f32, f16 or bf16. The parts' lse is f32.
    pub parts_dtype: DType,
    /// Storage type of out: f32, f16 or bf16.
    pub out_dtype: DType,
    /// Also write the lse, `[batch, heads, q_len]`.
    pub lse: bool,
}

impl Merge {
    /// `parts` results of an attention of this shape: `out_parts` `[parts, batch, heads, q_len, v_head_dim]`,
    /// `lse_parts` `[parts, batch, heads, q_len]`, to `out` `[batch, heads, q_len, v_head_dim]`, all in f32.
    pub const fn new(parts: u32, shape: Shape) -> Self {
        let Shape { batch, heads, q_len, v_head_dim, .. } = shape;
        let out = Strides::bhsd(heads, q_len, v_head_dim);
        let lse = Strides::bhsd(heads, q_len, 1);
        Self {
            parts,
            shape,
            out_parts: out,
            out_part: out.batch.saturating_mul(batch as u64),
            lse_parts: lse,
            lse_part: lse.batch.saturating_mul(batch as u64),
            out,
            parts_dtype: DType::F32,
            out_dtype: DType::F32,
            lse: false,
        }
    }

    /// `parts` results as `problem` lays them out and stores them, one after the other, to one alike. Packed
    /// sequences are one long one, as their tensors are.
    pub fn of(parts: u32, problem: &Problem) -> Self {
        let shape = problem.tensor_shape();
        let Shape { batch, heads, q_len, v_head_dim, .. } = shape;
        let part = problem.out.extent(batch, heads, q_len, v_head_dim);
        Self {
            out_parts: problem.out,
            out_part: part.unwrap_or(u64::MAX),
            out: problem.out,
            parts_dtype: problem.out_dtype,
            out_dtype: problem.out_dtype,
            lse: problem.lse,
            ..Self::new(parts, shape)
        }
    }

    /// Sets where parts' out lies: `part` elements from one to the next, and strides within one. Strides may be 0.
    #[must_use]
    pub const fn out_parts_strides(self, part: u64, strides: Strides) -> Self {
        Self { out_part: part, out_parts: strides, ..self }
    }

    /// Sets where parts' lse lies, as [`out_parts_strides`](Self::out_parts_strides).
    #[must_use]
    pub const fn lse_parts_strides(self, part: u64, strides: Strides) -> Self {
        Self { lse_part: part, lse_parts: strides, ..self }
    }

    /// Sets the strides of out.
    #[must_use]
    pub const fn out_strides(self, out: Strides) -> Self {
        Self { out, ..self }
    }

    /// Sets the storage type of the parts' out and of out.
    #[must_use]
    pub const fn dtype(self, dtype: DType) -> Self {
        Self { parts_dtype: dtype, out_dtype: dtype, ..self }
    }

    /// Sets the storage type of the parts' out.
    #[must_use]
    pub const fn parts_dtype(self, parts_dtype: DType) -> Self {
        Self { parts_dtype, ..self }
    }

    /// Sets the storage type of out.
    #[must_use]
    pub const fn out_dtype(self, out_dtype: DType) -> Self {
        Self { out_dtype, ..self }
    }

    /// Also write the log-sum-exp of every row, f32 `[batch, heads, q_len]`, natural log.
    #[must_use]
    pub const fn with_lse(self) -> Self {
        Self { lse: true, ..self }
    }

    /// Checks everything that can be checked without a device.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), ProblemError> {
        let s = self.shape;
        for (axis, extent) in [("heads", s.heads), ("v_head_dim", s.v_head_dim)] {
            if extent == 0 {
                return Err(ProblemError::EmptyAxis { axis });
            }
        }
        for (axis, len) in [("parts", self.parts), ("q_len", s.q_len), ("v_head_dim", s.v_head_dim)]
        {
            if len > MAX_LEN {
                return Err(ProblemError::TooLong { axis, len, max: MAX_LEN });
            }
        }
        for (tensor, dtype) in [("out_parts", self.parts_dtype), ("out", self.out_dtype)] {
            if dtype.is_quantised() {
                return Err(ProblemError::Quantised { tensor, dtype });
            }
        }
        let out = self.out.extent(s.batch, s.heads, s.q_len, s.v_head_dim);
        let [out_parts, lse_parts] = self.parts_elements();
        for (tensor, elements, dtype) in [
            ("out_parts", out_parts, self.parts_dtype),
            ("lse_parts", lse_parts, DType::F32),
            ("out", out, self.out_dtype),
        ] {
            let bytes = elements.and_then(|elements| dtype.bytes_of(elements));
            if bytes.is_none_or(|bytes| bytes > i64::MAX.unsigned_abs()) {
                return Err(ProblemError::Unaddressable { tensor });
            }
        }
        if !self.out.is_injective(s.batch, s.heads, s.q_len, s.v_head_dim) {
            return Err(ProblemError::OverlappingRows { tensor: "out", strides: self.out });
        }
        Ok(())
    }

    /// Elements from the first to one past the last of the parts' out and lse; `None` past u64.
    pub(crate) fn parts_elements(&self) -> [Option<u64>; 2] {
        let Shape { batch, heads, q_len, v_head_dim, .. } = self.shape;
        let Some(last) = self.parts.checked_sub(1) else { return [Some(0); 2] };
        [(self.out_parts, self.out_part, v_head_dim), (self.lse_parts, self.lse_part, 1)].map(
            |(strides, part, dim)| match strides.extent(batch, heads, q_len, dim)? {
                0 => Some(0),
                extent => u64::from(last).checked_mul(part)?.checked_add(extent),
            },
        )
    }

    /// Rows of out.
    pub(crate) fn rows(&self) -> u64 {
        let Shape { batch, heads, q_len, .. } = self.shape;
        (u64::from(batch) * u64::from(heads)).saturating_mul(q_len.into())
    }

    /// A multiplication and an addition an element of every part; every part read once, out written once.
    pub(crate) fn cost(&self) -> Cost {
        let elements = self.rows().saturating_mul(self.shape.v_head_dim.into());
        let bytes = |n: u64, dtype: DType| dtype.bytes_of(n).unwrap_or(u64::MAX);
        let parts = u64::from(self.parts);
        let lse = self.rows().saturating_mul((parts + u64::from(self.lse)) * ELEMENT_BYTES);
        Cost {
            flops: elements.saturating_mul(2 * parts),
            bytes: bytes(elements.saturating_mul(parts), self.parts_dtype)
                .saturating_add(bytes(elements, self.out_dtype))
                .saturating_add(lse),
        }
    }
}
