//! A text under way: what a language model has read so far, in a cache, and the token that comes next.

use crate::error::Error;
use crate::llama::{Layer, Llama, Sizes};
use crate::machine::{Machine, Program};
use crate::op::{Finish, Op, Sampling};
use crate::tensor::{Tensor, Weights};
use wgpu_attention::{Append, Layout, Mask, Problem, Rotary, RotaryEmbedding, Shape, Strides};

/// Tokens that are read at once, at most.
pub const CHUNK: usize = 128;

/// One text.
#[derive(Debug)]
pub struct Session<'a> {
    model: &'a Llama,
    machine: &'a Machine,
    capacity: usize,
    /// Tokens in the cache.
    used: usize,
    sampling: Sampling,
    cache: Cache,
    decode: Program,
}

/// What lies on the machine between one token and the next.
#[derive(Debug)]
struct Cache {
    /// Keys and values of each layer, `[capacity, kv_heads, head_dim]`.
    layers: Vec<[Tensor; 2]>,
    /// `[1]`: positions that are taken. The first layer's append advances it.
    kv_lens: Tensor,
    status: Tensor,
    /// Cosines and sines.
    tables: [Tensor; 2],
    /// `[1]`: the token that was chosen last.
    token: Tensor,
    /// `[1]`: how many were.
    step: Tensor,
    logits: Tensor,
}

impl<'a> Session<'a> {
    /// An empty text of up to `capacity` tokens.
    ///
    /// # Errors
    /// The model was trained for fewer, or the machine cannot.
    pub fn new(
        model: &'a Llama,
        machine: &'a Machine,
        capacity: usize,
        sampling: Sampling,
    ) -> Result<Self, Error> {
        if capacity > model.context || capacity == 0 {
            return Err(Error::Context { tokens: capacity, context: model.context });
        }
        let sizes = model.sizes;
        let (cos, sin) = rotary(&sizes, capacity)?.tables(sizes.rotary_base);
        let layer = |_: &Layer| {
            let [k, v] =
                [(); 2].map(|()| machine.zeros(capacity * sizes.kv_heads * sizes.head_dim));
            Ok::<_, Error>([k?, v?])
        };
        let cache = Cache {
            layers: model.stack.iter().map(layer).collect::<Result<_, _>>()?,
            kv_lens: machine.zeros(1)?,
            status: machine.zeros(1)?,
            tables: [machine.tensor(&cos)?, machine.tensor(&sin)?],
            token: machine.zeros(1)?,
            step: machine.zeros(1)?,
            logits: machine.zeros(sizes.words)?,
        };
        let token = cache.token.clone();
        let ops = ops(model, machine, &cache, capacity, (&token, 1), Some(sampling))?;
        let decode = machine.program(ops)?;
        Ok(Self { model, machine, capacity, used: 0, sampling, cache, decode })
    }

    /// Tokens that there is room for.
    pub fn room(&self) -> usize {
        self.capacity - self.used
    }

    /// What runs for every new token.
    pub fn decode(&self) -> &Program {
        &self.decode
    }

    /// Reads tokens and chooses the next. Before each part it asks whether to go on; `None` where not.
    ///
    /// # Errors
    /// There is no room, or the machine cannot.
    pub fn read(&mut self, tokens: &[u32], go_on: impl Fn() -> bool) -> Result<Option<u32>, Error> {
        if tokens.len() >= self.room() {
            let tokens = self.used + tokens.len() + 1;
            return Err(Error::Context { tokens, context: self.capacity });
        }
        let mut chunks = tokens.chunks(CHUNK).peekable();
        while let Some(chunk) = chunks.next() {
            if !go_on() {
                return Ok(None);
            }
            let sampling = chunks.peek().is_none().then_some(self.sampling);
            let rows = (&self.machine.tensor(chunk)?, chunk.len());
            let (model, machine) = (self.model, self.machine);
            let ops = ops(model, machine, &self.cache, self.capacity, rows, sampling)?;
            machine.run(&machine.program(ops)?)?;
            self.used += chunk.len();
            // Waits, so that the next question comes in time.
            machine.read::<u32>(&self.cache.token)?;
        }
        self.token().map(Some)
    }

    /// Reads the token that was chosen last and chooses the next.
    ///
    /// # Errors
    /// There is no room, or the machine cannot.
    pub fn advance(&mut self) -> Result<u32, Error> {
        if self.room() == 0 {
            return Err(Error::Context { tokens: self.used + 1, context: self.capacity });
        }
        self.machine.run(&self.decode)?;
        self.used += 1;
        self.token()
    }

    fn token(&self) -> Result<u32, Error> {
        let token = self.machine.read(&self.cache.token)?;
        token.first().copied().ok_or_else(|| Error::device("nothing came back"))
    }

    /// `[vocabulary]`: what the last token was chosen by; nothing of use where it was drawn.
    ///
    /// # Errors
    /// The device was lost.
    pub fn logits(&self) -> Result<Vec<f32>, Error> {
        self.machine.read(&self.cache.logits)
    }
}

fn size(n: usize) -> Result<u32, Error> {
    u32::try_from(n).map_err(Error::device)
}

fn rotary(sizes: &Sizes, capacity: usize) -> Result<Rotary, Error> {
    Ok(Rotary::new(sizes.pairs, size(sizes.head_dim)?, size(capacity)?))
}

/// The forward pass of so many tokens, and the choice of the next.
fn ops(
    model: &Llama,
    machine: &Machine,
    cache: &Cache,
    capacity: usize,
    (tokens, rows): (&Tensor, usize),
    sampling: Option<Sampling>,
) -> Result<Vec<Op>, Error> {
    let sizes = &model.sizes;
    let Sizes { width, inner, heads, kv_heads, head_dim, epsilon, .. } = *sizes;
    let zeros = |columns: usize| machine.zeros(rows * columns);
    let (q_columns, turned_columns) = (heads * head_dim, (heads + kv_heads) * head_dim);
    let columns = turned_columns + kv_heads * head_dim;
    let (stream, normed, attended) = (zeros(width)?, zeros(width)?, zeros(width)?);
    let (qkv, turned) = (zeros(columns)?, zeros(turned_columns)?);
    let (up, middle) = (zeros(2 * inner)?, zeros(inner)?);

    let [heads, kv_heads, dim] = [size(heads)?, size(kv_heads)?, size(head_dim)?];
    let shape = Shape::cross_attention(1, heads, size(rows)?, size(capacity)?, dim);
    let side_by_side = |columns: usize| Strides {
        batch: (rows * columns) as u64,
        head: dim.into(),
        row: columns as u64,
    };
    let problem = Problem::new(shape.with_kv_heads(kv_heads))
        .layout(Layout::Bshd)
        .mask(Mask::CAUSAL)
        .q_strides(side_by_side(turned_columns))
        .with_lengths(false, true);
    let append = Append::to_cache_of(&problem)
        .new_strides(side_by_side(turned_columns), side_by_side(columns));
    // Queries and keys are turned together, before keys are appended.
    let both = Shape::cross_attention(1, heads + kv_heads, size(rows)?, size(rows)?, dim);
    let turn = RotaryEmbedding::new(rotary(sizes, capacity)?, both)
        .x_strides(side_by_side(columns))
        .out_strides(side_by_side(turned_columns));

    let linear = |x: &Tensor, w: &Weights, finish, out: &Tensor| Op::Linear {
        x: x.clone(),
        w: w.clone(),
        bias: None,
        finish,
        out: out.clone(),
    };
    let norm = |x: &Tensor, scale: &Tensor, out: &Tensor| Op::Norm {
        x: x.clone(),
        scale: scale.clone(),
        bias: None,
        epsilon,
        out: out.clone(),
    };
    let mut ops = vec![Op::Embed {
        tokens: tokens.clone(),
        table: model.words.clone(),
        factor: 1.0,
        positions: None,
        out: stream.clone(),
    }];
    for (index, (layer, cache_of_layer)) in model.stack.iter().zip(&cache.layers).enumerate() {
        // The first layer advances the lengths, the others find them advanced.
        let (turn, append) = match index {
            0 => (turn.with_offsets(), append),
            _ => (turn.counted(), append.counted()),
        };
        let [k, v] = cache_of_layer.clone();
        ops.extend([
            norm(&stream, &layer.norm, &normed),
            linear(&normed, &layer.qkv, Finish::Store, &qkv),
            Op::Rotate {
                embedding: turn,
                x: qkv.clone(),
                pos_offsets: cache.kv_lens.clone(),
                tables: cache.tables.clone(),
                out: turned.clone(),
            },
            Op::Append {
                append,
                new: [turned.after(q_columns), qkv.after(turned_columns)],
                cache: cache_of_layer.clone(),
                kv_lens: cache.kv_lens.clone(),
                status: cache.status.clone(),
            },
            Op::Attend {
                problem: Box::new(problem.clone()),
                qkv: [turned.clone(), k, v],
                q_lens: None,
                kv_lens: Some(cache.kv_lens.clone()),
                weights: None,
                out: attended.clone(),
            },
            linear(&attended, &layer.back, Finish::Add, &stream),
            norm(&stream, &layer.middle_norm, &normed),
            linear(&normed, &layer.gate, Finish::Store, &up),
            Op::Gate { x: up.clone(), out: middle.clone(), width: inner },
            linear(&middle, &layer.down, Finish::Add, &stream),
        ]);
    }
    if let Some(sampling) = sampling {
        let last = machine.zeros(width)?;
        ops.extend([
            norm(&stream.after((rows - 1) * width), &model.norm, &last),
            linear(&last, &model.logits, Finish::Store, &cache.logits),
            Op::Choose {
                logits: cache.logits.clone(),
                sampling,
                step: cache.step.clone(),
                token: cache.token.clone(),
            },
        ]);
    }
    Ok(ops)
}
