//! The steps of the three staged kernels.

use crate::blocks::{BindingLimit, Chunk, ELEMENT_BYTES, Extent};
use crate::error::PlanError;
use crate::forward::{AttentionPlanner, Views};
use crate::kernels::{AttentionParams, Convert, Element, Features, Scores, Softmax, Uses, Values};
use crate::layout::Strides;
use crate::operand::Operand;
use crate::plan::Bound;
use crate::uniforms::{narrow, stride, tiled};
use crate::work::{Across, CHANGES, ELEMENT, SOFTMAX, Work};

/// Scores of more bytes than this are made and used in chunks of rows, and so are partial results.
const SCRATCH_BYTES: u64 = 128 << 20;

/// Elements of a row, so many more that rows of [`SCRATCH_BYTES`] fill a binding. The budget bends for a single row:
/// only the binding limit is hard.
pub(crate) fn budgeted(row: u64, limit: BindingLimit) -> u64 {
    let most = SCRATCH_BYTES.max(row * ELEMENT_BYTES).min(limit.bytes()).max(1);
    (row * limit.bytes().max(1)).div_ceil(most)
}

impl AttentionPlanner<'_, '_> {
    /// Scores, softmax, values, for as many rows at a time as the score matrix may hold.
    pub(crate) fn staged(&mut self) -> Result<(), PlanError> {
        let (problem, shape) = (self.problem, self.shape);
        let features = self.features.clone();
        let Views { q, k, v, out, .. } = *self.views;
        let pitch = u64::from(shape.kv_len.next_multiple_of(4));
        let limit = self.to.limit();
        let tuning = self.tuning;
        let (block_m, block_n) = tuning.product.block();
        // Of one pair, in each of the three kernels.
        let score = 2 * u64::from(shape.head_dim) + ELEMENT;
        let weight = 2 * SOFTMAX + if features.changes() { 2 * CHANGES } else { 0 };
        let value = 2 * u64::from(block_n) + ELEMENT;
        let mut tensors = self.extents(true);
        tensors.extend(self.walk(block_m, value));
        let keep = |view| ("keep", Extent::Pairs { view, all_keys: false });
        tensors.extend(self.keep_view().map(keep));
        let weights = self.matrix_view(Operand::Weights);
        let kept = self.matrix_view(Operand::Scores);
        if problem.scores.is_some() {
            tensors.push(("scores", Extent::Queries(kept)));
        }
        if problem.weights {
            tensors.push(("weights", Extent::Queries(weights)));
        } else {
            let row = budgeted(pitch, limit);
            tensors.push(("scores", Extent::Scratch { row, per_range: false }));
        }
        let mut chunk = Chunk::fit(&shape, limit, problem.batch_invariant, &tensors)?;
        // A sum over ranges of keys is one in f32.
        let sums = chunk.kv < shape.kv_len && features.out != Element::F32;
        if sums {
            let row = u64::from(shape.v_head_dim);
            tensors.push(("sums", Extent::Scratch { row, per_range: false }));
            chunk = Chunk::fit(&shape, limit, problem.batch_invariant, &tensors)?;
        }
        let region = (!problem.weights).then(|| self.to.region());
        let sums = sums.then(|| self.to.region());

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
                kept_batch: stride(kept.strides.batch, batch),
                kept_head: stride(kept.strides.head, heads),
                kept_row: stride(kept.strides.row, rows),
                ..params
            };
            let head_tiles = block.rows() / u64::from(rows) * u64::from(rows.div_ceil(block_m));
            for keys in chunk.kv_ranges(&shape) {
                let params = with_scores(self.params(&block, &keys, &out));
                let mut bound = vec![
                    self.queries(&block, &q),
                    self.keys(&block, &keys, &k),
                    scores_bound.clone(),
                ];
                bound.extend(self.shared(&features, Uses::Keys, &block, &keys));
                let key_tiles = (keys.end - keys.start).div_ceil(block_n);
                let total = head_tiles * u64::from(key_tiles);
                let work = if features.every_tile() {
                    let pairs = u64::from(block_m) * u64::from(block_n);
                    Work::even(total, pairs * score)
                } else {
                    let across = Across::Keys(block_n, key_tiles);
                    Work::of_pairs(total, 0, self.pairs(&block, &keys, block_m, score, across))
                };
                let kernel = |vec4| {
                    let (product, head_dim) = (tuning.product, shape.head_dim);
                    Scores { features: &features, product, head_dim, vec4 }.into()
                };
                self.step(
                    kernel,
                    q.is_vec4() && k.is_vec4(),
                    bound,
                    work,
                    tiled(params, rows, block_m),
                )?;
            }

            let softmax = Softmax {
                features: &features,
                threads: tuning.row_threads,
                product: tuning.product,
                whole_rows: problem.weights,
            };
            let all_keys = 0..shape.kv_len;
            let params = with_scores(self.params(&block, &all_keys, &out));
            let mut bound = vec![scores_bound.clone()];
            bound.extend(self.lse(&block));
            bound.extend(problem.scores.map(|_| self.queries(&block, &kept)));
            bound.extend(self.shared(&features, Uses::Softmax, &block, &all_keys));
            let pairs = self.pairs(&block, &all_keys, 1, weight, Across::Columns(1));
            let zeros = if problem.weights { u64::from(shape.kv_len) * ELEMENT } else { 0 };
            let kept = if problem.scores.is_some() { u64::from(shape.kv_len) * CHANGES } else { 0 };
            let work = Work::of_pairs(block.rows(), zeros + kept, pairs);
            self.step(|_| softmax.clone().into(), false, bound, work, params)?;

            let sum_bytes = block.rows() * u64::from(shape.v_head_dim) * ELEMENT_BYTES;
            let out_element = if sums.is_some() { Element::F32 } else { features.out };
            let summed = Features { out: out_element, ..features.clone() };
            for keys in chunk.kv_ranges(&shape) {
                let params = AttentionParams {
                    accumulate: (keys.start > 0).into(),
                    ..with_scores(self.params(&block, &keys, &out))
                };
                let params = match sums {
                    None => params,
                    Some(_) => to_scratch(params, [heads, rows, shape.v_head_dim]),
                };
                let to = sums.map_or_else(
                    || self.queries(&block, &out),
                    |operand| Bound { operand, bytes: 0..sum_bytes },
                );
                let mut bound = vec![scores_bound.clone(), self.keys(&block, &keys, &v), to];
                bound.extend(self.shared(&features, Uses::Values, &block, &keys));
                let columns = u64::from(shape.v_head_dim.div_ceil(block_n));
                let pairs = self.pairs(&block, &keys, block_m, value, Across::Columns(columns));
                let work = Work::of_pairs(head_tiles * columns, 0, pairs);
                let kernel = |vec4| {
                    let (product, v_head_dim) = (tuning.product, shape.v_head_dim);
                    Values { features: &summed, product, v_head_dim, vec4 }.into()
                };
                self.step(kernel, scores_vec4, bound, work, tiled(params, rows, block_m))?;
            }
            if let Some(operand) = sums {
                let convert = Convert {
                    out: features.out,
                    threads: tuning.row_threads,
                    v_head_dim: shape.v_head_dim,
                };
                let params = self.params(&block, &all_keys, &out);
                let sums = Bound { operand, bytes: 0..sum_bytes };
                let bound = vec![sums, self.queries(&block, &out)];
                let work = Work::even(block.rows(), u64::from(shape.v_head_dim) * 2 * ELEMENT);
                self.step(|_| convert.clone().into(), false, bound, work, params)?;
            }
        }
        Ok(())
    }
}

/// Out is contiguous scratch of the block.
pub(crate) fn to_scratch(
    params: AttentionParams,
    [heads, rows, width]: [u32; 3],
) -> AttentionParams {
    let strides = Strides::bhsd(heads, rows, width);
    AttentionParams {
        out_batch: narrow(strides.batch),
        out_head: narrow(strides.head),
        out_row: narrow(strides.row),
        ..params
    }
}

/// Words of a partial result's lse: m and l.
pub(crate) const LSE_WORDS: u32 = 2;

/// Partial results are contiguous scratch of the block.
pub(crate) fn from_scratch(
    params: AttentionParams,
    [heads, rows, width]: [u32; 3],
) -> AttentionParams {
    let (out, lse) = (Strides::bhsd(heads, rows, width), Strides::bhsd(heads, rows, LSE_WORDS));
    AttentionParams {
        partial_out_batch: narrow(out.batch),
        partial_out_head: narrow(out.head),
        partial_out_row: narrow(out.row),
        partial_lse_batch: narrow(lse.batch),
        partial_lse_head: narrow(lse.head),
        partial_lse_row: narrow(lse.row),
        ..params
    }
}
