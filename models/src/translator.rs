//! Translation models of Marian's kind, as Firefox has them: an encoder, and a decoder that remembers by a recurrence.

use crate::checkpoint::Checkpoint;
use crate::encoder::{self, Encoder, Feed, check_width, narrow};
use crate::error::Error;
use crate::machine::{Machine, Tensor};
use crate::program::{Attention, Finish, Linear, Norm, Program, Sampling};
use crate::text::Text;
use serde_json::json;
use std::path::Path;
use wgpu_attention::{Problem, Shape, Strides};

/// Tokens of a sentence and of its translation, at most.
pub const CONTEXT: usize = 512;
/// Marian's.
const EPSILON: f64 = 1e-6;
/// Tokens of a translation for one of the source, at most, as the models' own settings say.
const LENGTH_FACTOR: f64 = 2.5;

/// A model on a machine: one direction.
#[derive(Debug)]
pub struct Translator {
    /// Its tokenizer, of both languages.
    pub text: Text,
    machine: Machine,
    width: usize,
    /// Tokens going in and, with the bias of the logits, coming out.
    words: Linear,
    /// `[CONTEXT, width]`: sines and cosines.
    places: Tensor,
    encoder: Encoder,
    decoder: Vec<Layer>,
    /// The token that ends a sentence.
    end: u32,
}

/// Of the decoder.
#[derive(Debug)]
struct Layer {
    candidate: Linear,
    forget: Linear,
    recurrence_norm: Norm,
    query: Linear,
    /// Keys and values, one below the other.
    key_value: Linear,
    back: Linear,
    norm: Norm,
    feed: Feed,
}

/// A sentence in another language.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Translation {
    /// The sentence.
    pub text: String,
    /// Tokens of the source, its end among them.
    pub source: Vec<String>,
    /// Tokens of the translation, its end among them.
    pub target: Vec<String>,
    /// `[target, source]`: which word of the source each word came from, by head 0 of the last cross-attention.
    pub alignment: Vec<f32>,
}

/// A sentence made ready: what runs once, and what runs for every token of the translation.
pub struct Ready {
    /// Reads the source.
    pub encode: Program,
    /// Writes one token.
    pub decode: Program,
    position: Tensor,
    token: Tensor,
    /// `[heads, 1, source]`.
    weights: Tensor,
}

impl Translator {
    /// The model of a folder that translates from one language to another, by their two letters.
    ///
    /// # Errors
    /// There is none, or its files are not what they should be.
    pub fn load(machine: &Machine, folder: &Path, from: &str, to: &str) -> Result<Self, Error> {
        let what = match from {
            "en" => "model.enpt.*.bin, the model from English to Portuguese,",
            _ => "model.pten.*.bin, the model from Portuguese to English,",
        };
        let start = format!("model.{from}{to}.");
        let wanted = |name: &str| name.starts_with(&start) && name.ends_with(".bin");
        let file = Checkpoint::find(folder, what, wanted, "transformer")?;
        file.expect(&[
            ("transformer-decoder-autoreg", json!("rnn")),
            ("dec-cell", json!("ssru")),
            ("transformer-ffn-activation", json!("relu")),
            ("transformer-ffn-depth", json!(2)),
            ("transformer-preprocess", json!("")),
            ("transformer-postprocess", json!("dan")),
            ("transformer-postprocess-emb", json!("d")),
            ("transformer-train-position-embeddings", json!(false)),
            ("tied-embeddings-all", json!(true)),
        ])?;
        let (width, heads) = (file.size("dim-emb")?, file.size("transformer-heads")?);
        let inner = file.size("transformer-dim-ffn")?;
        check_width(&file, width, heads)?;
        let text = Text::of(&file)?;

        let linear = |name: &str, parts: &[&str]| {
            let parts: Vec<_> =
                parts.iter().map(|part| (format!("{name}_{part}"), width)).collect();
            // The candidate of the recurrence is the one that has no bias.
            file.linear(machine, &parts, width, !parts[0].0.ends_with("_rnn_W"))
        };
        let norm = |name: &str| file.norm(machine, &format!("{name}_ln"), width, (EPSILON, true));
        let feed = |name: &str| {
            let part = |part: &str, outputs, inputs| {
                file.linear(machine, &[(format!("{name}_ffn_{part}"), outputs)], inputs, true)
            };
            let (up, down) = (part("W1", inner, width)?, part("W2", width, inner)?);
            let norm = norm(&format!("{name}_ffn_ffn"))?;
            Ok::<_, Error>(Feed { up, activation: Finish::Relu, down, norm })
        };
        let encoder = (1..=file.size("enc-depth")?).map(|index| {
            let name = format!("encoder_l{index}");
            let attention = format!("{name}_self");
            Ok(encoder::Layer {
                qkv: linear(&attention, &["Wq", "Wk", "Wv"])?,
                back: linear(&attention, &["Wo"])?,
                norm: norm(&format!("{attention}_Wo"))?,
                feed: feed(&name)?,
            })
        });
        let decoder = (1..=file.size("dec-depth")?).map(|index| {
            let name = format!("decoder_l{index}");
            let (recurrence, attention) = (format!("{name}_rnn"), format!("{name}_context"));
            Ok(Layer {
                candidate: linear(&recurrence, &["W"])?,
                forget: linear(&recurrence, &["Wf"])?,
                recurrence_norm: norm(&format!("{recurrence}_ffn"))?,
                query: linear(&attention, &["Wq"])?,
                key_value: linear(&attention, &["Wk", "Wv"])?,
                back: linear(&attention, &["Wo"])?,
                norm: norm(&format!("{attention}_Wo"))?,
                feed: feed(&name)?,
            })
        });
        let (encoder, decoder) =
            (encoder.collect::<Result<_, Error>>()?, decoder.collect::<Result<_, Error>>()?);
        let words = text.vocabulary();
        let mut bias = file.numbers("decoder_ff_logit_out_W.bias", &[words])?;
        // What the tokenizer could not read is never written.
        bias[text.token("<unk>")? as usize] = -1e9;
        let table = machine.weights(&file.matrix("Wemb", [words, width])?)?;
        Ok(Self {
            machine: machine.clone(),
            width,
            words: Linear { w: table, bias: Some(machine.tensor(&bias)?) },
            places: machine.tensor(&places(width))?,
            encoder: Encoder { heads, layers: encoder },
            decoder,
            end: text.token("</s>")?,
            text,
        })
    }

    /// Translates one sentence, greedily.
    ///
    /// # Errors
    /// It is longer than the context, or the machine cannot.
    pub fn translate(&self, sentence: &str) -> Result<Translation, Error> {
        let mut source = self.text.encode(sentence)?;
        source.push(self.end);
        let ready = self.ready(&source)?;
        ready.encode.run()?;
        let (mut target, mut alignment) = (Vec::new(), Vec::new());
        let most = (source.len() as f64 * LENGTH_FACTOR).ceil().min(CONTEXT as f64);
        while target.last() != Some(&self.end) && (target.len() as f64) < most {
            self.machine.write(&ready.position, &[narrow(target.len())?]);
            ready.decode.run()?;
            target.extend(self.machine.read::<u32>(&ready.token)?);
            let weights: Vec<f32> = self.machine.read(&ready.weights)?;
            alignment.extend_from_slice(&weights[..source.len()]);
        }
        let words: Vec<u32> = target.iter().copied().filter(|token| *token != self.end).collect();
        Ok(Translation {
            text: self.text.decode(&words)?,
            source: self.text.spell(&source),
            target: self.text.spell(&target),
            alignment,
        })
    }

    /// Everything that runs to translate these tokens.
    ///
    /// # Errors
    /// They are more than the context holds, or the machine cannot.
    pub fn ready(&self, source: &[u32]) -> Result<Ready, Error> {
        let (machine, width, rows) = (&self.machine, self.width, source.len());
        if rows > CONTEXT {
            return Err(Error::Context { tokens: rows, context: CONTEXT });
        }
        let len = narrow(rows)?;
        let positions = machine.tensor(&(0..len).collect::<Vec<u32>>())?;
        let memory = machine.zeros(rows * width)?;
        let mut encode = Program::new(machine);
        self.embed(&mut encode, &machine.tensor(source)?, &positions, &memory)?;
        self.encoder.run(&mut encode, &memory, [1, rows], None)?;

        // No token yet: one that no table has.
        let (token, position) = (machine.tensor(&[u32::MAX])?, machine.zeros(1)?);
        let heads = narrow(self.encoder.heads)?;
        let weights = machine.zeros(self.encoder.heads * rows)?;
        let [stream, middle, query, attended] = [(); 4].map(|()| machine.zeros(width));
        let (mut stream, mut middle, query, attended) = (stream?, middle?, query?, attended?);
        let gates = machine.zeros(2 * width)?;
        let (dim, row) = (narrow(width)? / heads, 2 * width as u64);
        let strides = Strides { batch: row * u64::from(len), head: dim.into(), row };
        let problem = Problem::new(Shape::cross_attention(1, heads, 1, len, dim))
            .k_strides(strides)
            .v_strides(strides)
            .with_weights();
        let mut decode = Program::new(machine);
        self.embed(&mut decode, &token, &position, &stream)?;
        for layer in &self.decoder {
            // Keys and values of the source, once.
            let key_value = machine.zeros(rows * 2 * width)?;
            encode.linear(&memory, &layer.key_value, Finish::Store, &key_value)?;
            decode.linear(&stream, &layer.candidate, Finish::Store, &gates)?;
            decode.linear(&stream, &layer.forget, Finish::Store, &gates.after(width))?;
            decode.ssru(&gates, &machine.zeros(width)?, &stream)?;
            decode.norm(&stream, &layer.recurrence_norm, &middle)?;
            decode.linear(&middle, &layer.query, Finish::Store, &query)?;
            decode.attend(Attention {
                problem: problem.clone(),
                qkv: [query.clone(), key_value.clone(), key_value.after(width)],
                lens: [None, None],
                // The last layer's stay.
                weights: Some(weights.clone()),
                out: attended.clone(),
            })?;
            decode.linear(&attended, &layer.back, Finish::Add, &middle)?;
            decode.norm(&middle, &layer.norm, &stream)?;
            layer.feed.run(&mut decode, &stream, &middle)?;
            // What came out is what the next layer takes.
            std::mem::swap(&mut stream, &mut middle);
        }
        let logits = machine.zeros(self.words.w.rows)?;
        decode.linear(&stream, &self.words, Finish::Store, &logits)?;
        decode.choose(&logits, Sampling::Greedy, &position, &token)?;
        Ok(Ready { encode, decode, position, token, weights })
    }

    fn embed(
        &self,
        program: &mut Program,
        tokens: &Tensor,
        positions: &Tensor,
        out: &Tensor,
    ) -> Result<(), Error> {
        let factor = (self.width as f32).sqrt();
        program.embed(tokens, (&self.words.w, factor), Some((&self.places, positions)), out)
    }
}

/// Sines of a position at frequencies from 1 down to a ten-thousandth, then their cosines.
fn places(width: usize) -> Vec<f32> {
    let half = width / 2;
    let step = 10_000_f64.ln() / (half - 1) as f64;
    let angle = |place: usize, i: usize| place as f64 * (-step * i as f64).exp();
    #[allow(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
    let row = |place: usize| {
        let sines = (0..half).map(move |i| angle(place, i).sin() as f32);
        sines.chain((0..half).map(move |i| angle(place, i).cos() as f32))
    };
    (0..CONTEXT).flat_map(row).collect()
}

/// The sentences of a line: they end with a mark, a space and a capital. After three letters or fewer a full stop is
/// taken for one of an abbreviation.
pub fn sentences(line: &str) -> Vec<&str> {
    let (mut all, mut rest, mut from) = (Vec::new(), line.trim(), 0);
    while let Some(space) = rest[from..].find(' ').map(|at| from + at) {
        let (before, after) = (&rest[..space], rest[space..].trim_start());
        let word = before.rsplit(' ').next().unwrap_or(before);
        let is_long = word.chars().count() > 4;
        let ends = word.ends_with(['!', '?']) || word.ends_with('.') && is_long;
        if ends && after.starts_with(char::is_uppercase) {
            all.push(before);
            (rest, from) = (after, 0);
        } else {
            from = space + 1;
        }
    }
    if !rest.is_empty() {
        all.push(rest);
    }
    all
}
