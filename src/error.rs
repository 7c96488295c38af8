//! Every way a call can fail, one enum a stage.

use crate::layout::Strides;
use crate::shape::DType;
use std::borrow::Cow;
use thiserror::Error;

/// The problem itself is ill-formed.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum ProblemError {
    /// An axis that may not be empty is.
    #[error("{axis} is zero")]
    EmptyAxis {
        /// Which.
        axis: &'static str,
    },
    /// Query heads cannot be shared evenly.
    #[error("kv_heads ({kv_heads}) does not divide heads ({heads})")]
    UngroupedHeads {
        /// Query heads.
        heads: u32,
        /// Key/value heads.
        kv_heads: u32,
    },
    /// An axis is longer than positions are computed for.
    #[error("{axis} ({len}) is more than {max}")]
    TooLong {
        /// Which.
        axis: &'static str,
        /// Asked for.
        len: u32,
        /// Largest.
        max: u32,
    },
    /// The scale is NaN or infinite.
    #[error("scale ({scale}) is not finite")]
    Scale {
        /// Asked for.
        scale: f32,
    },
    /// The soft cap is not a positive number.
    #[error("softcap ({softcap}) is not finite and above 0")]
    Softcap {
        /// Asked for.
        softcap: f32,
    },
    /// The dropout probability is out of range.
    #[error("dropout ({p}) is not in [0, 1)")]
    Dropout {
        /// Asked for.
        p: f32,
    },
    /// A sliding window of no key.
    #[error("a sliding window counts the token itself: its width is at least 1, not 0")]
    EmptyWindow,
    /// Heads do not share the width of the model evenly.
    #[error("heads ({heads}) does not divide model_dim ({model_dim})")]
    UnevenHeads {
        /// Width of an input vector.
        model_dim: u32,
        /// Query heads.
        heads: u32,
    },
    /// Self-attention with other lengths of queries and keys.
    #[error("self-attention has as many keys as queries, not q_len {q_len} and kv_len {kv_len}")]
    UnevenLengths {
        /// Queries.
        q_len: u32,
        /// Keys.
        kv_len: u32,
    },
    /// One packed matrix for queries of one sequence and keys of another.
    #[error("w_qkv cannot be packed where keys and values come from a context")]
    PackedContext,
    /// Strides reach past what 64 bits address.
    #[error("the strides of {tensor} reach past 2^63 bytes")]
    Unaddressable {
        /// Which.
        tensor: &'static str,
    },
    /// An axis of a mask or bias is neither that of the problem nor 1.
    #[error("{tensor}: {axis} is {found}, needed is {needed} or 1")]
    Broadcast {
        /// Which.
        tensor: &'static str,
        /// Its axis.
        axis: &'static str,
        /// The problem's extent.
        needed: u32,
        /// Given.
        found: u32,
    },
    /// Masks and biases of pairs have no place in packed sequences.
    #[error("{what} cannot be given for packed sequences")]
    PackedPairs {
        /// Which.
        what: &'static str,
    },
    /// A block mask for a problem in which nothing hides a pair.
    #[error("a block mask needs a boolean mask, a bias or a mask function to stand for")]
    NothingHidden,
    /// A buffer of a function has a name that is no identifier, or one of the kernels' own.
    #[error("a buffer cannot be called {buffer:?}")]
    BufferName {
        /// Its name.
        buffer: String,
    },
    /// Two functions declare one buffer with two types.
    #[error("buffer {buffer} is declared as array<{}> and as array<{}>", elements[0], elements[1])]
    BufferTypes {
        /// Its name.
        buffer: String,
        /// The element types.
        elements: [&'static str; 2],
    },
    /// Blocks that share a scale hold keys and values only.
    #[error("{tensor} cannot be {dtype:?}: only k and v can")]
    Quantised {
        /// Which.
        tensor: &'static str,
        /// Asked for.
        dtype: DType,
    },
    /// A row would start or end within a block that shares a scale.
    #[error("{what} ({found}) is no multiple of the 32 elements of a block of {dtype:?}")]
    PartOfBlock {
        /// Axis or stride.
        what: &'static str,
        /// Asked for.
        dtype: DType,
        /// Asked for.
        found: u64,
    },
    /// A gradient that there is not.
    #[error("no gradient of {what}: {why}")]
    NoGradient {
        /// Of what.
        what: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// A rotary embedding that does not turn whole pairs of a row.
    #[error("rotary_dim ({dim}) is no even number from 2 to head_dim ({head_dim})")]
    RotaryDim {
        /// Asked for.
        dim: u32,
        /// Elements of a row.
        head_dim: u32,
    },
    /// An output's strides would write one place twice.
    #[error("rows of {tensor} overlap: strides of {} (batch), {} (head), {} (row) elements", strides.batch, strides.head, strides.row)]
    OverlappingRows {
        /// Which.
        tensor: &'static str,
        /// Asked for.
        strides: Strides,
    },
}

/// The problem is sound but this device, or this version, cannot run it.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum PlanError {
    /// See [`ProblemError`].
    #[error(transparent)]
    Problem(#[from] ProblemError),
    /// An option that no kernel implements yet.
    #[error("{what} is not supported yet")]
    NotSupported {
        /// Which.
        what: &'static str,
    },
    /// The algorithm asked for cannot give an output asked for.
    #[error("{algorithm} does not give {what}")]
    AlgorithmLacks {
        /// Asked for.
        algorithm: &'static str,
        /// What it lacks.
        what: &'static str,
    },
    /// A limit of the device is too small.
    #[error("{what} needs {limit} >= {required}, the device has {available}")]
    LimitExceeded {
        /// Kernel or tensor.
        what: String,
        /// Field of [`wgpu::Limits`].
        limit: &'static str,
        /// Needed.
        required: u64,
        /// Offered.
        available: u64,
    },
    /// A caller's WGSL does not compile.
    #[error("{name}, line {line}: {message}")]
    Wgsl {
        /// The function's name, or the kernel's file that does not go with it.
        name: String,
        /// Line of its text, from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// More workgroups than 32 bits count.
    #[error("{kernel} needs {required} workgroups, at most {available} can be counted")]
    TooManyWorkgroups {
        /// Kernel.
        kernel: &'static str,
        /// Needed.
        required: u64,
        /// Countable.
        available: u64,
    },
}

/// The caller's buffers do not fit the plan.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum BindError {
    /// The plan needs a buffer that was not given.
    #[error("{tensor} is missing")]
    Missing {
        /// Which.
        tensor: Cow<'static, str>,
    },
    /// A buffer was given that the plan does not use.
    #[error("{tensor} was given, but the plan does not use it")]
    Unused {
        /// Which.
        tensor: Cow<'static, str>,
    },
    /// A slice is too small.
    #[error("{tensor} is {actual} bytes, the problem needs {required}")]
    TooSmall {
        /// Which.
        tensor: Cow<'static, str>,
        /// Needed.
        required: u64,
        /// Given.
        actual: u64,
    },
    /// A buffer lacks a usage.
    #[error("{tensor} was created without {missing:?}")]
    MissingUsage {
        /// Which.
        tensor: Cow<'static, str>,
        /// What is missing.
        missing: wgpu::BufferUsages,
    },
    /// A slice starts inside an element.
    #[error("{tensor} starts at byte {offset}, not a multiple of its element's {alignment}")]
    Misaligned {
        /// Which.
        tensor: Cow<'static, str>,
        /// Given.
        offset: u64,
        /// Needed.
        alignment: u64,
    },
    /// An output shares bytes with another operand.
    #[error("{output} overlaps {other}")]
    Overlap {
        /// The output.
        output: Cow<'static, str>,
        /// The other operand.
        other: Cow<'static, str>,
    },
    /// A buffer that is bound whole is larger than a binding.
    #[error(
        "{tensor} needs max_storage_buffer_binding_size >= {required}, the device has {available}"
    )]
    BindingTooLarge {
        /// Which.
        tensor: Cow<'static, str>,
        /// Needed.
        required: u64,
        /// Offered.
        available: u64,
    },
    /// A buffer that `bind` would create is larger than the device allows.
    #[error("{what} needs max_buffer_size >= {required}, the device has {available}")]
    BufferTooLarge {
        /// Which.
        what: Cow<'static, str>,
        /// Needed.
        required: u64,
        /// Offered.
        available: u64,
    },
}

/// Reading a result back failed.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum DownloadError {
    /// The device refused to map the buffer.
    #[error("mapping the download buffer failed: {0}")]
    Map(String),
    /// The encoder was dropped before it was submitted.
    #[error("the encoder was never submitted")]
    NotSubmitted,
    /// The bytes are not a whole number of elements.
    #[error("{bytes} bytes are not a whole number of {element}-byte elements")]
    Element {
        /// Downloaded.
        bytes: u64,
        /// Size of the element asked for.
        element: u64,
    },
}

/// Any of the above, and what a whole run can meet besides.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// The problem.
    #[error(transparent)]
    Problem(#[from] ProblemError),
    /// Planning.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Binding.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Readback.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// A host slice is not as long as the problem says.
    #[error("{tensor} has {actual} elements, the problem needs {required}")]
    Length {
        /// Which.
        tensor: Cow<'static, str>,
        /// Needed.
        required: u64,
        /// Given.
        actual: u64,
    },
    /// `cu_seqlens` does not start at 0, fall nowhere and end at the number of tokens.
    #[error("{tensor}[{index}] is {found}, needed is {needed}")]
    Sequences {
        /// Which.
        tensor: &'static str,
        /// Index of the entry.
        index: usize,
        /// Given.
        found: u32,
        /// What would be right there.
        needed: String,
    },
    /// A length is more than the tensor holds.
    #[error("{tensor}[{index}] is {found}, at most {max} fit")]
    LengthTooLarge {
        /// Which.
        tensor: &'static str,
        /// Index of the entry.
        index: usize,
        /// Given.
        found: u32,
        /// Largest.
        max: u32,
    },
    /// New rows that a cache has no room for.
    #[error("sequence {index} has {kv_len} of {capacity} positions: {new_len} more do not fit")]
    CacheFull {
        /// Which sequence.
        index: usize,
        /// Its length.
        kv_len: u32,
        /// Rows to be appended.
        new_len: u32,
        /// Positions of the cache.
        capacity: u32,
    },
    /// A length that is to count new rows already is less than they are.
    #[error("sequence {index} has {kv_len} positions: {new_len} new rows are not among them")]
    NotCounted {
        /// Which sequence.
        index: usize,
        /// Its length.
        kv_len: u32,
        /// New rows.
        new_len: u32,
    },
    /// A position that the tables of a rotary embedding do not have.
    #[error("sequence {index} reaches position {pos}, cos and sin have {positions}")]
    PastTables {
        /// Which sequence.
        index: usize,
        /// Its last position.
        pos: u64,
        /// Positions of the tables.
        positions: u32,
    },
    /// A position's page is none of the pool's.
    #[error("block_table[{index}] is {found}, the pool has {pages} pages")]
    NoSuchPage {
        /// Index of the entry.
        index: usize,
        /// Given.
        found: u32,
        /// Pages of the pool.
        pages: u32,
    },
    /// No adapter answers the request.
    #[error("no adapter: {0}")]
    NoAdapter(String),
    /// The adapter gave no device.
    #[error("no device: {0}")]
    NoDevice(String),
    /// The callback of [`Runner::on_progress`](crate::Runner::on_progress) ended the call.
    #[error("cancelled")]
    Cancelled,
    /// The device ran out of memory.
    #[error("the device is out of memory: {0}")]
    OutOfMemory(String),
    /// The device was lost; make a new one.
    #[error("the device was lost: {0}")]
    DeviceLost(String),
    /// wgpu rejected a call: a bug of this crate.
    #[error("wgpu rejected a call: {0}")]
    Validation(String),
}
