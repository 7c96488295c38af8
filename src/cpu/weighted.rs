//! Sums of rows by weights, in which 0 times anything is 0.

use super::product::{Matrix, product};

/// `dst[n] += sum_k weights[k, n] * rows[k]`: dst is `[n, width]`, rows are columns of `rows`. Those of `wild`, which
/// hold a NaN or an infinity, add nothing where their weight is 0.
pub(super) fn add_rows(
    (n, k, width): (usize, usize, usize),
    dst: &mut [f32],
    weights: Matrix,
    rows: Matrix,
    wild: &[usize],
) {
    let shape = (width, n, k);
    if wild.is_empty() {
        product(shape, dst, 1.0, 1.0, rows, weights);
        return;
    }
    // As if they were 0, so that what nothing sees changes no bit; then again for those that see them.
    let row = |k: usize| &rows.data[k * rows.strides.1..][..width];
    let mut tame: Vec<f32> = (0..k).flat_map(row).copied().collect();
    wild.iter().for_each(|k| tame[k * width..][..width].fill(0.0));
    product(shape, dst, 1.0, 1.0, Matrix { data: &tame, strides: (1, width) }, weights);
    for (n, dst) in dst.chunks_exact_mut(width).take(n).enumerate() {
        for k in wild {
            let weight = weights.data[k * weights.strides.0 + n * weights.strides.1];
            if weight != 0.0 {
                dst.iter_mut().zip(row(*k)).for_each(|(x, value)| *x += weight * value);
            }
        }
    }
}

/// Which of so many rows, columns of the matrix, are not finite.
pub(super) fn wild_rows(rows: Matrix, (count, width): (usize, usize)) -> Vec<usize> {
    let row = |k: usize| &rows.data[k * rows.strides.1..][..width];
    (0..count).filter(|k| !is_finite(row(*k))).collect()
}

/// Without a branch, so that it is a few vector instructions.
fn is_finite(values: &[f32]) -> bool {
    let largest = values.iter().map(|x| x.abs().to_bits()).fold(0, u32::max);
    largest < f32::INFINITY.to_bits()
}
