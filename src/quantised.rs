//! Blocks of 32 elements that share a scale, as `DType` describes them: in host memory.

use crate::shape::DType;
use half::f16;

const BLOCK: usize = DType::BLOCK as usize;

/// A block's scale and minimum: what its codes mean.
#[derive(Clone, Copy)]
struct Range {
    scale: f16,
    minimum: f16,
}

/// The least f16 that is not below `x`: so that codes reach a block's ends.
fn f16_above(x: f32) -> f16 {
    let nearest = f16::from_f32(x);
    if nearest.to_f32() >= x { nearest } else { f16::from_bits(next_up(nearest.to_bits())) }
}

fn f16_below(x: f32) -> f16 {
    -f16_above(-x)
}

/// Of the bits of an f16, towards +inf.
fn next_up(bits: u16) -> u16 {
    match bits {
        0x8000 => 1,
        0x7c00.. if bits < 0x8000 => bits,
        _ if bits < 0x8000 => bits + 1,
        _ => bits - 1,
    }
}

impl Range {
    fn of(dtype: DType, block: &[f32]) -> Self {
        let largest = block.iter().fold(f32::MIN, |a, b| a.max(*b));
        let smallest = block.iter().fold(f32::MAX, |a, b| a.min(*b));
        if dtype == DType::Q8 {
            let scale = f16_above(largest.abs().max(smallest.abs()) / 127.0);
            return Self { scale, minimum: f16::ZERO };
        }
        let minimum = f16_below(smallest);
        Self { scale: f16_above((largest - minimum.to_f32()) / 15.0), minimum }
    }

    fn code(self, dtype: DType, x: f32) -> u8 {
        let scale = self.scale.to_f32();
        let steps = if scale > 0.0 { (x - self.minimum.to_f32()) / scale } else { 0.0 };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        match dtype {
            DType::Q8 => (steps.round().clamp(-127.0, 127.0) as i8).cast_unsigned(),
            _ => steps.round().clamp(0.0, 15.0) as u8,
        }
    }

    fn value(self, dtype: DType, code: u8) -> f32 {
        let steps = match dtype {
            DType::Q8 => f32::from(code.cast_signed()),
            _ => f32::from(code),
        };
        steps.mul_add(self.scale.to_f32(), self.minimum.to_f32())
    }
}

/// The numbers as `dtype` stores them.
#[cfg(any(test, feature = "cpu"))]
pub(crate) fn rounded(data: &[f32], dtype: DType) -> Vec<f32> {
    let mut out = Vec::with_capacity(data.len());
    for block in data.chunks(BLOCK) {
        let range = Range::of(dtype, block);
        out.extend(block.iter().map(|x| range.value(dtype, range.code(dtype, *x))));
    }
    out
}

/// Whole blocks; what the last lacks is 0.
pub(crate) fn encoded(data: &[f32], dtype: DType) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in data.chunks(BLOCK) {
        let range = Range::of(dtype, chunk);
        let mut codes = [0_u8; BLOCK];
        for (code, x) in codes.iter_mut().zip(chunk) {
            *code = range.code(dtype, *x);
        }
        bytes.extend(range.scale.to_bits().to_le_bytes());
        bytes.extend(range.minimum.to_bits().to_le_bytes());
        match dtype {
            DType::Q8 => bytes.extend(codes),
            _ => bytes.extend(codes.as_chunks::<2>().0.iter().map(|[low, high]| low | high << 4)),
        }
    }
    bytes
}

/// The first `elements` numbers of whole blocks.
pub(crate) fn decoded(bytes: &[u8], dtype: DType, elements: usize) -> Vec<f32> {
    let size = BLOCK * usize::try_from(dtype.bits()).expect("small") / 8;
    let half = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]);
    let mut out = Vec::with_capacity(elements);
    for block in bytes.chunks_exact(size) {
        let range = Range { scale: half(block), minimum: half(&block[2..]) };
        let codes = &block[4..];
        match dtype {
            DType::Q8 => out.extend(codes.iter().map(|code| range.value(dtype, *code))),
            _ => out.extend(
                codes.iter().flat_map(|both| [both & 15, both >> 4]).map(|c| range.value(dtype, c)),
            ),
        }
    }
    out.truncate(elements);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> Vec<f32> {
        let mut data: Vec<f32> =
            (0_i16..96).map(|i| f32::from(i * 37 % 101) * 0.37 - 11.0).collect();
        data.extend([0.0; 32]);
        data.extend((0_i16..32).map(|i| f32::from(i) * 1e-6));
        data.extend((0_i16..32).map(|i| 500.0 + f32::from(i)));
        data
    }

    #[test]
    fn an_element_is_off_by_half_a_scale_at_most() {
        for dtype in [DType::Q8, DType::Q4] {
            for block in data().chunks(BLOCK) {
                let range = Range::of(dtype, block);
                for (x, stored) in block.iter().zip(rounded(block, dtype)) {
                    let off = (x - stored).abs();
                    let most = 0.5001 * range.scale.to_f32();
                    assert!(off <= most, "{dtype:?}: {x} as {stored}, off by {off} of {most}");
                }
            }
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for dtype in [DType::Q8, DType::Q4] {
            let data = data();
            let bytes = encoded(&data, dtype);
            assert_eq!(bytes.len() as u64 * 8, data.len() as u64 * dtype.bits());
            assert_eq!(decoded(&bytes, dtype, data.len()), rounded(&data, dtype));
        }
    }
}
