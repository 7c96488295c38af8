//! Whether a problem is well-formed.

use crate::dropout::{Dropout, DropoutMask};
use crate::error::ProblemError;
use crate::layout::Strides;
use crate::pages::Pages;
use crate::problem::{Lengths, Problem};
use crate::shape::{DType, MAX_LEN, Shape};

impl Problem {
    /// Checks everything that can be checked without a device.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), ProblemError> {
        let s = self.shape;
        for (axis, extent) in [
            ("heads", s.heads),
            ("kv_heads", s.kv_heads),
            ("head_dim", s.head_dim),
            ("v_head_dim", s.v_head_dim),
        ] {
            if extent == 0 {
                return Err(ProblemError::EmptyAxis { axis });
            }
        }
        if !s.heads.is_multiple_of(s.kv_heads) {
            return Err(ProblemError::UngroupedHeads { heads: s.heads, kv_heads: s.kv_heads });
        }
        for (axis, len) in [
            ("q_len", s.q_len),
            ("kv_len", s.kv_len),
            ("head_dim", s.head_dim),
            ("v_head_dim", s.v_head_dim),
        ] {
            if len > MAX_LEN {
                return Err(ProblemError::TooLong { axis, len, max: MAX_LEN });
            }
        }
        if let Some(scale) = self.scale.filter(|scale| !scale.is_finite()) {
            return Err(ProblemError::Scale { scale });
        }
        if let Some(softcap) = self.softcap.filter(|cap| !cap.is_finite() || *cap <= 0.0) {
            return Err(ProblemError::Softcap { softcap });
        }
        if let Some(Dropout { p, .. }) = self.dropout.filter(|d| !(0.0..1.0).contains(&d.p)) {
            return Err(ProblemError::Dropout { p });
        }
        let keep = self.dropout.is_some_and(|dropout| dropout.mask == DropoutMask::Given);
        for (what, given) in [
            ("a boolean mask", self.boolean_mask.is_some()),
            ("bias", self.bias.is_some()),
            ("keep", keep),
        ] {
            if given && self.lengths == Lengths::Packed {
                return Err(ProblemError::PackedPairs { what });
            }
        }
        if let Some(mask) = self.boolean_mask {
            mask.pairs.validate("mask", &s)?;
        }
        if let Some(bias) = self.bias {
            bias.pairs.validate("bias", &s)?;
        }
        if let Some(pairs) = self.keep_pairs() {
            pairs.validate("keep", &s)?;
        }
        if self.block_mask && !self.hides_pairs() {
            return Err(ProblemError::NothingHidden);
        }
        self.function_buffers()?;
        if self.splits == Some(0) {
            return Err(ProblemError::EmptyAxis { axis: "splits" });
        }
        self.validate_blocks()?;
        if let Some(pages) = self.pages {
            self.validate_pages(pages)?;
        }
        let s = self.tensor_shape();
        let (kv_batch, kv_len) = self.kv_extents();
        for (tensor, strides, [batch, heads, len, dim], dtype) in [
            ("q", self.q, [s.batch, s.heads, s.q_len, s.head_dim], self.dtype),
            ("k", self.k, [kv_batch, s.kv_heads, kv_len, s.head_dim], self.kv_dtype),
            ("v", self.v, [kv_batch, s.kv_heads, kv_len, s.v_head_dim], self.kv_dtype),
            ("out", self.out, [s.batch, s.heads, s.q_len, s.v_head_dim], self.out_dtype),
        ] {
            let bytes = strides
                .extent(batch, heads, len, dim)
                .and_then(|elements| dtype.bytes_of(elements));
            if bytes.is_none_or(|bytes| bytes > i64::MAX.unsigned_abs()) {
                return Err(ProblemError::Unaddressable { tensor });
            }
        }
        if !self.out.is_injective(s.batch, s.heads, s.q_len, s.v_head_dim) {
            return Err(ProblemError::OverlappingRows { tensor: "out", strides: self.out });
        }
        Ok(())
    }

    /// Blocks that share a scale: of keys and values alone, and whole ones.
    fn validate_blocks(&self) -> Result<(), ProblemError> {
        let bias = self.bias.map_or(DType::F32, |bias| bias.dtype);
        for (tensor, dtype) in [("q", self.dtype), ("out", self.out_dtype), ("bias", bias)] {
            if dtype.is_quantised() {
                return Err(ProblemError::Quantised { tensor, dtype });
            }
        }
        let Shape { head_dim, v_head_dim, .. } = self.shape;
        whole_blocks(self.kv_dtype, [head_dim, v_head_dim], [self.k, self.v])
    }

    fn validate_pages(&self, pages: Pages) -> Result<(), ProblemError> {
        if self.lengths == Lengths::Packed {
            return Err(ProblemError::PackedPairs { what: "pages" });
        }
        for (axis, len) in [("page_len", pages.page_len), ("pages", pages.pages)] {
            if len == 0 {
                return Err(ProblemError::EmptyAxis { axis });
            }
            if len > MAX_LEN {
                return Err(ProblemError::TooLong { axis, len, max: MAX_LEN });
            }
        }
        Ok(())
    }
}

/// That rows of keys and values are of whole blocks, where elements come in blocks.
pub(crate) fn whole_blocks(
    dtype: DType,
    [head_dim, v_head_dim]: [u32; 2],
    [k, v]: [Strides; 2],
) -> Result<(), ProblemError> {
    for (what, found) in [
        ("head_dim", u64::from(head_dim)),
        ("v_head_dim", v_head_dim.into()),
        ("the batch stride of k", k.batch),
        ("the head stride of k", k.head),
        ("the row stride of k", k.row),
        ("the batch stride of v", v.batch),
        ("the head stride of v", v.head),
        ("the row stride of v", v.row),
    ] {
        if dtype.is_quantised() && !found.is_multiple_of(DType::BLOCK.into()) {
            return Err(ProblemError::PartOfBlock { what, dtype, found });
        }
    }
    Ok(())
}
