//! Whole transformers with trained weights, every product, norm and attention on compute shaders.
//!
//! A model is a [`program`]: operations made ready for a [`machine`], a GPU by the kernels under `shaders/` and those of
//! `wgpu_attention`, or the CPU.

mod encoder;
mod cpu;
mod gguf;
mod kernel;
mod marian;
mod reader;
mod safetensors;
pub mod bert;
pub mod chat;
pub mod checkpoint;
pub mod command;
pub mod error;
pub mod llama;
pub mod machine;
pub mod matrix;
pub mod page;
pub mod picture;
pub mod program;
pub mod text;
pub mod translator;

// The library's examples draw by the same.
#[allow(dead_code, reason = "charts are the examples'")]
#[path = "../../examples/support/canvas.rs"]
mod canvas;
#[path = "../../examples/support/colours.rs"]
mod colours;
#[path = "../../examples/support/lettering.rs"]
mod lettering;

pub use error::Error;
pub use machine::{Choice, Machine};
