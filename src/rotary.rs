//! Rotary position embedding: pairs of elements turned by angles that grow with the position.

use crate::error::{Error, ProblemError};
use crate::layout::Strides;
use crate::shape::{DType, MAX_LEN, Shape};

mod plan;

pub(crate) use plan::row_work;

/// Which two elements of a row are turned together, of `r` that are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RotaryPairs {
    /// `i` and `i + r / 2`, as in Llama and GPT-NeoX.
    HalfSplit,
    /// `2 i` and `2 i + 1`, as in GPT-J and in the paper.
    Interleaved,
}

/// `x' = x cos - y sin` and `y' = y cos + x sin` for every pair `(x, y)` of a row, computed in f32. Of a row's elements
/// the first `dim` are turned, the others stay.
///
/// Pair `i` of a row at position `p` is turned by the angle of which `cos[p, i]` and `sin[p, i]` are given, so that any
/// scaling of the angles is a matter of the tables. A position past the tables counts as their last; where lengths are
/// in host memory, it is an error. See [RoFormer](https://arxiv.org/abs/2104.09864).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Rotary {
    /// Which elements make a pair.
    pub pairs: RotaryPairs,
    /// Elements of a row that are turned: even.
    pub dim: u32,
    /// Positions of the tables, which are `[positions, dim / 2]` f32.
    pub positions: u32,
}

impl Rotary {
    /// Turns the first `dim` elements, by tables of so many positions.
    pub const fn new(pairs: RotaryPairs, dim: u32, positions: u32) -> Self {
        Self { pairs, dim, positions }
    }

    /// The usual tables: cosines and sines of `p base^(-2 i / dim)`.
    ///
    /// ```
    /// use wgpu_attention::{Rotary, RotaryPairs};
    ///
    /// let rotary = Rotary::new(RotaryPairs::HalfSplit, 64, 4096);
    /// let (cos, sin) = rotary.tables(10_000.0);
    /// assert_eq!((cos.len(), sin.len()), (4096 * 32, 4096 * 32));
    /// assert_eq!((cos[0], sin[0]), (1.0, 0.0));
    /// ```
    pub fn tables(&self, base: f64) -> (Vec<f32>, Vec<f32>) {
        let frequency = |i: u32| base.powf(-2.0 * f64::from(i) / f64::from(self.dim));
        let angles = (0..self.positions)
            .flat_map(|p| (0..self.dim / 2).map(move |i| f64::from(p) * frequency(i)));
        #[allow(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
        angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip()
    }

    /// Checks everything that can be checked of rows `head_dim` wide.
    pub(crate) fn validate(&self, head_dim: u32) -> Result<(), ProblemError> {
        let Self { dim, positions, .. } = *self;
        if dim == 0 || !dim.is_multiple_of(2) || dim > head_dim {
            return Err(ProblemError::RotaryDim { dim, head_dim });
        }
        match positions {
            0 => Err(ProblemError::EmptyAxis { axis: "positions" }),
            1..=MAX_LEN => Ok(()),
            len => Err(ProblemError::TooLong { axis: "positions", len, max: MAX_LEN }),
        }
    }

    /// Elements of each table.
    pub(crate) fn table_len(&self) -> u64 {
        u64::from(self.positions) * u64::from(self.dim / 2)
    }

    /// Whether four neighbours of a row have four neighbours as partners, or are their own.
    pub(crate) fn is_vec4(&self) -> bool {
        self.pairs == RotaryPairs::Interleaved || self.dim.is_multiple_of(8)
    }

    /// The elements that make pair `i`.
    #[cfg(feature = "cpu")]
    pub(crate) fn pair(&self, i: u32) -> [usize; 2] {
        let [x, y] = match self.pairs {
            RotaryPairs::HalfSplit => [i, i + self.dim / 2],
            RotaryPairs::Interleaved => [2 * i, 2 * i + 1],
        };
        [x as usize, y as usize]
    }

    /// That a sequence whose last row stands at `pos` is within the tables.
    pub(crate) fn check_pos(&self, index: usize, pos: u64) -> Result<(), Error> {
        let positions = self.positions;
        if pos >= positions.into() {
            return Err(Error::PastTables { index, pos, positions });
        }
        Ok(())
    }
}

/// Turns rows into another tensor: `out[b, h, i]` is `x[b, h, i]` turned by position `pos_offsets[b] + i`.
///
/// For queries before attention: of a decoding step, `kv_lens` as it was before [`Append`](crate::Append) is what
/// `pos_offsets` has to be, or `kv_lens` as it is afterwards of one that is [`counted`](Self::counted).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct RotaryEmbedding {
    /// How rows are turned.
    pub rotary: Rotary,
    /// Sequences.
    pub batch: u32,
    /// Heads of a sequence.
    pub heads: u32,
    /// Rows of a head.
    pub len: u32,
    /// Elements of a row.
    pub head_dim: u32,
    /// Storage type of x.
    pub dtype: DType,
    /// Storage type of out.
    pub out_dtype: DType,
    /// Strides of x.
    pub x: Strides,
    /// Strides of out.
    pub out: Strides,
    /// `pos_offsets` are given; without them row `i` stands at position `i`.
    pub offsets: bool,
    /// `pos_offsets` count the rows already.
    pub counted: bool,
    /// `new_lens` are given; without them every sequence has `len` rows.
    pub new_lens: bool,
}

/// What a [`RotaryEmbedding`] turns, in host memory.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "filled in by field name, with ..Default::default()")]
pub struct RotaryInputs<'a> {
    /// `[batch, heads, len, head_dim]`.
    pub x: &'a [f32],
    /// `[positions, rotary_dim / 2]`.
    pub cos: &'a [f32],
    /// `[positions, rotary_dim / 2]`.
    pub sin: &'a [f32],
    /// `[batch]`, where the embedding has offsets.
    pub pos_offsets: &'a [u32],
    /// `[batch]`, where the embedding has them: rows of each sequence.
    pub new_lens: &'a [u32],
}

impl RotaryEmbedding {
    /// Turns the queries of `shape`: f32, contiguous `[batch, heads, q_len, head_dim]`, from position 0 on.
    pub const fn new(rotary: Rotary, shape: Shape) -> Self {
        let Shape { batch, heads, q_len, head_dim, .. } = shape;
        let strides = Strides::bhsd(heads, q_len, head_dim);
        Self {
            rotary,
            batch,
            heads,
            len: q_len,
            head_dim,
            dtype: DType::F32,
            out_dtype: DType::F32,
            x: strides,
            out: strides,
            offsets: false,
            counted: false,
            new_lens: false,
        }
    }

    /// Sets the storage type of x and out.
    #[must_use]
    pub const fn dtype(self, dtype: DType) -> Self {
        Self { dtype, out_dtype: dtype, ..self }
    }

    /// Sets the storage type of out.
    #[must_use]
    pub const fn out_dtype(self, out_dtype: DType) -> Self {
        Self { out_dtype, ..self }
    }

    /// Sets the strides of x.
    #[must_use]
    pub const fn x_strides(self, x: Strides) -> Self {
        Self { x, ..self }
    }

    /// Sets the strides of out.
    #[must_use]
    pub const fn out_strides(self, out: Strides) -> Self {
        Self { out, ..self }
    }

    /// Row 0 of each sequence stands where `pos_offsets` says.
    #[must_use]
    pub const fn with_offsets(self) -> Self {
        Self { offsets: true, ..self }
    }

    /// `pos_offsets` say where each sequence ends: row `i` stands at `pos_offsets[b] - len + i`. They may be `kv_lens` of
    /// after an [`Append`](crate::Append), so that all layers share them. A row before position 0 is turned as if it
    /// stood there.
    #[must_use]
    pub const fn counted(self) -> Self {
        Self { offsets: true, counted: true, ..self }
    }

    /// As [`counted`](Self::counted), of sequences that have as many rows as `new_lens` says: row `i` stands at
    /// `pos_offsets[b] - new_lens[b] + i`.
    #[must_use]
    pub const fn counted_by_new_lens(self) -> Self {
        Self { new_lens: true, ..self.counted() }
    }

    /// Checks everything that can be checked without a device.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), ProblemError> {
        let Self { batch, heads, len, head_dim, .. } = *self;
        for (axis, extent) in [("heads", heads), ("head_dim", head_dim)] {
            if extent == 0 {
                return Err(ProblemError::EmptyAxis { axis });
            }
        }
        for (axis, len) in [("len", len), ("head_dim", head_dim)] {
            if len > MAX_LEN {
                return Err(ProblemError::TooLong { axis, len, max: MAX_LEN });
            }
        }
        self.rotary.validate(head_dim)?;
        for (tensor, strides, dtype) in
            [("x", self.x, self.dtype), ("out", self.out, self.out_dtype)]
        {
            if dtype.is_quantised() {
                return Err(ProblemError::Quantised { tensor, dtype });
            }
            check_reach(tensor, strides, [batch, heads, len, head_dim], dtype)?;
        }
        if !self.out.is_injective(batch, heads, len, head_dim) {
            return Err(ProblemError::OverlappingRows { tensor: "out", strides: self.out });
        }
        Ok(())
    }

    /// Checks positions that are known, of sequences that have all of their rows.
    ///
    /// # Errors
    /// [`Error::PastTables`]; [`Error::NotCounted`] where rows would stand before position 0.
    pub fn check_offsets(&self, pos_offsets: &[u32]) -> Result<(), Error> {
        if self.counted {
            return self.check_counted(pos_offsets, &[]);
        }
        let last = u64::from(self.len.saturating_sub(1));
        let from_zero =
            vec![0; if self.offsets || self.len == 0 { 0 } else { self.batch as usize }];
        let offsets = if self.offsets && self.len > 0 { pos_offsets } else { &from_zero };
        let mut sequences = offsets.iter().enumerate();
        sequences.try_for_each(|(b, first)| self.rotary.check_pos(b, u64::from(*first) + last))
    }
}

impl RotaryEmbedding {
    /// Checks offsets that count rows; without `new_lens`, as many as there are.
    pub(crate) fn check_counted(&self, ends: &[u32], new_lens: &[u32]) -> Result<(), Error> {
        for (index, end) in ends.iter().copied().enumerate() {
            let new_len = new_lens.get(index).copied().unwrap_or(self.len);
            if new_len > self.len {
                let (found, max) = (new_len, self.len);
                return Err(Error::LengthTooLarge { tensor: "new_lens", index, found, max });
            }
            if new_len > end {
                return Err(Error::NotCounted { index, kv_len: end, new_len });
            }
            if new_len > 0 {
                self.rotary.check_pos(index, u64::from(end) - 1)?;
            }
        }
        Ok(())
    }
}

/// That a tensor ends before 2^63 bytes.
pub(crate) fn check_reach(
    tensor: &'static str,
    strides: Strides,
    [batch, heads, len, dim]: [u32; 4],
    dtype: DType,
) -> Result<(), ProblemError> {
    let bytes = strides.extent(batch, heads, len, dim).and_then(|n| dtype.bytes_of(n));
    if bytes.is_none_or(|bytes| bytes > i64::MAX.unsigned_abs()) {
        return Err(ProblemError::Unaddressable { tensor });
    }
    Ok(())
}
