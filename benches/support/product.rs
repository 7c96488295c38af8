//! Matrix products by the `gemm` crate: the roof of a CPU, and the reference's projections.

use gemm::{Parallelism, gemm};
use std::time::Instant;

/// `y[m, n] = sum_k x[m, k] * w[n, k]` on all cores; `y` is overwritten.
///
/// # Panics
/// If a slice is not as long as its extents say.
pub(crate) fn product<T: Element>([m, n, k]: [usize; 3], x: &[T], w: &[T], y: &mut [T]) {
    assert_eq!([x.len(), w.len(), y.len()], [m * k, n * k, m * n], "extents");
    let step = |n: usize| isize::try_from(n).expect("a slice in memory");
    let (x, w, y) = (x.as_ptr(), w.as_ptr(), y.as_mut_ptr());
    #[expect(unsafe_code, reason = "the only interface of gemm")]
    // SAFETY: the strides reach all of each slice and nothing else, as asserted; `y` is borrowed mutably, so
    // it overlaps neither input; where y is not read, its contents do not matter.
    unsafe {
        gemm(
            m,
            n,
            k,
            y,
            1,
            step(n),
            false,
            x,
            1,
            step(k),
            w,
            step(k),
            1,
            T::ZERO,
            T::ONE,
            false,
            false,
            false,
            Parallelism::Rayon(0),
        );
    }
}

/// What `gemm` multiplies.
pub(crate) trait Element: Copy + 'static {
    const ZERO: Self;
    const ONE: Self;
}

impl Element for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
}

impl Element for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
}

/// The f32 rate of all cores at 1024 x 1024 x 1024, the best of some runs, in FLOP/s.
pub(crate) fn roof() -> f64 {
    const N: usize = 1024;
    const RUNS: usize = 10;
    let (x, w, mut y) = (vec![0.5_f32; N * N], vec![0.25_f32; N * N], vec![0.0_f32; N * N]);
    let seconds = (0..RUNS).map(|_| {
        let start = Instant::now();
        product([N, N, N], &x, &w, &mut y);
        std::hint::black_box(&mut y);
        start.elapsed().as_secs_f64()
    });
    (2 * N * N * N) as f64 / seconds.fold(f64::INFINITY, f64::min)
}
