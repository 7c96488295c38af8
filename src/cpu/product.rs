//! Matrix products by the `gemm` crate: of blocks, and of whole linear layers.

use super::attend::tasks;
use crate::error::Error;
use crate::watcher::Meter;
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

/// Most rows of a block of a linear layer; not a power of two, which would step through few sets
/// of a cache.
const LINEAR_ROWS: usize = 240;

/// `y[m, n] = sum_k x[m, k] * w[n, k] + bias[n]`: x is `[rows, inputs]`, w `[outputs, inputs]`,
/// and rows of y are `y_stride` elements apart. No axis but rows is empty.
#[allow(clippy::too_many_arguments, reason = "a matrix product and its three extents")]
pub(super) fn linear(
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    rows: usize,
    inputs: usize,
    outputs: usize,
    y: &mut [f32],
    y_stride: usize,
    meter: &Meter<'_>,
) -> Result<(), Error> {
    let (x, w) = (&x[..rows * inputs], &w[..outputs * inputs]);
    let column_tasks = tasks().div_ceil(rows.div_ceil(LINEAR_ROWS).max(1));
    let columns = outputs.div_ceil(column_tasks).clamp(32, 512);
    let blocks = y.par_chunks_mut(LINEAR_ROWS * y_stride).zip(x.par_chunks(LINEAR_ROWS * inputs));
    blocks.try_for_each(|(y, x)| {
        let rows = x.len() / inputs;
        // Columns of y cannot be lent to threads as slices, so tasks return theirs: the copy is
        // little beside `inputs` products an element. Transposed, so that gemm reads w as it lies.
        let sums = w.par_chunks(columns * inputs).map(|w| {
            let mut block = vec![0.0; w.len() / inputs * rows];
            let x = Matrix { data: x, strides: (inputs, 1) };
            let transposed_w = Matrix { data: w, strides: (1, inputs) };
            let shape = (rows, w.len() / inputs, inputs);
            product(shape, &mut block, 0.0, 1.0, x, transposed_w);
            meter.add(2 * (rows * w.len()) as u64)?;
            Ok(block)
        });
        let sums = sums.collect::<Result<Vec<_>, Error>>()?;
        for (row, y) in y.chunks_mut(y_stride).take(rows).enumerate() {
            let sums = sums.iter().flat_map(|block| block[row..].iter().step_by(rows));
            for (y, sum) in y.iter_mut().zip(sums) {
                *y = *sum;
            }
            for (y, bias) in y.iter_mut().zip(bias.unwrap_or(&[])) {
                *y += bias;
            }
        }
        Ok(())
    })
}

/// The left factor of a product that is added to something.
#[derive(Clone, Copy)]
pub(super) struct Factor<'a> {
    data: &'a [f32],
    /// From one row to the next, and from one term to the next.
    strides: (usize, usize),
}

impl<'a> Factor<'a> {
    /// As it lies, rows `width` wide.
    pub(super) fn rows(data: &'a [f32], width: usize) -> Self {
        Self { data, strides: (width, 1) }
    }

    /// Columns of rows `width` wide.
    pub(super) fn transposed(data: &'a [f32], width: usize) -> Self {
        Self { data, strides: (1, width) }
    }
}

/// `c[m, n] += sum_k a[m, k] * b[k, n]`: rows of b and c are `columns` wide.
pub(super) fn add_product(
    c: &mut [f32],
    columns: usize,
    a: Factor,
    b: &[f32],
    meter: &Meter<'_>,
) -> Result<(), Error> {
    let terms = b.len() / columns;
    if terms == 0 {
        return Ok(());
    }
    let rows = (c.len() / columns).div_ceil(tasks()).clamp(16, LINEAR_ROWS);
    c.par_chunks_mut(rows * columns).enumerate().try_for_each(|(i, c)| {
        // Transposed, so that rows of c are columns of what gemm writes.
        let transposed_b = Matrix { data: b, strides: (1, columns) };
        let data = &a.data[i * rows * a.strides.0..];
        let transposed_a = Matrix { data, strides: (a.strides.1, a.strides.0) };
        let shape = (columns, c.len() / columns, terms);
        product(shape, c, 1.0, 1.0, transposed_b, transposed_a);
        meter.add(2 * (c.len() * terms) as u64)
    })
}

/// Adds the sum of all rows of y, as wide as `sums`.
pub(super) fn add_columns(sums: &mut [f32], y: &[f32]) {
    let width = sums.len();
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, sums)| {
        let mut wide = vec![0.0_f64; sums.len()];
        for row in y.chunks_exact(width) {
            for (sum, y) in wide.iter_mut().zip(&row[i * COLUMNS..]) {
                *sum += f64::from(*y);
            }
        }
        #[allow(clippy::cast_possible_truncation, reason = "rounded once")]
        sums.iter_mut().zip(wide).for_each(|(sum, wide)| *sum += wide as f32);
    });
}

/// Columns that are summed together: a few lines of a cache.
const COLUMNS: usize = 64;

/// A matrix in a slice: element `[i, j]` is at `i * strides.0 + j * strides.1`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) data: &'a [f32],
    pub(super) strides: (usize, usize),
}

/// `dst = keep * dst + scale * lhs * rhs`: dst is `[n, m]`, `lhs` has m rows, `rhs` n columns and
/// k rows.
#[allow(unsafe_code, reason = "gemm takes pointers")]
pub(super) fn product(
    (m, n, k): (usize, usize, usize),
    dst: &mut [f32],
    keep: f32,
    scale: f32,
    lhs: Matrix,
    rhs: Matrix,
) {
    let reach = |len: usize, stride: usize| len.checked_sub(1)?.checked_mul(stride);
    let holds = |matrix: Matrix, rows, columns| {
        let (row, column) = (reach(rows, matrix.strides.0), reach(columns, matrix.strides.1));
        let last = row.zip(column).and_then(|(row, column)| row.checked_add(column));
        last.is_some_and(|last| last < matrix.data.len())
    };
    let dst_fits = m.checked_mul(n).is_some_and(|elements| elements <= dst.len());
    assert!(dst_fits && holds(lhs, m, k) && holds(rhs, k, n));
    let signed = |stride: usize| isize::try_from(stride).expect("shorter than a slice");
    let (no_conjugate, one_thread) = (false, Parallelism::None);
    // SAFETY: every element that gemm reads or writes lies in its slice, as just asserted, and dst
    // is borrowed mutably, so it overlaps neither factor.
    unsafe {
        gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            signed(m),
            1,
            keep != 0.0,
            lhs.data.as_ptr(),
            signed(lhs.strides.1),
            signed(lhs.strides.0),
            rhs.data.as_ptr(),
            signed(rhs.strides.1),
            signed(rhs.strides.0),
            keep,
            scale,
            no_conjugate,
            no_conjugate,
            no_conjugate,
            one_thread,
        );
    }
}
