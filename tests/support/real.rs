//! Attention calls inside trained models; `tests/data/SOURCE.md` says which.

use super::case::{Case, Tensors};
use safetensors::SafeTensors;
use std::path::Path;
use wgpu_attention::{Mask, Problem, Shape, Strides};

/// One attention call, or one sequence of it.
pub(crate) struct Call {
    pub(crate) case: Case,
    pub(crate) tensors: Tensors,
    /// The stored answer, `[heads, q_len, head_dim]`.
    pub(crate) out: Vec<f32>,
}

/// Name, scale and whether it is causal.
const CALLS: [(&str, f32, bool); 7] = [
    ("minilm_l5", 0.176_776_69, false),
    ("smollm2_l0", 0.125, true),
    ("smollm2_l14", 0.125, true),
    ("smollm2_l29", 0.125, true),
    ("vit_l5", 1.0, false),
    ("whisper_enc_l2", 0.125, false),
    ("mt_cross_l1", 0.176_776_69, false),
];

/// All of them, or where time is short those of one head width; a padded batch as its sequences, each with its
/// own number of keys.
pub(crate) fn calls() -> Vec<Call> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/real_attention.safetensors");
    let bytes = std::fs::read(path).expect("tests/data");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let calls = CALLS.into_iter().flat_map(|call| sequences(&file, call));
    calls.filter(|call| !super::small() || call.case.problem.shape.head_dim == 32).collect()
}

fn sequences(file: &SafeTensors<'_>, (name, scale, causal): (&str, f32, bool)) -> Vec<Call> {
    let tensor = |part: &str| file.tensor(&format!("{name}.{part}"));
    let floats = |part: &str| -> Vec<f32> {
        let words = tensor(part).expect("a tensor").data().as_chunks::<4>().0.to_vec();
        words.into_iter().map(f32::from_le_bytes).collect()
    };
    let axes = |part: &str| -> [u32; 4] {
        let tensor = tensor(part).expect("a tensor");
        std::array::from_fn(|axis| u32::try_from(tensor.shape()[axis]).expect("an extent"))
    };
    let ([batch, heads, q_len, dim], [_, kv_heads, kv_len, _]) = (axes("q"), axes("k"));
    let used = |b: u32| {
        let Ok(mask) = tensor("key_mask") else { return kv_len };
        let row = kv_len as usize * b as usize..kv_len as usize * (b as usize + 1);
        let words = mask.data().as_chunks::<4>().0[row].to_vec();
        words.into_iter().map(u32::from_le_bytes).sum()
    };
    let (q, k, v, out) = (floats("q"), floats("k"), floats("v"), floats("out"));
    let part = |data: &[f32], b: u32| {
        let len = data.len() / batch as usize;
        data[len * b as usize..][..len].to_vec()
    };
    (0..batch)
        .map(|b| {
            let shape = Shape::cross_attention(1, heads, q_len, used(b), dim);
            let keys = Strides::bhsd(kv_heads, kv_len, dim);
            let problem = Problem::new(shape.with_kv_heads(kv_heads))
                .mask(if causal { Mask::CAUSAL } else { Mask::FULL })
                .scale(scale)
                .k_strides(keys)
                .v_strides(keys)
                .with_lse();
            Call {
                case: Case::new(&format!("{name}, sequence {b}"), problem),
                tensors: Tensors {
                    q: part(&q, b),
                    k: part(&k, b),
                    v: part(&v, b),
                    ..Tensors::default()
                },
                out: part(&out, b),
            }
        })
        .collect()
}
