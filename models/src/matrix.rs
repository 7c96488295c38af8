//! Weights in host memory, as files hold them and devices take them: in 16 or 8 bits, exactly.

use half::f16;
use half::slice::HalfFloatSliceExt as _;

/// Elements of a block that share scale and minimum.
pub(crate) const BLOCK: usize = 32;

/// A matrix of weights, `[rows, cols]`; a multiple of 32 columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Outputs of a layer, or tokens of a table.
    pub rows: usize,
    /// Inputs of a layer, or the width of a table.
    pub cols: usize,
    pub(crate) codes: Codes,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Codes {
    F16(Vec<f16>),
    /// `code * scale + minimum`, both of a block of 32 along a row: what `Q8_0` and `Q4_1` are.
    Blocks {
        codes: Vec<i8>,
        ranges: Vec<[f16; 2]>,
    },
    /// `code * factor`, one a row: what Marian's int8 is.
    Rows {
        codes: Vec<i8>,
        factors: Vec<f32>,
    },
}

impl Matrix {
    /// Rounded to 16 bits.
    pub fn rounded(rows: usize, cols: usize, weights: &[f32]) -> Self {
        assert!(weights.len() == rows * cols && cols.is_multiple_of(BLOCK));
        let mut halves = vec![f16::ZERO; weights.len()];
        halves.convert_from_f32_slice(weights);
        Self { rows, cols, codes: Codes::F16(halves) }
    }

    pub(crate) fn new(rows: usize, cols: usize, codes: Codes) -> Self {
        Self { rows, cols, codes }
    }

    /// One below the other, as one matrix; `None` where they differ in width. Of different forms, 16 bits serve all.
    pub fn stacked(parts: &[Self]) -> Option<Self> {
        let (first, others) = parts.split_first()?;
        let mut all = first.clone();
        for part in others {
            if part.cols != all.cols {
                return None;
            }
            all.rows += part.rows;
            match (&mut all.codes, &part.codes) {
                (Codes::F16(all), Codes::F16(part)) => all.extend(part),
                (Codes::Blocks { codes, ranges }, Codes::Blocks { codes: c, ranges: r }) => {
                    codes.extend(c);
                    ranges.extend(r);
                }
                (Codes::Rows { codes, factors }, Codes::Rows { codes: c, factors: f }) => {
                    codes.extend(c);
                    factors.extend(f);
                }
                _ => {
                    let weights: Vec<f32> = parts.iter().flat_map(Self::weights).collect();
                    let rows = parts.iter().map(|part| part.rows).sum();
                    return Some(Self::rounded(rows, first.cols, &weights));
                }
            }
        }
        Some(all)
    }

    /// What they stand for, row by row.
    pub fn weights(&self) -> Vec<f32> {
        match &self.codes {
            Codes::F16(halves) => halves.to_f32_vec(),
            Codes::Blocks { codes, ranges } => {
                let blocks = codes.chunks(BLOCK).zip(ranges);
                let values = blocks.flat_map(|(block, [scale, minimum])| {
                    let (scale, minimum) = (scale.to_f32(), minimum.to_f32());
                    block.iter().map(move |code| f32::from(*code).mul_add(scale, minimum))
                });
                values.collect()
            }
            Codes::Rows { codes, factors } => {
                let rows = codes.chunks(self.cols).zip(factors);
                rows.flat_map(|(row, factor)| row.iter().map(move |code| f32::from(*code) * factor))
                    .collect()
            }
        }
    }
}
