//! A tiled matrix product with bias: the projections.

use super::staged::Factors;
use super::{Binding, Element, Kernel, Product, params};
use crate::shader::{Source, file};
use crate::tuning::Tuning;

params! {
    /// Uniforms of `kernels/linear.wgsl`. Bases are filled in when buffers are bound.
    LinearParams {
        rows: u32, inputs: u32, outputs: u32, tiles: u32,
        grid_width: u32, workgroup_first: u32, workgroups: u32,
        x_base: u32, x_row: u32, w_base: u32, w_row: u32, y_base: u32, y_row: u32, bias_base: u32,
    }
}

/// `y = x w^T + b`: `kernels/linear.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linear {
    pub(crate) product: Product,
    pub(crate) bias: bool,
    pub(crate) vec4: bool,
}

impl From<Linear> for Kernel {
    fn from(c: Linear) -> Self {
        let bias = if c.bias { file!("common/bias.wgsl") } else { file!("common/no_bias.wgsl") };
        let (x, load_x) = Element::F32.read("x", c.vec4);
        let (w, load_w) = Element::F32.read("w", c.vec4);
        let source = Source::default().files(load_x).files(load_w).file(bias);
        let mut bindings = vec![Binding::PARAMS, x, w, Binding::write("y", "f32")];
        bindings.extend(c.bias.then(|| Binding::read("bias", "f32")));
        Self {
            name: "linear",
            source: c
                .product
                .add_to(source, false, Factors::default())
                .file(file!("kernels/linear.wgsl")),
            bindings,
            fields: LinearParams::FIELDS,
            workgroup_size: c.product.workgroup_size(),
            workgroup_bytes: c.product.workgroup_bytes(),
        }
    }
}

pub(super) fn variants(tuning: &Tuning) -> Vec<Kernel> {
    let product = tuning.product;
    [(true, true), (true, false), (false, true), (false, false)]
        .map(|(bias, vec4)| Linear { product, bias, vec4 }.into())
        .into()
}
