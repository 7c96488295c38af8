//! All tests of the crate in one program, for one is compiled and linked sooner than thirty: `cargo test --release
//! rules::` runs those of `rules.rs`.

mod append;
mod append_layers;
mod attend;
mod attend_gradients;
mod attend_inference;
mod backward;
mod buffers;
mod chunks;
mod decode;
mod decode_loop;
mod device;
mod dropout;
mod errors;
mod extremes;
mod forward;
mod functions;
mod fuzz;
mod gradients;
mod harness;
mod host;
mod invariants;
mod layer;
mod layer_backward;
mod layer_dropout;
mod limits;
mod matrices;
mod merge;
mod properties;
mod rules;
mod runner;
mod support;
mod train_step;
mod tune;
mod wgsl;
mod writers;
