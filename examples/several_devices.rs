//! One long context over several devices: each attends to the keys that it has, and the results are merged.
//!
//! `cargo run --release --example several_devices`: takes every adapter that it finds. Of one adapter it makes two
//! devices, a software one too; without any it takes the CPU path twice.
#![allow(clippy::print_stdout, reason = "an example talks")]

#[path = "support/noise.rs"]
mod noise;

use noise::noise;
use std::error::Error;
use std::io::Write as _;
use std::ops::Range;
use std::time::Instant;
use wgpu_attention::{
    Diagonal, Inputs, Layout, Mask, Merge, Outputs, Problem, Runner, RunnerOptions, Shape,
    reference, wgpu,
};

/// 64 queries at the end of a context of 16 Ki keys, which a causal mask shows them as far as they are.
const SHAPE: Shape = Shape::cross_attention(1, 8, 64, 16 << 10, 64);
/// Elements of one position of all heads: tensors are `[len, heads, head_dim]`, so that a range of keys is a slice.
const ROW: usize = (SHAPE.heads * SHAPE.head_dim) as usize;
/// Keys that devices are compared on before the context is divided.
const TRIAL: u32 = SHAPE.kv_len / 8;
/// What merged and whole may differ by: more than rounding explains, less than what one lost key does to some row.
const BOUND: f64 = 5e-5;
/// Rows that are compared with the definition in f64.
const SAMPLES: u32 = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let devices = devices();
    let [q, k, v] = [(1, 6.0, SHAPE.q_len), (2, 1.0, SHAPE.kv_len), (3, 1.0, SHAPE.kv_len)]
        .map(|(seed, scale, len)| noise(seed, scale, len as usize * ROW));
    let context = Context { q, k, v };
    println!(
        "{} queries of {} heads over {} keys, {} wide, causal: {} MiB of keys and values",
        SHAPE.q_len,
        SHAPE.heads,
        SHAPE.kv_len,
        SHAPE.head_dim,
        (2 * 4 * context.k.len()) >> 20
    );

    println!(
        "\nHow fast is each? Over {TRIAL} keys, once to compile, the best of three for the clock."
    );
    let mut speeds = Vec::new();
    for device in &devices {
        context.part(&device.runner, 0..TRIAL)?;
        let mut seconds = f64::INFINITY;
        for _ in 0..3 {
            seconds = timed(|| context.part(&device.runner, 0..TRIAL))?.1.min(seconds);
        }
        println!("  {}  {:>8.1} ms  {}", device.letter, 1e3 * seconds, device.name);
        speeds.push(f64::from(TRIAL) / seconds);
    }
    let ranges = divided(SHAPE.kv_len, &speeds);

    begin("\nEach over its own keys, all at the same time ...")?;
    let together = || {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (devices.iter().zip(&ranges))
                .map(|(device, range)| {
                    scope.spawn(|| timed(|| context.part(&device.runner, range.clone())))
                })
                .collect();
            let results = threads.into_iter().map(|thread| thread.join().expect("no panic"));
            results.collect::<Result<Vec<_>, _>>()
        })
    };
    // Who has the last keys takes another kernel, with the mask in it.
    together()?;
    let (parts, seconds) = timed(together)?;
    println!(" {:.1} ms", 1e3 * seconds);

    let first = &devices[0].runner;
    let whole = problem(0..SHAPE.kv_len);
    let merge = Merge::of(u32::try_from(parts.len())?, &whole);
    let out_parts: Vec<f32> = parts.iter().flat_map(|(part, _)| part.out.clone()).collect();
    let lse_parts: Vec<f32> = parts.iter().flat_map(|(part, _)| lse(part).to_vec()).collect();
    // Once to compile.
    first.merge(&merge, &out_parts, &lse_parts)?;
    let (merged, seconds) = timed(|| first.merge(&merge, &out_parts, &lse_parts))?;
    for ((device, range), (part, seconds)) in devices.iter().zip(&ranges).zip(&parts) {
        let share = share(lse(part), lse(&merged));
        println!(
            "  {}  {:>8.1} ms  keys {:>5}..{:<5} {:>4.1} % {}",
            device.letter,
            1e3 * seconds,
            range.start,
            range.end,
            100.0 * share,
            bar(share)
        );
    }
    println!("  the bars: how much of the queries' attention fell on these keys");
    println!(
        "Merged on {}: {} KiB of results and log-sum-exps, {:.1} ms",
        devices[0].letter,
        (4 * (out_parts.len() + lse_parts.len())) >> 10,
        1e3 * seconds
    );

    begin(&format!("\nAll keys on {} alone ...", devices[0].letter))?;
    context.part(first, 0..SHAPE.kv_len)?;
    let (alone, seconds) = timed(|| context.part(first, 0..SHAPE.kv_len))?;
    println!(" {:.1} ms", 1e3 * seconds);
    let apart = greatest(merged.out.iter().zip(&alone.out).map(|(a, b)| (*a, f64::from(*b))))
        .max(greatest(lse(&merged).iter().zip(lse(&alone)).map(|(a, b)| (*a, f64::from(*b)))));
    let error = context.greatest_error(&whole, &merged);
    println!("  merged and whole differ by at most     {apart:.1e}");
    println!("  merged and the definition in f64 by    {error:.1e}, in {SAMPLES} rows");
    println!("  allowed                                {BOUND:.1e}");
    if apart.max(error) <= BOUND { Ok(()) } else { Err("the merged result is wrong".into()) }
}

/// A device, and what it is called in the tables.
struct Device {
    letter: char,
    name: String,
    runner: Runner,
}

/// Every adapter's; two where there is one adapter alone, or none.
fn devices() -> Vec<Device> {
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    let instance = wgpu::Instance::new(descriptor);
    let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    // One GPU may be there by OpenGL too.
    let is_gl = |adapter: &wgpu::Adapter| adapter.get_info().backend == wgpu::Backend::Gl;
    if !adapters.iter().all(is_gl) {
        adapters.retain(|adapter| !is_gl(adapter));
    }
    if let [only] = adapters.as_slice() {
        println!("One adapter, {}: two logical devices on it.", only.get_info().name);
        adapters.push(only.clone());
    }
    let mut found: Vec<(String, Runner)> = Vec::new();
    for adapter in adapters {
        let wgpu::AdapterInfo { name, backend, .. } = adapter.get_info();
        match pollster::block_on(Runner::on_adapter(adapter, RunnerOptions::default())) {
            Ok(runner) => found.push((format!("{name} ({backend})"), runner)),
            Err(error) => println!("{name} ({backend}) is left out: {error}"),
        }
    }
    if found.is_empty() {
        println!(
            "No GPU: install its driver, or a software one (apt install mesa-vulkan-drivers). Until then, the CPU path."
        );
        found.extend(["CPU path", "CPU path again"].map(|name| (name.to_owned(), Runner::cpu())));
    }
    let named = |(letter, (name, runner))| Device { letter, name, runner };
    ('A'..).zip(found).map(named).collect()
}

/// Keys of each device, as many as its speed is worth.
fn divided(kv_len: u32, speeds: &[f64]) -> Vec<Range<u32>> {
    let all: f64 = speeds.iter().sum();
    let mut ends = vec![0.0];
    for speed in speeds {
        ends.push(ends[ends.len() - 1] + speed / all);
    }
    #[expect(clippy::cast_possible_truncation, reason = "at most kv_len")]
    let key = |share: f64| (f64::from(kv_len) * share.min(1.0)).round() as u32;
    ends.windows(2).map(|ends| key(ends[0])..key(ends[1])).collect()
}

/// What is asked of who has these keys.
fn problem(keys: Range<u32>) -> Problem {
    let Shape { batch, heads, q_len, head_dim, .. } = SHAPE;
    let shape = Shape::cross_attention(batch, heads, q_len, keys.end - keys.start, head_dim);
    // Query 0 stands at this key of all; a device counts from its first.
    let position = i32::try_from(SHAPE.kv_len - SHAPE.q_len).expect("small");
    let offset = position - i32::try_from(keys.start).expect("small");
    let mask = Mask::CAUSAL.along(Diagonal::Offset(offset));
    Problem::new(shape).mask(mask).layout(Layout::Bshd).with_lse()
}

/// `[len, heads, head_dim]` each.
struct Context {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Context {
    /// Attention over a range of keys: the runner is given these and no others.
    fn part(&self, runner: &Runner, keys: Range<u32>) -> Result<Outputs, wgpu_attention::Error> {
        let own = keys.start as usize * ROW..keys.end as usize * ROW;
        let inputs = Inputs::new(&self.q, &self.k[own.clone()], &self.v[own]);
        runner.forward(&problem(keys), &inputs)
    }

    /// Against the definition, out and lse of some rows.
    fn greatest_error(&self, whole: &Problem, got: &Outputs) -> f64 {
        let inputs = Inputs::new(&self.q, &self.k, &self.v);
        let rows = (0..SAMPLES).map(|i| {
            let (head, row) = (i % SHAPE.heads, i * (SHAPE.q_len - 1) / (SAMPLES - 1));
            let want = reference::row(whole, &inputs, (0, head, row));
            let first = row as usize * ROW + (head * SHAPE.head_dim) as usize;
            let out = got.out[first..].iter().copied().zip(want.out);
            let at = (head * SHAPE.q_len + row) as usize;
            greatest(out.chain([(lse(got)[at], want.lse)]))
        });
        rows.fold(0.0, f64::max)
    }
}

fn lse(outputs: &Outputs) -> &[f32] {
    outputs.lse.as_deref().expect("asked for")
}

/// The mean of `exp(part - all)`: the share of its attention that a row gives to a part.
fn share(part: &[f32], all: &[f32]) -> f32 {
    part.iter().zip(all).map(|(part, all)| (part - all).exp()).sum::<f32>() / all.len() as f32
}

fn bar(share: f32) -> String {
    (0..40_u8).take_while(|i| f32::from(*i) + 0.5 < 40.0 * share).map(|_| '█').collect()
}

/// The greatest difference; infinite where one is not a number.
fn greatest(pairs: impl Iterator<Item = (f32, f64)>) -> f64 {
    let apart = pairs.map(|(a, b)| (f64::from(a) - b).abs());
    apart.fold(0.0, |most, apart| if apart.is_nan() { f64::INFINITY } else { apart.max(most) })
}

/// A result and how many seconds it took.
fn timed<T, E>(run: impl FnOnce() -> Result<T, E>) -> Result<(T, f64), E> {
    let start = Instant::now();
    let result = run()?;
    Ok((result, start.elapsed().as_secs_f64()))
}

/// What is to come, seen while it goes on.
fn begin(what: &str) -> std::io::Result<()> {
    print!("{what}");
    std::io::stdout().flush()
}
