//! Cuts a problem into blocks whose tensors each fit one binding.

use crate::error::PlanError;
use crate::layout::Strides;
use crate::operand::Operand;
use crate::pages::Pages;
use crate::pairs::Pairs;
use crate::shape::Shape;
use std::ops::Range;

/// Keys are cut at multiples of this, so that every kernel's tiles stay whole.
pub(crate) const KEY_TILE: u32 = 64;

/// A tensor of rank 4 as it lies in an operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct View {
    pub(crate) operand: Operand,
    /// Where its first element is, in bytes.
    pub(crate) base_bytes: u64,
    pub(crate) strides: Strides,
    /// Elements of the innermost axis.
    pub(crate) dim: u32,
    /// Bits of one element. Where elements come in blocks, so do rows.
    pub(crate) element_bits: u64,
}

/// Bytes of an f32, and of a word of anything else.
pub(crate) const ELEMENT_BYTES: u64 = 4;

impl View {
    /// Where the block's part lies, in bytes of the operand.
    pub(crate) fn bytes(
        &self,
        batch: &Range<u32>,
        heads: &Range<u32>,
        rows: &Range<u32>,
    ) -> Range<u64> {
        let s = self.strides;
        let first = u64::from(batch.start) * s.batch
            + u64::from(heads.start) * s.head
            + u64::from(rows.start) * s.row;
        let start = self.base_bytes + first * self.element_bits / 8;
        start..start + self.extent_bytes(len(batch), len(heads), len(rows))
    }

    fn extent_bytes(&self, batch: u32, heads: u32, rows: u32) -> u64 {
        let extent = self.strides.extent(batch, heads, rows, self.dim);
        extent.and_then(|n| n.checked_mul(self.element_bits)).map_or(u64::MAX, |bits| bits / 8)
    }

    /// Whether rows can be read four elements at a time, wherever the operand's start allows it.
    pub(crate) fn is_vec4(&self) -> bool {
        let s = self.strides;
        [s.batch, s.head, s.row, self.dim.into(), 8 * self.base_bytes / self.element_bits]
            .iter()
            .all(|n| n.is_multiple_of(4))
    }
}

/// A mask or a bias as it lies in an operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PairView {
    pub(crate) operand: Operand,
    pub(crate) pairs: Pairs,
    /// Bits of one element.
    pub(crate) bits: u64,
}

/// Elements of a tensor of bits that 32 bits can count are in as many bytes.
const MOST_BIT_BYTES: u64 = 1 << 28;

impl PairView {
    /// Where the block's part lies, in bytes of the operand, and how many elements after that it starts.
    pub(crate) fn bytes(&self, block: &Block, keys: &Range<u32>) -> (Range<u64>, u64) {
        let first =
            self.pairs.index([block.batch.start, block.heads.start, block.q.start, keys.start]);
        let first_bit = first * self.bits;
        // Whole words of bits; bytes and more start where they are.
        let unit = if self.bits < 8 { 32 } else { 8 };
        let start = first_bit / unit * unit;
        let [batch, heads, rows] = block.counts();
        let bits =
            self.pairs.extent([batch, heads, rows, len(keys)]).expect("validated") * self.bits;
        (start / 8..(first_bit + bits).div_ceil(8), (first_bit - start) / self.bits)
    }

    /// Bytes of a part with these extents, as one of which the limit is a binding's.
    pub(crate) fn extent_bytes(&self, part: [u32; 4], limit: u64) -> u64 {
        let elements = self.pairs.extent(part).unwrap_or(u64::MAX);
        let bytes = elements.saturating_mul(self.bits).div_ceil(8);
        if self.bits >= 8 {
            return bytes;
        }
        // A word more where the part starts within one.
        let bytes = bytes.saturating_add(4);
        if bytes > MOST_BIT_BYTES { bytes.max(limit.saturating_add(1)) } else { bytes }
    }
}

fn len(range: &Range<u32>) -> u32 {
    range.end - range.start
}

/// A part of a problem, by ranges of its axes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Block {
    pub(crate) batch: Range<u32>,
    pub(crate) heads: Range<u32>,
    pub(crate) q: Range<u32>,
    group_size: u32,
}

impl Block {
    pub(crate) fn kv_heads(&self) -> Range<u32> {
        self.heads.start / self.group_size..self.heads.end.div_ceil(self.group_size)
    }

    pub(crate) fn counts(&self) -> [u32; 3] {
        [len(&self.batch), len(&self.heads), len(&self.q)]
    }

    /// Query rows of all its heads and sequences.
    pub(crate) fn rows(&self) -> u64 {
        self.counts().into_iter().map(u64::from).product()
    }
}

/// How much of each axis a block takes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    batch: u32,
    heads: u32,
    q: u32,
    pub(crate) kv: u32,
    /// Sequences are parted before anything else is: what is cut then does not depend on how many there are.
    batch_first: bool,
}

/// How much of a tensor one binding may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BindingLimit {
    /// Bytes of a binding.
    pub(crate) available: u64,
    /// Bytes that the start of a slice may lie past what it is aligned down to.
    pub(crate) reserve: u64,
}

impl BindingLimit {
    /// Bytes that a tensor may take.
    pub(crate) fn bytes(self) -> u64 {
        self.available - self.reserve
    }

    /// That `what` takes more, in the device's terms.
    pub(crate) fn exceeded(self, what: String, bytes: u64) -> PlanError {
        PlanError::LimitExceeded {
            what,
            limit: "max_storage_buffer_binding_size",
            required: bytes.saturating_add(self.reserve),
            available: self.available,
        }
    }
}

/// Which axes a tensor has, and its size.
pub(crate) enum Extent {
    /// Indexed by batch, head and query.
    Queries(View),
    /// Indexed by batch, key/value head and key.
    Keys(View),
    /// Indexed by page, key/value head and position.
    Pool { view: View, pages: Pages },
    /// Indexed by batch, head, query and key: of a range of keys, or of all.
    Pairs { view: PairView, all_keys: bool },
    /// The block's own, f32 elements a query row; for results over ranges of keys, of each range.
    Scratch { row: u64, per_range: bool },
    /// No tensor: the keys that one workgroup walks.
    Walk { most: u32 },
}

/// Of the axes that can be cut, the one with the largest stride.
fn widest<const N: usize>(axes: [(u64, bool, Axis); N]) -> Option<Axis> {
    axes.into_iter()
        .filter(|(_, divisible, _)| *divisible)
        .max_by_key(|(stride, ..)| *stride)
        .map(|(.., axis)| axis)
}

#[derive(Clone, Copy)]
enum Axis {
    Batch,
    Heads,
    Q,
    Kv,
}

impl Chunk {
    /// The largest blocks of `shape` of which each named tensor fits a binding.
    pub(crate) fn fit(
        shape: &Shape,
        limit: BindingLimit,
        batch_first: bool,
        tensors: &[(&'static str, Extent)],
    ) -> Result<Self, PlanError> {
        let mut chunk = Self { batch_first, ..Self::whole(shape) };
        loop {
            let too_large = tensors
                .iter()
                .map(|(name, extent)| (name, extent, chunk.bytes(shape, extent, limit.bytes())))
                .find(|(_, _, bytes)| *bytes > limit.bytes());
            let Some((name, extent, required)) = too_large else { return Ok(chunk) };
            let Some(axis) = chunk.outermost(shape, extent) else {
                let what = match extent {
                    Extent::Keys(_) | Extent::Pairs { all_keys: false, .. } => {
                        format!("one key tile of {name}")
                    }
                    Extent::Pool { .. } => format!("the pool of {name}"),
                    _ => format!("one row of {name}"),
                };
                return Err(limit.exceeded(what, required));
            };
            chunk.halve(axis, shape.group_size());
        }
    }

    /// All of `shape` at once.
    pub(crate) fn whole(shape: &Shape) -> Self {
        Self {
            batch: shape.batch.max(1),
            heads: shape.heads,
            q: shape.q_len.max(1),
            kv: shape.kv_len.max(1),
            batch_first: false,
        }
    }

    fn kv_heads(&self, group_size: u32) -> u32 {
        self.heads.div_ceil(group_size)
    }

    fn bytes(&self, shape: &Shape, extent: &Extent, limit: u64) -> u64 {
        match extent {
            Extent::Queries(view) => view.extent_bytes(self.batch, self.heads, self.q),
            Extent::Keys(view) => {
                view.extent_bytes(self.batch, self.kv_heads(shape.group_size()), self.kv)
            }
            Extent::Pool { view, pages } => {
                let kv_heads = self.kv_heads(shape.group_size());
                view.extent_bytes(pages.pages, kv_heads, pages.page_len)
            }
            Extent::Pairs { view, all_keys } => {
                let keys = if *all_keys { shape.kv_len } else { self.kv };
                view.extent_bytes([self.batch, self.heads, self.q, keys], limit)
            }
            Extent::Walk { most } => {
                if self.kv > *most {
                    limit.saturating_add(1)
                } else {
                    0
                }
            }
            Extent::Scratch { row, per_range } => {
                let ranges = if *per_range { shape.kv_len.div_ceil(self.kv) } else { 1 };
                [self.batch, self.heads, self.q, ranges]
                    .into_iter()
                    .fold(row * ELEMENT_BYTES, |bytes, n| bytes.saturating_mul(n.into()))
            }
        }
    }

    /// The axis that is worth cutting: the one with the largest stride of those that can be cut.
    fn outermost(&self, shape: &Shape, extent: &Extent) -> Option<Axis> {
        let walked = matches!(extent, Extent::Walk { .. });
        if self.batch_first && self.batch > 1 && !walked {
            return Some(Axis::Batch);
        }
        let axes = match extent {
            Extent::Walk { .. } => return (self.kv > KEY_TILE).then_some(Axis::Kv),
            Extent::Pairs { view, all_keys } => {
                let [batch, heads, rows, keys] = view.pairs.strides;
                let cut =
                    |stride: u64, divisible: bool, axis| (stride, divisible && stride > 0, axis);
                let axes = [
                    cut(batch, self.batch > 1, Axis::Batch),
                    cut(heads, self.heads > 1, Axis::Heads),
                    cut(rows, self.q > 1, Axis::Q),
                    cut(keys, !all_keys && self.kv > KEY_TILE, Axis::Kv),
                ];
                return widest(axes);
            }
            Extent::Queries(view) => [
                (view.strides.batch, self.batch > 1, Axis::Batch),
                (view.strides.head, self.heads > 1, Axis::Heads),
                (view.strides.row, self.q > 1, Axis::Q),
            ],
            Extent::Keys(view) => [
                (view.strides.batch, self.batch > 1, Axis::Batch),
                (view.strides.head, self.kv_heads(shape.group_size()) > 1, Axis::Heads),
                (view.strides.row, self.kv > KEY_TILE, Axis::Kv),
            ],
            // Heads apart are worth a binding only where they lie apart.
            Extent::Pool { view, pages } => {
                let s = view.strides;
                let outermost =
                    s.head >= s.batch.max(s.row) || pages.pages.max(pages.page_len) == 1;
                let divisible = outermost && self.kv_heads(shape.group_size()) > 1;
                return divisible.then_some(Axis::Heads);
            }
            Extent::Scratch { .. } => [
                (2, self.batch > 1, Axis::Batch),
                (1, self.heads > 1, Axis::Heads),
                (0, self.q > 1, Axis::Q),
            ],
        };
        widest(axes)
    }

    fn halve(&mut self, axis: Axis, group_size: u32) {
        let tiles = |n: u32| {
            if n > KEY_TILE { (n / 2).next_multiple_of(KEY_TILE) } else { n.div_ceil(2) }
        };
        match axis {
            Axis::Batch => self.batch = self.batch.div_ceil(2),
            // Whole groups of heads that share keys, as long as there are several.
            Axis::Heads if self.heads > group_size => {
                self.heads = (self.heads / group_size).div_ceil(2) * group_size;
            }
            Axis::Heads => self.heads = self.heads.div_ceil(2),
            Axis::Q => self.q = tiles(self.q),
            Axis::Kv => self.kv = tiles(self.kv),
        }
    }

    /// The blocks of `shape`, each with all its keys.
    pub(crate) fn blocks(self, shape: &Shape) -> impl Iterator<Item = Block> {
        let shape = *shape;
        let group_size = shape.group_size();
        // A block that takes less than a group of heads never reaches into the next group.
        let (outer, inner) = if self.heads < group_size {
            (group_size, self.heads)
        } else {
            (self.heads, self.heads)
        };
        cut(0..shape.batch, self.batch).flat_map(move |batch| {
            cut(0..shape.heads, outer).flat_map(move |group| cut(group, inner)).flat_map(
                move |heads| {
                    let batch = batch.clone();
                    cut(0..shape.q_len, self.q).map(move |q| Block {
                        batch: batch.clone(),
                        heads: heads.clone(),
                        q,
                        group_size,
                    })
                },
            )
        })
    }

    /// The ranges of keys that are bound at once.
    pub(crate) fn kv_ranges(self, shape: &Shape) -> impl ExactSizeIterator<Item = Range<u32>> {
        cut(0..shape.kv_len, self.kv)
    }
}

fn cut(range: Range<u32>, size: u32) -> impl ExactSizeIterator<Item = Range<u32>> {
    let Range { start, end } = range;
    (0..(end - start).div_ceil(size)).map(move |i| {
        let first = start + i * size;
        first..end.min(first.saturating_add(size))
    })
}
