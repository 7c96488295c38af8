//! Functions as a caller would write them, each twice: in WGSL and as a closure.

use wgpu_attention::{BufferElement, MaskFunction, Pair, ScoreFunction};

/// Contents of the buffers that the functions read, by name.
pub(crate) fn buffer(name: &str) -> Vec<u32> {
    match name {
        "relative_bias" => relative_bias().iter().map(|x| x.to_bits()).collect(),
        "document" => documents(),
        _ => panic!("no function reads {name}"),
    }
}

fn relative_bias() -> [f32; 16] {
    std::array::from_fn(|i| [0.5, -0.25, 0.125, -1.0][i % 4] * [1.0, 2.0, -1.5, 0.75][i / 4])
}

/// Which document the token at a position belongs to.
fn documents() -> Vec<u32> {
    (0..512).map(|pos| pos / 37).collect()
}

/// A bias by distance, out of a table.
pub(crate) fn relative_position() -> ScoreFunction {
    let wgsl = "\
fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    let distance = i32(q_pos) + diagonal(batch) - i32(kv_pos);
    return s + relative_bias[u32(abs(distance) + i32(head)) % 16u];
}
";
    let table = relative_bias();
    let twin = move |s: f64, pair: Pair| {
        // In 32 bits that wrap, as WGSL's: a diagonal may be anywhere.
        let narrow = |n: i64| i32::try_from(n).expect("32 bits");
        let distance = narrow(pair.q_pos.into()).wrapping_add(narrow(pair.diagonal));
        let distance = distance.wrapping_sub(narrow(pair.kv_pos.into())).wrapping_abs();
        let at = distance.wrapping_add(narrow(pair.head.into())).cast_unsigned() % 16;
        s + f64::from(table[usize::try_from(at).expect("below 16")])
    };
    ScoreFunction::new("relative position", wgsl, twin)
        .with_buffer("relative_bias", BufferElement::F32)
        .with_derivative(&d_score("1.0"), |_, _| 1.0)
}

/// A factor by position and head, without a buffer.
pub(crate) fn fading() -> ScoreFunction {
    let wgsl = "\
fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    return s * (1.0 - 0.125 * f32((q_pos + 2u * kv_pos + head + batch) % 5u));
}
";
    let factor = |pair: Pair| {
        let step = (pair.q_pos + 2 * pair.kv_pos + pair.head + pair.batch) % 5;
        1.0 - 0.125 * f64::from(step)
    };
    let derivative = d_score("1.0 - 0.125 * f32((q_pos + 2u * kv_pos + head + batch) % 5u)");
    ScoreFunction::new("fading", wgsl, move |s, pair| s * factor(pair))
        .with_derivative(&derivative, move |_, pair| factor(pair))
}

/// A curve: its derivative is of the score itself, and below 0 in places.
pub(crate) fn bent() -> ScoreFunction {
    let wgsl = "\
fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    return s + 2.0 / (1.0 + s * s);
}
";
    let derivative = d_score("1.0 - 4.0 * s / ((1.0 + s * s) * (1.0 + s * s))");
    ScoreFunction::new("bent", wgsl, |s, _| s + 2.0 / (1.0 + s * s))
        .with_derivative(&derivative, |s, _| 1.0 - 4.0 * s / (1.0 + s * s).powi(2))
}

/// The text of a derivative.
fn d_score(value: &str) -> String {
    format!(
        "fn d_score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {{\n    return {value};\n}}\n"
    )
}

/// Only tokens of the same document.
pub(crate) fn same_document() -> MaskFunction {
    let wgsl = "\
fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {
    return document[q_pos] == document[kv_pos];
}
";
    let documents = documents();
    MaskFunction::new("same document", wgsl, move |pair| {
        documents[pair.q_pos as usize] == documents[pair.kv_pos as usize]
    })
    .with_buffer("document", BufferElement::U32)
}

/// Every other token, by head.
pub(crate) fn dilated() -> MaskFunction {
    let wgsl = "\
fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {
    return (q_pos + kv_pos + head) % 3u != 1u;
}
";
    MaskFunction::new("dilated", wgsl, |pair| (pair.q_pos + pair.kv_pos + pair.head) % 3 != 1)
}
