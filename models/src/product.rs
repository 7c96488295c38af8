//! Matrix products on the CPU, by the `gemm` crate, on all cores.

use gemm::{Parallelism, gemm};
use rayon::prelude::*;

/// Outputs of a task of one row.
const OUTPUTS: usize = 64;

/// `[rows, outputs]`: `x w^T` of x `[rows, inputs]` and w `[outputs, inputs]`.
#[allow(unsafe_code, reason = "gemm takes pointers")]
pub(crate) fn product(x: &[f32], w: &[f32], inputs: usize) -> Vec<f32> {
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    assert!(x.len() == rows * inputs && w.len() == outputs * inputs);
    let mut out = vec![0.0; rows * outputs];
    if rows == 1 {
        let tasks = out.par_chunks_mut(OUTPUTS).zip(w.par_chunks(OUTPUTS * inputs));
        tasks.for_each(|(out, w)| {
            for (out, w) in out.iter_mut().zip(w.chunks(inputs)) {
                *out = dot(x, w);
            }
        });
        return out;
    }
    let signed = |stride: usize| isize::try_from(stride).expect("shorter than a slice");
    let (no_conjugate, threads) = (false, Parallelism::Rayon(0));
    // SAFETY: out is `[rows, outputs]`, x `[rows, inputs]`, w transposed `[inputs, outputs]`: what the strides reach
    // lies in the slices, as just asserted, and out is borrowed by nobody else.
    unsafe {
        gemm(
            rows,
            outputs,
            inputs,
            out.as_mut_ptr(),
            1,
            signed(outputs),
            false,
            x.as_ptr(),
            1,
            signed(inputs),
            w.as_ptr(),
            signed(inputs),
            1,
            0.0,
            1.0,
            no_conjugate,
            no_conjugate,
            no_conjugate,
            threads,
        );
    }
    out
}

/// In sixteen sums, which compilers keep in registers side by side.
fn dot(x: &[f32], w: &[f32]) -> f32 {
    let mut sums = [0.0; 16];
    let (x, x_rest) = x.as_chunks::<16>();
    let (w, w_rest) = w.as_chunks::<16>();
    for (x, w) in x.iter().zip(w) {
        for i in 0..16 {
            sums[i] += x[i] * w[i];
        }
    }
    let rest: f32 = x_rest.iter().zip(w_rest).map(|(x, w)| x * w).sum();
    sums.iter().sum::<f32>() + rest
}
