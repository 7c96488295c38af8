//! Scores and masks of one's own, in WGSL: four that models have, each run, checked and timed.
//!
//! `cargo run --release --example own_functions`: takes a GPU, else a software GPU, else the CPU path.
#![allow(clippy::print_stdout, reason = "an example talks")]

#[path = "support/noise.rs"]
mod noise;

use noise::noise;
use std::error::Error;
use std::time::Instant;
use wgpu_attention::{
    BufferElement, Inputs, MaskFunction, Problem, Runner, RunnerOptions, ScoreFunction, Shape,
    reference,
};

const SHAPE: Shape = Shape::self_attention(1, 4, 1024, 64);
/// Far above what rounding explains.
const TOLERANCE: f64 = 1e-4;
/// Rows and keys of the tiles that are counted: about what kernels skip at once.
const TILE: usize = 32;

/// Tokens farther apart than this share one bias.
const REACH: i32 = 128;

/// Adds what a table says of the distance, as T5 and its kin do; far keys all look the same.
const RELATIVE_POSITION: &str = "
fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    let distance = clamp(i32(kv_pos) - i32(q_pos) - diagonal(batch), -128, 128);
    return s + distance_bias[head * 257u + u32(distance + 128)];
}
";

fn relative_position() -> Example {
    let row = (2 * REACH + 1) as usize;
    let table = noise(4, 2.0, SHAPE.heads as usize * row);
    let words = table.iter().map(|x| x.to_bits()).collect();
    let function = ScoreFunction::new("relative position", RELATIVE_POSITION, move |s, pair| {
        let distance = i64::from(pair.kv_pos) - i64::from(pair.q_pos) - pair.diagonal;
        let reach = i64::from(REACH);
        let at = usize::try_from(distance.clamp(-reach, reach) + reach).expect("not negative");
        s + f64::from(table[pair.head as usize * row + at])
    })
    .with_buffer("distance_bias", BufferElement::F32);
    Example {
        name: "relative position",
        problem: Problem::new(SHAPE).with_score_function(function),
        buffers: vec![("distance_bias", words)],
    }
}

/// Several documents in one sequence: a token sees its own, up to itself.
const DOCUMENTS: &str = "
fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {
    return kv_pos <= q_pos && document[kv_pos] == document[q_pos];
}
";

fn documents() -> Example {
    let lens = [300, 17, 206, 1, 350, 150];
    let ids: Vec<u32> = (0..).zip(lens).flat_map(|(id, len)| vec![id; len]).collect();
    let words = ids.clone();
    let function = MaskFunction::new("documents", DOCUMENTS, move |pair| {
        let [q, kv] = [pair.q_pos, pair.kv_pos].map(|pos| ids[pos as usize]);
        pair.kv_pos <= pair.q_pos && kv == q
    })
    .with_buffer("document", BufferElement::U32);
    Example {
        name: "documents",
        problem: Problem::new(SHAPE).with_mask_function(function),
        buffers: vec![("document", words)],
    }
}

/// Every fourth of the last 256 tokens, as Longformer's dilated window has it.
const DILATED: &str = "
fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {
    let back = q_pos - kv_pos;   // of a later key it wraps, far past the window
    return back < 256u && back % 4u == 0u;
}
";

fn dilated() -> Example {
    let function = MaskFunction::new("dilated window", DILATED, |pair| {
        let back = pair.q_pos.wrapping_sub(pair.kv_pos);
        back < 256 && back.is_multiple_of(4)
    });
    let problem = Problem::new(SHAPE).with_mask_function(function);
    Example { name: "dilated window", problem, buffers: Vec::new() }
}

/// The patches of an image, 32 a row, in windows of 8 x 8.
const WIDTH: u32 = 32;
const WINDOW: u32 = 8;

/// A patch sees its window, as in Swin transformers ...
const SAME_WINDOW: &str = "
fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {
    let q = vec2<u32>(q_pos % 32u, q_pos / 32u);
    let kv = vec2<u32>(kv_pos % 32u, kv_pos / 32u);
    return all(q / 8u == kv / 8u);
}
";

/// ... in which a table tells where each is from the other.
const PLACE_IN_WINDOW: &str = "
fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32 {
    let x = kv_pos % 32u % 8u + 7u - q_pos % 32u % 8u;
    let y = kv_pos / 32u % 8u + 7u - q_pos / 32u % 8u;
    return s + place_bias[(head * 15u + y) * 15u + x];
}
";

fn image_windows() -> Example {
    let side = 2 * WINDOW - 1;
    let table = noise(5, 2.0, (SHAPE.heads * side * side) as usize);
    let words = table.iter().map(|x| x.to_bits()).collect();
    let mask = MaskFunction::new("same window", SAME_WINDOW, |pair| {
        let window = |pos: u32| (pos % WIDTH / WINDOW, pos / WIDTH / WINDOW);
        window(pair.q_pos) == window(pair.kv_pos)
    });
    let score = ScoreFunction::new("place in window", PLACE_IN_WINDOW, move |s, pair| {
        let place = |pos: u32| [pos % WIDTH % WINDOW, pos / WIDTH % WINDOW];
        let ([q_x, q_y], [kv_x, kv_y]) = (place(pair.q_pos), place(pair.kv_pos));
        let (x, y) = (kv_x + WINDOW - 1 - q_x, kv_y + WINDOW - 1 - q_y);
        s + f64::from(table[((pair.head * side + y) * side + x) as usize])
    })
    .with_buffer("place_bias", BufferElement::F32);
    Example {
        name: "image windows",
        problem: Problem::new(SHAPE).with_mask_function(mask).with_score_function(score),
        buffers: vec![("place_bias", words)],
    }
}

/// A problem with functions, and what these read.
struct Example {
    name: &'static str,
    problem: Problem,
    buffers: Vec<(&'static str, Vec<u32>)>,
}

fn main() -> Result<(), Box<dyn Error>> {
    env_logger::init();
    let runner = runner();
    let Shape { heads, q_len, head_dim, .. } = SHAPE;
    println!("{heads} heads, {q_len} tokens, {head_dim} a head, f32; time with transfers\n");
    println!(
        "{:<20}{:>14}{:>12}{:>18}{:>18}",
        "", "greatest error", "time", "tiles not skipped", "pairs visible"
    );
    let elements = (heads * q_len * head_dim) as usize;
    // Softmax of small scores is almost flat and hides mistakes.
    let [q, k, v] =
        [(1, 8.0), (2, 1.0), (3, 1.0)].map(|(seed, scale)| noise(seed, scale, elements));
    let mut wrong = Vec::new();
    for example in [relative_position(), documents(), dilated(), image_windows()] {
        let buffers = example.buffers.iter();
        let inputs = buffers
            .fold(Inputs::new(&q, &k, &v), |inputs, (name, words)| inputs.buffer(name, words));
        // The first call compiles.
        let out = runner.forward(&example.problem, &inputs)?.out;
        let start = Instant::now();
        runner.forward(&example.problem, &inputs)?;
        let seconds = start.elapsed().as_secs_f64();
        let error = greatest_error(&example.problem, &inputs, &out);
        let shares = match example.problem.mask_function {
            None => ["-".to_owned(), "-".to_owned()],
            Some(_) => shares(&example.problem, &inputs).map(|x| format!("{:.1} %", 100.0 * x)),
        };
        println!(
            "{:<20}{error:>14.1e}{:>9.1} ms{:>18}{:>18}",
            example.name,
            seconds * 1e3,
            shares[0],
            shares[1]
        );
        // Also where the error is not a number.
        if error.is_nan() || error > TOLERANCE {
            wrong.push(example.name);
        }
    }
    println!("\nErrors are those of sampled rows against f64; tiles are {TILE} x {TILE} pairs.");
    if wrong.is_empty() { Ok(()) } else { Err(format!("wrong: {}", wrong.join(", ")).into()) }
}

/// A GPU, else a software GPU, else the CPU path; says which.
fn runner() -> Runner {
    let mut options = RunnerOptions::default();
    options.software = true;
    let runner = Runner::with_options(options).unwrap_or_else(|error| {
        println!("{error}");
        Runner::cpu()
    });
    match runner.adapter_info() {
        Some(info) => println!("{} ({})", info.name, info.backend),
        None => println!("no GPU, not even a software one: the closures run on the CPU path"),
    }
    runner
}

/// Of every 41st row of every head; not a number where some result is none.
fn greatest_error(problem: &Problem, inputs: &Inputs<'_>, out: &[f32]) -> f64 {
    let rows = (0..SHAPE.heads).flat_map(|h| (0..SHAPE.q_len).step_by(41).map(move |i| (0, h, i)));
    let off = rows.flat_map(|(batch, head, row)| {
        let first = ((head * SHAPE.q_len + row) * SHAPE.v_head_dim) as usize;
        let want = reference::row(problem, inputs, (batch, head, row)).out;
        out[first..].iter().zip(want).map(|(x, y)| (f64::from(*x) - y).abs()).collect::<Vec<_>>()
    });
    off.fold(0.0, |most, x| if x > most || x.is_nan() { x } else { most })
}

/// Which part of all tiles holds a visible pair, and which part of all pairs is visible.
fn shares(problem: &Problem, inputs: &Inputs<'_>) -> [f64; 2] {
    let rows: Vec<_> =
        (0..SHAPE.q_len).map(|row| reference::visible(problem, inputs, (0, 0, row))).collect();
    let columns = SHAPE.kv_len as usize / TILE;
    let tiles = rows.chunks(TILE).flat_map(|rows| {
        (0..columns)
            .map(move |tile| rows.iter().any(|row| row[tile * TILE..][..TILE].contains(&true)))
    });
    let share =
        |shown: &[bool]| shown.iter().filter(|shown| **shown).count() as f64 / shown.len() as f64;
    [share(&tiles.collect::<Vec<_>>()), share(&rows.concat())]
}
