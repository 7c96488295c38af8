//! The steps before an attention: gathering small inputs into one table, and classifying tiles.

use crate::blocks::{Block, Chunk};
use crate::dropout::DropoutMask;
use crate::error::PlanError;
use crate::forward::{AttentionPlanner, Views};
use crate::kernels::{Classify, Gather, GatherParams, Kernel, TABLE_THREADS, Uses};
use crate::mask::Diagonal;
use crate::operand::Operand;
use crate::plan::{Bound, REGION_ALIGNMENT};
use crate::planner::Planner;
use crate::problem::{Lengths, Problem, Slopes};
use crate::uniforms::{narrow, tiled};
use crate::work::{CHANGES, ELEMENT, Work};
use std::ops::Range;

/// Where the small inputs lie in the table, in words.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tables {
    region: Option<Operand>,
    pub(crate) sequences_at: u32,
    pub(crate) rows_at: u32,
    pub(crate) slopes_at: u32,
    pub(crate) sinks_at: u32,
    pub(crate) pages_at: u32,
    pub(crate) seed_at: u32,
    pub(crate) classes: Classes,
    words: u64,
}

/// The classes of tiles.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Classes {
    pub(crate) at: u32,
    /// Words of the largest block.
    pub(crate) words: u64,
    /// The caller gave them.
    given: bool,
}

impl Tables {
    /// All of it, to be read.
    pub(crate) fn bound(&self) -> Bound {
        Bound { operand: self.region.expect("gathered"), bytes: 0..self.words * 4 }
    }

    /// The part before the classes, to be read while they are written.
    fn bound_without_classes(&self) -> Bound {
        let words = if self.classes.words > 0 { self.classes.at.into() } else { self.words };
        Bound { bytes: 0..words * 4, ..self.bound() }
    }
}

/// Words of a seed.
const SEED_WORDS: u64 = 2;

/// Fewer queries than this do not repay a look at every pair before the look at every pair.
const CLASSIFY_FROM: u32 = 16;

impl AttentionPlanner<'_, '_> {
    /// Gathers what kernels with these uses need. `classes`: words of classes, and whether a caller gives them.
    pub(crate) fn gather(
        &mut self,
        uses: Uses,
        classes: Option<(u64, bool)>,
    ) -> Result<Tables, PlanError> {
        let (problem, shape) = (self.problem, self.shape);
        if !self.features.binds_tables(uses) && classes.is_none() {
            return Ok(Tables::default());
        }
        let region = Some(self.to.region());
        let mut tables = Tables { region, ..Tables::default() };
        let packed = problem.lengths == Lengths::Packed;
        let of = |asked: bool, n: u64| if asked { n } else { 0 };
        let sequences = of(problem.has_sequences(), problem.shape.batch.into());
        let rows = of(packed, shape.q_len.into());
        let slopes = match problem.alibi {
            None => 0,
            Some(Slopes::PerHead) => shape.heads.into(),
            Some(Slopes::PerSequence) => u64::from(problem.shape.batch) * u64::from(shape.heads),
        };
        let sinks = of(problem.sinks, shape.heads.into());
        let attends = matches!(uses, Uses::Staged | Uses::Fused);
        let pages = problem.pages.filter(|_| attends).map_or(0, |pages| {
            u64::from(problem.shape.batch) * u64::from(pages.table_len(shape.kv_len))
        });
        let seeded = self.features.dropout == Some(DropoutMask::Seeded);
        let seed = of(attends && seeded, SEED_WORDS);
        let (class_words, given) = classes.unwrap_or_default();
        let mut words = 0;
        let mut place = |n: u64| {
            let at = words;
            words += n;
            at
        };
        let starts = [sequences * 8, rows, slopes, sinks, pages, seed].map(&mut place);
        // The classes are bound apart while they are written.
        let class_at = words.next_multiple_of(REGION_ALIGNMENT / 4);
        words = if class_words > 0 { class_at + class_words } else { words };
        let (bytes, limit) = (words.saturating_mul(4), self.to.limit());
        if bytes > limit.bytes() {
            return Err(limit.exceeded("the table of small inputs".to_owned(), bytes));
        }
        [
            tables.sequences_at,
            tables.rows_at,
            tables.slopes_at,
            tables.sinks_at,
            tables.pages_at,
            tables.seed_at,
        ] = starts.map(narrow);
        tables.words = words;
        tables.classes = Classes { at: narrow(class_at), words: class_words, given };

        let (q_lens, kv_lens) = match problem.lengths {
            Lengths::PerSequence { q, kv } => (q, kv),
            _ => (false, false),
        };
        let gather = Gather {
            q_lens,
            kv_lens,
            packed,
            diag_offsets: problem.mask.diagonal == Diagonal::PerSequence,
            slopes: slopes > 0,
            sinks: sinks > 0,
            pages: pages > 0,
            block_mask: given,
            seed: seed > 0,
        };
        let cu_seqlens = u64::from(problem.shape.batch) + 1;
        let bound = |gather: Gather| {
            let inputs = [
                (Operand::QLens, sequences, gather.q_lens),
                (Operand::KvLens, sequences, gather.kv_lens),
                (Operand::CuSeqlensQ, cu_seqlens, gather.packed),
                (Operand::CuSeqlensK, cu_seqlens, gather.packed),
                (Operand::DiagOffsets, sequences, gather.diag_offsets),
                (Operand::AlibiSlopes, slopes, gather.slopes),
                (Operand::Sinks, sinks, gather.sinks),
                (Operand::BlockTable, pages, gather.pages),
                (Operand::BlockMask, class_words, gather.block_mask),
                (Operand::Seed, seed, gather.seed),
            ];
            let given = inputs.into_iter().filter(|(.., is_given)| *is_given);
            let table = std::iter::once(tables.bound());
            given
                .map(|(operand, words, _)| Bound { operand, bytes: 0..words * 4 })
                .chain(table)
                .collect::<Vec<_>>()
        };
        let invocations = [sequences, rows, slopes, sinks, pages, of(given, class_words), seed];
        let invocations = invocations.into_iter().max().unwrap_or(0);
        if invocations == 0 {
            return Ok(tables);
        }
        let mask = problem.mask;
        let params = GatherParams {
            sequences: narrow(sequences),
            rows: narrow(rows),
            slopes: narrow(slopes),
            sinks: narrow(sinks),
            pages: narrow(pages),
            classes: narrow(of(given, class_words)),
            seed_words: narrow(seed),
            q_len: shape.q_len,
            kv_len: shape.kv_len,
            sequences_at: tables.sequences_at,
            rows_at: tables.rows_at,
            slopes_at: tables.slopes_at,
            sinks_at: tables.sinks_at,
            pages_at: tables.pages_at,
            classes_at: tables.classes.at,
            seed_at: tables.seed_at,
            diagonal: match mask.diagonal {
                Diagonal::Offset(offset) => offset,
                _ => 0,
            },
            bottom_right: (mask.diagonal == Diagonal::BottomRight).into(),
            left: mask.left.unwrap_or(0),
            right: mask.right.unwrap_or(0).saturating_add(1),
            last_page: problem.pages.map_or(0, |pages| pages.pages - 1),
            open: u32::from(mask.left.is_none()) | u32::from(mask.right.is_none()) << 1,
            ..GatherParams::default()
        };
        // Where a kernel cannot bind the seed too, another brings it.
        let most = self.to.capabilities.limits.max_storage_buffers_per_shader_stage as usize;
        let apart = gather.seed && bound(gather).len() > most;
        let first = Gather { seed: gather.seed && !apart, ..gather };
        self.gather_step(first, bound(first), invocations, params)?;
        if apart {
            let alone = Gather { seed: true, ..Gather::default() };
            let params = GatherParams { sequences: 0, ..params };
            self.gather_step(alone, bound(alone), seed, params)?;
        }
        Ok(tables)
    }

    fn gather_step(
        &mut self,
        gather: Gather,
        bound: Vec<Bound>,
        invocations: u64,
        params: GatherParams,
    ) -> Result<(), PlanError> {
        let total = invocations.div_ceil(TABLE_THREADS.into());
        // Of some words, and the search for a row's sequence.
        let work = Work::even(total, u64::from(TABLE_THREADS) * 16 * ELEMENT);
        let kernel = |_| Kernel::from(gather);
        self.to.step(kernel, false, bound, work, |workgroups, grid_width| {
            bytemuck::bytes_of(&GatherParams { workgroups, grid_width, ..params }).to_vec()
        })
    }

    /// Gathers what the fused kernel needs, classes of tiles among it where these are worth it.
    pub(crate) fn plan_tables(&mut self, chunk: Chunk) -> Result<(), PlanError> {
        let shape = self.shape;
        let blocks = || chunk.blocks(&shape);
        let ranges = || chunk.kv_ranges(&shape);
        let one = blocks().nth(1).is_none() && ranges().len() == 1;
        let words = blocks()
            .flat_map(|block| ranges().map(move |keys| (block.clone(), keys)))
            .map(|(block, keys)| self.class_extents(&block, &keys).into_iter().product())
            .max()
            .unwrap_or(0);
        let wanted = self.features.hides_pairs()
            && (shape.q_len >= CLASSIFY_FROM || self.problem.block_mask);
        // What the caller gave is of the whole problem.
        let given = self.problem.block_mask && one;
        // Classes take at most half of a table.
        if wanted && words > 0 && words < self.to.limit().bytes() / 8 {
            let mark = self.to.mark();
            match self.gather(Uses::Fused, Some((words, given))) {
                Ok(tables) => {
                    self.features.classes = true;
                    self.tables = tables;
                    return Ok(());
                }
                // Without classes the table may fit.
                Err(_) => self.to.rewind(mark),
            }
        }
        self.tables = self.gather(Uses::Fused, None)?;
        Ok(())
    }

    /// Whether classes differ by sequence and by head.
    fn class_axes(&self) -> [bool; 2] {
        let pairs = self.problem.boolean_mask.map(|mask| mask.pairs);
        let pairs = pairs.into_iter().chain(self.problem.bias.map(|bias| bias.pairs));
        let exact = |axis: usize| pairs.clone().any(|pairs| pairs.axes[axis] != 1);
        let function = self.problem.mask_function.is_some();
        [exact(0) || function || self.problem.has_sequences(), exact(1) || function]
    }

    /// Sequences, heads, tiles of queries and tiles of keys that a block's classes tell apart.
    fn class_extents(&self, block: &Block, keys: &Range<u32>) -> [u64; 4] {
        let [batch, heads, rows] = block.counts();
        let [by_batch, by_head] = self.class_axes();
        let (block_q, block_kv) =
            self.tuning.class_tile(self.shape.head_dim, self.shape.v_head_dim);
        [
            if by_batch { batch.into() } else { 1 },
            if by_head { heads.into() } else { 1 },
            rows.div_ceil(block_q).into(),
            (keys.end - keys.start).div_ceil(block_kv).into(),
        ]
    }

    /// Strides of the classes by sequence, head and tile of queries.
    pub(crate) fn class_strides(&self, block: &Block, keys: &Range<u32>) -> [u32; 3] {
        if !self.features.classes {
            return [0; 3];
        }
        let [batch, heads, q_tiles, kv_tiles] = self.class_extents(block, keys);
        let stride = |n: u64, stride: u64| if n > 1 { narrow(stride) } else { 0 };
        [
            stride(batch, heads * q_tiles * kv_tiles),
            stride(heads, q_tiles * kv_tiles),
            narrow(kv_tiles),
        ]
    }

    /// Classifies the tiles of a block and a range of keys, unless the caller did.
    pub(crate) fn classify(&mut self, block: &Block, keys: &Range<u32>) -> Result<(), PlanError> {
        let Classes { at, given, .. } = self.tables.classes;
        if !self.features.classes || given {
            return Ok(());
        }
        let first = u64::from(at) * 4;
        let operand = self.tables.bound().operand;
        self.classify_into(block, keys, operand, first)
    }

    /// `first`: where the classes start, in bytes of the operand.
    fn classify_into(
        &mut self,
        block: &Block,
        keys: &Range<u32>,
        operand: Operand,
        first: u64,
    ) -> Result<(), PlanError> {
        let (block_q, block_kv) =
            self.tuning.class_tile(self.shape.head_dim, self.shape.v_head_dim);
        let extents = self.class_extents(block, keys);
        let total: u64 = extents.into_iter().product();
        let Views { out, .. } = *self.views;
        let mut params = self.params(block, keys, &out);
        [params.classes_batch, params.classes_head, params.classes_row] =
            self.class_strides(block, keys);
        let mut bound = vec![Bound { operand, bytes: first..first + total * 4 }];
        let features = self.features.clone();
        let shared = self.shared(&features, Uses::Pairs, block, keys);
        bound.extend(shared.into_iter().map(|bound| match bound.operand {
            Operand::Workspace(_) => self.tables.bound_without_classes(),
            _ => bound,
        }));
        let classify = Classify { features: &features, block_q, block_kv };
        // The kernel walks the classes, not the block: an axis of one stands for all.
        let [batch, heads, ..] = extents.map(narrow);
        let params = crate::kernels::AttentionParams { batch, heads, ..params };
        let [_, _, rows] = block.counts();
        let params = tiled(params, rows, block_q);
        let pairs = u64::from(block_q) * u64::from(block_kv);
        let work = Work::even(total, pairs * CHANGES);
        self.step(|_| classify.clone().into(), false, bound, work, params)
    }
}

impl Planner<'_> {
    /// Appends the steps that classify all tiles of a problem into the block mask.
    pub(crate) fn block_mask(&mut self, problem: &Problem) -> Result<(), PlanError> {
        crate::Algorithm::Auto.check(problem)?;
        let views = Views::of(problem);
        // A block mask is of the tiles that a problem with one gets, whatever it would get without.
        let with_mask = problem.clone().with_block_mask();
        let mut task = AttentionPlanner::new(self, &with_mask, &views);
        let shape = task.shape;
        if !task.features.hides_pairs() {
            return Err(crate::ProblemError::NothingHidden.into());
        }
        if shape.batch == 0 || shape.q_len == 0 || shape.kv_len == 0 {
            return Ok(());
        }
        task.tables = task.gather(Uses::Pairs, None)?;
        task.features.classes = true;
        let limit = task.to.limit();
        let chunk = Chunk::fit(&shape, limit, false, &task.pair_extents(false))?;
        let (blocks, keys) = (chunk.blocks(&shape).collect::<Vec<_>>(), 0..shape.kv_len);
        let whole = blocks.first().filter(|_| blocks.len() == 1 && chunk.kv >= shape.kv_len);
        let Some(block) = whole else {
            let (name, bytes) = task.largest_pairs(limit.bytes());
            return Err(limit.exceeded(format!("{name} for a block mask"), bytes));
        };
        let words: u64 = task.class_extents(block, &keys).into_iter().product();
        if words.saturating_mul(4) > limit.bytes() {
            return Err(limit.exceeded("block_mask".to_owned(), words.saturating_mul(4)));
        }
        task.classify_into(block, &keys, Operand::BlockMask, 0)
    }
}
