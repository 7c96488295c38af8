//! A whole attention layer: projections around attention, all on the device.

use crate::blocks::{ELEMENT_BYTES, View};
use crate::cost::Cost;
use crate::device::Capabilities;
use crate::error::{PlanError, ProblemError};
use crate::forward::Views;
use crate::kernels::{Linear, LinearParams};
use crate::layout::Strides;
use crate::mask::Mask;
use crate::operand::Operand;
use crate::plan::{Algorithm, Bound, Plan, Planner};
use crate::problem::Problem;
use crate::shape::Shape;
use crate::work::Work;

/// `out = attention(x W_q^T + b_q, c W_k^T + b_k, c W_v^T + b_v) W_o^T + b_o`, where the context `c` is `x`
/// itself in self-attention and another sequence in cross-attention.
///
/// Weights are `[outputs, inputs]`, as PyTorch's `nn.Linear` keeps them. See
/// [Attention Is All You Need](https://arxiv.org/abs/1706.03762), section 3.2.2.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct SelfAttention {
    /// Extents of the attention inside.
    pub shape: Shape,
    /// Width of an input vector.
    pub model_dim: u32,
    /// Width of a context vector, where keys and values come from another sequence.
    pub context_dim: Option<u32>,
    /// Width of an output vector.
    pub out_dim: u32,
    /// Which keys a query sees.
    pub mask: Mask,
    /// Factor on `q . k`; `None` is `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// `W_q`, `W_k` and `W_v` are one matrix, their biases one vector. Not for cross-attention.
    pub packed: bool,
    /// The projections have biases.
    pub biases: bool,
    /// Also write the attention weights.
    pub weights: bool,
}

impl SelfAttention {
    /// `batch` sequences of `seq_len` vectors `model_dim` wide; heads of `model_dim / heads`; no biases.
    ///
    /// # Errors
    /// [`ProblemError::UnevenHeads`] when `heads` does not divide `model_dim`.
    pub fn new(batch: u32, seq_len: u32, model_dim: u32, heads: u32) -> Result<Self, ProblemError> {
        if heads == 0 || !model_dim.is_multiple_of(heads) {
            return Err(ProblemError::UnevenHeads { model_dim, heads });
        }
        Ok(Self {
            shape: Shape::self_attention(batch, heads, seq_len, model_dim / heads),
            model_dim,
            context_dim: None,
            out_dim: model_dim,
            mask: Mask::FULL,
            scale: None,
            packed: false,
            biases: false,
            weights: false,
        })
    }

    /// Other heads than `model_dim / heads` wide, or fewer key/value heads: `q_len` and `kv_len` stay.
    #[must_use]
    pub fn with_heads(self, heads: u32, kv_heads: u32, head_dim: u32, v_head_dim: u32) -> Self {
        let shape = Shape { heads, kv_heads, head_dim, v_head_dim, ..self.shape };
        Self { shape, ..self }
    }

    /// Keys and values from `kv_len` context vectors `context_dim` wide.
    #[must_use]
    pub fn with_context(self, kv_len: u32, context_dim: u32) -> Self {
        let shape = Shape { kv_len, ..self.shape };
        Self { shape, context_dim: Some(context_dim), ..self }
    }

    /// Output vectors `out_dim` wide.
    #[must_use]
    pub fn with_out_dim(self, out_dim: u32) -> Self {
        Self { out_dim, ..self }
    }

    /// Sets which keys a query sees.
    #[must_use]
    pub fn mask(self, mask: Mask) -> Self {
        Self { mask, ..self }
    }

    /// Sets the factor on `q . k`.
    #[must_use]
    pub fn scale(self, scale: f32) -> Self {
        Self { scale: Some(scale), ..self }
    }

    /// One matrix `w_qkv` and one bias `b_qkv` in place of three.
    #[must_use]
    pub fn packed(self) -> Self {
        Self { packed: true, ..self }
    }

    /// Every projection has a bias.
    #[must_use]
    pub fn with_biases(self) -> Self {
        Self { biases: true, ..self }
    }

    /// Also write the attention weights.
    #[must_use]
    pub fn with_weights(self) -> Self {
        Self { weights: true, ..self }
    }

    /// The attention inside: q, k and v as the projections lay them out, side by side where the sequence is
    /// one and the same.
    pub(crate) fn problem(&self) -> Problem {
        let s = self.shape;
        let view = |width: u64, len: u32, dim: u32| Strides {
            batch: width.saturating_mul(len.into()),
            head: dim.into(),
            row: width,
        };
        let [q, k, v] = self.widths();
        let (q_width, kv_width) = match self.context_dim {
            None => (q + k + v, q + k + v),
            Some(_) => (q, k + v),
        };
        let mut problem = Problem::new(s)
            .mask(self.mask)
            .q_strides(view(q_width, s.q_len, s.head_dim))
            .k_strides(view(kv_width, s.kv_len, s.head_dim))
            .v_strides(view(kv_width, s.kv_len, s.v_head_dim))
            .out_strides(Strides::bshd(s.heads, s.q_len, s.v_head_dim));
        problem.scale = self.scale;
        problem.weights = self.weights;
        problem
    }

    /// Columns of all heads of q, k and v.
    pub(crate) fn widths(&self) -> [u64; 3] {
        let s = self.shape;
        [(s.heads, s.head_dim), (s.kv_heads, s.head_dim), (s.kv_heads, s.v_head_dim)]
            .map(|(heads, dim)| u64::from(heads) * u64::from(dim))
    }

    /// Checks everything that can be checked without a device.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), PlanError> {
        let empty = |axis| Err(PlanError::Problem(ProblemError::EmptyAxis { axis }));
        if self.model_dim == 0 {
            return empty("model_dim");
        }
        if self.context_dim == Some(0) {
            return empty("context_dim");
        }
        if self.out_dim == 0 {
            return empty("out_dim");
        }
        if self.packed && self.context_dim.is_some() {
            return Err(PlanError::Problem(ProblemError::PackedContext));
        }
        if self.context_dim.is_none() && self.shape.q_len != self.shape.kv_len {
            let Shape { q_len, kv_len, .. } = self.shape;
            return Err(PlanError::Problem(ProblemError::UnevenLengths { q_len, kv_len }));
        }
        self.problem().validate()?;
        Ok(())
    }

    /// What the caller may give.
    fn operands(&self) -> Vec<Operand> {
        let mut operands = vec![Operand::X, Operand::WO, Operand::Out];
        operands.extend(self.context_dim.map(|_| Operand::Context));
        operands.extend(self.weights.then_some(Operand::Weights));
        let (matrices, biases): (&[_], &[_]) = if self.packed {
            (&[Operand::WQkv], &[Operand::BQkv, Operand::BO])
        } else {
            (
                &[Operand::WQ, Operand::WK, Operand::WV],
                &[Operand::BQ, Operand::BK, Operand::BV, Operand::BO],
            )
        };
        operands.extend(matrices);
        operands.extend(biases.iter().filter(|_| self.biases));
        operands
    }

    /// Rows, inputs and outputs of the projections.
    fn products(&self) -> [[u64; 3]; 3] {
        let s = self.shape;
        let [q, k, v] = self.widths();
        let rows = |len: u32| u64::from(s.batch) * u64::from(len);
        let (model, out) = (u64::from(self.model_dim), u64::from(self.out_dim));
        let context = u64::from(self.context_dim.unwrap_or(self.model_dim));
        let heads = u64::from(s.heads) * u64::from(s.v_head_dim);
        [[rows(s.q_len), model, q], [rows(s.kv_len), context, k + v], [rows(s.q_len), heads, out]]
    }

    /// Floating-point operations of the projections.
    pub(crate) fn projection_flops(&self) -> u64 {
        let flops = |[m, k, n]: [u64; 3]| (2 * m).saturating_mul(k).saturating_mul(n);
        self.products().map(flops).into_iter().fold(0, u64::saturating_add)
    }

    /// Floating-point operations of projections and attention; bytes of inputs, weights and output.
    fn cost(&self) -> Cost {
        let s = self.shape;
        let rows = |len: u32| u64::from(s.batch) * u64::from(len);
        let (model, out) = (u64::from(self.model_dim), u64::from(self.out_dim));
        let context = u64::from(self.context_dim.unwrap_or(self.model_dim));
        let mut cost = Cost { bytes: 0, ..Cost::of(&self.problem()) };
        cost.flops = cost.flops.saturating_add(self.projection_flops());
        for [_, k, n] in self.products() {
            cost.bytes = cost.bytes.saturating_add(ELEMENT_BYTES * k.saturating_mul(n));
        }
        let other = if self.context_dim.is_some() { rows(s.kv_len) } else { 0 };
        for (rows, width) in [(rows(s.q_len), model), (other, context), (rows(s.q_len), out)] {
            cost.bytes = cost.bytes.saturating_add(ELEMENT_BYTES * rows.saturating_mul(width));
        }
        cost
    }

    pub(crate) fn plan(
        &self,
        capabilities: &Capabilities,
        algorithm: Algorithm,
    ) -> Result<Plan, PlanError> {
        self.validate()?;
        let mut planner = Planner::new(capabilities);
        let s = self.shape;
        if s.batch == 0 || s.q_len == 0 {
            return Ok(planner.finish(self.cost(), self.operands(), Vec::new()));
        }
        let problem = self.problem();
        let rows = |len: u32| u64::from(s.batch) * u64::from(len);
        let (q_rows, kv_rows) = (rows(s.q_len), rows(s.kv_len));
        let [q_width, k_width, v_width] = self.widths();
        let model_dim = u64::from(self.model_dim);

        let q_region = planner.region();
        let (kv_region, k_first) = match self.context_dim {
            None => (q_region, q_width),
            Some(_) => (planner.region(), 0),
        };
        let v_first = k_first + k_width;
        let (q_row, kv_row) = (problem.q.row, problem.k.row);
        let bias = |operand: Operand| self.biases.then_some(operand);
        let context =
            self.context_dim.map_or((Operand::X, model_dim), |dim| (Operand::Context, dim.into()));
        if self.packed {
            let all = Projection {
                x: (Operand::X, model_dim),
                w: Operand::WQkv,
                bias: bias(Operand::BQkv),
                y: (q_region, 0, q_row),
                rows: q_rows,
                outputs: q_row,
            };
            all.plan(&mut planner)?;
        } else {
            let x = (Operand::X, model_dim);
            for (x, w, b, y, rows, outputs) in [
                (x, Operand::WQ, Operand::BQ, (q_region, 0, q_row), q_rows, q_width),
                (context, Operand::WK, Operand::BK, (kv_region, k_first, kv_row), kv_rows, k_width),
                (context, Operand::WV, Operand::BV, (kv_region, v_first, kv_row), kv_rows, v_width),
            ] {
                Projection { x, w, bias: bias(b), y, rows, outputs }.plan(&mut planner)?;
            }
        }

        let heads_region = planner.region();
        let view = |operand, first: u64, strides, dim| View {
            operand,
            base_bytes: first * ELEMENT_BYTES,
            strides,
            dim,
            element_bits: 8 * ELEMENT_BYTES,
        };
        let views = Views {
            q: view(q_region, 0, problem.q, s.head_dim),
            k: view(kv_region, k_first, problem.k, s.head_dim),
            v: view(kv_region, v_first, problem.v, s.v_head_dim),
            out: view(heads_region, 0, problem.out, s.v_head_dim),
        };
        planner.attention(&problem, algorithm, &views)?;

        let width = problem.out.row;
        let back = Projection {
            x: (heads_region, width),
            w: Operand::WO,
            bias: bias(Operand::BO),
            y: (Operand::Out, 0, self.out_dim.into()),
            rows: q_rows,
            outputs: self.out_dim.into(),
        };
        back.plan(&mut planner)?;
        Ok(planner.finish(self.cost(), self.operands(), Vec::new()))
    }
}

/// One `y = x w^T + b`.
struct Projection {
    /// `[rows, inputs]`, contiguous.
    x: (Operand, u64),
    w: Operand,
    bias: Option<Operand>,
    /// Operand, first column and width of a row.
    y: (Operand, u64, u64),
    rows: u64,
    outputs: u64,
}

impl Projection {
    /// Blocks of rows and outputs of which each operand fits a binding.
    fn plan(&self, planner: &mut Planner<'_>) -> Result<(), PlanError> {
        let ((x, inputs), (y, y_first, y_row)) = (self.x, self.y);
        let limit = planner.limit();
        let most = |width: u64, name: &str| {
            let required = width.saturating_mul(ELEMENT_BYTES);
            if required > limit.bytes() {
                return Err(limit.exceeded(format!("one row of {name}"), required));
            }
            Ok(limit.bytes() / required)
        };
        let rows = most(inputs, x.name())?.min(most(y_row, y.name())?).min(1 << 30);
        let outputs = most(inputs, self.w.name())?;
        let product = planner.tuning.product;
        let (block_m, block_n) = product.block();
        for m in (0..self.rows).step_by(whole(rows, block_m)) {
            let m_end = self.rows.min(m + whole(rows, block_m) as u64);
            for n in (0..self.outputs).step_by(whole(outputs, block_n)) {
                let n_end = self.outputs.min(n + whole(outputs, block_n) as u64);
                let bound = |operand, first: u64, end: u64| Bound {
                    operand,
                    bytes: first * ELEMENT_BYTES..end * ELEMENT_BYTES,
                };
                let at = |row: u64, column: u64| row * y_row + y_first + column;
                let mut operands = vec![
                    bound(x, m * inputs, m_end * inputs),
                    bound(self.w, n * inputs, n_end * inputs),
                    bound(y, at(m, n), at(m_end - 1, n_end)),
                ];
                operands.extend(self.bias.map(|bias| bound(bias, n, n_end)));
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
fn whole(n: u64, tile: u32) -> usize {
    let tile = u64::from(tile);
    let whole = if n > tile { n / tile * tile } else { n };
    usize::try_from(whole).unwrap_or(usize::MAX)
}
