//! The five products of gradients.

use super::plan::{BackwardPlanner, GradientViews, Matrices, f32_bytes, matrix_of, outer, tiles};
use crate::blocks::{Block, View};
use crate::error::PlanError;
use crate::forward::Views;
use crate::kernels::{
    AttentionParams, Convert, Element, Features, KeyGradients, Product, Scores, Uses, Values,
};
use crate::layout::Strides;
use crate::operand::Operand;
use crate::plan::Bound;
use crate::staged::to_scratch;
use crate::tuning::Tuning;
use crate::uniforms::tiled;
use crate::work::{Across, ELEMENT, Work};
use std::ops::Range;

impl BackwardPlanner<'_, '_> {
    /// `q k^T`, and `d_out v^T`.
    pub(super) fn scores(
        &mut self,
        block: &Block,
        keys: &Range<u32>,
        matrices: &Matrices,
    ) -> Result<(), PlanError> {
        let Views { q, k, v, .. } = *self.task.views;
        let all = self.task.features.clone();
        let of_queries = (q, k, all.q, matrices.scores, self.task.tuning.product);
        let of_out = (self.gradients.d_out, v, all.out, matrices.d_scores, self.product_of_d_out());
        for (rows, columns, element, matrix, product) in [of_queries, of_out] {
            let (block_m, block_n) = product.block();
            let features = Features { q: element, ..all.clone() };
            let [batch, heads, q_len] = block.counts();
            let kv_heads = block.kv_heads().end - block.kv_heads().start;
            let [q_batch, q_head, q_row] = outer(&rows, [batch, heads, q_len]);
            let [k_batch, k_head, k_row] =
                outer(&columns, [batch, kv_heads, keys.end - keys.start]);
            let params = AttentionParams {
                q_batch,
                q_head,
                q_row,
                k_batch,
                k_head,
                k_row,
                ..tiled(self.params(block, keys), q_len, block_m)
            };
            let task = &mut self.task;
            let mut bound = vec![
                task.queries(block, &rows),
                task.keys(block, keys, &columns),
                matrix_of(task.shape, block, matrix),
            ];
            bound.extend(task.shared(&features, Uses::Keys, block, keys));
            let key_tiles = (keys.end - keys.start).div_ceil(block_n);
            let total = tiles(block, block_m) * u64::from(key_tiles);
            let score = 2 * u64::from(rows.dim) + ELEMENT;
            let across = Across::Keys(block_n, key_tiles);
            let work = Work::of_pairs(total, 0, task.pairs(block, keys, block_m, score, across));
            let kernel =
                |vec4| Scores { features: &features, product, head_dim: rows.dim, vec4 }.into();
            task.step(kernel, rows.is_vec4() && columns.is_vec4(), bound, work, params)?;
        }
        Ok(())
    }

    /// What multiplies the gradient of out. It may be of any size: matrix units take it where it is of f16 already.
    fn product_of_d_out(&self) -> Product {
        match self.task.features.out {
            Element::F16 => self.task.tuning.product,
            _ => Tuning::of(self.task.to.capabilities).product,
        }
    }

    /// Of values, from weights and the gradient of out; of keys, from gradients of scores and queries.
    pub(super) fn key_gradients(
        &mut self,
        block: &Block,
        keys: &Range<u32>,
        matrices: &Matrices,
        of_values: bool,
        sums: Option<Operand>,
    ) -> Result<(), PlanError> {
        let GradientViews { d_out, d_k, d_v, .. } = self.gradients;
        let plain = Tuning::of(self.task.to.capabilities).product;
        let features = self.task.features.clone();
        let (matrix, x, x_element, view, product) = if of_values {
            // The weights of dropout may be past what a fragment's scale leaves room for.
            let drops = self.task.problem.dropout.is_some();
            let product = if drops { plain } else { self.product_of_d_out() };
            (matrices.scores, d_out, features.out, d_v, product)
        } else {
            // Gradients of scores may be of any size: matrix units would lose small ones.
            (matrices.d_scores, self.task.views.q, features.q, d_k, plain)
        };
        let (block_m, block_n) = product.block();
        let group = self.task.shape.group_size();
        let [batch, heads, rows] = block.counts();
        let (kv_heads, kv_len) =
            (block.kv_heads().end - block.kv_heads().start, keys.end - keys.start);
        let (to, element, out) = match sums {
            None => (self.task.keys(block, keys, &view), features.kv, view),
            Some(operand) => {
                let strides = Strides::bhsd(kv_heads, kv_len, view.dim);
                let bytes =
                    f32_bytes(u64::from(batch) * u64::from(kv_heads) * u64::from(kv_len), view.dim);
                let out = View { operand, base_bytes: 0, strides, element_bits: 32, ..view };
                (Bound { operand, bytes: 0..bytes }, Element::F32, out)
            }
        };
        let [x_batch, x_head, x_row] = outer(&x, block.counts());
        let [out_batch, out_head, out_row] = outer(&out, [batch, kv_heads, kv_len]);
        let accumulate = block.q.start > 0 || !block.heads.start.is_multiple_of(group);
        let params = AttentionParams {
            kv_heads,
            x_batch,
            x_head,
            x_row,
            out_batch,
            out_head,
            out_row,
            accumulate: accumulate.into(),
            ..tiled(self.params(block, keys), kv_len, block_m)
        };
        let mut bound = vec![self.matrix(block, matrix), self.task.queries(block, &x), to.clone()];
        bound.extend(self.task.shared(&features, Uses::Rows, block, keys));
        let columns = u64::from(view.dim.div_ceil(block_n));
        let total =
            u64::from(batch) * u64::from(kv_heads) * u64::from(kv_len.div_ceil(block_m)) * columns;
        let walked = u64::from(rows) * u64::from(group.min(heads)) * u64::from(block_m);
        let work = Work::even(total, walked * (2 * u64::from(block_n) + ELEMENT));
        let kernel = KeyGradients {
            features: &features,
            product,
            x: x_element,
            to: element,
            x_dim: view.dim,
        };
        self.task.step(|_| kernel.clone().into(), false, bound, work, params)?;
        let is_last = block.q.end == self.task.shape.q_len && block.heads.end.is_multiple_of(group);
        if sums.is_some() && is_last {
            let rows = self.task.keys(block, keys, &view);
            self.convert([batch, kv_heads, kv_len], features.kv, &view, to, rows)?;
        }
        Ok(())
    }

    pub(super) fn query_gradients(
        &mut self,
        block: &Block,
        keys: &Range<u32>,
        matrices: &Matrices,
        sums: Option<Operand>,
    ) -> Result<(), PlanError> {
        let (d_q, k) = (self.gradients.d_q, self.task.views.k);
        // Gradients of scores may be of any size: matrix units would lose small ones.
        let product = Tuning::of(self.task.to.capabilities).product;
        let (block_m, block_n) = product.block();
        let [batch, heads, rows] = block.counts();
        let head_dim = self.task.shape.head_dim;
        let (to, out) = match sums {
            None => (self.task.queries(block, &d_q), self.task.features.q),
            Some(operand) => {
                (Bound { operand, bytes: 0..f32_bytes(block.rows(), head_dim) }, Element::F32)
            }
        };
        // Gradients of scores have dropout in them already.
        let features = Features { out, dropout: None, ..self.task.features.clone() };
        let kv_heads = block.kv_heads().end - block.kv_heads().start;
        let [v_batch, v_head, v_row] = outer(&k, [batch, kv_heads, keys.end - keys.start]);
        let [out_batch, out_head, out_row] = outer(&d_q, block.counts());
        let params = AttentionParams {
            v_batch,
            v_head,
            v_row,
            out_batch,
            out_head,
            out_row,
            accumulate: (keys.start > 0).into(),
            ..tiled(self.params(block, keys), rows, block_m)
        };
        let params = match sums {
            None => params,
            Some(_) => to_scratch(params, [heads, rows, head_dim]),
        };
        let mut bound =
            vec![self.matrix(block, matrices.d_scores), self.task.keys(block, keys, &k), to];
        bound.extend(self.task.shared(&features, Uses::Values, block, keys));
        let columns = u64::from(head_dim.div_ceil(block_n));
        let value = 2 * u64::from(block_n) + ELEMENT;
        let pairs = self.task.pairs(block, keys, block_m, value, Across::Columns(columns));
        let work = Work::of_pairs(tiles(block, block_m) * columns, 0, pairs);
        let kernel =
            |vec4| Values { features: &features, product, v_head_dim: head_dim, vec4 }.into();
        self.task.step(kernel, true, bound, work, params)
    }

    /// What was summed in f32, into its own type.
    pub(super) fn convert(
        &mut self,
        [batch, heads, rows]: [u32; 3],
        out: Element,
        view: &View,
        sums: Bound,
        to: Bound,
    ) -> Result<(), PlanError> {
        let threads = self.task.tuning.row_threads;
        let convert = Convert { out, threads, v_head_dim: view.dim };
        let [out_batch, out_head, out_row] = outer(view, [batch, heads, rows]);
        let params = AttentionParams {
            batch,
            heads,
            q_len: rows,
            out_batch,
            out_head,
            out_row,
            ..AttentionParams::default()
        };
        let rows = u64::from(batch) * u64::from(heads) * u64::from(rows);
        let work = Work::even(rows, u64::from(view.dim) * 2 * ELEMENT);
        self.task.step(|_| convert.clone().into(), false, vec![sums, to], work, params)
    }
}
