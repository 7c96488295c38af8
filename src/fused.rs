//! The steps of the fused kernels.

use crate::blocks::{Block, Chunk, ELEMENT_BYTES, Extent};
use crate::error::PlanError;
use crate::forward::{AttentionPlanner, Views};
use crate::kernels::{AttentionParams, Element, Features, Kernel, Merge, Uses};
use crate::operand::Operand;
use crate::plan::{Algorithm, Bound};
use crate::problem::Lengths;
use crate::splits::{self, Launch};
use crate::staged::{LSE_WORDS, budgeted, from_scratch, to_scratch};
use crate::tuning::Tuning;
use crate::uniforms::{narrow, tiled};
use crate::work::{Across, CHANGES, ELEMENT, Pairs, SOFTMAX, Work, most_keys};
use std::ops::Range;

/// Keys of a range where results are not to depend on how many there are.
const INVARIANT_KEYS: u32 = 1024;

/// A fused kernel and how much of a problem a workgroup of it takes.
#[derive(Clone, Copy, Debug)]
struct Form {
    /// Rows of a workgroup: of one head, or of all that share a key/value head.
    rows: u32,
    shares_keys: bool,
    /// Workgroups that share the same rows by columns of out.
    slices: u64,
    /// Keys of a workgroup at most; `None` for all.
    range_keys: Option<u32>,
}

impl Form {
    /// Workgroups that go over one range of a block's keys.
    fn workgroups(&self, block: &Block) -> u64 {
        let [batch, heads, rows] = block.counts();
        let kv_heads = block.kv_heads().end - block.kv_heads().start;
        let (heads, rows) =
            if self.shares_keys { (kv_heads, rows * (heads / kv_heads)) } else { (heads, rows) };
        let tiles = u64::from(rows.div_ceil(self.rows));
        u64::from(batch) * u64::from(heads) * tiles * self.slices
    }

    /// Rows of a block that tiles are counted of.
    fn tiled_rows(&self, block: &Block) -> u32 {
        let [_, heads, rows] = block.counts();
        let kv_heads = block.kv_heads().end - block.kv_heads().start;
        if self.shares_keys { rows * (heads / kv_heads) } else { rows }
    }

    fn kernel(&self, tuning: &Tuning, features: &Features, dims: [u32; 2], vec4: bool) -> Kernel {
        let ranges = self.range_keys.is_some();
        if self.shares_keys {
            tuning.decode_kernel(features, dims, self.rows, ranges, vec4)
        } else {
            tuning.flash_kernel(features, dims[0], dims[1], ranges, vec4)
        }
    }

    /// Into how many ranges a workgroup's keys are split.
    fn splits(&self, keys: &Range<u32>) -> u32 {
        self.range_keys.map_or(1, |n| (keys.end - keys.start).div_ceil(n))
    }
}

/// Where partial results are.
#[derive(Clone, Copy)]
struct Partial {
    out: Operand,
    lse: Operand,
    parts: u32,
}

impl AttentionPlanner<'_, '_> {
    /// A fused kernel; where the keys come in ranges, partial results and their merge.
    pub(crate) fn fused(&mut self, algorithm: Algorithm) -> Result<(), PlanError> {
        let (problem, shape) = (self.problem, self.shape);
        let Views { q, k, v, out, .. } = *self.views;
        let limit = self.to.limit();
        let tuning = self.tuning.for_rows(shape.q_len, &self.features);
        let dims = [shape.head_dim, shape.v_head_dim];
        let form = self.form(algorithm, &tuning);
        let (widths, pair) = (self.widths(form.slices), self.pair(form.slices));
        let mut tensors = self.extents(false);
        if form.range_keys.is_none() {
            tensors.extend(self.walk(form.rows, pair));
        }
        let batch_first = problem.batch_invariant;
        let mut chunk = Chunk::fit(&shape, limit, batch_first, &tensors)?;
        if chunk.kv < shape.kv_len || form.range_keys.is_some() {
            // What is bound at once has whole ranges, and one more where it ends within one.
            let splits = match form.range_keys {
                Some(_) => form.splits(&(0..shape.kv_len)) + shape.kv_len.div_ceil(chunk.kv) - 1,
                None => 1,
            };
            let row =
                budgeted(u64::from(shape.v_head_dim.max(LSE_WORDS)) * u64::from(splits), limit);
            let per_range = form.range_keys.is_none();
            tensors.push(("partial results", Extent::Scratch { row, per_range }));
            chunk = Chunk::fit(&shape, limit, batch_first, &tensors)?;
            if let Some(range_keys) =
                form.range_keys.filter(|n| chunk.kv > *n && chunk.kv < shape.kv_len)
            {
                // Ranges are the same however much is bound at once.
                chunk.kv = chunk.kv / range_keys * range_keys;
            }
        }
        let ranges: Vec<_> = chunk.kv_ranges(&shape).collect();
        let parts = ranges.iter().map(|keys| form.splits(keys)).sum();
        let partial = (ranges.len() > 1 || form.range_keys.is_some()).then(|| Partial {
            out: self.to.region(),
            lse: self.to.region(),
            parts,
        });
        if form.shares_keys {
            // So few rows are seen soonest by looking.
            self.tables = self.gather(Uses::Fused, None)?;
        } else {
            self.plan_tables(chunk)?;
        }
        let features = Features {
            lse: problem.lse || partial.is_some(),
            sums: partial.is_some(),
            // Sinks join where all keys are together; partial results are f32.
            sinks: self.features.sinks && partial.is_none(),
            out: if partial.is_some() { Element::F32 } else { self.features.out },
            ..self.features.clone()
        };
        let kernel_name = form.kernel(&tuning, &features, dims, false).name;
        for block in chunk.blocks(&shape) {
            let [_, heads, rows] = block.counts();
            let out_part = block.rows() * u64::from(shape.v_head_dim);
            let lse_part = block.rows() * u64::from(LSE_WORDS);
            let mut part = 0;
            for keys in &ranges {
                if !form.shares_keys {
                    self.classify(&block, keys)?;
                }
                let splits = form.splits(keys);
                let mut params = self.params(&block, keys, &out);
                let mut bound = vec![
                    self.queries(&block, &q),
                    self.keys(&block, keys, &k),
                    self.keys(&block, keys, &v),
                ];
                let aligned = q.is_vec4() && k.is_vec4() && v.is_vec4();
                let vec4 = if let Some(partial) = partial {
                    params = to_scratch(params, [heads, rows, shape.v_head_dim]);
                    (params.lse_batch, params.lse_head) =
                        (heads * rows * LSE_WORDS, rows * LSE_WORDS);
                    let slots = |operand, size: u64| {
                        let at = |part: u32| u64::from(part) * size * ELEMENT_BYTES;
                        Bound { operand, bytes: at(part)..at(part + splits) }
                    };
                    bound.push(slots(partial.out, out_part));
                    bound.push(slots(partial.lse, lse_part));
                    part += splits;
                    aligned && shape.v_head_dim.is_multiple_of(4)
                } else {
                    bound.push(self.queries(&block, &out));
                    bound.extend(self.lse(&block));
                    aligned && out.is_vec4()
                };
                (params.ranges, params.range_keys) = (splits, form.range_keys.unwrap_or(0));
                params.classes_at = self.tables.classes.at;
                [params.classes_batch, params.classes_head, params.classes_row] =
                    self.class_strides(&block, keys);
                bound.extend(self.shared(&features, Uses::Fused, &block, keys));
                let kernel = |vec4| form.kernel(&tuning, &features, dims, vec4);
                let once = u64::from(form.rows) * widths * ELEMENT;
                let workgroups = form.workgroups(&block);
                let work = if let Some(range_keys) = form.range_keys {
                    let seen = u64::from(range_keys.min(keys.end - keys.start));
                    let pairs = seen * u64::from(form.rows) * pair;
                    Work::even(workgroups * u64::from(splits), once + pairs)
                } else if form.shares_keys {
                    let pairs = u64::from(keys.end - keys.start) * u64::from(form.rows) * pair;
                    Work::even(workgroups, once + pairs)
                } else {
                    let across = Across::Columns(form.slices);
                    let pairs = self.pairs(&block, keys, form.rows, pair, across);
                    let pairs = Pairs { last_first: kernel_name == "flash_tile", ..pairs };
                    Work::of_pairs(workgroups, once, pairs)
                };
                let params = tiled(params, form.tiled_rows(&block), form.rows);
                self.step(kernel, vec4, bound, work, params)?;
            }
            if let Some(partial) = partial {
                self.merge(&block, partial)?;
            }
        }
        Ok(())
    }

    /// Columns of a key and of what a workgroup takes of a value.
    fn widths(&self, slices: u64) -> u64 {
        u64::from(self.shape.head_dim) + u64::from(self.shape.v_head_dim).div_ceil(slices)
    }

    /// Work of a pair.
    fn pair(&self, slices: u64) -> u64 {
        let changes = if self.features.changes() { CHANGES } else { 0 };
        2 * self.widths(slices) + SOFTMAX + changes
    }

    /// Which kernel, and whether it is over ranges of keys.
    fn form(&self, algorithm: Algorithm, tuning: &Tuning) -> Form {
        let (problem, shape) = (self.problem, self.shape);
        let [head_dim, v_head_dim] = [shape.head_dim, shape.v_head_dim];
        let (rows, slices) = tuning.flash_block(head_dim, v_head_dim);
        let flash = Form { rows, shares_keys: false, slices, range_keys: None };
        let asked = problem.splits.map(|n| splits::keys_of(shape.kv_len, n));
        // However many ranges are asked for: nothing can cut a workgroup's walk.
        let most = most_keys(self.to.capabilities.class, u64::from(rows) * self.pair(slices));
        let fewer = |form: Form, range_keys: u32| {
            let range_keys = range_keys.min(most);
            Form { range_keys: (range_keys < shape.kv_len).then_some(range_keys), ..form }
        };
        if algorithm == Algorithm::Flash {
            return flash;
        }
        if problem.batch_invariant {
            // One range is merged as several are: the same sums, however many keys there are.
            let range_keys = asked.unwrap_or(INVARIANT_KEYS).min(most);
            return Form { range_keys: Some(range_keys), ..flash };
        }
        // Rows of packed sequences share no keys.
        let together = shape.q_len.saturating_mul(shape.group_size());
        let few = match problem.lengths {
            Lengths::Packed => None,
            _ => tuning.decode_rows(&self.features, [head_dim, v_head_dim], together),
        };
        let form =
            few.map_or(flash, |rows| Form { rows, shares_keys: true, slices: 1, range_keys: None });
        let all = Chunk::whole(&shape).blocks(&shape).next();
        let workgroups = all.map_or(0, |block| form.workgroups(&block));
        let growing = matches!(problem.lengths, Lengths::PerSequence { kv: true, .. });
        let launch = Launch { workgroups, kv_len: shape.kv_len, growing };
        let cores = self.to.capabilities.cores;
        fewer(form, asked.unwrap_or_else(|| splits::range_keys(launch, cores)))
    }

    /// The partial results of a block into one, sinks last.
    fn merge(&mut self, block: &Block, partial: Partial) -> Result<(), PlanError> {
        let Partial { parts, .. } = partial;
        let (v_head_dim, all_keys) = (self.shape.v_head_dim, 0..self.shape.kv_len);
        let out_part = block.rows() * u64::from(v_head_dim);
        let lse_part = block.rows() * u64::from(LSE_WORDS);
        let ([_, heads, rows], out) = (block.counts(), self.views.out);
        let params = AttentionParams {
            partial_out_part: narrow(out_part),
            partial_lse_part: narrow(lse_part),
            parts,
            ..from_scratch(self.params(block, &all_keys, &out), [heads, rows, v_head_dim])
        };
        let whole = |operand, size: u64| Bound {
            operand,
            bytes: 0..u64::from(parts) * size * ELEMENT_BYTES,
        };
        let mut bound = vec![
            whole(partial.out, out_part),
            whole(partial.lse, lse_part),
            self.queries(block, &out),
        ];
        bound.extend(self.lse(block));
        let all = self.features.clone();
        bound.extend(self.shared(&all, Uses::Sinks, block, &all_keys));
        let threads = self.tuning.row_threads;
        let merge =
            Merge { features: &all, partial: Element::F32, sums: true, threads, v_head_dim };
        let elements = u64::from(parts) * u64::from(v_head_dim);
        let work = Work::even(block.rows(), elements * ELEMENT + u64::from(parts) * SOFTMAX);
        self.step(|_| merge.clone().into(), false, bound, work, params)
    }
}
