//! All tests of the models in one program, as those of the crate.

mod attention;
mod chat;
mod commands;
mod formats;
mod kernels;
mod support;
mod translate;
mod understand;
