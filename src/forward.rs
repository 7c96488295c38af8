//! The steps of one attention: what they share, and attention over no key at all.

use crate::blocks::{Block, Chunk, Extent, PairView, View};
use crate::error::PlanError;
use crate::kernels::{AttentionParams, Features, Fill, Kernel, Uses};
use crate::layout::Strides;
use crate::mask::Mask;
use crate::operand::Operand;
use crate::plan::{Algorithm, Bound};
use crate::planner::Planner;
use crate::problem::{Lengths, Problem};
use crate::shape::{DType, Shape};
use crate::tables::Tables;
use crate::tuning::Tuning;
use crate::work::{Across, ELEMENT, Pairs, Seen, Work, most_keys};
use std::ops::Range;

/// Where the tensors of an attention lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Views {
    pub(crate) q: View,
    pub(crate) k: View,
    pub(crate) v: View,
    pub(crate) out: View,
    pub(crate) lse: View,
}

/// `[batch, heads, q_len]`, contiguous, from `base_bytes` on.
pub(crate) fn lse_view(shape: &Shape, operand: Operand, base_bytes: u64) -> View {
    let strides = Strides::bhsd(shape.heads, shape.q_len, 1);
    View { operand, base_bytes, strides, dim: 1, element_bits: 32 }
}

impl Views {
    pub(crate) fn of(problem: &Problem) -> Self {
        let s = problem.shape;
        let view = |operand, strides, dim, dtype: DType| View {
            operand,
            base_bytes: 0,
            strides,
            dim,
            element_bits: dtype.bits(),
        };
        Self {
            q: view(Operand::Q, problem.q, s.head_dim, problem.dtype),
            k: view(Operand::K, problem.k, s.head_dim, problem.kv_dtype),
            v: view(Operand::V, problem.v, s.v_head_dim, problem.kv_dtype),
            out: view(Operand::Out, problem.out, s.v_head_dim, problem.out_dtype),
            lse: lse_view(&problem.tensor_shape(), Operand::Lse, 0),
        }
    }
}

impl Planner<'_> {
    /// Appends the steps of one attention.
    pub(crate) fn attention(
        &mut self,
        problem: &Problem,
        algorithm: Algorithm,
        views: &Views,
    ) -> Result<(), PlanError> {
        algorithm.check(problem)?;
        let gives_matrix = problem.weights || problem.scores.is_some();
        let alone = problem.needs_rows_alone();
        let given = problem.keep_pairs().is_some();
        let staged = gives_matrix || alone || given || algorithm == Algorithm::Staged;
        let s = problem.tensor_shape();
        if s.batch == 0 || s.q_len == 0 {
            return Ok(());
        }
        let mut task = AttentionPlanner::new(self, problem, views);
        if s.kv_len == 0 {
            task.tables = task.gather(Uses::Sinks, None)?;
            return task.nothing();
        }
        if staged {
            task.tables = task.gather(Uses::Staged, None)?;
            return task.staged();
        }
        let mark = task.to.mark();
        let fused = task.fused(algorithm);
        // What a caller's text is wrong in is wrong everywhere.
        let is_text = matches!(fused, Err(PlanError::Wgsl { .. }));
        if fused.is_ok() || is_text || algorithm != Algorithm::Auto {
            return fused;
        }
        // What one has no room for, another may: ranges take a buffer more.
        task.to.rewind(mark);
        task.features.classes = false;
        if task.fused(Algorithm::Flash).is_ok() {
            return Ok(());
        }
        task.to.rewind(mark);
        task.features.classes = false;
        task.tables = task.gather(Uses::Staged, None)?;
        task.staged().or(fused)
    }
}

/// Whether the band hides any key of this shape from any query.
pub(crate) fn excludes(problem: &Problem) -> bool {
    let Shape { q_len, kv_len, .. } = problem.shape;
    let Some(diagonal) = problem.mask.diagonal(q_len, kv_len) else { return true };
    let range = |q_pos| problem.mask.kv_range(kv_len, diagonal, q_pos);
    range(q_len.saturating_sub(1)).start > 0 || range(0).end < kv_len
}

/// The steps of one attention under construction.
pub(crate) struct AttentionPlanner<'a, 'p> {
    pub(crate) problem: &'a Problem,
    /// As tensors have it: packed sequences are one.
    pub(crate) shape: Shape,
    pub(crate) views: &'a Views,
    pub(crate) features: Features,
    pub(crate) tables: Tables,
    pub(crate) tuning: Tuning,
    pub(crate) to: &'a mut Planner<'p>,
}

impl<'a, 'p> AttentionPlanner<'a, 'p> {
    pub(crate) fn new(to: &'a mut Planner<'p>, problem: &'a Problem, views: &'a Views) -> Self {
        let features = Features::of(problem, to.capabilities, excludes(problem));
        let shape = problem.tensor_shape();
        let tuning = to.tuning.with_matrices(to.capabilities, problem, &features);
        Self { problem, shape, views, features, tables: Tables::default(), tuning, to }
    }

    /// No key at all: zeros and -inf, or the sink.
    fn nothing(&mut self) -> Result<(), PlanError> {
        let Views { out, lse, .. } = *self.views;
        let tensors = [("out", Extent::Queries(out)), ("lse", Extent::Queries(lse))];
        let (shape, limit) = (self.shape, self.to.limit());
        let chunk = Chunk::fit(&shape, limit, self.problem.batch_invariant, &tensors)?;
        let features = self.features.clone();
        let fill = Fill {
            features: &features,
            threads: self.tuning.row_threads,
            v_head_dim: shape.v_head_dim,
        };
        for block in chunk.blocks(&shape) {
            let params = self.params(&block, &(0..0), &out);
            let mut bound = vec![self.queries(&block, &out)];
            bound.extend(self.lse(&block));
            bound.extend(self.shared(&features, Uses::Sinks, &block, &(0..0)));
            let work = Work::even(block.rows(), u64::from(shape.v_head_dim) * ELEMENT);
            self.step(|_| fill.clone().into(), false, bound, work, params)?;
        }
        Ok(())
    }

    /// Appends a dispatch.
    pub(crate) fn step(
        &mut self,
        kernel: impl Fn(bool) -> Kernel,
        vec4: bool,
        bound: Vec<Bound>,
        work: Work,
        params: AttentionParams,
    ) -> Result<(), PlanError> {
        self.to.step(kernel, vec4, bound, work, |workgroups, grid_width| {
            bytemuck::bytes_of(&AttentionParams { workgroups, grid_width, ..params }).to_vec()
        })
    }

    /// Pairs of a block and a range of keys, by tiles of `rows` rows. What only buffers tell of, lengths and offsets,
    /// is not known: packed sequences count as if equally long, all else as if every key were seen.
    pub(crate) fn pairs(
        &self,
        block: &Block,
        keys: &Range<u32>,
        rows: u32,
        each: u64,
        across: Across,
    ) -> Pairs {
        let Shape { q_len, kv_len, batch, .. } = self.problem.shape;
        let in_range = keys.end - keys.start;
        let seen = match self.problem.mask.diagonal(q_len, kv_len) {
            Some(diagonal) if !self.problem.has_sequences() => {
                let first = i64::from(block.q.start) - i64::from(keys.start);
                let (begin, end) = self.problem.mask.bounds(diagonal);
                Seen {
                    begin: begin.map_or(-BEYOND, |begin| begin + first),
                    end: end.map_or(BEYOND, |end| end + first),
                    kv_len: in_range,
                }
            }
            _ => {
                let packed = self.problem.lengths == Lengths::Packed;
                let sequences = if packed { batch.max(1) } else { 1 };
                Seen { begin: -BEYOND, end: BEYOND, kv_len: in_range.div_ceil(sequences) }
            }
        };
        let [_, _, q_rows] = block.counts();
        Pairs { each, block: rows, tiles: q_rows.div_ceil(rows), across, last_first: false, seen }
    }

    /// That a workgroup of so many rows walks no more keys than it may, at so much work a pair: nothing where a window
    /// shows it few.
    pub(crate) fn walk(&self, rows: u32, each: u64) -> Option<(&'static str, Extent)> {
        let most = most_keys(self.to.capabilities.class, u64::from(rows) * each);
        let window = match self.problem.mask {
            Mask { left: Some(left), right: Some(right), .. } => {
                left.saturating_add(right).saturating_add(rows)
            }
            _ => u32::MAX,
        };
        (window > most).then_some(("keys", Extent::Walk { most }))
    }

    /// Of weights or scores.
    pub(crate) fn matrix_view(&self, operand: Operand) -> View {
        let Shape { heads, q_len, kv_len, .. } = self.shape;
        let strides = Strides::bhsd(heads, q_len, kv_len);
        View { operand, base_bytes: 0, strides, dim: kv_len, element_bits: 32 }
    }

    pub(crate) fn mask_view(&self) -> Option<PairView> {
        let view = |mask: crate::BooleanMask| PairView {
            operand: Operand::Mask,
            pairs: mask.pairs,
            bits: mask.format.bits(),
        };
        self.problem.boolean_mask.map(view)
    }

    pub(crate) fn bias_view(&self) -> Option<PairView> {
        let view = |bias: crate::Bias| PairView {
            operand: Operand::Bias,
            pairs: bias.pairs,
            bits: bias.dtype.bits(),
        };
        self.problem.bias.map(view)
    }

    /// Of a given dropout mask.
    pub(crate) fn keep_view(&self) -> Option<PairView> {
        let view = |pairs| PairView { operand: Operand::Keep, pairs, bits: 8 };
        self.problem.keep_pairs().map(view)
    }

    /// Extents of what every algorithm binds; masks and biases of all keys or of ranges of them.
    pub(crate) fn extents(&self, all_keys: bool) -> Vec<(&'static str, Extent)> {
        let Views { q, k, v, out, lse } = *self.views;
        let mut extents = vec![
            ("q", Extent::Queries(q)),
            ("k", self.keys_extent(k)),
            ("v", self.keys_extent(v)),
            ("out", Extent::Queries(out)),
        ];
        if self.problem.lse {
            extents.push(("lse", Extent::Queries(lse)));
        }
        extents.extend(self.pair_extents(all_keys));
        extents
    }

    fn keys_extent(&self, view: View) -> Extent {
        match self.problem.pages {
            Some(pages) => Extent::Pool { view, pages },
            None => Extent::Keys(view),
        }
    }

    /// Extents of the mask and the bias, of all keys or of ranges of them.
    pub(crate) fn pair_extents(&self, all_keys: bool) -> Vec<(&'static str, Extent)> {
        let extent = |view| Extent::Pairs { view, all_keys };
        let mask = self.mask_view().map(|view| ("mask", extent(view)));
        mask.into_iter().chain(self.bias_view().map(|view| ("bias", extent(view)))).collect()
    }

    /// The larger of mask and bias, whole.
    pub(crate) fn largest_pairs(&self, limit: u64) -> (&'static str, u64) {
        let s = self.shape;
        let axes = [s.batch, s.heads, s.q_len, s.kv_len];
        let views = [self.mask_view(), self.bias_view()].into_iter().flatten();
        let sizes = views.map(|view| (view.operand.name(), view.extent_bytes(axes, limit)));
        sizes.max_by_key(|(_, bytes)| *bytes).unwrap_or_default()
    }

    /// What kernels bind after their own: tables, keep, mask, bias, the functions' buffers.
    pub(crate) fn shared(
        &self,
        features: &Features,
        uses: Uses,
        block: &Block,
        keys: &Range<u32>,
    ) -> Vec<Bound> {
        let mut bound = Vec::new();
        if features.binds_tables(uses) {
            bound.push(self.tables.bound());
        }
        for view in self.keep_view().into_iter().filter(|_| features.binds_keep(uses)) {
            bound.push(Bound { operand: view.operand, bytes: view.bytes(block, keys).0 });
        }
        if Features::binds_pairs(uses) {
            for view in [self.mask_view(), self.bias_view()].into_iter().flatten() {
                bound.push(Bound { operand: view.operand, bytes: view.bytes(block, keys).0 });
            }
            let buffers = 0..features.buffers.len();
            bound.extend(buffers.map(|i| Bound { operand: Operand::Buffer(i), bytes: 0..4 }));
        }
        bound
    }

    pub(crate) fn lse(&self, block: &Block) -> Option<Bound> {
        self.problem.lse.then(|| self.queries(block, &self.views.lse))
    }

    pub(crate) fn queries(&self, block: &Block, view: &View) -> Bound {
        let bytes = view.bytes(&block.batch, &block.heads, &block.q);
        Bound { operand: view.operand, bytes }
    }

    pub(crate) fn keys(&self, block: &Block, keys: &Range<u32>, view: &View) -> Bound {
        let bytes = match self.problem.pages {
            // Any sequence's keys may be in any page.
            Some(pages) => view.bytes(&(0..pages.pages), &block.kv_heads(), &(0..pages.page_len)),
            None => view.bytes(&block.batch, &block.kv_heads(), keys),
        };
        Bound { operand: view.operand, bytes }
    }
}

/// Further than any two positions are apart.
const BEYOND: i64 = 1 << 40;
