//! Translation models of Marian's kind, as Firefox has them: an encoder, and a decoder that remembers by a recurrence.

use crate::error::Error;
use crate::files;
use crate::machine::{Machine, Program};
use crate::marian::Marian;
use crate::matrix::Matrix;
use crate::tensor::{Tensor, Weights};
use crate::text::Text;
use std::path::Path;

/// Tokens of a sentence and of its translation, at most.
pub const CONTEXT: usize = 512;
/// Marian's.
pub(crate) const EPSILON: f32 = 1e-6;
/// Tokens of a translation for one of the source, at most, as the models' own settings say.
const LENGTH_FACTOR: f64 = 2.5;

/// A model on a machine: one direction.
#[derive(Debug)]
pub struct Translator {
    /// Its tokenizer, of both languages.
    pub text: Text,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) words: Weights,
    /// Of the logits.
    pub(crate) bias: Tensor,
    /// `[CONTEXT, width]`: sines and cosines.
    pub(crate) places: Tensor,
    pub(crate) encoder: Vec<EncoderLayer>,
    pub(crate) decoder: Vec<DecoderLayer>,
    /// The token that ends a sentence.
    end: u32,
}

/// Weights and bias.
pub(crate) type Affine = (Weights, Tensor);
/// Scale and bias.
pub(crate) type Norm = [Tensor; 2];

#[derive(Debug)]
pub(crate) struct EncoderLayer {
    /// Queries, keys and values, one below the other.
    pub(crate) qkv: Affine,
    pub(crate) back: Affine,
    pub(crate) norm: Norm,
    pub(crate) feed: Feed,
}

#[derive(Debug)]
pub(crate) struct DecoderLayer {
    /// Candidate and gate of the recurrence, one below the other.
    pub(crate) recurrence: Affine,
    pub(crate) recurrence_norm: Norm,
    pub(crate) query: Affine,
    /// Keys and values, one below the other.
    pub(crate) key_value: Affine,
    pub(crate) back: Affine,
    pub(crate) norm: Norm,
    pub(crate) feed: Feed,
}

#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) up: Affine,
    pub(crate) down: Affine,
    pub(crate) norm: Norm,
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
#[derive(Debug)]
pub struct Translating {
    /// Reads the source.
    pub encode: Program,
    /// Writes one token.
    pub decode: Program,
    pub(crate) token: Tensor,
    /// `[heads, 1, source]`.
    pub(crate) weights: Tensor,
}

impl Translator {
    /// The model of a folder that translates from one language to another, by their two letters.
    ///
    /// # Errors
    /// There is none, or its files are not what they should be.
    pub fn load(machine: &Machine, folder: &Path, from: &str, to: &str) -> Result<Self, Error> {
        let start = format!("model.{from}{to}.");
        let wanted = |name: &str| name.starts_with(&start) && name.ends_with(".bin");
        let found = files::find(folder, wanted)?;
        let Some(path) = found.first() else {
            let what = match from {
                "en" => "model.enpt.*.bin, the model from English to Portuguese,",
                _ => "model.pten.*.bin, the model from Portuguese to English,",
            };
            return Err(Error::Missing { what, folder: folder.to_owned() });
        };
        let text = Text::open(&path.with_file_name("tokenizer.json"))?;
        Self::of(machine, &Marian::open(path)?, text)
    }

    /// From a model's own file.
    ///
    /// # Errors
    /// The model has something that is not known here, or its file is not what it should be.
    pub fn of(machine: &Machine, marian: &Marian, text: Text) -> Result<Self, Error> {
        for (key, known) in [
            ("type", "transformer"),
            ("transformer-decoder-autoreg", "rnn"),
            ("dec-cell", "ssru"),
            ("transformer-ffn-activation", "relu"),
            ("transformer-ffn-depth", "2"),
            ("transformer-preprocess", ""),
            ("transformer-postprocess", "dan"),
            ("transformer-postprocess-emb", "d"),
            ("transformer-train-position-embeddings", "false"),
            ("tied-embeddings-all", "true"),
        ] {
            let found = marian.setting(key);
            if found != known {
                let what = format!("{key} is {found:?}, not {known:?}");
                return Err(Error::file(&marian.path, what));
            }
        }
        let (width, heads) = (marian.size("dim-emb")?, marian.size("transformer-heads")?);
        let inner = marian.size("transformer-dim-ffn")?;
        let words = text.vocabulary();
        if !width.is_multiple_of(heads) || !width.is_multiple_of(64) {
            let what = format!("dim-emb {width} is no multiple of 64 and of {heads} heads");
            return Err(Error::file(&marian.path, what));
        }

        let affine = |name: &str, parts: &[[&str; 2]], shape: [usize; 2]| {
            let (mut weights, mut biases) = (Vec::new(), Vec::new());
            for [weight, bias] in parts {
                weights.push(marian.matrix(&format!("{name}_{weight}"), shape)?);
                match *bias {
                    "" => biases.extend(vec![0.0; shape[0]]),
                    bias => biases.extend(marian.numbers(&format!("{name}_{bias}"), shape[0])?),
                }
            }
            let weights = Matrix::stacked(&weights).expect("of one width");
            Ok::<_, Error>((machine.weights(&weights)?, machine.tensor(&biases)?))
        };
        let norm = |name: &str| {
            let part = |part| marian.numbers(&format!("{name}_ln_{part}"), width);
            Ok::<_, Error>([machine.tensor(&part("scale")?)?, machine.tensor(&part("bias")?)?])
        };
        let square = [width, width];
        let feed = |name: &str| {
            Ok::<_, Error>(Feed {
                up: affine(&format!("{name}_ffn"), &[["W1", "b1"]], [inner, width])?,
                down: affine(&format!("{name}_ffn"), &[["W2", "b2"]], [width, inner])?,
                norm: norm(&format!("{name}_ffn_ffn"))?,
            })
        };
        let encoder = (1..=marian.size("enc-depth")?).map(|index| {
            let name = format!("encoder_l{index}");
            let attention = format!("{name}_self");
            let qkv = [["Wq", "bq"], ["Wk", "bk"], ["Wv", "bv"]];
            Ok(EncoderLayer {
                qkv: affine(&attention, &qkv, square)?,
                back: affine(&attention, &[["Wo", "bo"]], square)?,
                norm: norm(&format!("{attention}_Wo"))?,
                feed: feed(&name)?,
            })
        });
        let decoder = (1..=marian.size("dec-depth")?).map(|index| {
            let name = format!("decoder_l{index}");
            let (recurrence, attention) = (format!("{name}_rnn"), format!("{name}_context"));
            Ok(DecoderLayer {
                recurrence: affine(&recurrence, &[["W", ""], ["Wf", "bf"]], square)?,
                recurrence_norm: norm(&format!("{recurrence}_ffn"))?,
                query: affine(&attention, &[["Wq", "bq"]], square)?,
                key_value: affine(&attention, &[["Wk", "bk"], ["Wv", "bv"]], square)?,
                back: affine(&attention, &[["Wo", "bo"]], square)?,
                norm: norm(&format!("{attention}_Wo"))?,
                feed: feed(&name)?,
            })
        });
        let (encoder, decoder) =
            (encoder.collect::<Result<_, Error>>()?, decoder.collect::<Result<_, Error>>()?);
        let mut bias = marian.numbers("decoder_ff_logit_out_b", words)?;
        // What the tokenizer could not read is never written.
        bias[text.token("<unk>")? as usize] = -1e9;
        Ok(Self {
            width,
            heads,
            words: machine.weights(&marian.table("Wemb", [words, width])?)?,
            bias: machine.tensor(&bias)?,
            places: machine.tensor(&places(width))?,
            encoder,
            decoder,
            end: text.token("</s>")?,
            text,
        })
    }

    /// Translates one sentence, greedily.
    ///
    /// # Errors
    /// It is longer than the context, or the machine cannot.
    pub fn translate(&self, machine: &Machine, sentence: &str) -> Result<Translation, Error> {
        let mut source = self.text.encode(sentence)?;
        source.push(self.end);
        let ready = self.ready(machine, &source)?;
        machine.run(&ready.encode)?;
        let (mut target, mut alignment) = (Vec::new(), Vec::new());
        let most = (source.len() as f64 * LENGTH_FACTOR).ceil().min(CONTEXT as f64);
        while target.last() != Some(&self.end) && (target.len() as f64) < most {
            machine.run(&ready.decode)?;
            target.extend(machine.read::<u32>(&ready.token)?);
            let weights: Vec<f32> = machine.read(&ready.weights)?;
            alignment.extend_from_slice(&weights[..source.len()]);
        }
        let spell =
            |tokens: &[u32]| tokens.iter().map(|token| self.text.spelling(*token)).collect();
        let words: Vec<u32> = target.iter().copied().filter(|token| *token != self.end).collect();
        Ok(Translation {
            text: self.text.decode(&words)?,
            source: spell(&source),
            target: spell(&target),
            alignment,
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_with_a_mark_and_a_capital() {
        for (line, expected) in [
            ("", &[][..]),
            ("One only.", &["One only."]),
            ("It rains. We stay in! Do we?  Yes.", &["It rains.", "We stay in!", "Do we?", "Yes."]),
            ("Mr. Smith has 3.5 litres. of milk", &["Mr. Smith has 3.5 litres. of milk"]),
            ("É tarde. Água, por favor.", &["É tarde.", "Água, por favor."]),
        ] {
            assert_eq!(sentences(line), expected);
        }
    }
}
