//! Whole transformers with trained weights, every product, norm and attention on compute shaders.
//!
//! A model is a list of operations ([`op`]), made ready for a machine ([`machine`]): a GPU by the kernels under
//! `shaders/` and those of `wgpu_attention`, or the CPU.

pub mod bert;
pub mod chat;
pub mod command;
pub mod error;
pub mod files;
pub mod gguf;
pub mod hub;
pub mod interrupt;
pub mod llama;
pub mod machine;
pub mod marian;
pub mod matrix;
pub mod op;
pub mod page;
pub mod picture;
pub mod session;
pub mod tensor;
pub mod terminal;
pub mod text;
pub mod translator;
mod cpu;
mod gpu;
mod kernel;
mod product;
mod reader;
mod translating;

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
