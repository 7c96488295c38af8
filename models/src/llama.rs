//! Decoders of Llama's kind, such as SmolLM2: a text goes on, token by token.

use crate::checkpoint::Checkpoint;
use crate::encoder::narrow;
use crate::error::Error;
use crate::machine::{Machine, Tensor};
use crate::program::{Attention, Finish, Linear, Norm, Program, Sampling};
use crate::text::Text;
use serde_json::json;
use std::path::Path;
use wgpu_attention::{
    Append, Layout, Mask, Problem, Rotary, RotaryEmbedding, RotaryPairs, Shape, Strides,
};

/// Tokens that are read at once, at most.
pub const CHUNK: usize = 128;

/// A model on a machine.
#[derive(Debug)]
pub struct Llama {
    /// Its tokenizer.
    pub text: Text,
    /// Positions that it was trained for.
    pub context: usize,
    machine: Machine,
    width: usize,
    inner: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    pairs: RotaryPairs,
    rotary_base: f64,
    words: Linear,
    layers: Vec<Layer>,
    norm: Norm,
    logits: Linear,
}

#[derive(Debug)]
struct Layer {
    norm: Norm,
    /// Queries, keys and values, one below the other.
    qkv: Linear,
    back: Linear,
    middle_norm: Norm,
    /// Gate and up, one below the other.
    gate: Linear,
    down: Linear,
}

impl Llama {
    /// The first such model of a folder: GGUF before the hub's layout.
    ///
    /// # Errors
    /// There is none, or its files are not what they should be.
    pub fn load(machine: &Machine, folder: &Path) -> Result<Self, Error> {
        let what = "GGUF file or model.safetensors of a language model";
        let wanted = |name: &str| name.ends_with(".gguf") || name == "model.safetensors";
        let file = Checkpoint::find(folder, what, wanted, "llama")?;
        file.expect(&[
            ("hidden_act", json!("silu")),
            ("attention_bias", json!(false)),
            ("rope_scaling", json!(null)),
        ])?;
        let (width, inner) = (file.size("hidden_size")?, file.size("intermediate_size")?);
        let (heads, kv_heads) =
            (file.size("num_attention_heads")?, file.size("num_key_value_heads")?);
        let head_dim = width / heads;
        file.expect(&[("head_dim", json!(head_dim))])?;
        let fits = heads * head_dim == width && heads.is_multiple_of(kv_heads);
        if !fits || !width.is_multiple_of(64) || head_dim % 2 != 0 {
            let what =
                format!("{heads} heads on {kv_heads} of {head_dim}, {width} wide: do not fit");
            return Err(file.wrong(what));
        }
        let epsilon = file.number("rms_norm_eps")?;
        let linear = |name: &str, parts: &[(&str, usize)], inputs| {
            let parts = parts.iter().map(|(part, outputs)| (format!("{name}.{part}"), *outputs));
            file.linear(machine, &parts.collect::<Vec<_>>(), inputs, false)
        };
        let layer = |index: usize| {
            let name = &format!("model.layers.{index}");
            let (kv, attention) = (kv_heads * head_dim, format!("{name}.self_attn"));
            let qkv = [("q_proj", width), ("k_proj", kv), ("v_proj", kv)];
            let norm =
                |part: &str| file.norm(machine, &format!("{name}.{part}"), width, (epsilon, false));
            Ok(Layer {
                norm: norm("input_layernorm")?,
                qkv: linear(&attention, &qkv, width)?,
                back: linear(&attention, &[("o_proj", width)], width)?,
                middle_norm: norm("post_attention_layernorm")?,
                gate: linear(name, &[("mlp.gate_proj", inner), ("mlp.up_proj", inner)], width)?,
                down: linear(name, &[("mlp.down_proj", width)], inner)?,
            })
        };
        let layers = (0..file.size("num_hidden_layers")?).map(layer);
        let table = [("embed_tokens", file.size("vocab_size")?)];
        let words = linear("model", &table, width)?;
        // Most small models have one matrix for both.
        let logits = match file.has("lm_head.weight") {
            true => file.linear(machine, &[("lm_head".to_owned(), table[0].1)], width, false)?,
            false => words.clone(),
        };
        Ok(Self {
            text: Text::of(&file)?,
            context: file.size("max_position_embeddings")?,
            machine: machine.clone(),
            width,
            inner,
            heads,
            kv_heads,
            head_dim,
            // GGUF stores queries and keys so that neighbours are turned together.
            pairs: match file.is_gguf() {
                true => RotaryPairs::Interleaved,
                false => RotaryPairs::HalfSplit,
            },
            rotary_base: file.number("rope_theta")?,
            words,
            layers: layers.collect::<Result<_, Error>>()?,
            norm: file.norm(machine, "model.norm", width, (epsilon, false))?,
            logits,
        })
    }

    fn rotary(&self, capacity: usize) -> Result<Rotary, Error> {
        Ok(Rotary::new(self.pairs, narrow(self.head_dim)?, narrow(capacity)?))
    }
}

/// A text under way: what a model has read so far, in a cache, and the token that comes next.
pub struct Decoder<'a> {
    model: &'a Llama,
    capacity: usize,
    /// Tokens in the cache.
    used: usize,
    sampling: Sampling,
    /// Keys and values of each layer, `[capacity, kv_heads, head_dim]`.
    caches: Vec<[Tensor; 2]>,
    /// `[1]`: positions that are taken, with those of the tokens that are being read.
    kv_lens: Tensor,
    status: Tensor,
    /// Cosines and sines.
    tables: [Tensor; 2],
    /// `[1]`: the token that was chosen last.
    token: Tensor,
    logits: Tensor,
    /// What runs for every new token.
    pub program: Program,
}

impl<'a> Decoder<'a> {
    /// An empty text of up to `capacity` tokens.
    ///
    /// # Errors
    /// The model was trained for fewer, or the machine cannot.
    pub fn new(model: &'a Llama, capacity: usize, sampling: Sampling) -> Result<Self, Error> {
        if capacity > model.context || capacity == 0 {
            return Err(Error::Context { tokens: capacity, context: model.context });
        }
        let machine = &model.machine;
        let (cos, sin) = model.rotary(capacity)?.tables(model.rotary_base);
        let cache = || machine.zeros(capacity * model.kv_heads * model.head_dim);
        let caches = model.layers.iter().map(|_| Ok([cache()?, cache()?]));
        let mut decoder = Self {
            model,
            capacity,
            used: 0,
            sampling,
            caches: caches.collect::<Result<_, Error>>()?,
            kv_lens: machine.zeros(1)?,
            status: machine.zeros(1)?,
            tables: [machine.tensor(&cos)?, machine.tensor(&sin)?],
            token: machine.zeros(1)?,
            logits: machine.zeros(model.logits.w.rows)?,
            program: Program::new(machine),
        };
        decoder.program = decoder.pass(&decoder.token, true)?;
        Ok(decoder)
    }

    /// Tokens that there is room for.
    pub fn room(&self) -> usize {
        self.capacity - self.used
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
        let mut next = None;
        let mut chunks = tokens.chunks(CHUNK).peekable();
        while let Some(chunk) = chunks.next() {
            if !go_on() {
                return Ok(None);
            }
            let is_last = chunks.peek().is_none();
            let program = self.pass(&self.model.machine.tensor(chunk)?, is_last)?;
            self.take(chunk.len())?;
            program.run()?;
            // Waits, so that the next question comes in time.
            next = Some(self.token()?);
        }
        Ok(next)
    }

    /// Reads the token that was chosen last and chooses the next.
    ///
    /// # Errors
    /// There is no room, or the machine cannot.
    pub fn advance(&mut self) -> Result<u32, Error> {
        if self.room() == 0 {
            return Err(Error::Context { tokens: self.used + 1, context: self.capacity });
        }
        self.take(1)?;
        self.program.run()?;
        self.token()
    }

    /// `[vocabulary]`: what the last token was chosen by; nothing of use where it was drawn.
    ///
    /// # Errors
    /// The device was lost.
    pub fn logits(&self) -> Result<Vec<f32>, Error> {
        self.model.machine.read(&self.logits)
    }

    /// So many tokens more are in the cache after the next pass.
    fn take(&mut self, tokens: usize) -> Result<(), Error> {
        self.used += tokens;
        self.model.machine.write(&self.kv_lens, &[narrow(self.used)?]);
        Ok(())
    }

    fn token(&self) -> Result<u32, Error> {
        let token = self.model.machine.read(&self.token)?;
        token.first().copied().ok_or_else(|| Error::device("nothing came back"))
    }

    /// The forward pass of tokens and, of the last of a text, the choice of the next.
    fn pass(&self, tokens: &Tensor, is_last: bool) -> Result<Program, Error> {
        let (model, rows) = (self.model, tokens.len());
        let Llama { machine, width, inner, heads, kv_heads, head_dim, .. } = model;
        let zeros = |columns: usize| machine.zeros(rows * columns);
        let (q_columns, turned_columns) = (heads * head_dim, (heads + kv_heads) * head_dim);
        let columns = turned_columns + kv_heads * head_dim;
        let (stream, normed, attended) = (zeros(*width)?, zeros(*width)?, zeros(*width)?);
        let (qkv, turned) = (zeros(columns)?, zeros(turned_columns)?);
        let (gate_up, gated) = (zeros(2 * inner)?, zeros(*inner)?);

        let [h, hk, dim, n] =
            [narrow(*heads)?, narrow(*kv_heads)?, narrow(*head_dim)?, narrow(rows)?];
        let side_by_side = |columns: usize| Strides {
            batch: (rows * columns) as u64,
            head: dim.into(),
            row: columns as u64,
        };
        let shape = Shape::cross_attention(1, h, n, narrow(self.capacity)?, dim);
        let problem = Problem::new(shape.with_kv_heads(hk))
            .layout(Layout::Bshd)
            .mask(Mask::CAUSAL)
            .q_strides(side_by_side(turned_columns))
            .with_lengths(false, true);
        let append = Append::to_cache_of(&problem)
            .new_strides(side_by_side(turned_columns), side_by_side(columns))
            .counted();
        // Queries and keys are turned together, before keys are appended.
        let both = Shape::cross_attention(1, h + hk, n, n, dim);
        let turn = RotaryEmbedding::new(model.rotary(self.capacity)?, both)
            .x_strides(side_by_side(columns))
            .out_strides(side_by_side(turned_columns))
            .counted();

        let mut program = Program::new(machine);
        program.embed(tokens, (&model.words.w, 1.0), None, &stream)?;
        for (layer, [k, v]) in model.layers.iter().zip(&self.caches) {
            program.norm(&stream, &layer.norm, &normed)?;
            program.linear(&normed, &layer.qkv, Finish::Store, &qkv)?;
            program.rotate(turn, &qkv, self.tables.each_ref(), &self.kv_lens, &turned)?;
            let new = [&turned.after(q_columns), &qkv.after(turned_columns)];
            program.append(append, new, [k, v], [&self.kv_lens, &self.status])?;
            program.attend(Attention {
                problem: problem.clone(),
                qkv: [turned.clone(), k.clone(), v.clone()],
                lens: [None, Some(self.kv_lens.clone())],
                weights: None,
                out: attended.clone(),
            })?;
            program.linear(&attended, &layer.back, Finish::Add, &stream)?;
            program.norm(&stream, &layer.middle_norm, &normed)?;
            program.linear(&normed, &layer.gate, Finish::Store, &gate_up)?;
            program.gate(&gate_up, *inner, &gated)?;
            program.linear(&gated, &layer.down, Finish::Add, &stream)?;
        }
        if is_last {
            let last = machine.zeros(*width)?;
            program.norm(&stream.after((rows - 1) * width), &model.norm, &last)?;
            program.linear(&last, &model.logits, Finish::Store, &self.logits)?;
            program.choose(&self.logits, self.sampling, &self.kv_lens, &self.token)?;
        }
        Ok(program)
    }
}
