//! The gradients of one projection: two products, and sums of columns.

use super::plan::{Place, whole};
use crate::error::PlanError;
use crate::kernels::{ColumnSums, ColumnSumsParams, Element, LinearGradient, LinearGradientParams};
use crate::layout::Strides;
use crate::operand::Operand;
use crate::planner::Planner;
use crate::work::{ELEMENT, Work, most_keys};

/// Of one `y = x w^T + b`.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProjectionGradient {
    /// Where column 0 of row 0 of the gradient of y is.
    pub(super) d_y: Place,
    /// Width of its rows.
    pub(super) y_row: u64,
    pub(super) rows: u64,
    pub(super) outputs: u64,
    /// `[rows, inputs]`, contiguous.
    pub(super) x: Place,
    pub(super) inputs: u64,
    pub(super) w: Operand,
    pub(super) d_x: Place,
    /// The gradient of x has something in it already.
    pub(super) adds_to_d_x: bool,
    pub(super) d_w: Operand,
    pub(super) d_b: Option<Operand>,
}

impl ProjectionGradient {
    pub(super) fn plan(&self, planner: &mut Planner<'_>) -> Result<(), PlanError> {
        let Self { d_y, y_row, rows, outputs, x, inputs, .. } = *self;
        let product = Product { a: d_y, a_row: y_row, n: inputs, accumulate: false, across: false };
        let d_w = Product { across: true, ..product };
        d_w.plan(planner, x, Place::of(self.d_w), [outputs, rows])?;
        if let Some(d_b) = self.d_b {
            self.column_sums(planner, d_b)?;
        }
        let d_x = Product { accumulate: self.adds_to_d_x, ..product };
        d_x.plan(planner, Place::of(self.w), self.d_x, [rows, outputs])
    }

    /// Of no row of y that there is a gradient of: 0.
    pub(super) fn zeros(&self, planner: &mut Planner<'_>) -> Result<(), PlanError> {
        let Self { rows, outputs, inputs, .. } = *self;
        zeros(planner, Place::of(self.d_w), [outputs, inputs])?;
        if let Some(d_b) = self.d_b {
            zeros(planner, Place::of(d_b), [1, outputs])?;
        }
        if self.adds_to_d_x { Ok(()) } else { zeros(planner, self.d_x, [rows, inputs]) }
    }

    /// The gradient of the bias.
    fn column_sums(&self, planner: &mut Planner<'_>, d_b: Operand) -> Result<(), PlanError> {
        let Self { d_y, y_row, rows, outputs, .. } = *self;
        if rows == 0 {
            return zeros(planner, Place::of(d_b), [1, outputs]);
        }
        let threads = planner.tuning.row_threads;
        rows_of(planner, outputs, d_b.name())?;
        // A row a round of the loop, where products take sixteen in six.
        let walk = most_keys(planner.capabilities.class, ELEMENT) / 4;
        let most = rows_of(planner, y_row, d_y.operand.name())?.min(walk.into());
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        for first in (0..rows).step_by(most) {
            let end = rows.min(first.saturating_add(most as u64));
            let params = ColumnSumsParams {
                rows: narrow(end - first),
                columns: narrow(outputs),
                y_row: narrow(y_row),
                accumulate: (first > 0).into(),
                ..ColumnSumsParams::default()
            };
            let bound = vec![
                d_y.bound(first * y_row, (end - 1) * y_row + outputs),
                Place::of(d_b).bound(0, outputs),
            ];
            let workgroups = outputs.div_ceil(ColumnSums::COLUMNS.into());
            let each = (end - first) * u64::from(ColumnSums::COLUMNS) * ELEMENT;
            planner.step(
                |_| ColumnSums { threads }.into(),
                false,
                bound,
                Work::even(workgroups, each),
                |workgroups, grid_width| {
                    let params = ColumnSumsParams { workgroups, grid_width, ..params };
                    bytemuck::bytes_of(&params).to_vec()
                },
            )?;
        }
        Ok(())
    }
}

/// `c = a b`, or `c + a b`, of rows of b and c that are contiguous and as wide.
#[derive(Clone, Copy, Debug)]
struct Product {
    /// Where its first element is, and the width of its rows.
    a: Place,
    a_row: u64,
    /// What is bound is a transposed.
    across: bool,
    /// Width of b and c.
    n: u64,
    accumulate: bool,
}

impl Product {
    /// Blocks of rows of c, each over as many terms at a time as a binding holds: what comes later is added to it.
    fn plan(
        &self,
        planner: &mut Planner<'_>,
        b: Place,
        c: Place,
        [rows, terms]: [u64; 2],
    ) -> Result<(), PlanError> {
        let Self { a, a_row, across, n, accumulate } = *self;
        if terms == 0 {
            return if accumulate { Ok(()) } else { zeros(planner, c, [rows, n]) };
        }
        let product = planner.tuning.product;
        let (block_m, block_n) = product.block();
        let of_a = rows_of(planner, a_row, a.operand.name())?;
        let [of_b, of_c] = [b, c].map(|place| rows_of(planner, n, place.operand.name()));
        let (mut most_rows, mut most_terms) = (of_c?, of_b?);
        if across {
            most_terms = most_terms.min(of_a);
        } else {
            most_rows = most_rows.min(of_a);
        }
        // No workgroup may walk for long: nothing can cut it.
        let each = 2 * u64::from(block_m) * u64::from(block_n);
        most_terms = most_terms.min(most_keys(planner.capabilities.class, each).into());
        let (most_rows, most_terms) = (whole(most_rows, block_m), whole(most_terms, TERMS));
        for m in (0..rows).step_by(most_rows) {
            let m_end = rows.min(m.saturating_add(most_rows as u64));
            for k in (0..terms).step_by(most_terms) {
                let k_end = terms.min(k.saturating_add(most_terms as u64));
                let at = |row: u64, column: u64| row * a_row + column;
                let of_a = if across {
                    a.bound(at(k, m), at(k_end - 1, m_end))
                } else {
                    a.bound(at(m, k), at(m_end - 1, k_end))
                };
                let bound = vec![of_a, b.bound(k * n, k_end * n), c.bound(m * n, m_end * n)];
                let tiles = (m_end - m).div_ceil(block_m.into());
                let params = LinearGradientParams {
                    rows: narrow(m_end - m),
                    columns: narrow(n),
                    terms: narrow(k_end - k),
                    tiles: narrow(tiles),
                    a_row: narrow(a_row),
                    b_row: narrow(n),
                    c_row: narrow(n),
                    accumulate: (accumulate || k > 0).into(),
                    ..LinearGradientParams::default()
                };
                let whole_words = a_row.is_multiple_of(4) && (k_end - k).is_multiple_of(4);
                planner.step(
                    |vec4| LinearGradient { product, across, vec4 }.into(),
                    whole_words,
                    bound,
                    Work::even(tiles * n.div_ceil(block_n.into()), each.saturating_mul(k_end - k)),
                    |workgroups, grid_width| {
                        let params = LinearGradientParams { workgroups, grid_width, ..params };
                        bytemuck::bytes_of(&params).to_vec()
                    },
                )?;
            }
        }
        Ok(())
    }
}

/// Terms are cut at multiples of this: what every product takes at a time.
const TERMS: u32 = 32;

/// Zeros over `[rows, width]`.
fn zeros(planner: &mut Planner<'_>, to: Place, [rows, width]: [u64; 2]) -> Result<(), PlanError> {
    rows_of(planner, width, to.operand.name())?;
    let Ok(rows) = u32::try_from(rows) else {
        let available = u32::MAX.into();
        return Err(PlanError::TooManyWorkgroups { kernel: "fill", required: rows, available });
    };
    let view = to.view(Strides::bhsd(1, rows, narrow(width)), narrow(width));
    planner.zeros(&view, [1, 1, rows], Element::F32)
}

/// Rows that a binding holds.
fn rows_of(planner: &Planner<'_>, width: u64, name: &str) -> Result<u64, PlanError> {
    let (limit, required) = (planner.limit(), width.saturating_mul(crate::blocks::ELEMENT_BYTES));
    if required > limit.bytes() {
        return Err(limit.exceeded(format!("one row of {name}"), required));
    }
    Ok((limit.bytes() / required).min(1 << 30))
}

/// Of what fits a binding.
fn narrow(n: u64) -> u32 {
    u32::try_from(n).expect("within a binding")
}
