//! Encoders of BERT's kind, such as all-MiniLM-L6-v2: what a sentence means, and which word attends to which.

use crate::checkpoint::Checkpoint;
use crate::encoder::{Encoder, Feed, Layer, check_width, narrow};
use crate::error::Error;
use crate::machine::{Machine, Tensor, Weights};
use crate::program::{Finish, Norm, Program};
use crate::text::Text;
use serde_json::json;
use std::path::Path;

/// A model on a machine.
#[derive(Debug)]
pub struct Bert {
    /// Its tokenizer.
    pub text: Text,
    /// Layers, one on top of the other.
    pub layers: usize,
    /// Heads of a layer.
    pub heads: usize,
    machine: Machine,
    width: usize,
    context: usize,
    words: Weights,
    places: Tensor,
    norm: Norm,
    encoder: Encoder,
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
    /// look at their neighbours. Marks such as `[CLS]` and full stops, where heads look that have found nothing, are no
    /// words; of a sentence without two words, the first of everything.
    pub fn strongest(&self, sentence: usize, layer: usize, heads: usize) -> [usize; 3] {
        let tokens = &self.tokens[sentence];
        let is_word = |i: usize| tokens[i].chars().all(char::is_alphanumeric);
        let (mut found, mut most) = ([0; 3], 0.0);
        for head in 0..heads {
            for (i, weight) in self.weights(sentence, layer, head, heads).iter().enumerate() {
                let (row, column) = (i / tokens.len(), i % tokens.len());
                let score = weight * (row.abs_diff(column).max(1) as f32).log2();
                if score > most && is_word(row) && is_word(column) {
                    (found, most) = ([head, row, column], score);
                }
            }
        }
        found
    }
}

impl Bert {
    /// The first such model of a folder.
    ///
    /// # Errors
    /// There is none, or its files are not what they should be.
    pub fn load(machine: &Machine, folder: &Path) -> Result<Self, Error> {
        let what = "model.safetensors of a sentence encoder";
        let file = Checkpoint::find(folder, what, |name| name == "model.safetensors", "bert")?;
        file.expect(&[
            ("hidden_act", json!("gelu")),
            ("position_embedding_type", json!("absolute")),
        ])?;
        let (width, heads) = (file.size("hidden_size")?, file.size("num_attention_heads")?);
        let (inner, context) =
            (file.size("intermediate_size")?, file.size("max_position_embeddings")?);
        let epsilon = file.number("layer_norm_eps")?;
        check_width(&file, width, heads)?;
        let linear =
            |name: String, outputs, inputs| file.linear(machine, &[(name, outputs)], inputs, true);
        let norm = |name: &str| file.norm(machine, name, width, (epsilon, true));
        let layer = |index: usize| {
            let name = format!("encoder.layer.{index}");
            let qkv = ["query", "key", "value"]
                .map(|part| (format!("{name}.attention.self.{part}"), width));
            Ok(Layer {
                qkv: file.linear(machine, &qkv, width, true)?,
                back: linear(format!("{name}.attention.output.dense"), width, width)?,
                norm: norm(&format!("{name}.attention.output.LayerNorm"))?,
                feed: Feed {
                    up: linear(format!("{name}.intermediate.dense"), inner, width)?,
                    activation: Finish::Gelu,
                    down: linear(format!("{name}.output.dense"), width, inner)?,
                    norm: norm(&format!("{name}.output.LayerNorm"))?,
                },
            })
        };
        let layers: Vec<Layer> =
            (0..file.size("num_hidden_layers")?).map(layer).collect::<Result<_, Error>>()?;

        // All words are of the first sentence: its embedding joins that of their places.
        let types = file.size("type_vocab_size")?;
        let kind = file.numbers("embeddings.token_type_embeddings.weight", &[types, width])?;
        let name = "embeddings.position_embeddings.weight";
        let mut places = file.numbers(name, &[context, width])?;
        for row in places.chunks_mut(width) {
            row.iter_mut().zip(&kind).for_each(|(place, kind)| *place += kind);
        }
        let words =
            file.matrix("embeddings.word_embeddings.weight", [file.size("vocab_size")?, width])?;
        Ok(Self {
            text: Text::of(&file)?,
            layers: layers.len(),
            heads,
            machine: machine.clone(),
            width,
            context,
            words: machine.weights(&words)?,
            places: machine.tensor(&places)?,
            norm: norm("embeddings.LayerNorm")?,
            encoder: Encoder { heads, layers },
        })
    }

    /// What the model makes of sentences, together.
    ///
    /// # Errors
    /// One is longer than the model's positions, or the machine cannot.
    pub fn understand(&self, sentences: &[String]) -> Result<Understood, Error> {
        let tokens = sentences.iter().map(|text| self.text.encode(text));
        let tokens = tokens.collect::<Result<Vec<_>, _>>()?;
        let batch = self.batch(&tokens)?;
        batch.program.run()?;
        let embeddings: Vec<f32> = self.machine.read(&batch.embeddings)?;
        let layers = batch.weights.iter().map(|weights| self.machine.read(weights));
        let layers: Vec<Vec<f32>> = layers.collect::<Result<_, _>>()?;
        let (seq_len, panel) = (batch.seq_len, batch.seq_len * batch.seq_len);
        // Without the padding.
        let cut = |(b, tokens): (usize, &Vec<u32>)| {
            let heads = layers.iter().flat_map(|layer| {
                layer[b * self.heads * panel..][..self.heads * panel].chunks(panel)
            });
            let rows = heads.flat_map(|head| head.chunks(seq_len).take(tokens.len()));
            rows.flat_map(|row| row[..tokens.len()].iter().copied()).collect()
        };
        Ok(Understood {
            embeddings: embeddings.chunks(self.width).map(<[f32]>::to_vec).collect(),
            attention: tokens.iter().enumerate().map(cut).collect(),
            tokens: tokens.iter().map(|tokens| self.text.spell(tokens)).collect(),
        })
    }

    /// Everything that runs for these tokens. Shorter sentences are padded, and lengths say by how much.
    ///
    /// # Errors
    /// As [`understand`](Self::understand).
    pub fn batch(&self, tokens: &[Vec<u32>]) -> Result<Batch, Error> {
        let (machine, batch) = (&self.machine, tokens.len());
        let seq_len = tokens.iter().map(Vec::len).max().unwrap_or(0);
        if tokens.iter().any(Vec::is_empty) || seq_len == 0 {
            return Err(Error::Usage("a text without words".to_owned()));
        }
        if seq_len > self.context {
            return Err(Error::Context { tokens: seq_len, context: self.context });
        }
        let (len, rows) = (narrow(seq_len)?, batch * seq_len);
        let padded =
            |tokens: &Vec<u32>| [tokens.as_slice(), &vec![0; seq_len - tokens.len()]].concat();
        let lens =
            tokens.iter().map(|tokens| narrow(tokens.len())).collect::<Result<Vec<_>, _>>()?;
        let lens = machine.tensor(&lens)?;
        let positions = machine.tensor(&(0..len).collect::<Vec<u32>>().repeat(batch))?;
        let tokens = machine.tensor(&tokens.iter().flat_map(padded).collect::<Vec<u32>>())?;
        let [embedded, x] = [machine.zeros(rows * self.width)?, machine.zeros(rows * self.width)?];
        let embeddings = machine.zeros(batch * self.width)?;

        let mut program = Program::new(machine);
        program.embed(&tokens, (&self.words, 1.0), Some((&self.places, &positions)), &embedded)?;
        program.norm(&embedded, &self.norm, &x)?;
        let weights = self.encoder.run(&mut program, &x, [batch, seq_len], Some(&lens))?;
        program.pool(&x, &lens, &embeddings)?;
        Ok(Batch { program, seq_len, embeddings, weights })
    }
}
