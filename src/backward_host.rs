//! Gradients from and to host memory: what goes up and what comes down.

use crate::backward::{Backward, BackwardInputs, Gradients};
use crate::encoding::{Data, encoded};
use crate::error::Error;
use crate::host::{Transfer, checked, optional};
use crate::inputs::Inputs;
use crate::operand::Operand;
use crate::outputs::FromOutputs;
use crate::shape::DType;

impl<'a> Transfer<'a> {
    pub(crate) fn of_backward(
        backward: &Backward,
        inputs: &Inputs<'a>,
        given: &BackwardInputs<'a>,
    ) -> Result<Self, Error> {
        backward.validate()?;
        let problem = &backward.problem;
        let mut transfer = Self::of_inputs(problem, inputs)?;
        let s = problem.tensor_shape();
        let rows = u64::from(s.batch) * u64::from(s.heads) * u64::from(s.q_len);
        for (operand, data, strides) in
            [(Operand::Out, given.out, problem.out), (Operand::DOut, given.d_out, backward.d_out)]
        {
            let extent = strides.extent(s.batch, s.heads, s.q_len, s.v_head_dim);
            let data = checked(operand, data, extent.expect("validated"), false)?;
            transfer.give(operand, encoded(data, problem.out_dtype));
        }
        transfer.give(Operand::Lse, Data::F32(checked(Operand::Lse, given.lse, rows, true)?));
        let d_lse = optional(Operand::DLse, given.d_lse, backward.d_lse.then_some(rows), true)?;
        if let Some(d_lse) = d_lse {
            transfer.give(Operand::DLse, Data::F32(d_lse));
        }
        for (operand, strides, [heads, len, dim], dtype) in [
            (Operand::DQ, backward.d_q, [s.heads, s.q_len, s.head_dim], problem.dtype),
            (Operand::DK, backward.d_k, [s.kv_heads, s.kv_len, s.head_dim], problem.kv_dtype),
            (Operand::DV, backward.d_v, [s.kv_heads, s.kv_len, s.v_head_dim], problem.kv_dtype),
        ] {
            let extent = strides.extent(s.batch, heads, len, dim).expect("validated");
            transfer.take(operand, extent, dtype)?;
        }
        let bias = problem.bias.filter(|_| backward.d_bias).map(|bias| bias.gradient());
        let slopes = problem.alibi.filter(|_| backward.d_alibi_slopes);
        for (operand, elements) in [
            (Operand::DBias, bias.map(|pairs| pairs.extent(pairs.axes).expect("validated"))),
            (Operand::DSinks, backward.d_sinks.then_some(s.heads.into())),
            (Operand::DAlibiSlopes, slopes.map(|slopes| slopes.count(&problem.shape))),
        ] {
            if let Some(elements) = elements {
                transfer.take(operand, elements, DType::F32)?;
            }
        }
        Ok(transfer)
    }
}

impl FromOutputs for Gradients {
    fn empty(transfer: &Transfer<'_>) -> Self {
        let asked = |operand| transfer.asks(operand).then(Vec::new);
        Self {
            bias: asked(Operand::DBias),
            sinks: asked(Operand::DSinks),
            alibi_slopes: asked(Operand::DAlibiSlopes),
            ..Self::default()
        }
    }

    fn set(&mut self, operand: Operand, data: Vec<f32>) {
        match operand {
            Operand::DK => self.k = data,
            Operand::DV => self.v = data,
            Operand::DBias => self.bias = Some(data),
            Operand::DSinks => self.sinks = Some(data),
            Operand::DAlibiSlopes => self.alibi_slopes = Some(data),
            _ => self.q = data,
        }
    }
}
