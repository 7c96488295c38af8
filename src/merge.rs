//! Partial results over ranges of keys into one: attention whose keys are on several devices.

use crate::blocks::{Block, Chunk, ELEMENT_BYTES, Extent, View};
use crate::cost::Cost;
use crate::device::Capabilities;
use crate::error::{PlanError, ProblemError};
use crate::kernels::{self, AttentionParams, Element, Features, Fill, Kernel};
use crate::layout::Strides;
use crate::plan::{Bound, Plan, Planner};
use crate::problem::Problem;
use crate::shape::{DType, MAX_LEN, Shape};
use crate::staged::budgeted;
use crate::tensors::Operand;
use crate::uniforms::stride;
use crate::work::{ELEMENT, SOFTMAX, Work};
use std::ops::Range;

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
    fn cost(&self) -> Cost {
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

    pub(crate) fn plan(&self, capabilities: &Capabilities) -> Result<Plan, PlanError> {
        self.validate()?;
        let mut planner = Planner::new(capabilities);
        if self.rows() > 0 {
            MergePlanner { merge: self, to: &mut planner }.steps()?;
        }
        let mut known = vec![Operand::OutParts, Operand::LseParts, Operand::Out];
        known.extend(self.lse.then_some(Operand::Lse));
        Ok(planner.finish(self.cost(), known, Vec::new()))
    }

    fn out_view(&self) -> View {
        View {
            operand: Operand::Out,
            base_bytes: 0,
            strides: self.out,
            dim: self.shape.v_head_dim,
            element_bits: self.out_dtype.bits(),
        }
    }

    fn lse_view(&self) -> View {
        let strides = Strides::bhsd(self.shape.heads, self.shape.q_len, 1);
        View { operand: Operand::Lse, base_bytes: 0, strides, dim: 1, element_bits: 32 }
    }

    /// A range of parts' out and lse, as if each row reached from its first part's to its last part's end: what is
    /// bound of a block of rows. `None` of rows that no binding holds.
    fn part_views(&self, parts: &Range<u32>) -> Option<[View; 2]> {
        let view = |operand, strides, part: u64, dim: u32, dtype: DType| {
            let between = u64::from(parts.end - parts.start - 1).checked_mul(part)?;
            Some(View {
                operand,
                base_bytes: u64::from(parts.start) * part * dtype.bits() / 8,
                strides,
                dim: u32::try_from(between.checked_add(dim.into())?).ok()?,
                element_bits: dtype.bits(),
            })
        };
        let width = self.shape.v_head_dim;
        Some([
            view(Operand::OutParts, self.out_parts, self.out_part, width, self.parts_dtype)?,
            view(Operand::LseParts, self.lse_parts, self.lse_part, 1, DType::F32)?,
        ])
    }
}

/// The steps of a merge under construction.
struct MergePlanner<'a, 'p> {
    merge: &'a Merge,
    to: &'a mut Planner<'p>,
}

/// Partial results of a block of rows as a step reads them.
struct Parts {
    count: u32,
    /// Out, then lse.
    bound: [Bound; 2],
    /// From one part to the next, and within a part.
    out: (u64, Strides),
    lse: (u64, Strides),
    dtype: DType,
}

/// Where a step puts a block of rows.
struct Results {
    /// Out, and lse where it is asked for.
    bound: Vec<Bound>,
    out: Strides,
    lse: Strides,
    dtype: DType,
}

/// Groups of so many parts, and blocks of rows of which each group fits a binding.
struct Grouping {
    group: u32,
    groups: u32,
    chunk: Chunk,
}

impl MergePlanner<'_, '_> {
    /// Blocks of rows whose parts all fit a binding; or, where that takes fewer steps, groups of parts first.
    fn steps(&mut self) -> Result<(), PlanError> {
        let (shape, parts) = (self.shape(), 0..self.merge.parts);
        if parts.is_empty() {
            for block in self.fit(&[], 0)?.blocks(&shape) {
                let results = self.results(&block);
                self.step(&block, None, results)?;
            }
            return Ok(());
        }
        let views = self.merge.part_views(&parts);
        let whole = views.and_then(|views| self.fit(&views, 0).ok());
        let blocks = |chunk: Chunk| chunk.blocks(&shape).count();
        let grouping = match whole {
            Some(chunk) if blocks(chunk) == 1 => None,
            Some(chunk) => self.grouping().ok().filter(|grouping| {
                blocks(grouping.chunk) * (grouping.groups as usize + 1) < blocks(chunk)
            }),
            None => Some(self.grouping()?),
        };
        match (grouping, whole) {
            (Some(grouping), _) => self.by_groups(&grouping),
            (None, chunk) => {
                for block in chunk.into_iter().flat_map(|chunk| chunk.blocks(&shape)) {
                    let (parts, results) = (self.parts(&block, &parts), self.results(&block));
                    self.step(&block, Some(parts), results)?;
                }
                Ok(())
            }
        }
    }

    fn grouping(&self) -> Result<Grouping, PlanError> {
        let (parts, shape) = (self.merge.parts, self.shape());
        // A row that is too long is an error of `fit`, which `self.merge.shape` bounds.
        let one = self.merge.part_views(&(0..1)).expect("a part's rows are as long as out's");
        let Some(first) = self.fit(&one, 0)?.blocks(&shape).next() else {
            unreachable!("there are rows")
        };
        let most = self.to.limit().bytes();
        let fits = |group: u32| {
            let views = self.merge.part_views(&(0..group));
            let size = |view: &View| bytes(view, &first).end - bytes(view, &first).start;
            views.is_some_and(|views| views.iter().all(|view| size(view) <= most))
        };
        let mut group = parts;
        while group > 1 && !fits(group) {
            group = group.div_ceil(2);
        }
        let groups = parts.div_ceil(group);
        let row = u64::from(groups) * u64::from(shape.v_head_dim);
        Ok(Grouping { group, groups, chunk: self.fit(&one, row)? })
    }

    /// Each group of parts into one partial result, and these into the results.
    fn by_groups(&mut self, grouping: &Grouping) -> Result<(), PlanError> {
        let Grouping { group, groups, chunk } = *grouping;
        let (shape, width) = (self.shape(), self.merge.shape.v_head_dim);
        let (outs, lses) = (self.to.region(), self.to.region());
        for block in chunk.blocks(&shape) {
            let [_, heads, rows] = block.counts();
            let (out, lse) = (Strides::bhsd(heads, rows, width), Strides::bhsd(heads, rows, 1));
            let (out_part, lse_part) = (block.rows() * u64::from(width), block.rows());
            let slots = |slots: Range<u32>| {
                [(outs, out_part), (lses, lse_part)].map(|(operand, size)| {
                    let at = |slot: u32| u64::from(slot) * size * ELEMENT_BYTES;
                    Bound { operand, bytes: at(slots.start)..at(slots.end) }
                })
            };
            for (slot, first) in (0..groups).zip((0..self.merge.parts).step_by(group as usize)) {
                let range = first..self.merge.parts.min(first.saturating_add(group));
                let parts = self.parts(&block, &range);
                let bound = slots(slot..slot + 1).into();
                let results = Results { bound, out, lse, dtype: DType::F32 };
                self.step(&block, Some(parts), results)?;
            }
            let parts = Parts {
                count: groups,
                bound: slots(0..groups),
                out: (out_part, out),
                lse: (lse_part, lse),
                dtype: DType::F32,
            };
            let results = self.results(&block);
            self.step(&block, Some(parts), results)?;
        }
        Ok(())
    }

    /// As blocks count it: keys play no part.
    fn shape(&self) -> Shape {
        Shape { kv_heads: self.merge.shape.heads, kv_len: 0, ..self.merge.shape }
    }

    /// The largest blocks of rows of which each tensor fits a binding, and `scratch` elements a row.
    fn fit(&self, parts: &[View], scratch: u64) -> Result<Chunk, PlanError> {
        let limit = self.to.limit();
        let mut tensors = vec![("out", Extent::Queries(self.merge.out_view()))];
        if self.merge.lse {
            tensors.push(("lse", Extent::Queries(self.merge.lse_view())));
        }
        tensors.extend(parts.iter().map(|view| (view.operand.name(), Extent::Queries(*view))));
        if scratch > 0 {
            let row = budgeted(scratch, limit);
            tensors.push(("partial results", Extent::Scratch { row, per_range: false }));
        }
        Chunk::fit(&self.shape(), limit, false, &tensors)
    }

    fn parts(&self, block: &Block, range: &Range<u32>) -> Parts {
        let merge = self.merge;
        let views = merge.part_views(range).expect("fits a binding");
        Parts {
            count: range.end - range.start,
            bound: views.map(|view| Bound { operand: view.operand, bytes: bytes(&view, block) }),
            out: (merge.out_part, merge.out_parts),
            lse: (merge.lse_part, merge.lse_parts),
            dtype: merge.parts_dtype,
        }
    }

    fn results(&self, block: &Block) -> Results {
        let merge = self.merge;
        let (out, lse) = (merge.out_view(), merge.lse_view());
        let views = [Some(out), merge.lse.then_some(lse)];
        let bound = |view: View| Bound { operand: view.operand, bytes: bytes(&view, block) };
        Results {
            bound: views.into_iter().flatten().map(bound).collect(),
            out: out.strides,
            lse: lse.strides,
            dtype: merge.out_dtype,
        }
    }

    /// One dispatch; of no part, zeros and -inf.
    fn step(
        &mut self,
        block: &Block,
        parts: Option<Parts>,
        results: Results,
    ) -> Result<(), PlanError> {
        let native = self.to.capabilities.f16;
        let (out, lse) = (Element::of(results.dtype, native), results.bound.len() > 1);
        let features = Features { out, lse, ..Features::plain() };
        let (threads, v_head_dim) = (self.to.tuning.row_threads, self.merge.shape.v_head_dim);
        let [batch, heads, q_len] = block.counts();
        let outer = |strides: Strides| {
            [stride(strides.batch, batch), stride(strides.head, heads), stride(strides.row, q_len)]
        };
        let [out_batch, out_head, out_row] = outer(results.out);
        let [lse_batch, lse_head, _] = outer(results.lse);
        let mut params = AttentionParams {
            batch,
            heads,
            q_len,
            out_batch,
            out_head,
            out_row,
            lse_batch,
            lse_head,
            neg_infinity: f32::NEG_INFINITY.to_bits(),
            ..AttentionParams::default()
        };
        let mut work = u64::from(v_head_dim) * ELEMENT;
        let (kernel, bound) = match parts {
            None => {
                let fill = Fill { features: &features, threads, v_head_dim };
                (Kernel::from(fill), results.bound)
            }
            Some(parts) => {
                let ((out_part, out), (lse_part, lse)) = (parts.out, parts.lse);
                [params.partial_out_batch, params.partial_out_head, params.partial_out_row] =
                    outer(out);
                [params.partial_lse_batch, params.partial_lse_head, params.partial_lse_row] =
                    outer(lse);
                params.partial_out_part = stride(out_part, parts.count);
                params.partial_lse_part = stride(lse_part, parts.count);
                params.parts = parts.count;
                let part = u64::from(v_head_dim) * ELEMENT + 2 * SOFTMAX;
                work = work.saturating_add(u64::from(parts.count).saturating_mul(part));
                let partial = Element::of(parts.dtype, native);
                let merge = kernels::Merge { features: &features, partial, threads, v_head_dim };
                (merge.into(), [parts.bound.into(), results.bound].concat())
            }
        };
        let work = Work::even(block.rows(), work);
        self.to.step(
            |_| kernel.clone(),
            false,
            bound,
            work,
            |workgroups, grid_width| {
                bytemuck::bytes_of(&AttentionParams { workgroups, grid_width, ..params }).to_vec()
            },
        )
    }
}

fn bytes(view: &View, block: &Block) -> Range<u64> {
    view.bytes(&block.batch, &block.heads, &block.q)
}
