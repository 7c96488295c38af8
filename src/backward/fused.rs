//! The steps of the fused kernels of gradients.

use super::plan::{BackwardPlanner, GradientViews, STATS, outer};
use crate::blocks::{Block, Chunk, Extent};
use crate::error::PlanError;
use crate::forward::Views;
use crate::kernels::{AttentionParams, Gradient, Uses};
use crate::operand::Operand;
use crate::uniforms::tiled;
use crate::work::{Across, CHANGES, ELEMENT, Pairs, SOFTMAX, Work, most_keys};

impl BackwardPlanner<'_, '_> {
    /// Delta, gradients of queries, gradients of keys and values: no matrix of scores. `None` of what only the five
    /// products give: gradients summed over pairs, and what a binding or a workgroup cannot take whole.
    pub(super) fn fused(&mut self) -> Result<Option<()>, PlanError> {
        if self.backward.d_bias || self.backward.d_alibi_slopes {
            return Ok(None);
        }
        let shape = self.task.shape;
        let dims = [shape.head_dim, shape.v_head_dim];
        if !self.task.tuning.has_gradients(&self.task.features, dims) {
            return Ok(None);
        }
        let Some(chunk) = self.whole_heads()? else { return Ok(None) };
        self.task.tables = self.task.gather(Uses::Staged, None)?;
        let stats = self.task.to.region();
        for block in chunk.blocks(&shape) {
            self.delta(&block, stats)?;
            for gradient in self.task.tuning.gradients() {
                self.fused_gradient(&block, stats, *gradient)?;
            }
            if self.backward.d_sinks {
                self.sink_gradients(&block, stats)?;
            }
        }
        Ok(Some(()))
    }

    /// Blocks of whole groups of heads, each with all its rows and keys.
    fn whole_heads(&self) -> Result<Option<Chunk>, PlanError> {
        let (task, shape) = (&self.task, self.task.shape);
        let mut tensors = self.extents();
        tensors.push(("lse and delta", Extent::Scratch { row: STATS.into(), per_range: false }));
        let batch_first = task.problem.batch_invariant;
        let chunk = Chunk::fit(&shape, task.to.limit(), batch_first, &tensors)?;
        let whole = |block: Block| {
            let [_, heads, rows] = block.counts();
            rows == shape.q_len && heads.is_multiple_of(shape.group_size())
        };
        let class = task.to.capabilities.class;
        let dims = [shape.head_dim, shape.v_head_dim];
        let short = task.tuning.gradients().iter().all(|gradient| {
            let walked = if gradient.owns_keys() {
                shape.q_len.saturating_mul(shape.group_size())
            } else {
                shape.kv_len
            };
            let (block, _) = task.tuning.gradient_block(*gradient, dims);
            walked <= most_keys(class, u64::from(block) * self.pair(*gradient))
        });
        let fits = short && chunk.kv >= shape.kv_len && chunk.blocks(&shape).all(whole);
        Ok(fits.then_some(chunk))
    }

    /// Work of a pair.
    fn pair(&self, gradient: Gradient) -> u64 {
        let shape = self.task.shape;
        let [keys, values] = gradient.products();
        let products = keys * u64::from(shape.head_dim) + values * u64::from(shape.v_head_dim);
        let changes = if self.task.features.changes() { 2 * CHANGES } else { 0 };
        2 * products + SOFTMAX + changes
    }

    fn fused_gradient(
        &mut self,
        block: &Block,
        stats: Operand,
        gradient: Gradient,
    ) -> Result<(), PlanError> {
        let GradientViews { d_out, d_q, d_k, d_v } = self.gradients;
        let task = &mut self.task;
        let Views { q, k, v, .. } = *task.views;
        let (shape, features, tuning) = (task.shape, task.features.clone(), task.tuning);
        let all_keys = 0..shape.kv_len;
        let [batch, heads, rows] = block.counts();
        let kv_heads = block.kv_heads().end - block.kv_heads().start;
        let [d_out_batch, d_out_head, d_out_row] = outer(&d_out, block.counts());
        let params = AttentionParams {
            d_out_batch,
            d_out_head,
            d_out_row,
            ..task.params(block, &all_keys, &d_q)
        };
        let mut bound = vec![
            task.queries(block, &q),
            task.keys(block, &all_keys, &k),
            task.keys(block, &all_keys, &v),
            task.queries(block, &d_out),
            Self::stats(block, stats),
        ];
        let dims = [shape.head_dim, shape.v_head_dim];
        let (owned, slices) = tuning.gradient_block(gradient, dims);
        let outputs = match gradient {
            Gradient::Queries => vec![d_q],
            Gradient::Keys => vec![d_k],
            Gradient::Values => vec![d_v],
            Gradient::KeysAndValues => vec![d_k, d_v],
        };
        let vec4 = [q, k, v, d_out].iter().chain(&outputs).all(|view| view.is_vec4());
        let (owners, len) =
            if gradient.owns_keys() { (kv_heads, shape.kv_len) } else { (heads, rows) };
        let extents = [batch, owners, len];
        let mut params = tiled(params, len, owned);
        for (i, view) in outputs.iter().enumerate() {
            let [first, head, row] = outer(view, extents);
            match (outputs.len(), i) {
                (1, _) => (params.out_batch, params.out_head, params.out_row) = (first, head, row),
                (_, 0) => (params.d_k_batch, params.d_k_head, params.d_k_row) = (first, head, row),
                _ => (params.d_v_batch, params.d_v_head, params.d_v_row) = (first, head, row),
            }
            bound.push(if gradient.owns_keys() {
                task.keys(block, &all_keys, view)
            } else {
                task.queries(block, view)
            });
        }
        bound.extend(task.shared(&features, Uses::Gradients, block, &all_keys));
        let pair = self.pair(gradient);
        let task = &mut self.task;
        let tiles = u64::from(batch) * u64::from(owners) * u64::from(len.div_ceil(owned));
        let work = if gradient.owns_keys() {
            let walked = u64::from(rows) * u64::from(shape.group_size());
            Work::even(tiles * slices, walked * u64::from(owned) * pair)
        } else {
            let once = u64::from(owned) * 3 * u64::from(shape.head_dim) * ELEMENT;
            let pairs = task.pairs(block, &all_keys, owned, pair, Across::Columns(slices));
            Work::of_pairs(tiles * slices, once, Pairs { last_first: true, ..pairs })
        };
        let kernel = |vec4| tuning.gradient_kernel(&features, gradient, dims, vec4);
        task.step(kernel, vec4, bound, work, params)
    }
}
