//! The features of the fused kernel: a problem of each, what it reads, and what it may cost.

use crate::support::data::{Random, Tensors};
use wgpu_attention::{
    BufferElement, DType, Inputs, Mask, MaskFormat, MaskFunction, Pair, Pairs, Problem,
    ScoreFunction, Shape, Slopes, alibi_slopes,
};

/// What a feature that reads nothing to speak of may cost, in plain attentions.
const GOAL: Option<f64> = Some(1.15);
/// What a mask may that leaves a tenth of the tiles.
const TENTH: Option<f64> = Some(0.2);
/// What reads bytes of its own for every pair has no goal.
const NONE: Option<f64> = None;
/// Documents of the document masks: none shares a tile with another.
const DOCUMENTS: u32 = 10;

/// A feature.
pub(crate) struct Feature<'a> {
    pub(crate) name: &'static str,
    pub(crate) problem: Problem,
    pub(crate) inputs: Inputs<'a>,
    /// The greatest ratio to the plain attention.
    pub(crate) goal: Option<f64>,
    /// The part of the plain attention that the ratio is to.
    pub(crate) share: f64,
}

/// What all features read. q, k, v and the bias are exact in every storage type.
pub(crate) struct Data {
    shape: Shape,
    tensors: Tensors,
    all: Vec<bool>,
    same: Vec<bool>,
    bias: Vec<f32>,
    slopes: Vec<f32>,
    sinks: Vec<f32>,
    /// Where sequences start, and the last ends: one, and one a document.
    one: Vec<u32>,
    ten: Vec<u32>,
    table: Vec<u32>,
    /// Which document a token is of: all of one, and of ten.
    whole: Vec<u32>,
    parts: Vec<u32>,
}

impl Data {
    pub(crate) fn of(shape: Shape) -> Self {
        let mut tensors = Tensors::of(&Problem::new(shape));
        let Tensors { q, k, v } = &mut tensors;
        for (data, steps) in [(q, 16.0), (k, 128.0), (v, 128.0)] {
            data.iter_mut().for_each(|x| *x = (*x * steps).round() / steps);
        }
        let (heads, len, part) = (shape.heads, shape.q_len, shape.q_len / DOCUMENTS);
        let mut random = Random(4);
        Self {
            shape,
            tensors,
            all: vec![true; (len * len) as usize],
            same: (0..len * len).map(|i| i / len / part == i % len / part).collect(),
            bias: (0..heads * len * len).map(|_| random.below(256) as f32 / 128.0 - 1.0).collect(),
            slopes: alibi_slopes(heads),
            sinks: (0..heads).map(|head| head as f32 / 4.0).collect(),
            one: vec![0, len],
            ten: (0..=DOCUMENTS).map(|document| document * part).collect(),
            table: (0..16u16).map(|i| (f32::from(i) / 8.0 - 1.0).to_bits()).collect(),
            whole: vec![0; len as usize],
            parts: (0..len).map(|token| token / part).collect(),
        }
    }

    /// All features, the plain attention first.
    pub(crate) fn features(&self) -> Vec<Feature<'_>> {
        let (shape, heads, len) = (self.shape, self.shape.heads, self.shape.q_len);
        let (shared, exact) = (Pairs::new([1, 1, len, len]), Pairs::new([1, heads, len, len]));
        let (bytes, bits) = (MaskFormat::Bytes, MaskFormat::Bits);
        let base = || Inputs::new(&self.tensors.q, &self.tensors.k, &self.tensors.v);
        let bias = || base().bias(&self.bias);
        let plain = || Problem::new(shape);
        let packed =
            |batch| Problem::packed(Shape::self_attention(batch, heads, len, shape.head_dim));
        let starts = |starts| base().cu_seqlens_q(starts).cu_seqlens_k(starts);
        let scored = plain().with_score_function(relative_position(&self.table));
        let all_seen = plain().with_mask_function(same_document(&self.whole));
        let document = plain().with_mask_function(same_document(&self.parts));
        let half_seen = f64::from(len + 1) / f64::from(2 * len);
        let causal = || plain().mask(Mask::CAUSAL);
        let window = plain().mask(Mask::window(len / 8));
        let masked = |format| plain().with_boolean_mask(format, shared);
        let biased = |dtype, pairs| plain().with_bias(dtype, pairs);
        let feature =
            |name, goal, problem, inputs| Feature { name, goal, problem, inputs, share: 1.0 };
        let per_pair = feature("causal, a visible pair", GOAL, causal(), base());
        vec![
            feature("plain", GOAL, plain(), base()),
            feature("causal", GOAL, causal(), base()),
            Feature { share: half_seen, ..per_pair },
            feature("window of an eighth", GOAL, window, base()),
            feature("soft cap", GOAL, plain().softcap(20.0), base()),
            feature(
                "ALiBi",
                GOAL,
                plain().with_alibi(Slopes::PerHead),
                base().alibi_slopes(&self.slopes),
            ),
            feature("sinks", GOAL, plain().with_sinks(), base().sinks(&self.sinks)),
            feature("dropout", GOAL, plain().with_dropout(0.1), base().seed(1 << 40 | 9)),
            feature("lse", GOAL, plain().with_lse(), base()),
            feature(
                "key lengths, full",
                GOAL,
                plain().with_lengths(false, true),
                base().kv_lens(&self.one[1..]),
            ),
            feature("packed, one sequence", GOAL, packed(1), starts(&self.one)),
            feature("packed, ten sequences", TENTH, packed(DOCUMENTS), starts(&self.ten)),
            feature("f16", GOAL, plain().dtype(DType::F16), base()),
            feature("bf16", GOAL, plain().dtype(DType::BF16), base()),
            feature("score function", GOAL, scored, base().buffer("relative", &self.table)),
            feature("bias, f32, one", NONE, biased(DType::F32, shared), bias()),
            feature("bias, f32, each head", NONE, biased(DType::F32, exact), bias()),
            feature("bias, f16, one", NONE, biased(DType::F16, shared), bias()),
            feature("bias, f16, each head", NONE, biased(DType::F16, exact), bias()),
            feature("mask, bytes, dense", NONE, masked(bytes), base().mask(&self.all)),
            feature("mask, bits, dense", NONE, masked(bits), base().mask(&self.all)),
            feature("mask function, dense", GOAL, all_seen, base().buffer("document", &self.whole)),
            feature("documents, bits", TENTH, masked(bits), base().mask(&self.same)),
            feature(
                "documents, function, block mask",
                TENTH,
                document.with_block_mask(),
                base().buffer("document", &self.parts),
            ),
        ]
    }
}

/// A bias by distance, out of a table.
fn relative_position(table: &[u32]) -> ScoreFunction {
    let wgsl = "\
fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    return s + relative[(kv_pos - q_pos) % 16u];
}
";
    let table: Vec<f64> = table.iter().map(|&bits| f32::from_bits(bits).into()).collect();
    let twin = move |s, pair: Pair| s + table[(pair.kv_pos.wrapping_sub(pair.q_pos) % 16) as usize];
    ScoreFunction::new("relative position", wgsl, twin).with_buffer("relative", BufferElement::F32)
}

/// Only tokens of the same document.
fn same_document(documents: &[u32]) -> MaskFunction {
    let wgsl = "\
fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {
    return document[q_pos] == document[kv_pos];
}
";
    let documents = documents.to_vec();
    let document = move |pos: u32| documents[pos as usize];
    MaskFunction::new("same document", wgsl, move |p| document(p.q_pos) == document(p.kv_pos))
        .with_buffer("document", BufferElement::U32)
}
