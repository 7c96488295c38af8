//! The steps of a layer: projections, attention, projection.

use super::SelfAttention;
use crate::blocks::{ELEMENT_BYTES, View};
use crate::device::Capabilities;
use crate::error::PlanError;
use crate::forward::{Views, lse_view};
use crate::kernels::{Linear, LinearParams};
use crate::layout::Strides;
use crate::operand::Operand;
use crate::plan::{Algorithm, Bound, Plan};
use crate::planner::Planner;
use crate::problem::Problem;
use crate::work::Work;

/// An element of an operand, from which others are counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) operand: Operand,
    /// Its index.
    pub(crate) first: u64,
}

impl Place {
    /// The first of all.
    pub(super) fn of(operand: Operand) -> Self {
        Self { operand, first: 0 }
    }

    /// So many further on.
    pub(super) fn after(self, elements: u64) -> Self {
        Self { first: self.first.saturating_add(elements), ..self }
    }

    /// Elements from the one to before the other.
    pub(super) fn bound(self, first: u64, end: u64) -> Bound {
        let Self { operand, first: base } = self;
        Bound { operand, bytes: (base + first) * ELEMENT_BYTES..(base + end) * ELEMENT_BYTES }
    }

    pub(super) fn view(self, strides: Strides, dim: u32) -> View {
        let base_bytes = self.first * ELEMENT_BYTES;
        View { operand: self.operand, base_bytes, strides, dim, element_bits: 8 * ELEMENT_BYTES }
    }
}

/// What is between the projections, or the gradients of that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inside {
    pub(crate) q: Place,
    pub(crate) k: Place,
    pub(crate) v: Place,
    /// `[batch, q_len, heads * v_head_dim]`.
    pub(crate) heads: Place,
    pub(crate) lse: Place,
}

impl Inside {
    /// Each a region of its own, but for what lies side by side; no lse where none is asked for.
    pub(super) fn regions(layer: &SelfAttention, lse: bool, planner: &mut Planner<'_>) -> Self {
        let q = Place::of(planner.region());
        let kv = layer.context_dim.map(|_| Place::of(planner.region()));
        let heads = Place::of(planner.region());
        let lse = Place::of(if lse { planner.region() } else { Operand::Lse });
        Self::beside(layer, q, kv, heads, lse)
    }

    /// One behind the other, and how many elements that takes.
    pub(crate) fn saved(layer: &SelfAttention) -> (Self, u64) {
        let s = layer.shape;
        let rows = |len: u32| u64::from(s.batch) * u64::from(len);
        let problem = layer.problem();
        let mut end = 0_u64;
        let mut next = |elements: u64| {
            let first = end;
            // Rows can be read four elements at a time.
            end = end.saturating_add(elements).checked_next_multiple_of(4).unwrap_or(u64::MAX);
            Place { operand: Operand::Saved, first }
        };
        let q = next(rows(s.q_len).saturating_mul(problem.q.row));
        let kv = layer.context_dim.map(|_| next(rows(s.kv_len).saturating_mul(problem.k.row)));
        let heads = next(rows(s.q_len).saturating_mul(problem.out.row));
        let lse = next(rows(s.q_len).saturating_mul(s.heads.into()));
        (Self::beside(layer, q, kv, heads, lse), end)
    }

    /// Of self-attention keys and values lie beside queries.
    fn beside(
        layer: &SelfAttention,
        q: Place,
        kv: Option<Place>,
        heads: Place,
        lse: Place,
    ) -> Self {
        let [q_width, k_width, _] = layer.widths();
        let k = kv.unwrap_or(q.after(q_width));
        Self { q, k, v: k.after(k_width), heads, lse }
    }

    pub(super) fn views(&self, layer: &SelfAttention) -> Views {
        let (problem, s) = (layer.problem(), layer.shape);
        Views {
            q: self.q.view(problem.q, s.head_dim),
            k: self.k.view(problem.k, s.head_dim),
            v: self.v.view(problem.v, s.v_head_dim),
            out: self.heads.view(problem.out, s.v_head_dim),
            lse: lse_view(&s, self.lse.operand, self.lse.first * ELEMENT_BYTES),
        }
    }
}

impl SelfAttention {
    pub(crate) fn plan(
        &self,
        capabilities: &Capabilities,
        algorithm: Algorithm,
    ) -> Result<Plan, PlanError> {
        self.validate()?;
        let mut planner = Planner::new(capabilities);
        let s = self.shape;
        let mut known = self.inputs();
        known.push(Operand::Out);
        known.extend(self.dropout.map(|_| Operand::Seed));
        known.extend(self.weights.then_some(Operand::Weights));
        known.extend(self.saved.then_some(Operand::Saved));
        if s.batch == 0 || s.q_len == 0 {
            return Ok(planner.finish(self.cost(), known, Vec::new()));
        }
        let inside = if self.saved {
            Inside::saved(self).0
        } else {
            Inside::regions(self, false, &mut planner)
        };
        self.heads(&mut planner, &self.problem(), algorithm, &inside)?;
        let back = Projection {
            x: inside.heads,
            inputs: self.problem().out.row,
            w: Operand::WO,
            bias: self.biases.then_some(Operand::BO),
            y: Place::of(Operand::Out),
            y_row: self.out_dim.into(),
            rows: u64::from(s.batch) * u64::from(s.q_len),
            outputs: self.out_dim.into(),
        };
        back.plan(&mut planner)?;
        Ok(planner.finish(self.cost(), known, Vec::new()))
    }

    /// The steps up to what the heads give.
    pub(super) fn heads(
        &self,
        planner: &mut Planner<'_>,
        problem: &Problem,
        algorithm: Algorithm,
        inside: &Inside,
    ) -> Result<(), PlanError> {
        let s = self.shape;
        let rows = |len: u32| u64::from(s.batch) * u64::from(len);
        let (q_rows, kv_rows) = (rows(s.q_len), rows(s.kv_len));
        let (q_row, kv_row) = (problem.q.row, problem.k.row);
        let [q_width, k_width, v_width] = self.widths();
        let bias = |operand: Operand| self.biases.then_some(operand);
        let (x, inputs) = (Place::of(Operand::X), u64::from(self.model_dim));
        if self.packed {
            let (w, bias) = (Operand::WQkv, bias(Operand::BQkv));
            let (rows, outputs) = (q_rows, q_row);
            Projection { x, inputs, w, bias, y: inside.q, y_row: q_row, rows, outputs }
                .plan(planner)?;
        } else {
            let queries = (x, inputs, q_row, q_rows);
            let keys = match self.context_dim {
                None => queries,
                Some(dim) => (Place::of(Operand::Context), dim.into(), kv_row, kv_rows),
            };
            for ((x, inputs, y_row, rows), w, b, y, outputs) in [
                (queries, Operand::WQ, Operand::BQ, inside.q, q_width),
                (keys, Operand::WK, Operand::BK, inside.k, k_width),
                (keys, Operand::WV, Operand::BV, inside.v, v_width),
            ] {
                Projection { x, inputs, w, bias: bias(b), y, y_row, rows, outputs }
                    .plan(planner)?;
            }
        }
        planner.attention(problem, algorithm, &inside.views(self))
    }
}

/// One `y = x w^T + b`.
struct Projection {
    /// `[rows, inputs]`, contiguous.
    x: Place,
    inputs: u64,
    w: Operand,
    bias: Option<Operand>,
    /// Where column 0 of row 0 goes.
    y: Place,
    /// Width of a row of y.
    y_row: u64,
    rows: u64,
    outputs: u64,
}

impl Projection {
    /// Blocks of rows and outputs of which each operand fits a binding.
    fn plan(&self, planner: &mut Planner<'_>) -> Result<(), PlanError> {
        let Self { x, inputs, y, y_row, .. } = *self;
        let limit = planner.limit();
        let most = |width: u64, name: &str| {
            let required = width.saturating_mul(ELEMENT_BYTES);
            if required > limit.bytes() {
                return Err(limit.exceeded(format!("one row of {name}"), required));
            }
            Ok(limit.bytes() / required)
        };
        let rows = most(inputs, x.operand.name())?.min(most(y_row, y.operand.name())?).min(1 << 30);
        let outputs = most(inputs, self.w.name())?;
        let product = planner.tuning.product;
        let (block_m, block_n) = product.block();
        for m in (0..self.rows).step_by(whole(rows, block_m)) {
            let m_end = self.rows.min(m + whole(rows, block_m) as u64);
            for n in (0..self.outputs).step_by(whole(outputs, block_n)) {
                let n_end = self.outputs.min(n + whole(outputs, block_n) as u64);
                let at = |row: u64, column: u64| row * y_row + column;
                let mut operands = vec![
                    x.bound(m * inputs, m_end * inputs),
                    Place::of(self.w).bound(n * inputs, n_end * inputs),
                    y.bound(at(m, n), at(m_end - 1, n_end)),
                ];
                operands.extend(self.bias.map(|bias| Place::of(bias).bound(n, n_end)));
                let tiles = (m_end - m).div_ceil(block_m.into());
                let products = 2 * u64::from(block_m) * u64::from(block_n);
                let total = tiles * (n_end - n).div_ceil(block_n.into());
                let narrow = |n: u64| u32::try_from(n).expect("within a binding");
                let params = LinearParams {
                    rows: narrow(m_end - m),
                    inputs: narrow(inputs),
                    outputs: narrow(n_end - n),
                    tiles: narrow(tiles),
                    x_row: narrow(inputs),
                    w_row: narrow(inputs),
                    y_row: narrow(y_row),
                    ..LinearParams::default()
                };
                planner.step(
                    |vec4| Linear { product, bias: self.bias.is_some(), vec4 }.into(),
                    inputs.is_multiple_of(4),
                    operands,
                    Work::even(total, products.saturating_mul(inputs)),
                    |workgroups, grid_width| {
                        let params = LinearParams { workgroups, grid_width, ..params };
                        bytemuck::bytes_of(&params).to_vec()
                    },
                )?;
            }
        }
        Ok(())
    }
}

/// At most `n`, in whole tiles where that is possible.
pub(super) fn whole(n: u64, tile: u32) -> usize {
    let tile = u64::from(tile);
    let whole = if n > tile { n / tile * tile } else { n };
    usize::try_from(whole).unwrap_or(usize::MAX)
}
