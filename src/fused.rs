//! The steps of the fused kernel.

use crate::blocks::{Chunk, ELEMENT_BYTES, Extent};
use crate::error::PlanError;
use crate::forward::{AttentionPlanner, Views};
use crate::kernels::{AttentionParams, Element, Features, Merge, Uses};
use crate::plan::Bound;
use crate::staged::{budgeted, from_scratch, to_scratch};
use crate::uniforms::{narrow, tiled};
use crate::work::{Across, CHANGES, ELEMENT, Pairs, SOFTMAX, Work};

impl AttentionPlanner<'_, '_> {
    /// The fused kernel; where the keys come in ranges, partial results and their merge.
    pub(crate) fn fused(&mut self) -> Result<(), PlanError> {
        let (problem, shape) = (self.problem, self.shape);
        let Views { q, k, v, out } = *self.views;
        let limit = self.to.limit();
        let tuning = self.tuning.for_rows(shape.q_len, &self.features);
        let (head_dim, v_head_dim) = (shape.head_dim, shape.v_head_dim);
        let (block_q, slices) = tuning.flash_block(head_dim, v_head_dim);
        let columns = u64::from(v_head_dim).div_ceil(slices);
        let widths = u64::from(head_dim) + columns;
        let pair = 2 * widths + SOFTMAX + if self.features.changes() { CHANGES } else { 0 };
        let kernel_name = tuning.flash_kernel(&self.features, head_dim, v_head_dim, false).name;
        let mut tensors = self.extents(false);
        tensors.extend(self.walk(block_q, pair));
        let batch_first = problem.batch_invariant;
        let mut chunk = Chunk::fit(&shape, limit, batch_first, &tensors)?;
        if chunk.kv < shape.kv_len {
            let row = budgeted(u64::from(v_head_dim), limit);
            tensors.push(("partial results", Extent::Scratch { row, per_range: true }));
            chunk = Chunk::fit(&shape, limit, batch_first, &tensors)?;
        }
        let ranges: Vec<_> = chunk.kv_ranges(&shape).collect();
        let partial = (ranges.len() > 1).then(|| (self.to.region(), self.to.region()));
        let parts = narrow(ranges.len() as u64);
        self.plan_tables(chunk)?;
        let features = Features {
            lse: problem.lse || partial.is_some(),
            // Sinks join where all keys are together; partial results are f32.
            sinks: self.features.sinks && partial.is_none(),
            out: if partial.is_some() { Element::F32 } else { self.features.out },
            ..self.features.clone()
        };
        for block in chunk.blocks(&shape) {
            let [_, heads, rows] = block.counts();
            let total = block.rows() / u64::from(rows) * u64::from(rows.div_ceil(block_q)) * slices;
            let out_part = block.rows() * u64::from(v_head_dim);
            for (part, keys) in (0u64..).zip(&ranges) {
                self.classify(&block, keys)?;
                let mut params = self.params(&block, keys, &out);
                let mut bound = vec![
                    self.queries(&block, &q),
                    self.keys(&block, keys, &k),
                    self.keys(&block, keys, &v),
                ];
                let aligned = q.is_vec4() && k.is_vec4() && v.is_vec4();
                let vec4 = if let Some((outs, lses)) = partial {
                    params = to_scratch(params, [heads, rows, v_head_dim]);
                    (params.lse_batch, params.lse_head) = (heads * rows, rows);
                    let slot = |operand, size: u64| {
                        let bytes = part * size * ELEMENT_BYTES..(part + 1) * size * ELEMENT_BYTES;
                        Bound { operand, bytes }
                    };
                    bound.extend([slot(outs, out_part), slot(lses, block.rows())]);
                    aligned && v_head_dim.is_multiple_of(4)
                } else {
                    bound.push(self.queries(&block, &out));
                    bound.extend(self.lse(&block));
                    aligned && out.is_vec4()
                };
                params.classes_at = self.tables.classes.at;
                [params.classes_batch, params.classes_head, params.classes_row] =
                    self.class_strides(&block, keys);
                bound.extend(self.shared(&features, Uses::Fused, &block, keys));
                let kernel = |vec4| tuning.flash_kernel(&features, head_dim, v_head_dim, vec4);
                let pairs = self.pairs(&block, keys, block_q, pair, Across::Columns(slices));
                let pairs = Pairs { last_first: kernel_name == "flash_tile", ..pairs };
                let once = u64::from(block_q) * widths * ELEMENT;
                let work = Work::of_pairs(total, once, pairs);
                self.step(kernel, vec4, bound, work, tiled(params, rows, block_q))?;
            }
            if let Some((outs, lses)) = partial {
                let params = AttentionParams {
                    partial_out_part: narrow(out_part),
                    partial_lse_part: narrow(block.rows()),
                    parts,
                    ..from_scratch(
                        self.params(&block, &(0..shape.kv_len), &out),
                        [heads, rows, v_head_dim],
                    )
                };
                let whole = |operand, size: u64| Bound {
                    operand,
                    bytes: 0..u64::from(parts) * size * ELEMENT_BYTES,
                };
                let mut bound = vec![
                    whole(outs, out_part),
                    whole(lses, block.rows()),
                    self.queries(&block, &out),
                ];
                bound.extend(self.lse(&block));
                let all = self.features.clone();
                bound.extend(self.shared(&all, Uses::Sinks, &block, &(0..shape.kv_len)));
                let threads = tuning.row_threads;
                let partial = Element::F32;
                let merge = Merge { features: &all, partial, threads, v_head_dim };
                let elements = u64::from(parts) * u64::from(v_head_dim);
                let work = Work::even(block.rows(), elements * (SOFTMAX + ELEMENT));
                self.step(|_| merge.clone().into(), false, bound, work, params)?;
            }
        }
        Ok(())
    }
}
