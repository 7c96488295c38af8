//! Random problems, all features mixed.

use super::functions;
use super::random::Random;
use std::collections::HashSet;
use std::fmt;
use wgpu_attention::{
    DType, DeviceClass, Diagonal, Layout, Mask, MaskFormat, Pages, Pairs, Problem, ScoreStage,
    Shape, Slopes, Strides,
};

/// Head widths: few, so that kernels serve again; of every kind of remainder, and the widest.
const DIMS: [u32; 20] =
    [1, 2, 3, 5, 8, 16, 18, 24, 32, 40, 47, 64, 72, 80, 96, 112, 128, 192, 256, 512];

/// A feature, and which of its values was drawn.
pub(crate) type Drawn = (&'static str, &'static str);

/// What compiles a kernel; problems of one kind share kernels.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    pub(crate) class: DeviceClass,
    head_dim: u32,
    v_head_dim: u32,
    chosen: Vec<(&'static str, usize)>,
}

/// Every feature and the names of its values.
const FEATURES: [(&str, &[&str]); 16] = [
    ("class", &["hardware", "software"]),
    (
        "types",
        &[
            "f32",
            "f16",
            "bf16",
            "f32 on f16",
            "f32 on bf16",
            "f16 to bf16",
            "f32 on q8",
            "f16 on q4",
        ],
    ),
    ("band", &["full", "causal", "window", "two-sided"]),
    ("diagonal", &["bottom-right", "top-left", "offset", "per sequence"]),
    ("lengths", &["full", "q", "kv", "q and kv", "packed"]),
    ("pages", &["none", "given"]),
    ("mask", &["none", "bytes", "bits"]),
    ("bias", &["none", "f32", "f16", "bf16"]),
    ("softcap", &["none", "given"]),
    ("alibi", &["none", "per head", "per sequence"]),
    ("sinks", &["none", "given"]),
    ("dropout", &["none", "by seed", "by mask"]),
    ("score function", &["none", "plain", "with a buffer"]),
    ("mask function", &["none", "plain", "with a buffer"]),
    ("matrix", &["none", "weights", "raw", "capped", "biased"]),
    ("lse", &["no", "yes"]),
];

/// Values that do not go together, each with the reason.
const APART: [(Drawn, Drawn); 8] = [
    // Pairs have no place in packed sequences.
    (("lengths", "packed"), ("mask", "bytes")),
    (("lengths", "packed"), ("mask", "bits")),
    (("lengths", "packed"), ("bias", "f32")),
    (("lengths", "packed"), ("bias", "f16")),
    (("lengths", "packed"), ("bias", "bf16")),
    (("lengths", "packed"), ("pages", "given")),
    (("lengths", "packed"), ("dropout", "by mask")),
    // A diagonal of each sequence's own needs a band to matter; what is drawn is kept simple.
    (("band", "full"), ("diagonal", "per sequence")),
];

/// Whether two drawn values cannot meet.
pub(crate) fn apart(a: Drawn, b: Drawn) -> bool {
    APART.iter().any(|(x, y)| (*x == a && *y == b) || (*x == b && *y == a))
}

/// Every value of every feature.
pub(crate) fn all_values() -> Vec<Drawn> {
    let values = FEATURES.iter().flat_map(|(name, values)| values.iter().map(move |v| (*name, *v)));
    values.collect()
}

/// As many kinds, each with what draws its problems: of those tried, the one with most pairs of values that were not
/// met before.
pub(crate) fn kinds(seed: u64, count: u32, tried: u64) -> Vec<(Kind, Random)> {
    let mut met = HashSet::new();
    let mut kinds = Vec::new();
    for n in 0..u64::from(count) {
        let tried = (0..tried).map(|i| {
            let mut random = Random::new(seed << 40 | n << 8 | i);
            (Kind::draw(&mut random), random)
        });
        let news = |kind: &Kind| kind.pairs().iter().filter(|pair| !met.contains(*pair)).count();
        let (kind, random) = tried.max_by_key(|(kind, _)| news(kind)).expect("some");
        met.extend(kind.pairs());
        kinds.push((kind, random));
    }
    kinds
}

impl Kind {
    /// Every two values of it.
    pub(crate) fn pairs(&self) -> Vec<(Drawn, Drawn)> {
        let drawn = self.drawn();
        let after = |i: usize| drawn[i + 1..].iter().map(move |b| (i, *b));
        (0..drawn.len()).flat_map(after).map(|(i, b)| (drawn[i], b)).collect()
    }

    pub(crate) fn draw(random: &mut Random) -> Self {
        let dim = |random: &mut Random| DIMS[random.below(20) as usize];
        let head_dim = dim(random);
        let v_head_dim = if random.below(2) == 0 { head_dim } else { dim(random) };
        let (mut head_dim, mut v_head_dim) = (head_dim, v_head_dim);
        let mut chosen: Vec<(&'static str, usize)> = Vec::new();
        for (name, values) in FEATURES {
            // One of two problems is plain in a feature, so that features are met alone, too.
            let n = u32::try_from(values.len()).expect("few");
            let mut value = if random.below(3) == 0 { 0 } else { random.below(n) as usize };
            let taken = |other: &str| {
                chosen.iter().find(|(name, _)| *name == other).map_or(0, |(_, value)| *value)
            };
            let packed = name != "lengths" && taken("lengths") == 4;
            if matches!(name, "mask" | "bias" | "pages") && packed
                || name == "dropout" && value == 2 && packed
                || name == "diagonal" && value == 3 && taken("band") == 0
            {
                value = 0;
            }
            if name == "mask function" || name == "score function" {
                // Of the eight buffers that every device binds, q, k, v and out take four.
                let asked = |name: &str| usize::from(taken(name) > 0);
                let tables = ["alibi", "sinks", "dropout", "lengths", "pages"].map(asked);
                let tables = tables.contains(&1)
                    || taken("diagonal") == 3
                    || taken("mask") + taken("bias") > 0;
                let others = asked("mask") + asked("bias") + usize::from(tables) + 1;
                let functions = usize::from(taken("score function") == 2);
                if value == 2 && others + functions >= 4 {
                    value = 1;
                }
            }
            if name == "types" && value >= 6 {
                // Whole blocks, of widths that others have too.
                let whole = |dim: u32| [32, 64, 96, 128, 192, 256][dim as usize % 6];
                (head_dim, v_head_dim) = (whole(head_dim), whole(v_head_dim));
            }
            chosen.push((name, value));
        }
        let class = if chosen[0].1 == 0 { DeviceClass::Hardware } else { DeviceClass::Software };
        Self { class, head_dim, v_head_dim, chosen }
    }

    pub(crate) fn drawn(&self) -> Vec<Drawn> {
        let name = |(feature, value): &(&'static str, usize)| {
            let (_, values) = FEATURES.iter().find(|(name, _)| name == feature).expect("a feature");
            (*feature, values[*value])
        };
        self.chosen.iter().map(name).collect()
    }

    fn value(&self, feature: &str) -> usize {
        self.chosen.iter().find(|(name, _)| *name == feature).expect("a feature").1
    }

    /// The wider of its heads.
    pub(crate) fn width(&self) -> u32 {
        self.head_dim.max(self.v_head_dim)
    }

    /// A problem of this kind.
    pub(crate) fn problem(&self, random: &mut Random) -> Problem {
        let len = |random: &mut Random| match random.below(12) {
            0 => random.below(3),
            1..8 => 1 + random.below(80),
            _ => 1 + random.below(200),
        };
        let kv_heads = 1 + random.below(3);
        let heads = kv_heads * [1, 1, 2, 3, 4][random.below(5) as usize];
        let batch = [0, 1, 1, 2, 2, 3][random.below(6) as usize];
        let (q_len, kv_len) = (len(random), len(random));
        let shape = Shape::cross_attention(batch, heads, q_len, kv_len, self.head_dim)
            .with_kv_heads(kv_heads)
            .with_v_head_dim(self.v_head_dim);
        let packed = self.value("lengths") == 4;
        let mut problem = if packed {
            // No sequence has no tokens.
            let mut shape = shape;
            if batch == 0 {
                (shape.q_len, shape.kv_len) = (0, 0);
            }
            Problem::packed(shape)
        } else {
            layout(Problem::new(shape), self.value("types") >= 6, random)
        };
        let shape = problem.shape;
        let [q, kv, out] = [
            [DType::F32; 3],
            [DType::F16; 3],
            [DType::BF16; 3],
            [DType::F32, DType::F16, DType::F32],
            [DType::F32, DType::BF16, DType::BF16],
            [DType::F16, DType::F16, DType::BF16],
            [DType::F32, DType::Q8, DType::F32],
            [DType::F16, DType::Q4, DType::F32],
        ][self.value("types")];
        problem = problem.dtype(q).kv_dtype(kv).out_dtype(out).mask(self.mask(random));
        let (q_lens, kv_lens) = (self.value("lengths"), self.value("lengths"));
        if !packed {
            problem = problem.with_lengths(q_lens & 1 == 1, kv_lens & 2 == 2);
        }
        if self.value("pages") == 1 {
            let page_len = [1, 5, 16, 40][random.below(4) as usize];
            let used = shape.batch * shape.kv_len.div_ceil(page_len);
            problem = problem.with_pages(Pages::new(used + 1 + random.below(3), page_len));
        }
        match self.value("mask") {
            0 => {}
            1 => problem = problem.with_boolean_mask(MaskFormat::Bytes, pairs(&shape, random)),
            _ => problem = problem.with_boolean_mask(MaskFormat::Bits, pairs(&shape, random)),
        }
        let bias = [None, Some(DType::F32), Some(DType::F16), Some(DType::BF16)];
        if let Some(dtype) = bias[self.value("bias")] {
            problem = problem.with_bias(dtype, pairs(&shape, random));
        }
        if self.value("softcap") == 1 {
            problem = problem.softcap(0.5 + 20.0 * (1.0 + random.unit()));
        }
        match self.value("alibi") {
            0 => {}
            1 => problem = problem.with_alibi(Slopes::PerHead),
            _ => problem = problem.with_alibi(Slopes::PerSequence),
        }
        problem.sinks = self.value("sinks") == 1;
        let p = [0.0, 0.1, 0.5, 0.9][random.below(4) as usize];
        match self.value("dropout") {
            0 => {}
            1 => problem = problem.with_dropout(p),
            _ => problem = problem.with_given_dropout(p),
        }
        match self.value("score function") {
            0 => {}
            1 => problem = problem.with_score_function(functions::fading()),
            _ => problem = problem.with_score_function(functions::relative_position()),
        }
        match self.value("mask function") {
            0 => {}
            1 => problem = problem.with_mask_function(functions::dilated()),
            _ => problem = problem.with_mask_function(functions::same_document()),
        }
        match self.value("matrix") {
            0 => {}
            1 => problem = problem.with_weights(),
            stage => {
                let stages = [ScoreStage::Raw, ScoreStage::Capped, ScoreStage::Biased];
                problem = problem.with_scores(stages[stage - 2]);
            }
        }
        problem.lse = self.value("lse") == 1;
        problem.scale = match random.below(8) {
            0 => Some(0.0),
            1 => Some(-0.3),
            2 => Some(0.05),
            _ => None,
        };
        problem
    }

    fn mask(&self, random: &mut Random) -> Mask {
        let side = |random: &mut Random| match random.below(6) {
            0 => 0,
            1 => 1000,
            _ => random.below(50),
        };
        let mask = match self.value("band") {
            0 => Mask::FULL,
            1 => Mask::CAUSAL,
            2 => Mask::window(side(random)),
            _ => Mask::band(Some(side(random)), Some(side(random))),
        };
        mask.along(match self.value("diagonal") {
            0 => Diagonal::BottomRight,
            1 => Diagonal::TopLeft,
            2 => Diagonal::Offset(i32::try_from(random.below(240)).expect("small") - 120),
            _ => Diagonal::PerSequence,
        })
    }
}

/// Every axis exact or 1; at times with strides of its own.
fn pairs(shape: &Shape, random: &mut Random) -> Pairs {
    let exact = [shape.batch, shape.heads, shape.q_len, shape.kv_len];
    let axes = exact.map(|n| if random.below(3) == 0 { 1 } else { n });
    let pairs = Pairs::new(axes);
    if random.below(4) > 0 {
        return pairs;
    }
    // Keys outermost but for the batch, a gap after each row of them.
    let [_, heads, rows, keys] = axes.map(u64::from);
    let key = heads * rows + 3;
    pairs.with_strides([keys * key + 5, rows, 1, key])
}

/// `whole`: strides of k and v are of whole blocks.
fn layout(problem: Problem, whole: bool, random: &mut Random) -> Problem {
    let s = problem.shape;
    match random.below(5) {
        0 => problem.layout(Layout::Bshd),
        1 => {
            let mut gapped = |heads: u32, len: u32, dim: u32, unit: u64| {
                let [a, b, c] = [0; 3].map(|_: u32| unit * u64::from(random.below(4)));
                let row = u64::from(dim) + a;
                let head = u64::from(len) * row + b;
                Strides { batch: u64::from(heads) * head + c, head, row }
            };
            let unit = if whole { DType::BLOCK.into() } else { 1 };
            let (q, k) = (
                gapped(s.heads, s.q_len, s.head_dim, 1),
                gapped(s.kv_heads, s.kv_len, s.head_dim, unit),
            );
            let (v, out) = (
                gapped(s.kv_heads, s.kv_len, s.v_head_dim, unit),
                gapped(s.heads, s.q_len, s.v_head_dim, 1),
            );
            problem.q_strides(q).k_strides(k).v_strides(v).out_strides(out)
        }
        _ => problem,
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.head_dim, self.v_head_dim)?;
        let drawn = self.drawn();
        drawn
            .iter()
            .filter(|(_, value)| *value != "none")
            .try_for_each(|(name, value)| write!(f, ", {name} {value}"))
    }
}
