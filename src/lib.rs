//! Attention on any GPU that `wgpu` reaches.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod problem;
pub mod reference;
mod cost;
mod plan;
mod blocks;
pub mod kernels;
mod shader;
mod tuning;
mod device;
mod tensors;
mod attention;
mod dispatch;
mod pipeline;
mod download;
mod layer;
mod error;

pub use attention::Attention;
pub use cost::Cost;
pub use device::{Capabilities, DeviceClass};
pub use dispatch::Dispatch;
pub use download::Download;
pub use error::{BindError, DownloadError, Error, PlanError, ProblemError};
pub use layer::SelfAttention;
pub use pipeline::Checks;
pub use plan::{Algorithm, Plan};
pub use problem::{DType, Diagonal, Layout, Mask, Problem, Shape, Strides};
pub use tensors::{Operand, Tensors};
pub use wgpu;
