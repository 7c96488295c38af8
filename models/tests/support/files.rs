//! Small models in the formats of large ones, without any training.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]

use crate::support::noise;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use std::path::{Path, PathBuf};

pub(crate) const WIDTH: usize = 64;
pub(crate) const INNER: usize = 96;
pub(crate) const WORDS: usize = 64;
const LAYERS: usize = 2;

/// A matrix's name on the hub, its rows and columns, and its weights.
pub(crate) type Named = (String, [usize; 2], Vec<f32>);

/// An empty folder.
pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// One letter a token.
fn tokens() -> Vec<String> {
    let marks = ["<|im_start|>", "<|im_end|>", "</s>", "<unk>", "Ġ", "Ċ"].map(String::from);
    let letters = ('a'..='z').map(String::from);
    let tokens: Vec<String> = marks.into_iter().chain(letters).collect();
    let rest = (tokens.len()..WORDS).map(|id| format!("unused{id}"));
    tokens.iter().cloned().chain(rest).collect()
}

/// A `tokenizer.json` of the same.
pub(crate) fn tokenizer() -> String {
    let vocabulary: serde_json::Map<_, _> =
        tokens().into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    let model = json!({ "type": "BPE", "unk_token": "<unk>", "vocab": vocabulary, "merges": [] });
    json!({ "version": "1.0", "added_tokens": [], "model": model }).to_string()
}

/// A language model's matrices by their names on the hub, as GGUF orders rows; `[rows, cols]`.
pub(crate) fn llama() -> Vec<Named> {
    let mut all = vec![("model.embed_tokens.weight".to_owned(), [WORDS, WIDTH])];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("self_attn.q_proj", [WIDTH, WIDTH]),
            ("self_attn.k_proj", [WIDTH / 2, WIDTH]),
            ("self_attn.v_proj", [WIDTH / 2, WIDTH]),
            ("self_attn.o_proj", [WIDTH, WIDTH]),
            ("mlp.gate_proj", [INNER, WIDTH]),
            ("mlp.up_proj", [INNER, WIDTH]),
            ("mlp.down_proj", [WIDTH, INNER]),
        ] {
            all.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let named = all.into_iter().zip(1..);
    named
        .map(|((name, [rows, cols]), seed)| {
            let weights = noise(rows * cols, seed).iter().map(|x| 0.4 * x).collect();
            (name, [rows, cols], weights)
        })
        .collect()
}

fn norms() -> Vec<String> {
    let of_layer = |layer| {
        ["input_layernorm", "post_attention_layernorm"]
            .map(|name| format!("model.layers.{layer}.{name}.weight"))
    };
    let all = (0..LAYERS).flat_map(of_layer);
    all.chain(["model.norm.weight".to_owned()]).collect()
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// In blocks of 32 with a scale in f16: the bytes, and what they stand for.
pub(crate) fn q8_0(weights: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    for block in weights.chunks(32) {
        let largest = block.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let scale = half::f16::from_f32(largest / 127.0);
        bytes.extend(scale.to_le_bytes());
        for x in block {
            let code = (x / scale.to_f32()).round().clamp(-127.0, 127.0) as i8;
            bytes.push(code as u8);
            values.push(f32::from(code) * scale.to_f32());
        }
    }
    (bytes, values)
}

/// In blocks of 32 with a scale and a minimum in f16.
pub(crate) fn q4_1(weights: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    for block in weights.chunks(32) {
        let least = block.iter().copied().fold(f32::MAX, f32::min);
        let most = block.iter().copied().fold(f32::MIN, f32::max);
        let (scale, minimum) =
            (half::f16::from_f32((most - least) / 15.0), half::f16::from_f32(least));
        let (a, b) = (scale.to_f32(), minimum.to_f32());
        let codes: Vec<u8> =
            block.iter().map(|x| ((x - b) / a).round().clamp(0.0, 15.0) as u8).collect();
        bytes.extend(scale.to_le_bytes());
        bytes.extend(minimum.to_le_bytes());
        bytes.extend((0..16).map(|i| codes[i] | codes[i + 16] << 4));
        values.extend(codes.iter().map(|code| f32::from(*code).mul_add(a, b)));
    }
    (bytes, values)
}

/// A GGUF file: metadata, then tensors of name, shape from inside, type and bytes.
pub(crate) fn gguf(architecture: &str, tensors: &[(String, Vec<u64>, u32, Vec<u8>)]) -> Vec<u8> {
    let mut meta = Vec::new();
    let mut count = 0_u64;
    let mut key = |meta: &mut Vec<u8>, name: &str, kind: u32| {
        count += 1;
        text(meta, name);
        meta.extend(kind.to_le_bytes());
    };
    for (name, value) in [
        ("general.architecture", architecture),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "smollm"),
    ] {
        key(&mut meta, name, 8);
        text(&mut meta, value);
    }
    for (name, value) in [
        ("embedding_length", WIDTH),
        ("feed_forward_length", INNER),
        ("block_count", LAYERS),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("rope.dimension_count", WIDTH / 2),
        ("vocab_size", WORDS),
        ("context_length", 128),
    ] {
        key(&mut meta, &format!("llama.{name}"), 4);
        meta.extend(u32::try_from(value).expect("small").to_le_bytes());
    }
    for (name, value) in
        [("attention.layer_norm_rms_epsilon", 1e-5_f32), ("rope.freq_base", 10_000.0)]
    {
        key(&mut meta, &format!("llama.{name}"), 6);
        meta.extend(value.to_le_bytes());
    }
    for (name, list) in [("tokens", tokens()), ("merges", Vec::new())] {
        key(&mut meta, &format!("tokenizer.ggml.{name}"), 9);
        meta.extend(8_u32.to_le_bytes());
        meta.extend((list.len() as u64).to_le_bytes());
        list.iter().for_each(|token| text(&mut meta, token));
    }
    key(&mut meta, "tokenizer.ggml.token_type", 9);
    meta.extend(5_u32.to_le_bytes());
    meta.extend((WORDS as u64).to_le_bytes());
    (0..WORDS).for_each(|id| meta.extend(if id < 4 { 3_u32 } else { 1 }.to_le_bytes()));

    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend(count.to_le_bytes());
    bytes.extend(meta);
    let mut data: Vec<u8> = Vec::new();
    for (name, dims, kind, contents) in tensors {
        text(&mut bytes, name);
        bytes.extend(u32::try_from(dims.len()).expect("small").to_le_bytes());
        dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend((data.len() as u64).to_le_bytes());
        data.extend(contents);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(data);
    bytes
}

/// The language model as a GGUF file, its layers in turn in 8 and 4 bits, and its weights as that file has them.
pub(crate) fn llama_gguf(architecture: &str) -> (Vec<u8>, Vec<Named>) {
    let (mut tensors, mut stored) = (Vec::new(), Vec::new());
    for (index, (name, [rows, cols], weights)) in llama().into_iter().enumerate() {
        let (kind, (bytes, values)) = match index % 2 {
            0 => (8, q8_0(&weights)),
            _ => (3, q4_1(&weights)),
        };
        tensors.push((gguf_name(&name), vec![cols as u64, rows as u64], kind, bytes));
        stored.push((name, [rows, cols], values));
    }
    for name in norms() {
        let bytes = [1.0_f32; WIDTH].iter().flat_map(|x| x.to_le_bytes()).collect();
        tensors.push((gguf_name(&name), vec![WIDTH as u64], 0, bytes));
    }
    (gguf(architecture, &tensors), stored)
}

fn gguf_name(name: &str) -> String {
    let parts = [
        ("model.layers", "blk"),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
    ];
    parts.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// The same in the hub's layout, where the rows of queries and keys of which pairs are turned are half a head apart, in a
/// folder. Not `permuted`, they stay neighbours, which is wrong.
pub(crate) fn llama_hub(folder: &Path, weights: &[Named], permuted: bool) {
    let mut all: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, [rows, cols], weights) in weights {
        let turned = permuted && (name.contains("q_proj") || name.contains("k_proj"));
        let dim = WIDTH / 2;
        let source = |row: usize| {
            let (head, within) = (row / dim, row % dim);
            let neighbour = head * dim + 2 * (within % (dim / 2)) + within / (dim / 2);
            if turned { neighbour } else { row }
        };
        let rows_of = (0..*rows).flat_map(|row| &weights[source(row) * cols..][..*cols]);
        let bytes = rows_of.flat_map(|x| x.to_le_bytes()).collect();
        all.push((name.clone(), vec![*rows, *cols], bytes));
    }
    for name in norms() {
        let bytes = [1.0_f32; WIDTH].iter().flat_map(|x| x.to_le_bytes()).collect();
        all.push((name, vec![WIDTH], bytes));
    }
    let config = json!({
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": WORDS, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "hidden_act": "silu",
    });
    hub(folder, &config, &all);
}

fn hub(folder: &Path, config: &serde_json::Value, tensors: &[(String, Vec<usize>, Vec<u8>)]) {
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor");
        (name.clone(), view)
    });
    let bytes = safetensors::serialize(views, None).expect("serialised");
    std::fs::write(folder.join("model.safetensors"), bytes).expect("written");
    std::fs::write(folder.join("config.json"), config.to_string()).expect("written");
    std::fs::write(folder.join("tokenizer.json"), tokenizer()).expect("written");
}

/// A sentence encoder of one layer.
pub(crate) fn bert_hub(folder: &Path) {
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    for (name, rows) in [("word", WORDS), ("position", 32), ("token_type", 2)] {
        shapes.push((format!("embeddings.{name}_embeddings.weight"), vec![rows, WIDTH]));
    }
    let mut layer = |name: &str, shape: Vec<usize>| {
        shapes.push((format!("{name}.bias"), vec![shape[0]]));
        shapes.push((format!("{name}.weight"), shape));
    };
    layer("embeddings.LayerNorm", vec![WIDTH]);
    for name in ["self.query", "self.key", "self.value", "output.dense"] {
        layer(&format!("encoder.layer.0.attention.{name}"), vec![WIDTH, WIDTH]);
    }
    layer("encoder.layer.0.attention.output.LayerNorm", vec![WIDTH]);
    layer("encoder.layer.0.intermediate.dense", vec![INNER, WIDTH]);
    layer("encoder.layer.0.output.dense", vec![WIDTH, INNER]);
    layer("encoder.layer.0.output.LayerNorm", vec![WIDTH]);
    let tensors: Vec<_> = (shapes.into_iter().zip(1..))
        .map(|((name, shape), seed)| {
            let numbers = noise(shape.iter().product(), seed);
            (name, shape, numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
        })
        .collect();
    let config = json!({
        "model_type": "bert", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": WORDS, "max_position_embeddings": 32, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu",
    });
    hub(folder, &config, &tensors);
}

/// A translation model of one layer each way.
pub(crate) fn marian(cell: &str) -> Vec<u8> {
    const F32: u64 = 0x404;
    const INT8: u64 = 0x4101;
    let settings = format!(
        "dec-cell: {cell}\ndec-depth: 1\ndim-emb: {WIDTH}\nenc-depth: 1\ntied-embeddings-all: true\n\
         transformer-decoder-autoreg: rnn\ntransformer-dim-ffn: {INNER}\ntransformer-ffn-activation: relu\n\
         transformer-ffn-depth: 2\ntransformer-heads: 2\ntransformer-postprocess: dan\n\
         transformer-postprocess-emb: d\ntransformer-preprocess: \"\"\n\
         transformer-train-position-embeddings: false\ntype: transformer\n"
    );
    let mut items: Vec<(String, u64, [usize; 2])> = vec![
        ("Wemb".to_owned(), INT8, [WORDS, WIDTH]),
        ("decoder_ff_logit_out_b".to_owned(), F32, [1, WORDS]),
    ];
    let mut matrix = |name: &str, shape| items.push((name.to_owned(), INT8, shape));
    for name in ["encoder_l1_self", "decoder_l1_context"] {
        for part in ["Wq", "Wk", "Wv", "Wo"] {
            matrix(&format!("{name}_{part}"), [WIDTH, WIDTH]);
        }
    }
    for part in ["W", "Wf"] {
        matrix(&format!("decoder_l1_rnn_{part}"), [WIDTH, WIDTH]);
    }
    for name in ["encoder_l1_ffn", "decoder_l1_ffn"] {
        matrix(&format!("{name}_W1"), [WIDTH, INNER]);
        matrix(&format!("{name}_W2"), [INNER, WIDTH]);
    }
    let mut vector = |name: &str, len| items.push((name.to_owned(), F32, [1, len]));
    for name in ["encoder_l1_self", "decoder_l1_context"] {
        for part in ["bq", "bk", "bv", "bo"] {
            vector(&format!("{name}_{part}"), WIDTH);
        }
    }
    vector("decoder_l1_rnn_bf", WIDTH);
    for name in ["encoder_l1_ffn", "decoder_l1_ffn"] {
        vector(&format!("{name}_b1"), INNER);
        vector(&format!("{name}_b2"), WIDTH);
    }
    for name in [
        "encoder_l1_self_Wo",
        "encoder_l1_ffn_ffn",
        "decoder_l1_rnn_ffn",
        "decoder_l1_context_Wo",
        "decoder_l1_ffn_ffn",
    ] {
        for part in ["scale", "bias"] {
            vector(&format!("{name}_ln_{part}"), WIDTH);
        }
    }
    let contents = items.iter().zip(1..).map(|((_, kind, [rows, cols]), seed)| {
        let numbers = noise(rows * cols, seed);
        match *kind {
            INT8 => {
                let codes = numbers.iter().map(|x| (x * 127.0) as i8 as u8);
                codes.chain(300_f32.to_le_bytes()).collect()
            }
            _ => numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>(),
        }
    });
    let mut contents: Vec<Vec<u8>> = contents.collect();
    let mut shapes: Vec<Vec<usize>> = items.iter().map(|(.., shape)| shape.to_vec()).collect();
    let mut headers: Vec<(String, u64)> =
        items.into_iter().map(|(name, kind, _)| (name + "\0", kind)).collect();
    headers.push(("special:model.yml\0".to_owned(), 0x101));
    shapes.push(vec![settings.len()]);
    contents.push(settings.into_bytes());

    let mut bytes = Vec::new();
    let word = |bytes: &mut Vec<u8>, n: usize| bytes.extend((n as u64).to_le_bytes());
    word(&mut bytes, 1);
    word(&mut bytes, headers.len());
    for (((name, kind), shape), contents) in headers.iter().zip(&shapes).zip(&contents) {
        word(&mut bytes, name.len());
        bytes.extend(kind.to_le_bytes());
        word(&mut bytes, shape.len());
        word(&mut bytes, contents.len());
    }
    headers.iter().for_each(|(name, _)| bytes.extend(name.as_bytes()));
    for n in shapes.iter().flatten() {
        bytes.extend(u32::try_from(*n).expect("small").to_le_bytes());
    }
    word(&mut bytes, 0);
    contents.iter().for_each(|contents| bytes.extend(contents));
    bytes
}
