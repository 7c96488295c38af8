//! Layers of an encoder as BERT and Marian's models have them: attention of all to all, then two products; after each
//! a residual and a norm.

use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::machine::Tensor;
use crate::program::{Attention, Finish, Linear, Norm, Program};
use wgpu_attention::{Layout, Problem, Shape};

/// Layers, one on top of the other.
#[derive(Debug)]
pub(crate) struct Encoder {
    pub(crate) heads: usize,
    pub(crate) layers: Vec<Layer>,
}

#[derive(Debug)]
pub(crate) struct Layer {
    /// Queries, keys and values, one below the other.
    pub(crate) qkv: Linear,
    pub(crate) back: Linear,
    pub(crate) norm: Norm,
    pub(crate) feed: Feed,
}

/// `norm(x + down(activation(up(x))))`.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) up: Linear,
    pub(crate) activation: Finish,
    pub(crate) down: Linear,
    pub(crate) norm: Norm,
}

/// Sizes of a model whose widths do not fit heads and kernels are refused.
pub(crate) fn check_width(file: &Checkpoint, width: usize, heads: usize) -> Result<(), Error> {
    match width.is_multiple_of(heads) && width.is_multiple_of(64) {
        true => Ok(()),
        false => {
            Err(file.wrong(format!("{width} columns are no multiple of 64 and {heads} heads")))
        }
    }
}

pub(crate) fn narrow(n: usize) -> Result<u32, Error> {
    u32::try_from(n).map_err(Error::device)
}

impl Feed {
    /// x `[rows, width]` is overwritten.
    pub(crate) fn run(&self, program: &mut Program, x: &Tensor, out: &Tensor) -> Result<(), Error> {
        let inner = program.machine.zeros(x.len() / self.up.w.cols * self.up.w.rows)?;
        program.linear(x, &self.up, self.activation, &inner)?;
        program.linear(&inner, &self.down, Finish::Add, x)?;
        program.norm(x, &self.norm, out)
    }
}

impl Encoder {
    /// Of x `[batch, seq_len, width]`, in its place, sequences of which are as long as `lens` `[batch]` says; where it does,
    /// the attention weights of each layer, `[batch, heads, seq_len, seq_len]`, are kept.
    pub(crate) fn run(
        &self,
        program: &mut Program,
        x: &Tensor,
        [batch, seq_len]: [usize; 2],
        lens: Option<&Tensor>,
    ) -> Result<Vec<Tensor>, Error> {
        let machine = program.machine.clone();
        let width = x.len() / (batch * seq_len);
        let [middle, attended] = [machine.zeros(x.len())?, machine.zeros(x.len())?];
        let qkv = machine.zeros(3 * x.len())?;
        let [b, h, n] = [narrow(batch)?, narrow(self.heads)?, narrow(seq_len)?];
        let shape = Shape::self_attention(b, h, n, narrow(width / self.heads)?);
        let mut problem = Problem::new(shape).layout(Layout::PackedQkv);
        if lens.is_some() {
            problem = problem.with_lengths(true, true).with_weights();
        }
        let mut kept = Vec::new();
        for layer in &self.layers {
            if lens.is_some() {
                kept.push(machine.zeros(batch * self.heads * seq_len * seq_len)?);
            }
            program.linear(x, &layer.qkv, Finish::Store, &qkv)?;
            program.attend(Attention {
                problem: problem.clone(),
                qkv: [0, width, 2 * width].map(|first| qkv.after(first)),
                lens: [lens.cloned(), lens.cloned()],
                weights: kept.last().cloned(),
                out: attended.clone(),
            })?;
            program.linear(&attended, &layer.back, Finish::Add, x)?;
            program.norm(x, &layer.norm, &middle)?;
            layer.feed.run(program, &middle, x)?;
        }
        Ok(kept)
    }
}
