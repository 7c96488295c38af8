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
    pub(crate) form: Form,
    /// Little-endian, row by row.
    pub(crate) codes: Vec<u8>,
    /// What the codes of a block or a row share.
    pub(crate) ranges: Vec<u8>,
}

/// How a weight is stored; `shaders/weight/` has a file for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As f16; no ranges.
    F16,
    /// `code * scale + minimum` of i8 codes, both f16 and of a block of 32 along a row: what `Q8_0` and `Q4_1` are.
    Blocks,
    /// `code * factor` of i8 codes, an f32 factor a row: what Marian's int8 is.
    Rows,
}

impl Matrix {
    /// Rounded to 16 bits.
    pub fn rounded(rows: usize, cols: usize, weights: &[f32]) -> Self {
        assert!(weights.len() == rows * cols && cols.is_multiple_of(BLOCK));
        let mut halves = vec![f16::ZERO; weights.len()];
        halves.convert_from_f32_slice(weights);
        let codes = bytemuck::pod_collect_to_vec(&halves);
        Self { rows, cols, form: Form::F16, codes, ranges: Vec::new() }
    }

    /// Matrices of one width, one below the other, as one. Of different forms, 16 bits serve all.
    pub fn stacked(parts: &[Self]) -> Self {
        let (cols, rows) = (parts[0].cols, parts.iter().map(|part| part.rows).sum());
        if parts.iter().any(|part| part.form != parts[0].form) {
            let weights: Vec<f32> = parts.iter().flat_map(Self::weights).collect();
            return Self::rounded(rows, cols, &weights);
        }
        let codes = parts.iter().flat_map(|part| part.codes.iter().copied()).collect();
        let ranges = parts.iter().flat_map(|part| part.ranges.iter().copied()).collect();
        Self { rows, cols, form: parts[0].form, codes, ranges }
    }

    /// What they stand for, row by row.
    pub fn weights(&self) -> Vec<f32> {
        let halves = |bytes: &[u8]| bytemuck::pod_collect_to_vec::<u8, f16>(bytes).to_f32_vec();
        let (run, ranges): (usize, Vec<[f32; 2]>) = match self.form {
            Form::F16 => return halves(&self.codes),
            Form::Blocks => (BLOCK, bytemuck::pod_collect_to_vec(&halves(&self.ranges))),
            Form::Rows => {
                let factors: Vec<f32> = bytemuck::pod_collect_to_vec(&self.ranges);
                (self.cols, factors.into_iter().map(|factor| [factor, 0.0]).collect())
            }
        };
        let runs = self.codes.chunks(run).zip(ranges);
        runs.flat_map(|(codes, [scale, minimum])| {
            codes.iter().map(move |code| f32::from(code.cast_signed()) * scale + minimum)
        })
        .collect()
    }
}
