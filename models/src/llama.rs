//! Decoders of Llama's kind, such as SmolLM2: a text goes on, token by token.

use crate::bert::narrow;
use crate::error::Error;
use crate::files;
use crate::gguf::Gguf;
use crate::hub::Hub;
use crate::machine::Machine;
use crate::matrix::Matrix;
use crate::tensor::{Tensor, Weights};
use crate::text::Text;
use serde_json::json;
use std::path::Path;
use wgpu_attention::RotaryPairs;

/// A model on a machine.
#[derive(Debug)]
pub struct Llama {
    /// Its tokenizer.
    pub text: Text,
    /// Positions that it was trained for.
    pub context: usize,
    pub(crate) sizes: Sizes,
    pub(crate) words: Weights,
    pub(crate) logits: Weights,
    pub(crate) norm: Tensor,
    pub(crate) stack: Vec<Layer>,
}

/// What a configuration says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sizes {
    pub(crate) width: usize,
    pub(crate) inner: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) words: usize,
    pub(crate) epsilon: f32,
    pub(crate) rotary_base: f64,
    pub(crate) pairs: RotaryPairs,
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) norm: Tensor,
    /// Queries, keys and values, one below the other.
    pub(crate) qkv: Weights,
    pub(crate) back: Weights,
    pub(crate) middle_norm: Tensor,
    /// Gate and up, one below the other.
    pub(crate) gate: Weights,
    pub(crate) down: Weights,
}

/// Where tensors come from, by their names on the hub.
enum Source<'a> {
    Gguf(&'a Gguf),
    Hub(&'a Hub),
}

impl Llama {
    /// The first such model of a folder: GGUF before the hub's layout.
    ///
    /// # Errors
    /// There is none, or its files are not what they should be.
    pub fn load(machine: &Machine, folder: &Path) -> Result<Self, Error> {
        if let Some(path) = files::find(folder, |name| name.ends_with(".gguf"))?.first() {
            let gguf = Gguf::open(path)?;
            let text = Text::of(&gguf);
            return Self::of_gguf(machine, &gguf, text?);
        }
        match Hub::find(folder, "llama")? {
            Ok(hub) => Self::of_hub(machine, &hub, Text::open(&hub.beside("tokenizer.json"))?),
            Err(others) if others.is_empty() => {
                let what = "GGUF file or model.safetensors of a language model";
                Err(Error::Missing { what, folder: folder.to_owned() })
            }
            Err(others) => {
                let what = format!("has models of {}, none of llama", others.join(", "));
                Err(Error::file(folder, what))
            }
        }
    }

    /// From a GGUF file, whose queries and keys lie so that pairs of neighbours are turned together.
    ///
    /// # Errors
    /// The file is of another architecture, or not what it should be.
    pub fn of_gguf(machine: &Machine, gguf: &Gguf, text: Text) -> Result<Self, Error> {
        let architecture = gguf.text("general.architecture")?;
        if architecture != "llama" {
            let what = format!("is of architecture {architecture}, not llama");
            return Err(Error::file(&gguf.path, what));
        }
        let size = |key: &str| gguf.size(&format!("llama.{key}"));
        let (width, heads) = (size("embedding_length")?, size("attention.head_count")?);
        let head_dim = size("rope.dimension_count")?;
        let sizes = Sizes {
            width,
            inner: size("feed_forward_length")?,
            layers: size("block_count")?,
            heads,
            kv_heads: size("attention.head_count_kv")?,
            head_dim,
            words: size("vocab_size")?,
            epsilon: narrow(gguf.number("llama.attention.layer_norm_rms_epsilon")?),
            rotary_base: gguf.number("llama.rope.freq_base")?,
            pairs: RotaryPairs::Interleaved,
        };
        let context = size("context_length")?;
        Self::of(machine, &Source::Gguf(gguf), &gguf.path, sizes, context, text)
    }

    /// From the hub's layout, whose queries and keys are turned in halves.
    ///
    /// # Errors
    /// The model has something that is not known here, or its files are not what they should be.
    pub fn of_hub(machine: &Machine, hub: &Hub, text: Text) -> Result<Self, Error> {
        let config = hub.beside("config.json");
        let found = |key: &str| hub.config.get(key).filter(|value| !value.is_null());
        for (key, known) in [("hidden_act", json!("silu")), ("attention_bias", json!(false))] {
            if found(key).is_some_and(|value| *value != known) {
                return Err(Error::file(&config, format!("{key} is not {known}")));
            }
        }
        if found("rope_scaling").is_some() {
            return Err(Error::file(&config, "rope_scaling is not known"));
        }
        let (width, heads) = (hub.size("hidden_size")?, hub.size("num_attention_heads")?);
        let sizes = Sizes {
            width,
            inner: hub.size("intermediate_size")?,
            layers: hub.size("num_hidden_layers")?,
            heads,
            kv_heads: hub.size("num_key_value_heads")?,
            head_dim: width / heads,
            words: hub.size("vocab_size")?,
            epsilon: narrow(hub.number("rms_norm_eps")?),
            rotary_base: hub.number("rope_theta")?,
            pairs: RotaryPairs::HalfSplit,
        };
        let context = hub.size("max_position_embeddings")?;
        Self::of(machine, &Source::Hub(hub), &config, sizes, context, text)
    }

    fn of(
        machine: &Machine,
        source: &Source<'_>,
        path: &Path,
        sizes: Sizes,
        context: usize,
        text: Text,
    ) -> Result<Self, Error> {
        let Sizes { width, inner, heads, kv_heads, head_dim, .. } = sizes;
        let fits = heads.checked_mul(head_dim) == Some(width) && heads.is_multiple_of(kv_heads);
        if !fits || !width.is_multiple_of(64) || !inner.is_multiple_of(32) || head_dim % 2 != 0 {
            let what = format!(
                "{heads} heads on {kv_heads} of {head_dim}, {width} wide, {inner} inside: do not fit"
            );
            return Err(Error::file(path, what));
        }
        let norm = |name: &str| machine.tensor(&source.numbers(name, width)?);
        let layers = |names: &[(&str, usize)], index: usize, inputs: usize| {
            let parts = names.iter().map(|(name, outputs)| {
                source.matrix(&format!("model.layers.{index}.{name}.weight"), [*outputs, inputs])
            });
            let parts = parts.collect::<Result<Vec<_>, Error>>()?;
            machine.weights(&Matrix::stacked(&parts).expect("of one width"))
        };
        let kv_width = kv_heads * head_dim;
        let qkv = [("q_proj", width), ("k_proj", kv_width), ("v_proj", kv_width)];
        let qkv = qkv.map(|(name, outputs)| (format!("self_attn.{name}"), outputs));
        let qkv = qkv.each_ref().map(|(name, outputs)| (name.as_str(), *outputs));
        let stack = (0..sizes.layers).map(|index| {
            Ok(Layer {
                norm: norm(&format!("model.layers.{index}.input_layernorm.weight"))?,
                qkv: layers(&qkv, index, width)?,
                back: layers(&[("self_attn.o_proj", width)], index, width)?,
                middle_norm: norm(&format!(
                    "model.layers.{index}.post_attention_layernorm.weight"
                ))?,
                gate: layers(&[("mlp.gate_proj", inner), ("mlp.up_proj", inner)], index, width)?,
                down: layers(&[("mlp.down_proj", width)], index, inner)?,
            })
        });
        let stack = stack.collect::<Result<_, Error>>()?;
        let words =
            machine.weights(&source.matrix("model.embed_tokens.weight", [sizes.words, width])?)?;
        // Most small models have one matrix for both.
        let logits = match source.has("lm_head.weight") {
            true => machine.weights(&source.matrix("lm_head.weight", [sizes.words, width])?)?,
            false => words.clone(),
        };
        Ok(Self { text, context, sizes, words, logits, norm: norm("model.norm.weight")?, stack })
    }
}

impl Source<'_> {
    fn numbers(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        match self {
            Self::Gguf(gguf) => gguf.numbers(&gguf_name(name), len),
            Self::Hub(hub) => hub.numbers(name, &[len]),
        }
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix, Error> {
        match self {
            Self::Gguf(gguf) => gguf.matrix(&gguf_name(name), shape),
            Self::Hub(hub) => hub.matrix(name, shape),
        }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Gguf(gguf) => gguf.has(&gguf_name(name)),
            Self::Hub(hub) => hub.has(name),
        }
    }
}

/// What GGUF files call a tensor of the hub.
fn gguf_name(name: &str) -> String {
    [
        ("model.layers.", "blk."),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ]
    .iter()
    .fold(name.to_owned(), |name, (hub, gguf)| name.replace(hub, gguf))
}
