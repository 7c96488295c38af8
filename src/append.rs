//! New keys and values into a cache, at the positions that sequences have reached.

use crate::error::{Error, ProblemError};
use crate::layout::Strides;
use crate::pages::Pages;
use crate::problem::Problem;
use crate::rotary::{Rotary, check_reach};
use crate::shape::{DType, MAX_LEN, Shape};
use crate::validate::whole_blocks;

mod plan;

/// `k[b, kv_lens[b] + i] = k_new[b, i]`, the same of v, and `kv_lens[b]` grows by the rows appended, all on the device:
/// bound once, it may be encoded for every token.
///
/// Rows take the cache's type as they are written, keys of a [`Rotary`] are turned by their positions before. A sequence
/// is appended whole or not at all: where some of its new rows have no place, because the cache is full or because the
/// block table names no page of the pool there (any number that is none, such as -1), nothing of it is written, its
/// length stays, and `append_status` says how many of its rows have none.
///
/// ```
/// use wgpu_attention::{Append, Attention, Problem, Rotary, RotaryPairs, Shape, Tensors, wgpu};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (device, _queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
/// # let attention = Attention::new(&device);
/// # let buffer = |elements: u64| device.create_buffer(&wgpu::BufferDescriptor {
/// #     label: None,
/// #     size: elements * 4,
/// #     usage: wgpu::BufferUsages::STORAGE,
/// #     mapped_at_creation: false,
/// # });
/// # let (k, v) = (buffer(4 * 8 * 256 * 64), buffer(4 * 8 * 256 * 64));
/// # let (k_new, v_new, kv_lens, status) = (buffer(4 * 8 * 64), buffer(4 * 8 * 64), buffer(4), buffer(4));
/// # let (cos, sin) = (buffer(256 * 32), buffer(256 * 32));
/// # let mut encoder = device.create_command_encoder(&Default::default());
/// // 4 sequences of up to 256 positions; 32 query heads on 8; one token at a time.
/// let shape = Shape::cross_attention(4, 32, 1, 256, 64).with_kv_heads(8);
/// let problem = Problem::new(shape).with_lengths(false, true);
/// let rotary = Rotary::new(RotaryPairs::HalfSplit, 64, 256);
/// let plan = attention.plan_append(&Append::to_cache_of(&problem).with_rotary(rotary))?;
///
/// let cache = Tensors::default().k(k.slice(..)).v(v.slice(..)).kv_lens(kv_lens.slice(..));
/// let rows = cache.k_new(k_new.slice(..)).v_new(v_new.slice(..)).append_status(status.slice(..));
/// let dispatch = attention.bind(&plan, &rows.cos(cos.slice(..)).sin(sin.slice(..)))?;
/// for _token in 0..3 {
///     // What fills `k_new` and `v_new` before, and attention over the cache after, is recorded here too.
///     dispatch.encode(&mut encoder);
/// }
/// # Ok(()) }
/// ```
///
/// Nothing is ever written past the capacity or outside of a sequence's own rows. Of caches in pages, no two
/// sequences may be about to write to the same page: prefixes may be shared, what is written may not.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Append {
    /// Sequences.
    pub batch: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Elements of a key.
    pub head_dim: u32,
    /// Elements of a value.
    pub v_head_dim: u32,
    /// New rows of a sequence, at most.
    pub new_len: u32,
    /// Positions that a sequence may have.
    pub capacity: u32,
    /// Storage type of the new rows.
    pub dtype: DType,
    /// Storage type of the cache.
    pub kv_dtype: DType,
    /// Strides of `k_new`.
    pub k_new: Strides,
    /// Strides of `v_new`.
    pub v_new: Strides,
    /// Strides of k.
    pub k: Strides,
    /// Strides of v.
    pub v: Strides,
    /// The cache lies in pages.
    pub pages: Option<Pages>,
    /// How keys are turned.
    pub rotary: Option<Rotary>,
    /// `new_lens` are given; without them every sequence has `new_len` rows.
    pub new_lens: bool,
    /// `kv_lens` count the new rows already.
    pub counted: bool,
}

/// A cache in host memory and what is appended to it. What an [`Append`] does not ask for is left empty.
///
/// Tensors are f32 whatever their storage type: what uploads them rounds them.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "filled in by field name, with ..Default::default()")]
pub struct AppendInputs<'a> {
    /// `[batch, new_len, kv_heads, head_dim]`.
    pub k_new: &'a [f32],
    /// `[batch, new_len, kv_heads, v_head_dim]`.
    pub v_new: &'a [f32],
    /// `[batch, capacity, kv_heads, head_dim]`, or `[pages, page_len, kv_heads, head_dim]`.
    pub k: &'a [f32],
    /// The same with `v_head_dim`.
    pub v: &'a [f32],
    /// `[batch]`: positions that are taken.
    pub kv_lens: &'a [u32],
    /// `[batch]`: new rows of each sequence.
    pub new_lens: &'a [u32],
    /// `[batch]`, of a [counted](Append::counted) append: a sequence of which it is not 0 is left as it is. Empty: all 0.
    pub append_status: &'a [u32],
    /// `[batch, ceil(capacity / page_len)]`.
    pub block_table: &'a [u32],
    /// `[positions, rotary_dim / 2]`.
    pub cos: &'a [f32],
    /// `[positions, rotary_dim / 2]`.
    pub sin: &'a [f32],
}

impl Append {
    /// To the cache of attention with `shape`: its `q_len` is the number of new rows, its `kv_len` the capacity. All f32,
    /// contiguous `[batch, len, kv_heads, dim]`.
    pub const fn new(shape: Shape) -> Self {
        let Shape { batch, kv_heads, q_len, kv_len, head_dim, v_head_dim, .. } = shape;
        Self {
            batch,
            kv_heads,
            head_dim,
            v_head_dim,
            new_len: q_len,
            capacity: kv_len,
            dtype: DType::F32,
            kv_dtype: DType::F32,
            k_new: Strides::bshd(kv_heads, q_len, head_dim),
            v_new: Strides::bshd(kv_heads, q_len, v_head_dim),
            k: Strides::bshd(kv_heads, kv_len, head_dim),
            v: Strides::bshd(kv_heads, kv_len, v_head_dim),
            pages: None,
            rotary: None,
            new_lens: false,
            counted: false,
        }
    }

    /// To the cache that `problem` reads: its type, strides and pages.
    pub const fn to_cache_of(problem: &Problem) -> Self {
        Self {
            kv_dtype: problem.kv_dtype,
            k: problem.k,
            v: problem.v,
            pages: problem.pages,
            ..Self::new(problem.shape)
        }
    }

    /// Sets the storage type of the new rows.
    #[must_use]
    pub const fn dtype(self, dtype: DType) -> Self {
        Self { dtype, ..self }
    }

    /// Sets the storage type of the cache.
    #[must_use]
    pub const fn kv_dtype(self, kv_dtype: DType) -> Self {
        Self { kv_dtype, ..self }
    }

    /// Sets the strides of `k_new` and `v_new`.
    #[must_use]
    pub const fn new_strides(self, k_new: Strides, v_new: Strides) -> Self {
        Self { k_new, v_new, ..self }
    }

    /// Sets the strides of k and v.
    #[must_use]
    pub const fn cache_strides(self, k: Strides, v: Strides) -> Self {
        Self { k, v, ..self }
    }

    /// The cache is a pool, k `[pages, page_len, kv_heads, head_dim]` and v the same with `v_head_dim`; `block_table`
    /// says which page holds which positions. As [`Problem::with_pages`].
    #[must_use]
    pub const fn with_pages(self, pages: Pages) -> Self {
        let Self { kv_heads, head_dim, v_head_dim, .. } = self;
        Self {
            pages: Some(pages),
            k: Strides::bshd(kv_heads, pages.page_len, head_dim),
            v: Strides::bshd(kv_heads, pages.page_len, v_head_dim),
            ..self
        }
    }

    /// Keys are turned by their positions.
    #[must_use]
    pub const fn with_rotary(self, rotary: Rotary) -> Self {
        Self { rotary: Some(rotary), ..self }
    }

    /// Sequences have as many new rows as `new_lens` says.
    #[must_use]
    pub const fn with_new_lens(self) -> Self {
        Self { new_lens: true, ..self }
    }

    /// `kv_lens` count the new rows already, because another append has advanced them: row `i` of `n` goes to
    /// `kv_lens[b] - n + i`, and no length grows. `append_status` is that append's: a sequence of which it is not 0 is
    /// left as it is, as it was there.
    ///
    /// So layers that share their lengths append: the first advances them, the others are counted.
    ///
    /// ```
    /// use wgpu_attention::{Append, Attention, Layout, Mask, Problem, Rotary, RotaryEmbedding};
    /// use wgpu_attention::{RotaryPairs, Shape, Tensors, wgpu};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
    /// # let attention = Attention::new(&device);
    /// # let buffer = |elements: u64| device.create_buffer(&wgpu::BufferDescriptor {
    /// #     label: None,
    /// #     size: elements * 4,
    /// #     usage: wgpu::BufferUsages::STORAGE,
    /// #     mapped_at_creation: false,
    /// # });
    /// // 4 sequences of up to 256 positions, one new token of each; 3 layers that share `kv_lens` and `append_status`.
    /// let shape = Shape::cross_attention(4, 32, 1, 256, 64).with_kv_heads(8);
    /// let problem = Problem::new(shape).layout(Layout::Bshd).mask(Mask::CAUSAL).with_lengths(false, true);
    /// let rotary = Rotary::new(RotaryPairs::HalfSplit, 64, 256);
    /// let first = Append::to_cache_of(&problem).with_rotary(rotary);
    /// let appends = [attention.plan_append(&first)?, attention.plan_append(&first.counted())?];
    /// // Queries are turned after the append, in every layer alike.
    /// let turning = RotaryEmbedding::new(rotary, shape).x_strides(problem.q).out_strides(problem.q).counted();
    /// let (turn, attend) = (attention.plan_rotary(&turning)?, attention.plan(&problem)?);
    ///
    /// # let (kv_lens, status, cos, sin) = (buffer(4), buffer(4), buffer(256 * 32), buffer(256 * 32));
    /// # let (q, k_new, v_new, turned, out) = (buffer(8192), buffer(2048), buffer(2048), buffer(8192), buffer(8192));
    /// # let caches = [(); 3].map(|()| [(); 2].map(|()| buffer(4 * 8 * 256 * 64)));
    /// let mut layers = Vec::new();
    /// for (layer, [k, v]) in caches.iter().enumerate() {
    ///     let tables = Tensors::default().cos(cos.slice(..)).sin(sin.slice(..));
    ///     let cache = Tensors::default().k(k.slice(..)).v(v.slice(..)).kv_lens(kv_lens.slice(..));
    ///     let rows = cache.clone().k_new(k_new.slice(..)).v_new(v_new.slice(..));
    ///     let rows = rows.append_status(status.slice(..)).cos(cos.slice(..)).sin(sin.slice(..));
    ///     let queries = tables.x(q.slice(..)).out(turned.slice(..)).pos_offsets(kv_lens.slice(..));
    ///     layers.push([
    ///         attention.bind(&appends[layer.min(1)], &rows)?,
    ///         attention.bind(&turn, &queries)?,
    ///         attention.bind(&attend, &cache.q(turned.slice(..)).out(out.slice(..)))?,
    ///     ]);
    /// }
    /// let mut encoder = device.create_command_encoder(&Default::default());
    /// for _token in 0..3 {
    ///     for steps in &layers {
    ///         // What fills `q`, `k_new` and `v_new` of this layer is recorded here.
    ///         steps.iter().for_each(|step| step.encode(&mut encoder));
    ///     }
    /// }
    /// queue.submit([encoder.finish()]);
    /// # Ok(()) }
    /// ```
    ///
    /// Where a length is less than `n`, or a page is missing, nothing is written either, and `append_status` says how
    /// many rows have no place.
    #[must_use]
    pub const fn counted(self) -> Self {
        Self { counted: true, ..self }
    }

    /// Whether another append has refused sequence `b`.
    #[cfg(feature = "runner")]
    pub(crate) fn is_refused(&self, inputs: &AppendInputs<'_>, b: u32) -> bool {
        self.counted && inputs.append_status.get(b as usize).is_some_and(|status| *status != 0)
    }

    /// Sequences, or pages, of the cache, and positions of each.
    pub(crate) fn cache_extents(&self) -> (u32, u32) {
        self.pages.map_or((self.batch, self.capacity), |pages| (pages.pages, pages.page_len))
    }

    /// Entries of a sequence's row of the block table.
    pub(crate) fn table_row(&self) -> u32 {
        self.pages.map_or(0, |pages| pages.table_len(self.capacity))
    }

    /// Checks everything that can be checked without a device.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), ProblemError> {
        let Self { batch, kv_heads, head_dim, v_head_dim, new_len, capacity, .. } = *self;
        let [pages, page_len] = self.pages.map_or([1, 1], |pages| [pages.pages, pages.page_len]);
        for (axis, extent) in [
            ("kv_heads", kv_heads),
            ("head_dim", head_dim),
            ("v_head_dim", v_head_dim),
            ("pages", pages),
            ("page_len", page_len),
        ] {
            if extent == 0 {
                return Err(ProblemError::EmptyAxis { axis });
            }
        }
        for (axis, len, max) in [
            ("capacity", capacity, MAX_LEN),
            ("new_len", new_len, capacity),
            ("head_dim", head_dim, MAX_LEN),
            ("v_head_dim", v_head_dim, MAX_LEN),
            ("pages", pages, MAX_LEN),
            ("page_len", page_len, MAX_LEN),
        ] {
            if len > max {
                return Err(ProblemError::TooLong { axis, len, max });
            }
        }
        if let Some(rotary) = self.rotary {
            rotary.validate(head_dim)?;
        }
        if self.dtype.is_quantised() {
            return Err(ProblemError::Quantised { tensor: "k_new", dtype: self.dtype });
        }
        whole_blocks(self.kv_dtype, [self.head_dim, self.v_head_dim], [self.k, self.v])?;
        let (cache_batch, cache_len) = self.cache_extents();
        for (tensor, strides, [batch, len, dim], dtype) in [
            ("k_new", self.k_new, [batch, new_len, head_dim], self.dtype),
            ("v_new", self.v_new, [batch, new_len, v_head_dim], self.dtype),
            ("k", self.k, [cache_batch, cache_len, head_dim], self.kv_dtype),
            ("v", self.v, [cache_batch, cache_len, v_head_dim], self.kv_dtype),
        ] {
            check_reach(tensor, strides, [batch, kv_heads, len, dim], dtype)?;
        }
        for (tensor, strides, dim) in [("k", self.k, head_dim), ("v", self.v, v_head_dim)] {
            if !strides.is_injective(cache_batch, kv_heads, cache_len, dim) {
                return Err(ProblemError::OverlappingRows { tensor, strides });
            }
        }
        Ok(())
    }

    /// Checks lengths that are known before anything is written: `kv_lens` `[batch]` and, where the append has them,
    /// `new_lens` `[batch]`.
    ///
    /// # Errors
    /// [`Error::Length`]: of a slice that is not `[batch]`; [`Error::LengthTooLarge`]: of an entry of `new_lens`;
    /// [`Error::CacheFull`]: a sequence has no room; [`Error::NotCounted`]: of a counted append, a length is less than
    /// the new rows; [`Error::PastTables`]: the rotary tables end before it.
    pub fn check_lens(&self, kv_lens: &[u32], new_lens: Option<&[u32]>) -> Result<(), Error> {
        self.check_all_lens(kv_lens, new_lens, |_| false)
    }

    /// As `check_lens`, but of sequences that another append has refused.
    pub(crate) fn check_all_lens(
        &self,
        kv_lens: &[u32],
        new_lens: Option<&[u32]>,
        is_refused: impl Fn(usize) -> bool,
    ) -> Result<(), Error> {
        let Self { batch, new_len, capacity, .. } = *self;
        for (tensor, lens) in [("kv_lens", Some(kv_lens)), ("new_lens", new_lens)] {
            let needed = if lens.is_some() || self.new_lens { u64::from(batch) } else { 0 };
            let actual = lens.map_or(0, |lens| lens.len() as u64);
            if actual != needed {
                return Err(Error::Length { tensor: tensor.into(), required: needed, actual });
            }
        }
        for (index, kv_len) in kv_lens.iter().copied().enumerate() {
            let found = new_lens.map_or(new_len, |lens| lens[index]);
            if found > new_len {
                let tensor = "new_lens";
                return Err(Error::LengthTooLarge { tensor, index, found, max: new_len });
            }
            if is_refused(index) {
                continue;
            }
            let kv_len = if self.counted {
                let not_counted = Error::NotCounted { index, kv_len, new_len: found };
                kv_len.checked_sub(found).ok_or(not_counted)?
            } else {
                kv_len
            };
            let len = u64::from(kv_len) + u64::from(found);
            if len > capacity.into() {
                return Err(Error::CacheFull { index, kv_len, new_len: found, capacity });
            }
            if let Some(rotary) = self.rotary.filter(|_| found > 0) {
                rotary.check_pos(index, len - 1)?;
            }
        }
        Ok(())
    }
}
