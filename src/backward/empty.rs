//! Gradients where no query meets a key.

use super::plan::{BackwardPlanner, GradientViews, STATS, outer};
use crate::blocks::{Chunk, Extent, View};
use crate::error::PlanError;
use crate::forward::Views;
use crate::kernels::{AttentionParams, Element, Features, Fill, Uses};
use crate::layout::Strides;
use crate::operand::Operand;
use crate::plan::Bound;
use crate::planner::Planner;
use crate::problem::Slopes;
use crate::shape::Shape;
use crate::work::{ELEMENT, Work};

impl BackwardPlanner<'_, '_> {
    /// Gradients of what no pair depends on: 0.
    pub(super) fn nothing(&mut self) -> Result<(), PlanError> {
        let s = self.task.shape;
        let GradientViews { d_q, d_k, d_v, .. } = self.gradients;
        let f = self.task.features.clone();
        let rows = [s.batch, s.heads, s.q_len];
        let keys = [s.batch, s.kv_heads, s.kv_len];
        let mut zeros = vec![(d_q, rows, f.q), (d_k, keys, f.kv), (d_v, keys, f.kv)];
        let flat = |operand, elements: u64| {
            let n = u32::try_from(elements).unwrap_or(u32::MAX);
            let strides = Strides::bhsd(1, n, 1);
            let view = View { operand, base_bytes: 0, strides, dim: 1, element_bits: 32 };
            (view, [1, 1, n], Element::F32)
        };
        let problem = self.task.problem;
        if let Some(bias) = problem.bias.filter(|_| self.backward.d_bias) {
            zeros.push(flat(Operand::DBias, bias.pairs.axes.into_iter().map(u64::from).product()));
        }
        if self.backward.d_sinks && s.kv_len > 0 {
            zeros.push(flat(Operand::DSinks, s.heads.into()));
        }
        if self.backward.d_alibi_slopes {
            let per_sequence = problem.alibi == Some(Slopes::PerSequence);
            let batch = if per_sequence { problem.shape.batch } else { 1 };
            let n = u64::from(batch) * u64::from(s.heads);
            zeros.push(flat(Operand::DAlibiSlopes, n));
        }
        for (view, counts, element) in zeros {
            self.task.to.zeros(&view, counts, element)?;
        }
        if self.backward.d_sinks && s.kv_len == 0 {
            self.sinks_alone()?;
        }
        Ok(())
    }

    /// Rows that see nothing but their sink.
    fn sinks_alone(&mut self) -> Result<(), PlanError> {
        let shape = self.task.shape;
        if shape.batch == 0 || shape.q_len == 0 {
            return self.zeros_of_sinks();
        }
        self.task.tables = self.task.gather(Uses::Sinks, None)?;
        let Views { out, .. } = *self.task.views;
        let tensors = [
            ("out", Extent::Queries(out)),
            ("d_out", Extent::Queries(self.gradients.d_out)),
            ("lse and delta", Extent::Scratch { row: STATS.into(), per_range: false }),
        ];
        let limit = self.task.to.limit();
        let chunk = Chunk::fit(&shape, limit, self.task.problem.batch_invariant, &tensors)?;
        let stats = self.task.to.region();
        for block in chunk.blocks(&shape) {
            self.delta(&block, stats)?;
            self.sink_gradients(&block, stats)?;
        }
        Ok(())
    }

    fn zeros_of_sinks(&mut self) -> Result<(), PlanError> {
        let heads = self.task.shape.heads;
        let strides = Strides::bhsd(1, heads, 1);
        let view =
            View { operand: Operand::DSinks, base_bytes: 0, strides, dim: 1, element_bits: 32 };
        self.task.to.zeros(&view, [1, 1, heads], Element::F32)
    }
}

impl Planner<'_> {
    /// Zeros over a tensor, in as many parts as bindings take.
    pub(crate) fn zeros(
        &mut self,
        view: &View,
        [batch, heads, rows]: [u32; 3],
        element: Element,
    ) -> Result<(), PlanError> {
        let shape = Shape {
            batch,
            heads,
            kv_heads: heads,
            q_len: rows,
            kv_len: 0,
            head_dim: view.dim,
            v_head_dim: view.dim,
        };
        if batch == 0 || heads == 0 || rows == 0 {
            return Ok(());
        }
        let limit = self.limit();
        let name = view.operand.name();
        let chunk = Chunk::fit(&shape, limit, false, &[(name, Extent::Queries(*view))])?;
        let features = Features { out: element, ..Features::plain() };
        let threads = self.tuning.row_threads;
        let fill = Fill { features: &features, threads, v_head_dim: view.dim };
        for block in chunk.blocks(&shape) {
            let [batch, heads, q_len] = block.counts();
            let [out_batch, out_head, out_row] = outer(view, block.counts());
            let params = AttentionParams {
                batch,
                heads,
                q_len,
                out_batch,
                out_head,
                out_row,
                ..AttentionParams::default()
            };
            let bytes = view.bytes(&block.batch, &block.heads, &block.q);
            let bound = vec![Bound { operand: view.operand, bytes }];
            let work = Work::even(block.rows(), u64::from(view.dim) * ELEMENT);
            self.step(
                |_| fill.clone().into(),
                false,
                bound,
                work,
                |workgroups, grid_width| {
                    bytemuck::bytes_of(&AttentionParams { workgroups, grid_width, ..params })
                        .to_vec()
                },
            )?;
        }
        Ok(())
    }
}
