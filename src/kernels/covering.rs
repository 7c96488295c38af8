//! Every two values of two features, in as few sets as a greedy choice takes.

use super::{Element, Features, Rows};
use crate::dropout::DropoutMask;
use crate::function::Text;
use crate::pairs::MaskFormat;
use crate::problem::ScoreStage;
use crate::shape::DType;

/// How many values each feature has.
const VALUES: [usize; 14] = [8, 4, 3, 4, 2, 2, 2, 2, 2, 2, 2, 4, 2, 3];

type Choice = [usize; VALUES.len()];

fn elements(choice: usize, native_f16: bool) -> [Element; 3] {
    let (f32, f16, bf16) = (DType::F32, DType::F16, DType::BF16);
    let types = match choice {
        0 => [f32; 3],
        1 => [f16; 3],
        2 => [bf16; 3],
        3 => [f32, f16, f32],
        4 => [f32, f16, bf16],
        5 => [f32, DType::Q8, f32],
        6 => [f16, DType::Q4, f16],
        _ => [f32, bf16, f16],
    };
    types.map(|dtype| Element::of(dtype, native_f16))
}

/// Packed sequences have neither mask nor bias nor pages nor a given dropout mask, classes need something that hides pairs.
fn is_valid(choice: &Choice) -> bool {
    let [_, rows, mask, bias, _, _, _, _, visible, classes, _, _, paged, dropout] = *choice;
    !(rows == 3 && (mask > 0 || bias > 0 || paged > 0 || dropout == 2))
        && !(classes == 1 && mask == 0 && bias == 0 && visible == 0)
}

fn text(name: &str, wgsl: &str, buffer: &str) -> Text {
    Text {
        name: name.into(),
        wgsl: wgsl.into(),
        buffers: vec![(buffer.into(), "f32")],
        unchecked: false,
    }
}

fn features(choice: &Choice, native_f16: bool) -> Features {
    let [
        elements_of,
        rows,
        mask,
        bias,
        softcap,
        alibi,
        sinks,
        score,
        visible,
        classes,
        lse,
        kept,
        paged,
        dropout,
    ] = *choice;
    let [q, kv, out] = elements(elements_of, native_f16);
    let score = (score == 1).then(|| {
        text(
            "relative position",
            "fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {\n    \
             return s + table[(kv_pos - q_pos + u32(diagonal(batch))) % arrayLength(&table)];\n}\n",
            "table",
        )
    });
    let visible = (visible == 1).then(|| {
        text(
            "dilated window",
            "fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {\n    \
             return (q_pos - kv_pos) % 2u == 0u || table[head] > 0.0;\n}\n",
            "table",
        )
    });
    // The 8 buffers of the fused kernel: q, k, v, out, and these four; lse, tables, mask and bias come first.
    let tables = alibi + sinks + classes + paged + dropout > 0 || rows > 1;
    let used = lse + usize::from(tables) + usize::from(mask > 0) + usize::from(bias > 0);
    let (score, visible) = if used == 4 { (None, None) } else { (score, visible) };
    let classes = classes == 1 && (mask > 0 || bias > 0 || visible.is_some());
    Features {
        q,
        kv,
        out,
        rows: [Rows::Full, Rows::Band, Rows::Sequences, Rows::Packed][rows],
        page_len: [None, Some(16)][paged],
        softcap: softcap == 1,
        alibi: alibi == 1,
        sinks: sinks == 1,
        mask: [None, Some(MaskFormat::Bytes), Some(MaskFormat::Bits)][mask],
        bias: [None, Some(DType::F32), Some(DType::F16), Some(DType::BF16)][bias],
        buffers: score.iter().chain(&visible).flat_map(|t| t.buffers.clone()).take(1).collect(),
        score,
        derivative: None,
        visible,
        classes,
        lse: lse == 1,
        sums: false,
        scores: [None, Some(ScoreStage::Raw), Some(ScoreStage::Capped), Some(ScoreStage::Biased)]
            [kept],
        dropout: [None, Some(DropoutMask::Seeded), Some(DropoutMask::Given)][dropout],
    }
}

impl Features {
    /// Sets of features in which every two values of two features that go together do.
    pub(super) fn covering(native_f16: bool) -> Vec<Self> {
        choices().iter().map(|choice| features(choice, native_f16)).collect()
    }
}

/// Whether the pair of values stands in the choice.
fn has(choice: &Choice, &(a, x, b, y): &(usize, usize, usize, usize)) -> bool {
    choice[a] == x && choice[b] == y
}

fn choices() -> Vec<Choice> {
    let n = VALUES.len();
    let mut open: Vec<_> = (0..n)
        .flat_map(|a| (a + 1..n).map(move |b| (a, b)))
        .flat_map(|(a, b)| {
            (0..VALUES[a]).flat_map(move |x| (0..VALUES[b]).map(move |y| (a, x, b, y)))
        })
        .collect();
    let mut choices = Vec::new();
    while let Some(&(a, x, b, y)) = open.first() {
        let mut choice = [0; VALUES.len()];
        (choice[a], choice[b]) = (x, y);
        // Classes of nothing: let a mask be what hides.
        if choice[9] == 1 && !is_valid(&choice) {
            let hides = if choice[1] == 3 { 8 } else { 2 };
            choice[hides] = if (a, b).0 == hides || b == hides { choice[hides] } else { 1 };
            if !is_valid(&choice) {
                choice[8] = if a == 8 || b == 8 { choice[8] } else { 1 };
            }
        }
        if !is_valid(&choice) {
            open.remove(0);
            continue;
        }
        for axis in (0..n).filter(|axis| *axis != a && *axis != b) {
            let gain = |value: usize| {
                let mut tried = choice;
                tried[axis] = value;
                let gained = open.iter().filter(|pair| has(&tried, pair)).count();
                if is_valid(&tried) { gained + 1 } else { 0 }
            };
            choice[axis] = (0..VALUES[axis]).rev().max_by_key(|value| gain(*value)).unwrap_or(0);
        }
        open.retain(|pair| !has(&choice, pair));
        choices.push(choice);
    }
    choices
}
