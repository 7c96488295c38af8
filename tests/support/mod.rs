//! What the tests on numbers share: named problems, deterministic inputs, the rule that judges a result, and
//! what they run on.
//!
//! `WGPU_ATTENTION_TEST=small` takes fewer and smaller problems, for slow software GPUs.
//! `WGPU_ATTENTION_LIMITS=default` asks for WebGPU's default limits and lets wgpu check every shader.

#![cfg(feature = "cpu")]

pub(crate) mod append;
pub(crate) mod attend;
pub(crate) mod buffers;
pub(crate) mod case;
pub(crate) mod catalogue;
pub(crate) mod draw;
pub(crate) mod emulation;
pub(crate) mod extra;
pub(crate) mod files;
pub(crate) mod functions;
pub(crate) mod gradients;
pub(crate) mod judge;
pub(crate) mod layer;
pub(crate) mod random;
pub(crate) mod real;
pub(crate) mod target;

/// Sequence, head and query of a row.
pub(crate) type At = (u32, u32, u32);

/// Whether problems are to be few and small.
pub(crate) fn small() -> bool {
    std::env::var("WGPU_ATTENTION_TEST").is_ok_and(|value| value == "small")
}
