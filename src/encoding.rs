//! Numbers and masks in host memory as devices store them.

use crate::pairs::MaskFormat;
use crate::quantised;
use crate::shape::DType;
use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};

/// Contents of a buffer.
pub(crate) enum Data<'a> {
    /// As the caller has them.
    F32(&'a [f32]),
    /// As the device wants them.
    Bytes(Vec<u8>),
}

impl Data<'_> {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(data) => bytemuck::cast_slice(data),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// The numbers as `dtype` stores them.
#[cfg(feature = "cpu")]
pub(crate) fn rounded(data: &[f32], dtype: DType) -> std::borrow::Cow<'_, [f32]> {
    use std::borrow::Cow;
    match dtype {
        DType::F32 => Cow::Borrowed(data),
        DType::F16 => Cow::Owned(data.iter().map(|x| f16::from_f32(*x).to_f32()).collect()),
        DType::BF16 => Cow::Owned(data.iter().map(|x| bf16::from_f32(*x).to_f32()).collect()),
        DType::Q8 | DType::Q4 => Cow::Owned(quantised::rounded(data, dtype)),
    }
}

pub(crate) fn encoded(data: &[f32], dtype: DType) -> Data<'_> {
    match dtype {
        DType::F32 => Data::F32(data),
        DType::F16 => {
            let mut halves = vec![f16::ZERO; data.len()];
            halves.convert_from_f32_slice(data);
            Data::Bytes(bytemuck::cast_slice(&halves).to_vec())
        }
        DType::BF16 => {
            let mut halves = vec![bf16::ZERO; data.len()];
            halves.convert_from_f32_slice(data);
            Data::Bytes(bytemuck::cast_slice(&halves).to_vec())
        }
        DType::Q8 | DType::Q4 => Data::Bytes(quantised::encoded(data, dtype)),
    }
}

/// The first `elements` numbers of what a device stored.
pub(crate) fn decoded(bytes: &[u8], dtype: DType, elements: usize) -> Vec<f32> {
    let halves = || bytes.as_chunks::<2>().0.iter().take(elements);
    match dtype {
        DType::F32 => bytemuck::pod_collect_to_vec(&bytes[..elements * 4]),
        DType::F16 => halves().map(|x| f16::from_ne_bytes(*x).to_f32()).collect(),
        DType::BF16 => halves().map(|x| bf16::from_ne_bytes(*x).to_f32()).collect(),
        DType::Q8 | DType::Q4 => quantised::decoded(bytes, dtype, elements),
    }
}

pub(crate) fn mask_bytes(mask: &[bool], format: MaskFormat) -> Vec<u8> {
    match format {
        MaskFormat::Bytes => mask.iter().map(|shown| u8::from(*shown)).collect(),
        MaskFormat::Bits => {
            let byte = |shown: &[bool]| {
                shown.iter().rev().fold(0, |byte, shown| byte << 1 | u8::from(*shown))
            };
            let mut bytes: Vec<u8> = mask.chunks(8).map(byte).collect();
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        }
    }
}
