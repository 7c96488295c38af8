//! The steps of one attention: staged, fused, or over no key at all.

use crate::blocks::{Block, Chunk, ELEMENT_BYTES, Extent, View};
use crate::error::PlanError;
use crate::kernels::{AttentionParams, Fill, Kernel, Merge, Scores, Softmax, Values};
use crate::layout::Strides;
use crate::plan::{Algorithm, Bound, Planner};
use crate::problem::Problem;
use crate::tensors::Operand;
use std::ops::Range;

/// Where the tensors of an attention lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Views {
    pub(crate) q: View,
    pub(crate) k: View,
    pub(crate) v: View,
    pub(crate) out: View,
}

impl Views {
    pub(crate) fn of(problem: &Problem) -> Self {
        let s = problem.shape;
        let view = |operand, strides, dim| View { operand, base_bytes: 0, strides, dim };
        Self {
            q: view(Operand::Q, problem.q, s.head_dim),
            k: view(Operand::K, problem.k, s.head_dim),
            v: view(Operand::V, problem.v, s.v_head_dim),
            out: view(Operand::Out, problem.out, s.v_head_dim),
        }
    }
}

/// Scores of more bytes than this are made and used in chunks of rows.
const SCORES_BYTES: u64 = 128 << 20;

impl Planner<'_> {
    /// Appends the steps of one attention.
    pub(crate) fn attention(
        &mut self,
        problem: &Problem,
        algorithm: Algorithm,
        views: &Views,
    ) -> Result<(), PlanError> {
        algorithm.check(problem)?;
        let staged = problem.weights || algorithm == Algorithm::Staged;
        let s = problem.shape;
        if s.batch == 0 || s.q_len == 0 {
            return Ok(());
        }
        let mut task = AttentionPlanner { banded: excludes(problem), problem, views, to: self };
        if s.kv_len == 0 {
            return task.nothing();
        }
        if staged {
            return task.staged();
        }
        let mark = task.to.mark();
        let fused = task.flash();
        if fused.is_ok() || algorithm != Algorithm::Auto {
            return fused;
        }
        // What one of the two has no room for, the other may.
        task.to.rewind(mark);
        task.staged().or(fused)
    }
}

/// Whether the mask hides any key of this shape from any query.
fn excludes(problem: &Problem) -> bool {
    let s = problem.shape;
    let last = s.q_len.saturating_sub(1);
    problem.mask.kv_range(&s, last).start > 0 || problem.mask.kv_range(&s, 0).end < s.kv_len
}

/// The steps of one attention under construction.
struct AttentionPlanner<'a, 'p> {
    problem: &'a Problem,
    views: &'a Views,
    banded: bool,
    to: &'a mut Planner<'p>,
}

impl AttentionPlanner<'_, '_> {
    /// No key at all: zeros and -inf.
    fn nothing(&mut self) -> Result<(), PlanError> {
        let Views { out, .. } = *self.views;
        let tensors = [("out", Extent::Queries(out)), ("lse", Extent::Queries(self.lse_view()))];
        let shape = self.problem.shape;
        let chunk = Chunk::fit(&shape, self.to.limit(), &tensors)?;
        let fill = Fill {
            threads: self.to.tuning.row_threads,
            v_head_dim: shape.v_head_dim,
            lse: self.problem.lse,
        };
        for block in chunk.blocks(&shape) {
            let params = self.params(&block, &(0..0), &out);
            let mut bound = vec![self.queries(&block, &out)];
            bound.extend(self.lse(&block));
            self.step(|_| fill.into(), false, bound, block.rows(), params)?;
        }
        Ok(())
    }

    /// Scores, softmax, values, for as many rows at a time as the score matrix may hold.
    fn staged(&mut self) -> Result<(), PlanError> {
        let (problem, shape) = (self.problem, self.problem.shape);
        let Views { q, k, v, out } = *self.views;
        let pitch = u64::from(shape.kv_len.next_multiple_of(4));
        let limit = self.to.limit();
        let mut tensors = vec![
            ("q", Extent::Queries(q)),
            ("k", Extent::Keys(k)),
            ("v", Extent::Keys(v)),
            ("out", Extent::Queries(out)),
        ];
        if problem.lse {
            tensors.push(("lse", Extent::Queries(self.lse_view())));
        }
        let weights = View {
            operand: Operand::Weights,
            base_bytes: 0,
            strides: Strides::bhsd(shape.heads, shape.q_len, shape.kv_len),
            dim: shape.kv_len,
        };
        if problem.weights {
            tensors.push(("weights", Extent::Queries(weights)));
        } else {
            // The budget bends for a single row: only the binding limit is hard.
            let most = SCORES_BYTES.max(pitch * ELEMENT_BYTES).min(limit.bytes()).max(1);
            let row = (pitch * limit.bytes().max(1)).div_ceil(most);
            tensors.push(("scores", Extent::Scratch { row, per_range: false }));
        }
        let chunk = Chunk::fit(&shape, limit, &tensors)?;
        let region = (!problem.weights).then(|| self.to.region());

        let (tuning, banded) = (self.to.tuning, self.banded);
        let (block_m, block_n) = tuning.product.block();
        for block in chunk.blocks(&shape) {
            let [batch, heads, rows] = block.counts();
            // The block's scores: a part of the caller's weights, or scratch that starts with the block.
            let (scores, scores_bound) = match region {
                None => (weights.strides, self.queries(&block, &weights)),
                Some(operand) => {
                    let row = pitch;
                    let head = row * u64::from(rows);
                    let bytes = 0..block.rows() * pitch * ELEMENT_BYTES;
                    (
                        Strides { batch: head * u64::from(heads), head, row },
                        Bound { operand, bytes },
                    )
                }
            };
            let scores_vec4 = scores.row.is_multiple_of(4);
            let with_scores = |params: AttentionParams| AttentionParams {
                scores_batch: stride(scores.batch, batch),
                scores_head: stride(scores.head, heads),
                scores_row: stride(scores.row, rows),
                ..params
            };
            let head_tiles = block.rows() / u64::from(rows) * u64::from(rows.div_ceil(block_m));
            for keys in chunk.kv_ranges(&shape) {
                let params = with_scores(self.params(&block, &keys, &out));
                let bound = vec![
                    self.queries(&block, &q),
                    self.keys(&block, &keys, &k),
                    scores_bound.clone(),
                ];
                let total = head_tiles * u64::from((keys.end - keys.start).div_ceil(block_n));
                let kernel = |vec4| {
                    let (product, head_dim) = (tuning.product, shape.head_dim);
                    Scores { product, head_dim, banded, vec4 }.into()
                };
                self.step(
                    kernel,
                    q.is_vec4() && k.is_vec4(),
                    bound,
                    total,
                    tiled(params, rows, block_m),
                )?;
            }

            let softmax = Softmax {
                threads: tuning.row_threads,
                block_m,
                whole_rows: problem.weights,
                banded,
                lse: problem.lse,
            };
            let params = with_scores(self.params(&block, &(0..shape.kv_len), &out));
            let mut bound = vec![scores_bound.clone()];
            bound.extend(self.lse(&block));
            self.step(|_| softmax.into(), false, bound, block.rows(), params)?;

            for keys in chunk.kv_ranges(&shape) {
                let params = AttentionParams {
                    accumulate: (keys.start > 0).into(),
                    ..with_scores(self.params(&block, &keys, &out))
                };
                let bound = vec![
                    scores_bound.clone(),
                    self.keys(&block, &keys, &v),
                    self.queries(&block, &out),
                ];
                let total = head_tiles * u64::from(shape.v_head_dim.div_ceil(block_n));
                let kernel = |vec4| {
                    let (product, v_head_dim) = (tuning.product, shape.v_head_dim);
                    Values { product, v_head_dim, banded, vec4 }.into()
                };
                self.step(kernel, scores_vec4, bound, total, tiled(params, rows, block_m))?;
            }
        }
        Ok(())
    }

    /// The fused kernel; where the keys come in ranges, partial results and their merge.
    fn flash(&mut self) -> Result<(), PlanError> {
        let (problem, shape) = (self.problem, self.problem.shape);
        let Views { q, k, v, out } = *self.views;
        let limit = self.to.limit();
        let mut tensors = vec![
            ("q", Extent::Queries(q)),
            ("k", Extent::Keys(k)),
            ("v", Extent::Keys(v)),
            ("out", Extent::Queries(out)),
        ];
        if problem.lse {
            tensors.push(("lse", Extent::Queries(self.lse_view())));
        }
        let mut chunk = Chunk::fit(&shape, limit, &tensors)?;
        if chunk.kv < shape.kv_len {
            let row = u64::from(shape.v_head_dim);
            tensors.push(("partial results", Extent::Scratch { row, per_range: true }));
            chunk = Chunk::fit(&shape, limit, &tensors)?;
        }
        let tuning = self.to.tuning;
        let (head_dim, v_head_dim, banded) = (shape.head_dim, shape.v_head_dim, self.banded);
        let (block_q, slices) = tuning.flash_block(head_dim, v_head_dim);
        let ranges: Vec<_> = chunk.kv_ranges(&shape).collect();
        let partial = (ranges.len() > 1).then(|| (self.to.region(), self.to.region()));
        let parts = narrow(ranges.len() as u64);
        for block in chunk.blocks(&shape) {
            let [_, heads, rows] = block.counts();
            let total = block.rows() / u64::from(rows) * u64::from(rows.div_ceil(block_q)) * slices;
            let out_part = block.rows() * u64::from(v_head_dim);
            for (part, keys) in (0u64..).zip(&ranges) {
                let mut params = self.params(&block, keys, &out);
                let mut bound = vec![
                    self.queries(&block, &q),
                    self.keys(&block, keys, &k),
                    self.keys(&block, keys, &v),
                ];
                let aligned = q.is_vec4() && k.is_vec4() && v.is_vec4();
                let vec4 = if let Some((outs, lses)) = partial {
                    let strides = Strides::bhsd(heads, rows, v_head_dim);
                    (params.out_batch, params.out_head, params.out_row) =
                        (narrow(strides.batch), narrow(strides.head), narrow(strides.row));
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
                let lse = problem.lse || partial.is_some();
                let kernel = |vec4| tuning.flash_kernel(head_dim, v_head_dim, banded, lse, vec4);
                self.step(kernel, vec4, bound, total, tiled(params, rows, block_q))?;
            }
            if let Some((outs, lses)) = partial {
                let params = AttentionParams {
                    partial_out_part: narrow(out_part),
                    partial_lse_part: narrow(block.rows()),
                    parts,
                    ..self.params(&block, &(0..shape.kv_len), &out)
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
                let merge = Merge { threads: tuning.row_threads, v_head_dim, lse: problem.lse };
                self.step(|_| merge.into(), false, bound, block.rows(), params)?;
            }
        }
        Ok(())
    }

    fn step(
        &mut self,
        kernel: impl Fn(bool) -> Kernel,
        vec4: bool,
        bound: Vec<Bound>,
        total: u64,
        params: AttentionParams,
    ) -> Result<(), PlanError> {
        self.to.step(kernel, vec4, bound, total, |workgroups, grid_width| {
            bytemuck::bytes_of(&AttentionParams { workgroups, grid_width, ..params }).to_vec()
        })
    }

    fn lse_view(&self) -> View {
        let s = self.problem.shape;
        let strides = Strides::bhsd(s.heads, s.q_len, 1);
        View { operand: Operand::Lse, base_bytes: 0, strides, dim: 1 }
    }

    fn lse(&self, block: &Block) -> Option<Bound> {
        self.problem.lse.then(|| self.queries(block, &self.lse_view()))
    }

    fn queries(&self, block: &Block, view: &View) -> Bound {
        let bytes = view.bytes(&block.batch, &block.heads, &block.q);
        Bound { operand: view.operand, bytes }
    }

    fn keys(&self, block: &Block, keys: &Range<u32>, view: &View) -> Bound {
        let bytes = view.bytes(&block.batch, &block.kv_heads(), keys);
        Bound { operand: view.operand, bytes }
    }

    /// What all kernels are told of a block and a range of keys.
    fn params(&self, block: &Block, keys: &Range<u32>, out: &View) -> AttentionParams {
        let Views { q, k, v, .. } = *self.views;
        let [batch, heads, q_len] = block.counts();
        let kv_len = keys.end - keys.start;
        let kv_heads = block.kv_heads().end - block.kv_heads().start;
        let outer = |view: &View, heads: u32, rows: u32| {
            [
                stride(view.strides.batch, batch),
                stride(view.strides.head, heads),
                stride(view.strides.row, rows),
            ]
        };
        let [q_batch, q_head, q_row] = outer(&q, heads, q_len);
        let [k_batch, k_head, k_row] = outer(&k, kv_heads, kv_len);
        let [v_batch, v_head, v_row] = outer(&v, kv_heads, kv_len);
        let [out_batch, out_head, out_row] = outer(out, heads, q_len);
        let lse = self.lse_view().strides;
        let (begin, end) = self.problem.mask.bounds(&self.problem.shape);
        AttentionParams {
            batch,
            heads,
            q_len,
            kv_len,
            batch_first: block.batch.start,
            head_first: block.heads.start,
            q_first: block.q.start,
            kv_first: keys.start,
            group_size: self.problem.shape.group_size(),
            q_batch,
            q_head,
            q_row,
            k_batch,
            k_head,
            k_row,
            v_batch,
            v_head,
            v_row,
            out_batch,
            out_head,
            out_row,
            lse_batch: stride(lse.batch, batch),
            lse_head: stride(lse.head, heads),
            neg_infinity: f32::NEG_INFINITY.to_bits(),
            band_begin: begin.map_or(-BAND_END, clamp_band),
            band_end: end.map_or(BAND_END, clamp_band),
            scale: self.problem.effective_scale(),
            ..AttentionParams::default()
        }
    }
}

fn tiled(params: AttentionParams, rows: u32, block: u32) -> AttentionParams {
    AttentionParams { tiles: rows.div_ceil(block), ..params }
}

/// Beyond every position: 2^30 and a position below 2^29 add up without overflow.
const BAND_END: i32 = 1 << 30;

fn clamp_band(bound: i64) -> i32 {
    i32::try_from(bound.clamp((-BAND_END).into(), BAND_END.into())).expect("clamped")
}

/// A stride along an axis of `n`; of one element it is never used, and might not fit 32 bits.
fn stride(elements: u64, n: u32) -> u32 {
    if n > 1 { narrow(elements) } else { 0 }
}

/// A number of elements within one binding, which is below 2^31 bytes.
fn narrow(elements: u64) -> u32 {
    u32::try_from(elements).expect("within a binding")
}
