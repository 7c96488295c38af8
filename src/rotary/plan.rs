//! The steps that turn rows, and the tables that they bind.

use super::{Rotary, RotaryEmbedding};
use crate::blocks::{BindingLimit, Chunk, ELEMENT_BYTES, Extent, View};
use crate::cost::Cost;
use crate::device::Capabilities;
use crate::error::PlanError;
use crate::kernels::{Element, Rotate, RotateParams};
use crate::operand::Operand;
use crate::plan::{Bound, Plan};
use crate::planner::Planner;
use crate::shape::{DType, Shape};
use crate::uniforms::stride;
use crate::work::{ELEMENT, Work};

impl Rotary {
    /// Both tables, whole.
    pub(crate) fn bound(&self, limit: BindingLimit) -> Result<[Bound; 2], PlanError> {
        let bytes = self.table_len() * ELEMENT_BYTES;
        if bytes > limit.bytes() {
            return Err(limit.exceeded("cos".to_owned(), bytes));
        }
        Ok([Operand::Cos, Operand::Sin].map(|operand| Bound { operand, bytes: 0..bytes }))
    }
}

impl RotaryEmbedding {
    pub(crate) fn plan(&self, capabilities: &Capabilities) -> Result<Plan, PlanError> {
        self.validate()?;
        let mut planner = Planner::new(capabilities);
        let mut known = vec![Operand::X, Operand::Out, Operand::Cos, Operand::Sin];
        known.extend(self.offsets.then_some(Operand::PosOffsets));
        known.extend(self.new_lens.then_some(Operand::NewLens));
        if self.batch > 0 && self.len > 0 {
            self.steps(&mut planner)?;
        }
        Ok(planner.finish(self.cost(), known, Vec::new()))
    }

    /// Operations on pairs; bytes of rows and of the angles of one sequence.
    fn cost(&self) -> Cost {
        let rows = [self.batch, self.heads, self.len].into_iter().map(u64::from);
        let rows = rows.fold(1, u64::saturating_mul);
        let bytes = |dtype: DType| {
            let elements = rows.saturating_mul(self.head_dim.into());
            dtype.bytes_of(elements).unwrap_or(u64::MAX)
        };
        let angles = u64::from(self.len.min(self.rotary.positions)) * u64::from(self.rotary.dim);
        Cost {
            flops: rows.saturating_mul(3 * u64::from(self.rotary.dim)),
            bytes: bytes(self.dtype)
                .saturating_add(bytes(self.out_dtype))
                .saturating_add(angles * ELEMENT_BYTES),
        }
    }

    fn steps(&self, planner: &mut Planner<'_>) -> Result<(), PlanError> {
        let Self { batch, heads, len, head_dim, rotary, .. } = *self;
        let view = |operand, strides, dtype: DType| View {
            operand,
            base_bytes: 0,
            strides,
            dim: head_dim,
            element_bits: dtype.bits(),
        };
        let x = view(Operand::X, self.x, self.dtype);
        let out = view(Operand::Out, self.out, self.out_dtype);
        let shape = Shape::cross_attention(batch, heads, len, 1, head_dim);
        let extents = [("x", Extent::Queries(x)), ("out", Extent::Queries(out))];
        let chunk = Chunk::fit(&shape, planner.limit(), false, &extents)?;
        let tables = rotary.bound(planner.limit())?;
        let element = |dtype| Element::of(dtype, planner.capabilities.f16);
        let kernel = Rotate {
            x: element(self.dtype),
            out: element(self.out_dtype),
            dim: head_dim,
            rotary,
            offsets: self.offsets,
            new_lens: self.new_lens,
            vec4: false,
        };
        let vec4 = x.is_vec4() && out.is_vec4() && rotary.is_vec4();
        for block in chunk.blocks(&shape) {
            let [batch, heads, rows] = block.counts();
            let bytes = |view: &View| Bound {
                operand: view.operand,
                bytes: view.bytes(&block.batch, &block.heads, &block.q),
            };
            let mut bound = vec![bytes(&x), bytes(&out)];
            for (operand, given) in
                [(Operand::PosOffsets, self.offsets), (Operand::NewLens, self.new_lens)]
            {
                bound.extend(given.then(|| Bound {
                    operand,
                    bytes: u64::from(block.batch.start) * 4..u64::from(block.batch.end) * 4,
                }));
            }
            bound.extend(tables.clone());
            let params = RotateParams {
                heads,
                rows,
                row_first: block.q.start,
                x_batch: stride(self.x.batch, batch),
                x_head: stride(self.x.head, heads),
                x_row: stride(self.x.row, rows),
                out_batch: stride(self.out.batch, batch),
                out_head: stride(self.out.head, heads),
                out_row: stride(self.out.row, rows),
                counted: if self.counted { self.len } else { 0 },
                last_pos: rotary.positions - 1,
                ..RotateParams::default()
            };
            let work = row_work([batch, heads, rows], head_dim);
            planner.step(
                |vec4| Rotate { vec4, ..kernel }.into(),
                vec4,
                bound,
                work,
                |workgroups, grid_width| {
                    let params = RotateParams { workgroups, grid_width, ..params };
                    bytemuck::bytes_of(&params).to_vec()
                },
            )?;
        }
        Ok(())
    }
}

/// A workgroup a position of a sequence, with its rows of all heads.
pub(crate) fn row_work([batch, heads, rows]: [u32; 3], dim: u32) -> Work {
    let elements = u64::from(heads) * u64::from(dim);
    Work::even(u64::from(batch) * u64::from(rows), elements * 2 * ELEMENT)
}
