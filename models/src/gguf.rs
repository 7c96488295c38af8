//! GGUF files: metadata with the tokenizer, and tensors.

use crate::checkpoint::{Kind, Parsed, Stored};
use crate::reader::{Read, bytes, next, text, u32, u64};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// GGUF's names of settings, and the hub's.
const SETTINGS: [(&str, &str); 11] = [
    ("general.architecture", "model_type"),
    ("llama.embedding_length", "hidden_size"),
    ("llama.feed_forward_length", "intermediate_size"),
    ("llama.block_count", "num_hidden_layers"),
    ("llama.attention.head_count", "num_attention_heads"),
    ("llama.attention.head_count_kv", "num_key_value_heads"),
    ("llama.rope.dimension_count", "head_dim"),
    ("llama.rope.freq_base", "rope_theta"),
    ("llama.vocab_size", "vocab_size"),
    ("llama.context_length", "max_position_embeddings"),
    ("llama.attention.layer_norm_rms_epsilon", "rms_norm_eps"),
];

/// Parts of GGUF's names of tensors, and the hub's; a name may have several.
const TENSORS: [(&str, &str); 13] = [
    ("blk.", "model.layers."),
    ("token_embd", "model.embed_tokens"),
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("output_norm", "model.norm"),
    ("output.", "lm_head."),
];

/// Version 2 or 3. However many values and tensors there are said to be, each takes some of the bytes.
pub(crate) fn parse(file: &[u8]) -> Parsed {
    let rest = &mut &*file;
    if bytes(rest, 4)? != b"GGUF" {
        return Err("is no GGUF file".to_owned());
    }
    let version = u32(rest)?;
    if !(2..=3).contains(&version) {
        return Err(format!("is of GGUF version {version}, not 2 or 3"));
    }
    let (tensor_count, value_count) = (u64(rest)?, u64(rest)?);
    let mut settings = Map::new();
    for _ in 0..value_count {
        let key = name(rest)?;
        let kind = u32(rest)?;
        let known = SETTINGS.iter().find(|(gguf, _)| *gguf == key);
        let key = known.map_or(key, |(_, hub)| (*hub).to_owned());
        settings.insert(key, value(rest, kind, 0)?);
    }
    let mut tensors = HashMap::new();
    for _ in 0..tensor_count {
        let name = TENSORS.iter().fold(name(rest)?, |name, (gguf, hub)| name.replace(gguf, hub));
        let axes = u32(rest)?;
        let sizes = (0..axes).map(|_| u64(rest).map(usize::try_from));
        let sizes = sizes.collect::<Result<Result<Vec<_>, _>, _>>()?;
        let (kind, first) = (u32(rest)?, u64(rest)?);
        let kind = match kind {
            0 => Kind::F32,
            1 => Kind::F16,
            3 => Kind::Q4_1,
            8 => Kind::Q8_0,
            _ => return Err(format!("{name} is of type {kind}: not known")),
        };
        // Innermost first.
        let shape = sizes.map_err(|error| error.to_string())?.into_iter().rev().collect();
        tensors.insert(name, Stored { kind, shape, first });
    }
    let alignment = settings.get("general.alignment").map_or(Some(32), Value::as_u64);
    let alignment = alignment.filter(|n| (1..=1 << 16).contains(n)).ok_or("has no alignment")?;
    let start = ((file.len() - rest.len()) as u64).next_multiple_of(alignment);
    tensors.values_mut().for_each(|tensor| tensor.first = tensor.first.saturating_add(start));
    Ok((settings, tensors))
}

/// A text, after its length.
fn name(rest: &mut &[u8]) -> Read<String> {
    let len = u64(rest)?;
    text(rest, len)
}

/// A value of the metadata. Lists of lists of lists are not known.
fn value(rest: &mut &[u8], kind: u32, depth: u32) -> Read<Value> {
    Ok(match kind {
        0 | 7 => u8::from_le_bytes(next(rest)?).into(),
        1 => i8::from_le_bytes(next(rest)?).into(),
        2 => u16::from_le_bytes(next(rest)?).into(),
        3 => i16::from_le_bytes(next(rest)?).into(),
        4 => u32(rest)?.into(),
        5 => i32::from_le_bytes(next(rest)?).into(),
        6 => f32::from_le_bytes(next(rest)?).into(),
        8 => name(rest)?.into(),
        9 if depth < 2 => {
            let (kind, count) = (u32(rest)?, u64(rest)?);
            (0..count).map(|_| value(rest, kind, depth + 1)).collect::<Read<Vec<_>>>()?.into()
        }
        10 => u64(rest)?.into(),
        11 => i64::from_le_bytes(next(rest)?).into(),
        12 => f64::from_le_bytes(next(rest)?).into(),
        _ => return Err(format!("has a value of type {kind}: not known")),
    })
}
