//! Encoders of BERT's kind, such as all-MiniLM-L6-v2: what a sentence means, and which word attends to which.

use crate::error::Error;
use crate::hub::Hub;
use crate::machine::{Machine, Program};
use crate::matrix::Matrix;
use crate::op::{Finish, Op, Positions};
use crate::tensor::{Tensor, Weights};
use crate::text::Text;
use std::path::Path;
use wgpu_attention::{Layout, Problem, Shape};

/// A model on a machine.
#[derive(Debug)]
pub struct Bert {
    /// Its tokenizer.
    pub text: Text,
    /// Layers, one on top of the other.
    pub layers: usize,
    /// Heads of a layer.
    pub heads: usize,
    width: usize,
    positions: usize,
    epsilon: f32,
    words: Weights,
    places: Tensor,
    norm: [Tensor; 2],
    stack: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    qkv: (Weights, Tensor),
    back: (Weights, Tensor),
    norm: [Tensor; 2],
    up: (Weights, Tensor),
    down: (Weights, Tensor),
    last_norm: [Tensor; 2],
}

/// What the model makes of some sentences.
#[derive(Debug)]
pub struct Understood {
    /// Tokens of each sentence.
    pub tokens: Vec<Vec<String>>,
    /// An embedding a sentence, one long: their dot products are similarities.
    pub embeddings: Vec<Vec<f32>>,
    /// Attention weights of each sentence, `[layers, heads, len, len]`.
    pub attention: Vec<Vec<f32>>,
}

/// A batch made ready: what runs, and where results are.
#[derive(Debug)]
pub struct Batch {
    /// What runs.
    pub program: Program,
    seq_len: usize,
    embeddings: Tensor,
    /// `[batch, heads, seq_len, seq_len]` of each layer.
    weights: Vec<Tensor>,
}

impl Understood {
    /// Of two sentences, by their numbers: 1 where they mean the same.
    pub fn similarity(&self, a: usize, b: usize) -> f32 {
        self.embeddings[a].iter().zip(&self.embeddings[b]).map(|(a, b)| a * b).sum()
    }

    /// Attention weights of one head, `[len, len]`.
    pub fn weights(&self, sentence: usize, layer: usize, head: usize, heads: usize) -> &[f32] {
        let panel = self.tokens[sentence].len().pow(2);
        &self.attention[sentence][(layer * heads + head) * panel..][..panel]
    }

    /// Head, row and column of the weight by which a word looks most at another, where far looks count more: most words
    /// look at their neighbours. Of one `looking` word, where that is given; `None` where there is no such look. Marks
    /// such as `[CLS]` and full stops, where heads look that have found nothing, are no words.
    pub fn strongest(
        &self,
        sentence: usize,
        layer: usize,
        heads: usize,
        looking: Option<&str>,
    ) -> Option<[usize; 3]> {
        let tokens = &self.tokens[sentence];
        let is_word = |i: &usize| tokens[*i].chars().all(char::is_alphanumeric);
        let words: Vec<usize> = (0..tokens.len()).filter(is_word).collect();
        let mut found = (None, 0.0);
        for head in 0..heads {
            let weights = self.weights(sentence, layer, head, heads);
            let pairs = words.iter().flat_map(|row| words.iter().map(|column| (*row, *column)));
            for (row, column) in
                pairs.filter(|(row, _)| looking.is_none_or(|word| word == tokens[*row]))
            {
                let far = (row.abs_diff(column) as f32).max(1.0).log2();
                let score = weights[row * tokens.len() + column] * far;
                if score > found.1 {
                    found = (Some([head, row, column]), score);
                }
            }
        }
        found.0
    }
}

impl Bert {
    /// The first such model of a folder.
    ///
    /// # Errors
    /// There is none, or its files are not what they should be.
    pub fn load(machine: &Machine, folder: &Path) -> Result<Self, Error> {
        let hub = match Hub::find(folder, "bert")? {
            Ok(hub) => hub,
            Err(others) if others.is_empty() => {
                let what = "model.safetensors of a sentence encoder";
                return Err(Error::Missing { what, folder: folder.to_owned() });
            }
            Err(others) => {
                let what = format!("has models of {}, none of bert", others.join(", "));
                return Err(Error::file(folder, what));
            }
        };
        let config = hub.beside("config.json");
        let [width, heads] = ["hidden_size", "num_attention_heads"].map(|key| hub.size(key));
        let (width, heads) = (width?, heads?);
        if !width.is_multiple_of(heads) || !width.is_multiple_of(64) {
            let what = format!("hidden_size {width} is no multiple of 64 and of {heads} heads");
            return Err(Error::file(&config, what));
        }
        for (key, known) in [("hidden_act", "gelu"), ("position_embedding_type", "absolute")] {
            let found = hub.config.get(key).and_then(serde_json::Value::as_str).unwrap_or(known);
            if found != known {
                return Err(Error::file(&config, format!("{key} is {found}, not {known}")));
            }
        }
        let (inner, positions) =
            (hub.size("intermediate_size")?, hub.size("max_position_embeddings")?);

        let vector = |name: &str, len| machine.tensor(&hub.numbers(name, &[len])?);
        let norm = |name: &str| {
            let [scale, bias] =
                ["weight", "bias"].map(|part| vector(&format!("{name}.{part}"), width));
            Ok::<_, Error>([scale?, bias?])
        };
        let layer = |name: &str, shape: [usize; 2]| {
            let weights = hub.matrix(&format!("{name}.weight"), shape)?;
            Ok::<_, Error>((machine.weights(&weights)?, vector(&format!("{name}.bias"), shape[0])?))
        };
        let stack = (0..hub.size("num_hidden_layers")?).map(|index| {
            let name = |part: &str| format!("encoder.layer.{index}.{part}");
            let (mut parts, mut biases) = (Vec::new(), Vec::new());
            for part in ["query", "key", "value"] {
                let name = name(&format!("attention.self.{part}"));
                parts.push(hub.matrix(&format!("{name}.weight"), [width, width])?);
                biases.extend(hub.numbers(&format!("{name}.bias"), &[width])?);
            }
            let qkv = Matrix::stacked(&parts).expect("of one width");
            Ok(Layer {
                qkv: (machine.weights(&qkv)?, machine.tensor(&biases)?),
                back: layer(&name("attention.output.dense"), [width, width])?,
                norm: norm(&name("attention.output.LayerNorm"))?,
                up: layer(&name("intermediate.dense"), [inner, width])?,
                down: layer(&name("output.dense"), [width, inner])?,
                last_norm: norm(&name("output.LayerNorm"))?,
            })
        });
        let stack = stack.collect::<Result<Vec<_>, Error>>()?;

        // All words are of the first sentence: its embedding joins that of their places.
        let types = hub.size("type_vocab_size")?;
        let kind = hub.numbers("embeddings.token_type_embeddings.weight", &[types, width])?;
        let name = "embeddings.position_embeddings.weight";
        let mut places = hub.numbers(name, &[positions, width])?;
        for row in places.chunks_mut(width) {
            row.iter_mut().zip(&kind).for_each(|(place, kind)| *place += kind);
        }
        let name = "embeddings.word_embeddings.weight";
        let words = hub.matrix(name, [hub.size("vocab_size")?, width])?;
        Ok(Self {
            text: Text::open(&hub.beside("tokenizer.json"))?,
            layers: stack.len(),
            heads,
            width,
            positions,
            epsilon: narrow(hub.number("layer_norm_eps")?),
            words: machine.weights(&words)?,
            places: machine.tensor(&places)?,
            norm: norm("embeddings.LayerNorm")?,
            stack,
        })
    }

    /// What the model makes of sentences, together.
    ///
    /// # Errors
    /// One is longer than the model's positions, or the machine cannot.
    pub fn understand(&self, machine: &Machine, sentences: &[String]) -> Result<Understood, Error> {
        let tokens = sentences.iter().map(|text| self.text.encode(text));
        let tokens = tokens.collect::<Result<Vec<_>, _>>()?;
        let batch = self.batch(machine, &tokens)?;
        machine.run(&batch.program)?;
        let embeddings: Vec<f32> = machine.read(&batch.embeddings)?;
        let layers = batch.weights.iter().map(|weights| machine.read(weights));
        let layers: Vec<Vec<f32>> = layers.collect::<Result<_, _>>()?;
        let seq_len = batch.seq_len;
        let cut = |(b, tokens): (usize, &Vec<u32>)| {
            let panel = seq_len * seq_len;
            let heads = |layer: &Vec<f32>| {
                let heads = layer[b * self.heads * panel..][..self.heads * panel].chunks(panel);
                let rows = heads.flat_map(|head| head.chunks(seq_len).take(tokens.len()));
                rows.flat_map(|row| row[..tokens.len()].to_vec()).collect::<Vec<f32>>()
            };
            layers.iter().flat_map(heads).collect()
        };
        Ok(Understood {
            embeddings: embeddings.chunks(self.width).map(<[f32]>::to_vec).collect(),
            attention: tokens.iter().enumerate().map(cut).collect(),
            tokens: (tokens.iter())
                .map(|tokens| tokens.iter().map(|token| self.text.spelling(*token)).collect())
                .collect(),
        })
    }

    /// Everything that runs for these tokens. Shorter sentences are padded, and lengths say by how much.
    ///
    /// # Errors
    /// As [`understand`](Self::understand).
    pub fn batch(&self, machine: &Machine, tokens: &[Vec<u32>]) -> Result<Batch, Error> {
        if tokens.iter().any(Vec::is_empty) || tokens.is_empty() {
            return Err(Error::Usage("a text without words".to_owned()));
        }
        let seq_len = tokens.iter().map(Vec::len).max().unwrap_or(0);
        if seq_len > self.positions {
            return Err(Error::Context { tokens: seq_len, context: self.positions });
        }
        let (batch, width, heads) = (tokens.len(), self.width, self.heads);
        let rows = batch * seq_len;
        let padded: Vec<u32> = (tokens.iter())
            .flat_map(|tokens| tokens.iter().copied().chain(std::iter::repeat(0)).take(seq_len))
            .collect();
        let lens: Vec<u32> =
            tokens.iter().map(|tokens| u32::try_from(tokens.len()).unwrap_or(u32::MAX)).collect();
        let lens = machine.tensor(&lens)?;
        let inner = self.stack.first().map_or(width, |layer| layer.up.0.rows());
        let [a, b, attended] = [(); 3].map(|()| machine.zeros(rows * width));
        let (a, b, attended) = (a?, b?, attended?);
        let qkv = machine.zeros(rows * 3 * width)?;
        let up = machine.zeros(rows * inner)?;

        let size = |n: usize| u32::try_from(n).map_err(Error::device);
        let shape =
            Shape::self_attention(size(batch)?, size(heads)?, size(seq_len)?, size(width / heads)?);
        let problem =
            Problem::new(shape).layout(Layout::PackedQkv).with_lengths(true, true).with_weights();
        let linear = |x: &Tensor, (w, bias): &(Weights, Tensor), finish, out: &Tensor| {
            let (x, w, bias, out) = (x.clone(), w.clone(), Some(bias.clone()), out.clone());
            Op::Linear { x, w, bias, finish, out }
        };
        let norm = |x: &Tensor, [scale, bias]: &[Tensor; 2], out: &Tensor| {
            let (x, scale, bias, out) = (x.clone(), scale.clone(), Some(bias.clone()), out.clone());
            Op::Norm { x, scale, bias, epsilon: self.epsilon, out }
        };
        let positions = Positions { table: self.places.clone(), start: machine.zeros(1)?, seq_len };
        let mut ops = vec![
            Op::Embed {
                tokens: machine.tensor(&padded)?,
                table: self.words.clone(),
                factor: 1.0,
                positions: Some(positions),
                out: b.clone(),
            },
            norm(&b, &self.norm, &a),
        ];
        let mut weights = Vec::new();
        for layer in &self.stack {
            let seen = machine.zeros(batch * heads * seq_len * seq_len)?;
            ops.extend([
                linear(&a, &layer.qkv, Finish::Store, &qkv),
                Op::Attend {
                    problem: Box::new(problem.clone()),
                    qkv: [0, width, 2 * width].map(|first| qkv.after(first)),
                    q_lens: Some(lens.clone()),
                    kv_lens: Some(lens.clone()),
                    weights: Some(seen.clone()),
                    out: attended.clone(),
                },
                linear(&attended, &layer.back, Finish::Add, &a),
                norm(&a, &layer.norm, &b),
                linear(&b, &layer.up, Finish::Gelu, &up),
                linear(&up, &layer.down, Finish::Add, &b),
                norm(&b, &layer.last_norm, &a),
            ]);
            weights.push(seen);
        }
        let embeddings = machine.zeros(batch * width)?;
        ops.push(Op::Pool { x: a, lens, seq_len, out: embeddings.clone() });
        Ok(Batch { program: machine.program(ops)?, seq_len, embeddings, weights })
    }
}

/// Rounded once.
#[allow(clippy::cast_possible_truncation, reason = "a small number of a configuration")]
pub(crate) fn narrow(x: f64) -> f32 {
    x as f32
}
