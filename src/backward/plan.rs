//! The steps of the gradients of an attention.

use super::Backward;
use crate::blocks::{Block, Chunk, ELEMENT_BYTES, Extent, PairView, View};
use crate::device::Capabilities;
use crate::error::PlanError;
use crate::forward::{AttentionPlanner, Views};
use crate::function::Text;
use crate::kernels::{AttentionParams, Element, Uses};
use crate::layout::Strides;
use crate::operand::Operand;
use crate::pairs::Pairs;
use crate::plan::{Algorithm, Bound, Plan, buffers, operands};
use crate::planner::Planner;
use crate::shape::{DType, Shape};
use crate::staged::budgeted;
use crate::uniforms::{narrow, stride};
use crate::work::ELEMENT;
use std::ops::Range;

/// Words that a row's lse and delta take.
pub(super) const STATS: u32 = 2;

/// Where the gradients lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GradientViews {
    pub(crate) d_out: View,
    pub(crate) d_q: View,
    pub(crate) d_k: View,
    pub(crate) d_v: View,
}

impl GradientViews {
    pub(crate) fn of(backward: &Backward) -> Self {
        let (problem, s) = (&backward.problem, backward.problem.shape);
        let view = |operand, strides, dim, dtype: DType| View {
            operand,
            base_bytes: 0,
            strides,
            dim,
            element_bits: dtype.bits(),
        };
        Self {
            d_out: view(Operand::DOut, backward.d_out, s.v_head_dim, problem.out_dtype),
            d_q: view(Operand::DQ, backward.d_q, s.head_dim, problem.dtype),
            d_k: view(Operand::DK, backward.d_k, s.head_dim, problem.kv_dtype),
            d_v: view(Operand::DV, backward.d_v, s.v_head_dim, problem.kv_dtype),
        }
    }
}

impl Backward {
    /// Checks everything about the gradients that no device changes.
    pub(crate) fn check(&self, algorithm: Algorithm) -> Result<(), PlanError> {
        self.validate()?;
        let (algorithm, what) = match algorithm {
            Algorithm::Auto | Algorithm::Staged => return Ok(()),
            Algorithm::Split => ("split", Some("gradients")),
            Algorithm::Flash => {
                let lacks = [(self.d_bias, "d_bias"), (self.d_alibi_slopes, "d_alibi_slopes")];
                ("flash", lacks.iter().find(|(asked, _)| *asked).map(|(_, what)| *what))
            }
        };
        what.map_or(Ok(()), |what| Err(PlanError::AlgorithmLacks { algorithm, what }))
    }

    pub(crate) fn plan(
        &self,
        capabilities: &Capabilities,
        algorithm: Algorithm,
    ) -> Result<Plan, PlanError> {
        self.check(algorithm)?;
        let mut planner = Planner::new(capabilities);
        let (views, gradients) = (Views::of(&self.problem), GradientViews::of(self));
        planner.backward(self, algorithm, &views, &gradients)?;
        let mut known = operands(&self.problem);
        known.retain(|operand| *operand != Operand::Lse);
        known.extend([Operand::Lse, Operand::DOut, Operand::DQ, Operand::DK, Operand::DV]);
        for (asked, operand) in [
            (self.d_lse, Operand::DLse),
            (self.d_bias, Operand::DBias),
            (self.d_sinks, Operand::DSinks),
            (self.d_alibi_slopes, Operand::DAlibiSlopes),
        ] {
            known.extend(asked.then_some(operand));
        }
        Ok(planner.finish(self.cost(), known, buffers(&self.problem)))
    }
}

impl Planner<'_> {
    /// Appends the steps of the gradients of one attention.
    pub(crate) fn backward(
        &mut self,
        backward: &Backward,
        algorithm: Algorithm,
        views: &Views,
        gradients: &GradientViews,
    ) -> Result<(), PlanError> {
        let problem = &backward.problem;
        let mut task = AttentionPlanner::new(self, problem, views);
        // Lse and classes are the forward pass's.
        task.features.lse = false;
        task.features.derivative = problem.score_function.as_ref().and_then(|function| {
            let derivative = function.derivative.as_ref()?;
            let name = format!("{}, its derivative", function.text.name).into();
            Some(Text { name, wgsl: derivative.wgsl.clone(), ..function.text.clone() })
        });
        let mut task = BackwardPlanner { backward, gradients: *gradients, task };
        let s = task.task.shape;
        if s.batch == 0 || s.q_len == 0 || s.kv_len == 0 {
            return task.nothing();
        }
        if algorithm == Algorithm::Staged {
            return task.staged();
        }
        let mark = task.task.to.mark();
        let fused = task.fused();
        // What a caller's text is wrong in is wrong everywhere.
        let is_text = matches!(fused, Err(PlanError::Wgsl { .. }));
        match fused {
            Ok(Some(())) => Ok(()),
            Ok(None) if algorithm == Algorithm::Flash => {
                let what =
                    "gradients of what a binding, a workgroup or its registers cannot take whole";
                Err(PlanError::AlgorithmLacks { algorithm: "flash", what })
            }
            Err(error) if is_text || algorithm == Algorithm::Flash => Err(error),
            // What one has no room for, another may.
            _ => {
                task.task.to.rewind(mark);
                task.staged()
            }
        }
    }
}

/// The steps of gradients under construction.
pub(super) struct BackwardPlanner<'a, 'p> {
    pub(super) backward: &'a Backward,
    pub(super) gradients: GradientViews,
    pub(super) task: AttentionPlanner<'a, 'p>,
}

/// Scratch of a block, each a row of scores a query.
pub(super) struct Matrices {
    /// Scores, then weights.
    pub(super) scores: Operand,
    /// Gradients of weights, then of scores.
    pub(super) d_scores: Operand,
    /// Gradients by what is added to scores, where these are asked for.
    pub(super) d_biased: Option<Operand>,
    /// Lse and delta of every row.
    pub(super) stats: Operand,
}

impl BackwardPlanner<'_, '_> {
    /// Five products with two matrices between them, for as many rows at a time as these may hold.
    fn staged(&mut self) -> Result<(), PlanError> {
        let shape = self.task.shape;
        self.task.tables = self.task.gather(Uses::Staged, None)?;
        let (chunk, cut) = self.chunk()?;
        let mut region = || self.task.to.region();
        let matrices =
            Matrices { scores: region(), d_scores: region(), d_biased: None, stats: region() };
        let d_biased = (self.backward.d_bias || self.backward.d_alibi_slopes).then(region);
        let matrices = Matrices { d_biased, ..matrices };
        let ranges: Vec<_> = chunk.kv_ranges(&shape).collect();
        // Sums over several steps are in f32.
        let halves = cut && self.task.features.kv != Element::F32;
        let sums: Vec<_> = ranges
            .iter()
            .map(|_| [(); 2].map(|()| halves.then(|| self.task.to.region())))
            .collect();
        let d_q_sums = (ranges.len() > 1 && self.task.features.q != Element::F32)
            .then(|| self.task.to.region());
        for block in chunk.blocks(&shape) {
            self.delta(&block, matrices.stats)?;
            for keys in &ranges {
                self.scores(&block, keys, &matrices)?;
            }
            self.softmax_gradient(&block, &matrices)?;
            for (keys, [d_k, d_v]) in ranges.iter().zip(&sums) {
                self.key_gradients(&block, keys, &matrices, true, *d_v)?;
                self.key_gradients(&block, keys, &matrices, false, *d_k)?;
                self.query_gradients(&block, keys, &matrices, d_q_sums)?;
            }
            if let Some(operand) = d_q_sums {
                let view = self.gradients.d_q;
                let sums = Bound { operand, bytes: 0..f32_bytes(block.rows(), shape.head_dim) };
                let rows = self.task.queries(&block, &view);
                self.convert(block.counts(), self.task.features.q, &view, sums, rows)?;
            }
            self.pair_sums(&block, &matrices)?;
            if self.backward.d_sinks {
                self.sink_gradients(&block, matrices.stats)?;
            }
        }
        Ok(())
    }

    /// Extents of what kernels of gradients bind.
    pub(super) fn extents(&self) -> Vec<(&'static str, Extent)> {
        let GradientViews { d_out, d_q, d_k, d_v } = self.gradients;
        let mut tensors = self.task.extents(true);
        tensors.push(("lse", Extent::Queries(self.task.views.lse)));
        tensors.push(("d_out", Extent::Queries(d_out)));
        tensors.push(("d_q", Extent::Queries(d_q)));
        tensors.push(("d_k", Extent::Keys(d_k)));
        tensors.push(("d_v", Extent::Keys(d_v)));
        let keep = |view| ("keep", Extent::Pairs { view, all_keys: true });
        tensors.extend(self.task.keep_view().map(keep));
        tensors
    }

    /// As many rows as every tensor of them fits a binding, and whether keys' sums take several steps.
    fn chunk(&self) -> Result<(Chunk, bool), PlanError> {
        let (task, shape, limit) = (&self.task, self.task.shape, self.task.to.limit());
        let GradientViews { d_k, d_v, .. } = self.gradients;
        let mut tensors = self.extents();
        let (block_m, block_n) = task.tuning.product.block();
        tensors.extend(task.walk(block_m, 2 * u64::from(block_n) + ELEMENT));
        let pitch = u64::from(shape.kv_len.next_multiple_of(4));
        let scratch = |row| Extent::Scratch { row, per_range: false };
        tensors.push(("scores", scratch(budgeted(pitch, limit))));
        tensors.push(("lse and delta", scratch(STATS.into())));
        if self.backward.d_bias {
            let view = self.bias_gradients();
            tensors.push(("d_bias", Extent::Pairs { view, all_keys: true }));
        }
        let batch_first = task.problem.batch_invariant;
        let fit = |tensors: &[_]| Chunk::fit(&shape, limit, batch_first, tensors);
        let mut chunk = fit(&tensors)?;
        if chunk.kv < shape.kv_len && task.features.q != Element::F32 {
            tensors.push(("sums", scratch(shape.head_dim.into())));
            chunk = fit(&tensors)?;
        }
        let group = shape.group_size();
        let is_cut = |chunk: Chunk| {
            chunk.blocks(&shape).any(|block| {
                let [_, heads, rows] = block.counts();
                rows < shape.q_len || !heads.is_multiple_of(group)
            })
        };
        if is_cut(chunk) && task.features.kv != Element::F32 {
            for view in [d_k, d_v] {
                tensors.push(("sums", Extent::Keys(self.key_sums(&view))));
            }
            chunk = fit(&tensors)?;
        }
        Ok((chunk, is_cut(chunk)))
    }

    /// As an f32 tensor without gaps.
    fn key_sums(&self, view: &View) -> View {
        let Shape { kv_heads, kv_len, .. } = self.task.shape;
        let strides = Strides::bhsd(kv_heads, kv_len, view.dim);
        View { strides, element_bits: 32, ..*view }
    }

    pub(super) fn bias_gradients(&self) -> PairView {
        let axes = self.task.problem.bias.expect("asked for").pairs.axes;
        PairView { operand: Operand::DBias, pairs: Pairs::new(axes), bits: 32 }
    }

    /// The uniforms of a block and a range of keys, with its matrices.
    pub(super) fn params(&self, block: &Block, keys: &Range<u32>) -> AttentionParams {
        let Views { out, .. } = *self.task.views;
        let [batch, heads, rows] = block.counts();
        let row = u64::from(self.task.shape.kv_len.next_multiple_of(4));
        let head = row * u64::from(rows);
        AttentionParams {
            scores_batch: stride(head * u64::from(heads), batch),
            scores_head: stride(head, heads),
            // Of one row too: rows are as long as this.
            scores_row: narrow(row),
            ..self.task.params(block, keys, &out)
        }
    }

    pub(super) fn matrix(&self, block: &Block, operand: Operand) -> Bound {
        matrix_of(self.task.shape, block, operand)
    }

    pub(super) fn stats(block: &Block, operand: Operand) -> Bound {
        Bound { operand, bytes: 0..f32_bytes(block.rows(), STATS) }
    }
}

pub(super) fn matrix_of(shape: Shape, block: &Block, operand: Operand) -> Bound {
    let row = u64::from(shape.kv_len.next_multiple_of(4));
    Bound { operand, bytes: 0..block.rows() * row * ELEMENT_BYTES }
}

/// Tiles of a block's rows.
pub(super) fn tiles(block: &Block, block_m: u32) -> u64 {
    let [batch, heads, rows] = block.counts();
    u64::from(batch) * u64::from(heads) * u64::from(rows.div_ceil(block_m))
}

pub(super) fn f32_bytes(rows: u64, width: u32) -> u64 {
    rows * u64::from(width) * ELEMENT_BYTES
}

/// Strides along axes of these extents.
pub(super) fn outer(view: &View, [batch, heads, rows]: [u32; 3]) -> [u32; 3] {
    let s = view.strides;
    [stride(s.batch, batch), stride(s.head, heads), stride(s.row, rows)]
}
