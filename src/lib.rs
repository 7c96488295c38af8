//! Attention on any GPU that `wgpu` reaches.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod attention;
mod blocks;
mod cost;
#[cfg(feature = "cpu")]
mod cpu;
mod device;
mod dispatch;
mod download;
mod error;
#[cfg(feature = "runner")]
mod host;
pub mod kernels;
mod layer;
mod pipeline;
mod plan;
mod problem;
pub mod reference;
#[cfg(feature = "runner")]
mod runner;
mod shader;
mod tensors;
mod tuning;

pub use attention::Attention;
pub use cost::Cost;
pub use device::{Capabilities, DeviceClass};
pub use dispatch::Dispatch;
pub use download::Download;
pub use error::{BindError, DownloadError, Error, PlanError, ProblemError};
#[cfg(feature = "runner")]
pub use host::{Inputs, LayerInputs, Outputs};
pub use layer::SelfAttention;
pub use pipeline::Checks;
pub use plan::{Algorithm, Plan};
pub use problem::{DType, Diagonal, Layout, Mask, Problem, Shape, Strides};
#[cfg(feature = "runner")]
pub use runner::{Runner, RunnerOptions};
pub use tensors::{Operand, Tensors};
pub use wgpu;
