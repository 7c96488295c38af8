//! What the benches of the kernels are made of.

pub(crate) mod class;
pub(crate) mod clock;
pub(crate) mod copy;
pub(crate) mod data;
pub(crate) mod gpu;
pub(crate) mod problems;
pub(crate) mod product;
pub(crate) mod report;
pub(crate) mod verify;
pub(crate) mod work;
