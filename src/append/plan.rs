//! The steps of an append: what is taken of each sequence, then the rows of keys and of values.

use super::Append;
use crate::blocks::{Chunk, ELEMENT_BYTES, Extent, View};
use crate::cost::Cost;
use crate::device::Capabilities;
use crate::error::PlanError;
use crate::kernels::{Advance, AdvanceParams, Append as Rows, AppendParams, Element};
use crate::operand::Operand;
use crate::pages::Pages;
use crate::plan::{Bound, Plan};
use crate::planner::Planner;
use crate::rotary::{Rotary, row_work};
use crate::shape::{DType, Shape};
use crate::uniforms::stride;
use crate::work::Work;

impl Append {
    pub(crate) fn plan(&self, capabilities: &Capabilities) -> Result<Plan, PlanError> {
        self.validate()?;
        let mut planner = Planner::new(capabilities);
        let mut known = vec![Operand::KNew, Operand::VNew, Operand::K, Operand::V, Operand::KvLens];
        known.push(Operand::AppendStatus);
        known.extend(self.new_lens.then_some(Operand::NewLens));
        known.extend(self.pages.map(|_| Operand::BlockTable));
        known.extend(self.rotary.iter().flat_map(|_| [Operand::Cos, Operand::Sin]));
        if self.batch > 0 {
            let admitted = planner.region();
            self.advance(&mut planner, admitted)?;
            if self.new_len > 0 {
                for tensor in self.tensors() {
                    self.rows(&mut planner, admitted, &tensor)?;
                }
            }
        }
        Ok(planner.finish(self.cost(), known, Vec::new()))
    }

    /// Bytes of new rows, read and written.
    fn cost(&self) -> Cost {
        let rows = [self.batch, self.kv_heads, self.new_len].into_iter().map(u64::from);
        let rows = rows.fold(1, u64::saturating_mul);
        let widths = u64::from(self.head_dim) + u64::from(self.v_head_dim);
        let bytes = [self.dtype, self.kv_dtype]
            .map(|dtype| dtype.bytes_of(rows.saturating_mul(widths)).unwrap_or(u64::MAX));
        let turned = self.rotary.map_or(0, |rotary| 3 * u64::from(rotary.dim));
        Cost {
            flops: rows.saturating_mul(turned),
            bytes: bytes.into_iter().fold(0, u64::saturating_add),
        }
    }

    fn tensors(&self) -> [Tensor; 2] {
        let view = |operand, strides, dim, dtype: DType| View {
            operand,
            base_bytes: 0,
            strides,
            dim,
            element_bits: dtype.bits(),
        };
        let Self { head_dim, v_head_dim, .. } = *self;
        [
            Tensor {
                new: view(Operand::KNew, self.k_new, head_dim, self.dtype),
                cache: view(Operand::K, self.k, head_dim, self.kv_dtype),
                rotary: self.rotary,
            },
            Tensor {
                new: view(Operand::VNew, self.v_new, v_head_dim, self.dtype),
                cache: view(Operand::V, self.v, v_head_dim, self.kv_dtype),
                rotary: None,
            },
        ]
    }

    /// The step that says what is taken, and grows the lengths by it.
    fn advance(&self, planner: &mut Planner<'_>, admitted: Operand) -> Result<(), PlanError> {
        let batch = u64::from(self.batch);
        // Of a capacity of 0, the table has no entry.
        let pages = self.table_row() > 0;
        let kernel = Advance { new_lens: self.new_lens, pages, counted: self.counted };
        let mut bound = Vec::new();
        for (operand, words, given) in [
            (Operand::KvLens, batch, true),
            (Operand::NewLens, batch, self.new_lens),
            (Operand::BlockTable, batch * u64::from(self.table_row()), pages),
            (Operand::AppendStatus, batch, true),
            (admitted, 2 * batch, true),
        ] {
            let (bytes, limit) = (words.saturating_mul(ELEMENT_BYTES), planner.limit());
            if given && bytes > limit.bytes() {
                return Err(limit.exceeded(operand.name().to_owned(), bytes));
            }
            bound.extend(given.then_some(Bound { operand, bytes: 0..bytes }));
        }
        let params = AdvanceParams {
            new_len: self.new_len,
            capacity: self.capacity,
            pages: self.pages.map_or(0, |pages| pages.pages),
            page_len: self.pages.map_or(1, |pages| pages.page_len),
            table_row: self.table_row(),
            ..AdvanceParams::default()
        };
        let work = Work::even(batch, u64::from(self.table_row()));
        planner.step(
            |_| kernel.into(),
            false,
            bound,
            work,
            |workgroups, grid_width| {
                bytemuck::bytes_of(&AdvanceParams { workgroups, grid_width, ..params }).to_vec()
            },
        )
    }

    /// The steps that write the rows of keys, or of values.
    fn rows(
        &self,
        planner: &mut Planner<'_>,
        admitted: Operand,
        tensor: &Tensor,
    ) -> Result<(), PlanError> {
        let Self { batch, kv_heads, new_len, capacity, pages, .. } = *self;
        let Tensor { new, cache, rotary } = *tensor;
        let shape = Shape::cross_attention(batch, kv_heads, new_len, capacity, cache.dim);
        let extent = match pages {
            Some(pages) => Extent::Pool { view: cache, pages },
            None => Extent::Keys(cache),
        };
        let names = [new, cache].map(|view| view.operand.name());
        let extents = [(names[0], Extent::Queries(new)), (names[1], extent)];
        let limit = planner.limit();
        let chunk = Chunk::fit(&shape, limit, false, &extents)?;
        let tables = rotary.map(|rotary| rotary.bound(limit)).transpose()?;
        let element = |dtype| Element::of(dtype, planner.capabilities.f16);
        let kernel = Rows {
            x: element(self.dtype),
            cache: element(self.kv_dtype),
            dim: cache.dim,
            rotary,
            paged: pages.is_some(),
            vec4: false,
        };
        let vec4 = new.is_vec4() && cache.is_vec4() && rotary.is_none_or(|rotary| rotary.is_vec4());
        let table_row = self.table_row();
        for block in chunk.blocks(&shape) {
            for range in chunk.kv_ranges(&shape) {
                let [batch, heads, rows] = block.counts();
                let words = |each: u32| {
                    let at = |b: u32| u64::from(b) * u64::from(each) * ELEMENT_BYTES;
                    at(block.batch.start)..at(block.batch.end)
                };
                let cache_bytes = match pages {
                    Some(Pages { pages, page_len }) => {
                        cache.bytes(&(0..pages), &block.heads, &(0..page_len))
                    }
                    None => cache.bytes(&block.batch, &block.heads, &range),
                };
                let new_bytes = new.bytes(&block.batch, &block.heads, &block.q);
                let mut bound = vec![
                    Bound { operand: new.operand, bytes: new_bytes },
                    Bound { operand: cache.operand, bytes: cache_bytes },
                    Bound { operand: admitted, bytes: words(2) },
                ];
                bound.extend(
                    pages.map(|_| Bound { operand: Operand::BlockTable, bytes: words(table_row) }),
                );
                bound.extend(tables.iter().flatten().cloned());
                let (cache_batch, cache_len) = pages
                    .map_or((batch, range.end - range.start), |pages| {
                        (pages.pages, pages.page_len)
                    });
                let params = AppendParams {
                    heads,
                    rows,
                    row_first: block.q.start,
                    pos_first: range.start,
                    pos_end: range.end,
                    x_batch: stride(new.strides.batch, batch),
                    x_head: stride(new.strides.head, heads),
                    x_row: stride(new.strides.row, rows),
                    out_batch: stride(cache.strides.batch, cache_batch),
                    out_head: stride(cache.strides.head, heads),
                    out_row: stride(cache.strides.row, cache_len),
                    table_row,
                    page_len: pages.map_or(1, |pages| pages.page_len),
                    last_page: pages.map_or(0, |pages| pages.pages - 1),
                    last_pos: rotary.map_or(0, |rotary| rotary.positions - 1),
                    ..AppendParams::default()
                };
                planner.step(
                    |vec4| Rows { vec4, ..kernel }.into(),
                    vec4,
                    bound,
                    row_work([batch, heads, rows], cache.dim),
                    |workgroups, grid_width| {
                        let params = AppendParams { workgroups, grid_width, ..params };
                        bytemuck::bytes_of(&params).to_vec()
                    },
                )?;
            }
        }
        Ok(())
    }
}

/// New rows and the cache that they go to.
#[derive(Clone, Copy)]
struct Tensor {
    new: View,
    cache: View,
    rotary: Option<Rotary>,
}
