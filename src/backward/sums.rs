//! What gradients need of rows and of pairs.

use super::plan::{BackwardPlanner, Matrices, outer};
use crate::blocks::{Block, ELEMENT_BYTES, PairView, View};
use crate::error::PlanError;
use crate::forward::Views;
use crate::kernels::{
    AttentionParams, Delta, Features, PairSums, SinkGradients, SoftmaxGradient, Summed, Uses,
};
use crate::operand::Operand;
use crate::pairs::Pairs;
use crate::plan::Bound;
use crate::problem::{Lengths, Slopes};
use crate::uniforms::{narrow, stride};
use crate::work::{Across, CHANGES, ELEMENT, SOFTMAX, Work};

impl BackwardPlanner<'_, '_> {
    pub(super) fn delta(&mut self, block: &Block, stats: Operand) -> Result<(), PlanError> {
        let (task, d_out) = (&mut self.task, self.gradients.d_out);
        let Views { out, lse, .. } = *task.views;
        let delta = Delta {
            out: task.features.out,
            d_lse: self.backward.d_lse,
            threads: task.tuning.row_threads,
            v_head_dim: task.shape.v_head_dim,
        };
        let keys = 0..task.shape.kv_len;
        let [d_out_batch, d_out_head, d_out_row] = outer(&d_out, block.counts());
        let params = AttentionParams {
            d_out_batch,
            d_out_head,
            d_out_row,
            ..task.params(block, &keys, &out)
        };
        let mut bound =
            vec![task.queries(block, &out), task.queries(block, &d_out), task.queries(block, &lse)];
        let d_lse = View { operand: Operand::DLse, ..lse };
        bound.extend(self.backward.d_lse.then(|| task.queries(block, &d_lse)));
        bound.push(Self::stats(block, stats));
        let work = Work::even(block.rows(), 2 * u64::from(task.shape.v_head_dim) * ELEMENT);
        task.step(|_| delta.into(), false, bound, work, params)
    }

    pub(super) fn softmax_gradient(
        &mut self,
        block: &Block,
        matrices: &Matrices,
    ) -> Result<(), PlanError> {
        let keys = 0..self.task.shape.kv_len;
        let params = self.params(block, &keys);
        let features = self.task.features.clone();
        let d_biased = matrices.d_biased.is_some();
        let threads = self.task.tuning.row_threads;
        let kernel = SoftmaxGradient { features: &features, d_biased, threads };
        let mut bound = vec![
            self.matrix(block, matrices.scores),
            self.matrix(block, matrices.d_scores),
            Self::stats(block, matrices.stats),
        ];
        bound.extend(matrices.d_biased.map(|operand| self.matrix(block, operand)));
        bound.extend(self.task.shared(&features, Uses::Gradients, block, &keys));
        let pair = SOFTMAX + if features.changes() { 2 * CHANGES } else { 0 };
        let pairs = self.task.pairs(block, &keys, 1, pair, Across::Columns(1));
        let zeros = 2 * u64::from(self.task.shape.kv_len) * ELEMENT;
        let work = Work::of_pairs(block.rows(), zeros, pairs);
        self.task.step(|_| kernel.clone().into(), false, bound, work, params)
    }

    /// Gradients of the bias and of slopes, as far as the block has pairs.
    pub(super) fn pair_sums(
        &mut self,
        block: &Block,
        matrices: &Matrices,
    ) -> Result<(), PlanError> {
        let problem = self.task.problem;
        if self.backward.d_bias {
            let view = self.bias_gradients();
            self.pair_sums_of(block, matrices, view, Summed::Bias)?;
        }
        if self.backward.d_alibi_slopes {
            let per_sequence = problem.alibi == Some(Slopes::PerSequence);
            let batch = if per_sequence { problem.shape.batch } else { 1 };
            let pairs = Pairs::new([batch, problem.shape.heads, 1, 1]);
            let view = PairView { operand: Operand::DAlibiSlopes, pairs, bits: 32 };
            self.pair_sums_of(block, matrices, view, Summed::Slopes { per_sequence })?;
        }
        Ok(())
    }

    fn pair_sums_of(
        &mut self,
        block: &Block,
        matrices: &Matrices,
        view: PairView,
        summed: Summed,
    ) -> Result<(), PlanError> {
        let all_keys = 0..self.task.shape.kv_len;
        let [batch, heads, rows] = block.counts();
        let [of_batch, of_heads, of_rows, of_keys] = view.pairs.axes.map(|n| n != 1);
        // Sequences behind one another are one of the block's, but each has slopes of its own.
        let packed = self.task.problem.lengths == Lengths::Packed && of_batch;
        let sequences = if packed { self.task.problem.shape.batch } else { batch };
        let owned = |exact: bool, n: u32| if exact { n } else { 1 };
        let shared = |exact: bool, n: u32| if exact { 1 } else { n };
        let elements = [
            owned(of_batch, sequences),
            owned(of_heads, heads),
            owned(of_rows, rows),
            owned(of_keys, all_keys.end),
        ];
        let count: u64 = elements.into_iter().map(u64::from).product();
        let strides: [u32; 4] =
            std::array::from_fn(|axis| stride(view.pairs.strides[axis], elements[axis]));
        let is_first = (of_batch || block.batch.start == 0)
            && (of_heads || block.heads.start == 0)
            && (of_rows || block.q.start == 0);
        let params = AttentionParams {
            sums_batch: strides[0],
            sums_head: strides[1],
            sums_row: strides[2],
            sums_key: strides[3],
            sum_batch: if packed { 1 } else { shared(of_batch, batch) },
            sum_heads: shared(of_heads, heads),
            sum_rows: shared(of_rows, rows),
            elements: narrow(count),
            accumulate: (!is_first).into(),
            ..self.params(block, &all_keys)
        };
        let features = self.task.features.clone();
        let threads = self.task.tuning.row_threads;
        let kernel = PairSums { features: &features, summed, keys_shared: !of_keys, threads };
        let first = view.pairs.index([block.batch.start, block.heads.start, block.q.start, 0]);
        let end = first + view.pairs.extent(elements).expect("validated");
        let sums =
            Bound { operand: view.operand, bytes: first * ELEMENT_BYTES..end * ELEMENT_BYTES };
        let d_biased = matrices.d_biased.expect("asked for");
        let mut bound = vec![self.matrix(block, d_biased), sums];
        bound.extend(self.task.shared(&features, Uses::Rows, block, &all_keys));
        let workgroups = if of_keys { count.div_ceil(threads.into()) } else { count };
        let pairs = block.rows() * u64::from(all_keys.end);
        let work = Work::even(workgroups, (pairs / workgroups.max(1)).saturating_mul(ELEMENT));
        self.task.step(|_| kernel.clone().into(), false, bound, work, params)
    }

    pub(super) fn sink_gradients(
        &mut self,
        block: &Block,
        stats: Operand,
    ) -> Result<(), PlanError> {
        let all_keys = 0..self.task.shape.kv_len;
        let accumulate = block.batch.start > 0 || block.q.start > 0;
        let params =
            AttentionParams { accumulate: accumulate.into(), ..self.params(block, &all_keys) };
        let [batch, heads, rows] = block.counts();
        let at = |head: u32| u64::from(head) * ELEMENT_BYTES;
        let sums = at(block.heads.start)..at(block.heads.end);
        let mut bound =
            vec![Self::stats(block, stats), Bound { operand: Operand::DSinks, bytes: sums }];
        let features = Features { sinks: true, ..Features::plain() };
        bound.extend(self.task.shared(&features, Uses::Sinks, block, &all_keys));
        let kernel = SinkGradients { threads: self.task.tuning.row_threads };
        let work = Work::even(heads.into(), u64::from(batch) * u64::from(rows) * SOFTMAX);
        self.task.step(|_| kernel.into(), false, bound, work, params)
    }
}
