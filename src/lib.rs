//! Attention on any Vulkan, Metal or DX12 GPU: WGSL compute shaders on the caller's own [`wgpu::Device`].
//!
//! [`Problem`] says what to compute, [`Plan`] how, [`Dispatch`] over which buffers; the caller records it where
//! it likes. [`SelfAttention`] is a whole layer with its projections; `Runner` serves tensors in host memory.
//! What every edge means is said where it is asked for; [`reference`](mod@reference) is the definition.
//!
//! ```
//! use wgpu_attention::{Attention, Download, Mask, Problem, Shape, Tensors, wgpu};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
//! # let buffer = |rows: u64| device.create_buffer(&wgpu::BufferDescriptor {
//! #     label: None,
//! #     size: rows * 64 * 4,
//! #     usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
//! #     mapped_at_creation: false,
//! # });
//! # let (q, k, v, out) = (buffer(8 * 128), buffer(2 * 128), buffer(2 * 128), buffer(8 * 128));
//! // Once a device: your own `wgpu::Device`.
//! let attention = Attention::new(&device);
//!
//! // Once a shape: 8 query heads on 2 key/value heads, 128 positions, 64 wide.
//! let shape = Shape::self_attention(1, 8, 128, 64).with_kv_heads(2);
//! let plan = attention.plan(&Problem::new(shape).mask(Mask::CAUSAL))?;
//!
//! // Once a set of buffers.
//! let tensors = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
//! let dispatch = attention.bind(&plan, &tensors)?;
//!
//! // Every step, in your own encoder: nothing is allocated, submitted or waited for.
//! let mut encoder = device.create_command_encoder(&Default::default());
//! dispatch.encode(&mut encoder);
//! let download = Download::encode(&device, &mut encoder, out.slice(..));
//! queue.submit([encoder.finish()]);
//!
//! device.poll(wgpu::PollType::wait_indefinitely())?;
//! let values: Vec<f32> = pollster::block_on(download.read())?;
//! assert_eq!(values.len(), 8 * 128 * 64);
//! # Ok(()) }
//! ```

#![cfg_attr(docsrs, feature(doc_cfg))]

// In reading order: the question, the answer, how, the kernels, the glue, what is built on it.
mod problem;
mod validate;
mod shape;
mod mask;
mod pairs;
mod function;
mod layout;
mod pages;
mod rotary;
mod append;
mod dropout;
mod backward;
mod inputs;
mod sequence;
pub mod reference;
mod cost;
mod work;
mod roofs;
mod plan;
mod planner;
mod forward;
mod uniforms;
mod staged;
mod fused;
mod splits;
mod tables;
mod blocks;
mod tuning;
mod matrices;
mod device;
pub mod kernels;
mod shader;
mod unroll;
mod operand;
mod tensors;
mod attention;
mod dispatch;
mod chunks;
mod pipeline;
mod self_test;
mod upload;
mod download;
mod layer;
mod merge;
mod merged;
#[cfg(feature = "runner")]
mod runner;
#[cfg(feature = "runner")]
mod host;
#[cfg(feature = "runner")]
mod outputs;
#[cfg(feature = "runner")]
mod backward_host;
#[cfg(feature = "runner")]
mod lengths;
#[cfg(feature = "runner")]
mod append_host;
#[cfg(feature = "runner")]
mod encoding;
#[cfg(feature = "runner")]
mod quantised;
#[cfg(feature = "runner")]
mod watcher;
#[cfg(feature = "runner")]
mod pace;
#[cfg(feature = "runner")]
mod gpu;
#[cfg(feature = "runner")]
mod scopes;
#[cfg(feature = "cpu")]
mod cpu;
#[cfg(feature = "tune")]
mod tune;
#[cfg(feature = "tune")]
mod candidates;
#[cfg(feature = "tune")]
mod scratch;
#[cfg(feature = "tune")]
mod timing;
#[cfg(feature = "tune")]
mod record;
#[cfg(feature = "tune")]
mod keys;
mod error;

pub use append::{Append, AppendInputs};
#[cfg(feature = "runner")]
pub use append_host::AppendOutputs;
pub use attention::Attention;
pub use backward::{Backward, BackwardInputs, Gradients};
pub use chunks::{Chunk, Chunks, Progress};
pub use cost::Cost;
pub use device::{Capabilities, DeviceClass, device_descriptor, with_cooperative_matrices};
pub use dispatch::Dispatch;
pub use download::Download;
pub use dropout::{Dropout, DropoutMask};
pub use error::{BindError, DownloadError, Error, PlanError, ProblemError};
pub use function::{BufferElement, MaskFunction, Pair, ScoreFunction};
pub use inputs::{Inputs, alibi_slopes};
pub use layer::{LayerBackward, SelfAttention};
#[cfg(feature = "runner")]
pub use layer::{LayerBackwardInputs, LayerGradients, LayerInputs};
pub use layout::{Layout, Strides};
pub use mask::{Diagonal, Mask};
pub use matrices::{Matrices, MatrixInputs, MatrixKernel, MatrixKernels};
pub use merge::Merge;
pub use operand::Operand;
#[cfg(feature = "runner")]
pub use outputs::Outputs;
pub use pages::Pages;
pub use pairs::{Bias, BooleanMask, MaskFormat, Pairs};
pub use pipeline::Checks;
pub use plan::{Algorithm, Plan};
pub use problem::{Lengths, Problem, ScoreStage, Slopes};
#[cfg(feature = "tune")]
pub use record::{RecordError, TuningRecord};
pub use roofs::{Bottleneck, Roofs};
pub use rotary::{Rotary, RotaryEmbedding, RotaryInputs, RotaryPairs};
#[cfg(feature = "runner")]
pub use runner::{Runner, RunnerOptions};
pub use self_test::SelfTest;
pub use shape::{DType, Shape};
pub use tensors::Tensors;
#[cfg(feature = "tune")]
pub use tune::TuneOptions;
pub use wgpu;

/// The code of the README compiles and runs.
#[cfg(all(doctest, feature = "cpu", feature = "tune"))]
#[doc = include_str!("../README.md")]
struct Readme;
