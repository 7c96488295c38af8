#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

// In reading order: the question, the answer, how, the kernels, the glue, what is built on it.
mod problem;
mod mask;
mod layout;
pub mod reference;
mod cost;
mod plan;
mod forward;
mod blocks;
mod tuning;
mod device;
pub mod kernels;
mod shader;
mod tensors;
mod attention;
mod dispatch;
mod pipeline;
mod download;
mod layer;
#[cfg(feature = "runner")]
mod runner;
#[cfg(feature = "runner")]
mod host;
#[cfg(feature = "runner")]
mod gpu;
#[cfg(feature = "cpu")]
mod cpu;
mod error;

pub use attention::Attention;
pub use cost::Cost;
pub use device::{Capabilities, DeviceClass};
pub use dispatch::Dispatch;
pub use download::Download;
pub use error::{BindError, DownloadError, Error, PlanError, ProblemError};
#[cfg(feature = "runner")]
pub use host::{Inputs, LayerInputs, Outputs};
pub use layer::SelfAttention;
pub use layout::{Layout, Strides};
pub use mask::{Diagonal, Mask};
pub use pipeline::Checks;
pub use plan::{Algorithm, Plan};
pub use problem::{DType, Problem, Shape};
#[cfg(feature = "runner")]
pub use runner::{Runner, RunnerOptions};
pub use tensors::{Operand, Tensors};
pub use wgpu;
