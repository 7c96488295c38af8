//! The steps of a merge.

use crate::blocks::{Block, Chunk, ELEMENT_BYTES, Extent, View};
use crate::device::Capabilities;
use crate::error::PlanError;
use crate::kernels::{self, AttentionParams, Element, Features, Fill, Kernel};
use crate::layout::Strides;
use crate::merge::Merge;
use crate::operand::Operand;
use crate::plan::{Bound, Plan};
use crate::planner::Planner;
use crate::shape::{DType, Shape};
use crate::staged::budgeted;
use crate::uniforms::stride;
use crate::work::{ELEMENT, SOFTMAX, Work};
use std::ops::Range;

impl Merge {
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
                let merge = kernels::Merge {
                    features: &features,
                    partial,
                    sums: false,
                    threads,
                    v_head_dim,
                };
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
