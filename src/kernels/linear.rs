//! Tiled matrix products: the projections, with a bias, and their gradients.

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

params! {
    /// Uniforms of `kernels/linear_gradient.wgsl`. Bases are filled in when buffers are bound.
    LinearGradientParams {
        rows: u32, columns: u32, terms: u32, tiles: u32,
        grid_width: u32, workgroup_first: u32, workgroups: u32,
        a_base: u32, a_row: u32, b_base: u32, b_row: u32, c_base: u32, c_row: u32, accumulate: u32,
    }
}

/// `c = a b`: `kernels/linear_gradient.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinearGradient {
    pub(crate) product: Product,
    /// Rows of a are columns of what is bound: never four elements at a time.
    pub(crate) across: bool,
    pub(crate) vec4: bool,
}

impl From<LinearGradient> for Kernel {
    fn from(c: LinearGradient) -> Self {
        let (a, load_a) = Element::F32.read("a", c.vec4 && !c.across);
        let fetch =
            if c.across { file!("factor/along_m.wgsl") } else { file!("factor/along_k.wgsl") };
        let factors = Factors { a_along_m: c.across, b_along_n: true, weights: false };
        let source = Source::default().files(load_a).file(fetch);
        Self {
            name: "linear_gradient",
            source: c
                .product
                .add_to(source, false, factors)
                .file(file!("kernels/linear_gradient.wgsl")),
            bindings: vec![
                Binding::PARAMS,
                a,
                Binding::read("b", "f32"),
                Binding::write("c", "f32"),
            ],
            fields: LinearGradientParams::FIELDS,
            workgroup_size: c.product.workgroup_size(),
            workgroup_bytes: c.product.workgroup_bytes(),
        }
    }
}

params! {
    /// Uniforms of `kernels/column_sums.wgsl`. Bases are filled in when buffers are bound.
    ColumnSumsParams {
        rows: u32, columns: u32, grid_width: u32, workgroup_first: u32, workgroups: u32,
        y_base: u32, y_row: u32, sums_base: u32, accumulate: u32,
    }
}

/// `kernels/column_sums.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ColumnSums {
    pub(crate) threads: u32,
}

impl ColumnSums {
    /// What a workgroup owns: what memory gives at once.
    pub(crate) const COLUMNS: u32 = 16;
}

impl From<ColumnSums> for Kernel {
    fn from(c: ColumnSums) -> Self {
        Self {
            name: "column_sums",
            source: Source::default()
                .constant("THREADS", c.threads)
                .constant("COLUMNS", ColumnSums::COLUMNS)
                .file(file!("kernels/column_sums.wgsl")),
            bindings: vec![
                Binding::PARAMS,
                Binding::read("y", "f32"),
                Binding::write("sums", "f32"),
            ],
            fields: ColumnSumsParams::FIELDS,
            workgroup_size: c.threads,
            workgroup_bytes: c.threads * 4,
        }
    }
}

pub(super) fn variants(tuning: &Tuning) -> Vec<Kernel> {
    let product = tuning.product;
    let mut kernels: Vec<Kernel> = [(true, true), (true, false), (false, true), (false, false)]
        .map(|(bias, vec4)| Linear { product, bias, vec4 }.into())
        .into();
    for (across, vec4) in [(false, true), (false, false), (true, false)] {
        kernels.push(LinearGradient { product, across, vec4 }.into());
    }
    kernels.push(ColumnSums { threads: tuning.row_threads }.into());
    kernels
}
