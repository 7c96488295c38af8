//! The operations of a translation: those of the encoder, and those of one token of the decoder.

use crate::error::Error;
use crate::machine::Machine;
use crate::op::{Finish, Op, Positions, Sampling};
use crate::tensor::Tensor;
use crate::translator::{Affine, CONTEXT, EPSILON, Feed, Norm, Translating, Translator};
use wgpu_attention::{Layout, Problem, Shape, Strides};

impl Translator {
    /// Everything that runs to translate these tokens.
    ///
    /// # Errors
    /// They are more than the context holds, or the machine cannot.
    pub fn ready(&self, machine: &Machine, source: &[u32]) -> Result<Translating, Error> {
        if source.len() > CONTEXT {
            return Err(Error::Context { tokens: source.len(), context: CONTEXT });
        }
        let (mut ops, memory) = self.encoder_ops(machine, source)?;
        // Keys and values of the source, once for each layer of the decoder.
        let mut key_values = Vec::new();
        for layer in &self.decoder {
            let key_value = machine.zeros(source.len() * 2 * self.width)?;
            ops.push(linear(&memory, &layer.key_value, Finish::Store, &key_value));
            key_values.push(key_value);
        }
        let encode = machine.program(ops)?;
        // No token yet: one that no table has.
        let token = machine.tensor(&[u32::MAX])?;
        let weights = machine.zeros(self.heads * source.len())?;
        let ops = self.decoder_ops(machine, source.len(), &key_values, &token, &weights)?;
        Ok(Translating { encode, decode: machine.program(ops)?, token, weights })
    }

    fn embed(&self, tokens: &Tensor, start: &Tensor, seq_len: usize, out: &Tensor) -> Op {
        let (table, start) = (self.places.clone(), start.clone());
        #[allow(clippy::cast_possible_truncation, reason = "a small number's root")]
        let factor = (self.width as f64).sqrt() as f32;
        Op::Embed {
            tokens: tokens.clone(),
            table: self.words.clone(),
            factor,
            positions: Some(Positions { table, start, seq_len }),
            out: out.clone(),
        }
    }

    /// And what they make of the source, `[source, width]`.
    fn encoder_ops(&self, machine: &Machine, source: &[u32]) -> Result<(Vec<Op>, Tensor), Error> {
        let (rows, width) = (source.len(), self.width);
        let zeros = |columns: usize| machine.zeros(rows * columns);
        let (stream, middle, attended) = (zeros(width)?, zeros(width)?, zeros(width)?);
        let qkv = zeros(3 * width)?;
        let [heads, dim, len] = self.sizes(rows)?;
        let problem =
            Problem::new(Shape::self_attention(1, heads, len, dim)).layout(Layout::PackedQkv);
        let tokens = machine.tensor(source)?;
        let mut ops = vec![self.embed(&tokens, &machine.zeros(1)?, rows, &stream)];
        for layer in &self.encoder {
            ops.extend([
                linear(&stream, &layer.qkv, Finish::Store, &qkv),
                Op::Attend {
                    problem: Box::new(problem.clone()),
                    qkv: [0, width, 2 * width].map(|first| qkv.after(first)),
                    q_lens: None,
                    kv_lens: None,
                    weights: None,
                    out: attended.clone(),
                },
                linear(&attended, &layer.back, Finish::Add, &stream),
                norm(&stream, &layer.norm, &middle),
            ]);
            ops.extend(feed(machine, &layer.feed, &middle, &stream)?);
        }
        Ok((ops, stream))
    }

    /// One token: it goes in, the next comes out in its place.
    fn decoder_ops(
        &self,
        machine: &Machine,
        source_len: usize,
        key_values: &[Tensor],
        token: &Tensor,
        weights: &Tensor,
    ) -> Result<Vec<Op>, Error> {
        let width = self.width;
        let [stream, middle, query, attended] = [(); 4].map(|()| machine.zeros(width));
        let (mut stream, mut middle, query, attended) = (stream?, middle?, query?, attended?);
        let gates = machine.zeros(2 * width)?;
        let step = machine.zeros(1)?;
        let [heads, dim, len] = self.sizes(source_len)?;
        let row = 2 * width as u64;
        let strides = Strides { batch: row * u64::from(len), head: dim.into(), row };
        let shape = Shape::cross_attention(1, heads, 1, len, dim);
        let problem = Problem::new(shape).k_strides(strides).v_strides(strides);
        let mut ops = vec![self.embed(token, &step, 1, &stream)];
        for (index, (layer, key_value)) in self.decoder.iter().zip(key_values).enumerate() {
            let is_last = index + 1 == self.decoder.len();
            let problem = problem.clone();
            ops.extend([
                linear(&stream, &layer.recurrence, Finish::Store, &gates),
                Op::Ssru { x: gates.clone(), state: machine.zeros(width)?, out: stream.clone() },
                norm(&stream, &layer.recurrence_norm, &middle),
                linear(&middle, &layer.query, Finish::Store, &query),
                Op::Attend {
                    problem: Box::new(if is_last { problem.with_weights() } else { problem }),
                    qkv: [query.clone(), key_value.clone(), key_value.after(width)],
                    q_lens: None,
                    kv_lens: None,
                    weights: is_last.then(|| weights.clone()),
                    out: attended.clone(),
                },
                linear(&attended, &layer.back, Finish::Add, &middle),
                norm(&middle, &layer.norm, &stream),
            ]);
            ops.extend(feed(machine, &layer.feed, &stream, &middle)?);
            // What came out is what the next layer takes.
            std::mem::swap(&mut stream, &mut middle);
        }
        let logits = machine.zeros(self.words.rows())?;
        let table = (self.words.clone(), self.bias.clone());
        ops.push(linear(&stream, &table, Finish::Store, &logits));
        let (sampling, token) = (Sampling::Greedy, token.clone());
        ops.push(Op::Choose { logits, sampling, step, token });
        Ok(ops)
    }

    /// Heads, their width, and a length.
    fn sizes(&self, len: usize) -> Result<[u32; 3], Error> {
        let size = |n: usize| u32::try_from(n).map_err(Error::device);
        Ok([size(self.heads)?, size(self.width / self.heads)?, size(len)?])
    }
}

fn linear(x: &Tensor, (w, bias): &Affine, finish: Finish, out: &Tensor) -> Op {
    let (x, w, bias, out) = (x.clone(), w.clone(), Some(bias.clone()), out.clone());
    Op::Linear { x, w, bias, finish, out }
}

fn norm(x: &Tensor, [scale, bias]: &Norm, out: &Tensor) -> Op {
    let (x, scale, bias, out) = (x.clone(), scale.clone(), Some(bias.clone()), out.clone());
    Op::Norm { x, scale, bias, epsilon: EPSILON, out }
}

/// `out = norm(x + down(relu(up(x))))`; x is overwritten.
fn feed(machine: &Machine, feed: &Feed, x: &Tensor, out: &Tensor) -> Result<[Op; 3], Error> {
    let rows = x.len() / feed.up.0.cols();
    let inner = machine.zeros(rows * feed.up.0.rows())?;
    Ok([
        linear(x, &feed.up, Finish::Relu, &inner),
        linear(&inner, &feed.down, Finish::Add, x),
        norm(x, &feed.norm, out),
    ])
}
