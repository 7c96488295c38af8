//! Tokens one by one, as an inference engine makes them: 8 sequences of different lengths, a paged cache, nothing read
//! back in between.
//!
//! `cargo run --release --example decode_loop -- [--q8] [--tokens N]`. The model is one attention layer without weights:
//! a small kernel makes q, k and v out of sequence and position, so that at the end the host can make them too and
//! compare with attention over each whole sequence, in f64. `step.rs` is the part to copy.
#![allow(clippy::print_stdout, reason = "an example talks")]

use ahead::Ahead;
use cache::Cache;
use kept::Kept;
use model::{Model, SEQUENCES};
use progress::Progress;
use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;
use step::Step;
use wgpu_attention::{Attention, DType, device_descriptor, wgpu};

#[path = "support/ahead.rs"]
mod ahead;
#[path = "decode_loop/cache.rs"]
mod cache;
#[path = "decode_loop/check.rs"]
mod check;
#[path = "decode_loop/copy.rs"]
mod copy;
#[path = "decode_loop/kept.rs"]
mod kept;
#[path = "decode_loop/model.rs"]
mod model;
#[path = "decode_loop/pages.rs"]
mod pages;
#[allow(dead_code, reason = "notes are the other example's")]
#[path = "support/progress.rs"]
mod progress;
#[path = "decode_loop/step.rs"]
mod step;

const HELP: &str = "\
decode_loop [--q8] [--tokens N]
Prefills 8 sequences into a paged cache, decodes tokens one by one, and checks them in f64.

  --q8         keys and values in 8 bits, not f16
  --tokens N   new tokens of each sequence (default: 64 on a software GPU, else 256)";

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    let Some(adapter) = adapter() else {
        eprintln!(
            "no GPU: install its driver, or a software one (apt install mesa-vulkan-drivers)"
        );
        return ExitCode::from(2);
    };
    match run(&adapter, &options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    kv_dtype: DType,
    tokens: Option<u32>,
}

impl Options {
    /// `None` where help is asked for.
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Self { kv_dtype: DType::F16, tokens: None };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--help" | "-h" => return Ok(None),
                "--q8" => options.kv_dtype = DType::Q8,
                "--tokens" => {
                    let value = arguments.next().unwrap_or_default();
                    let tokens = value.parse().ok().filter(|n| (1..=100_000).contains(n));
                    let expected = || format!("--tokens: {value:?} is no number from 1 to 100000");
                    options.tokens = Some(tokens.ok_or_else(expected)?);
                }
                _ => return Err(format!("unknown option {argument}: see --help")),
            }
        }
        Ok(Some(options))
    }
}

/// A hardware adapter, else a software one.
fn adapter() -> Option<wgpu::Adapter> {
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    let instance = wgpu::Instance::new(descriptor);
    let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    adapters.sort_by_key(|adapter| adapter.get_info().device_type == wgpu::DeviceType::Cpu);
    adapters.into_iter().next()
}

fn run(adapter: &wgpu::Adapter, options: &Options) -> Result<(), Box<dyn Error>> {
    let info = adapter.get_info();
    let model = Model::for_device(info.device_type, options.kv_dtype, options.tokens);
    let size = match info.device_type {
        wgpu::DeviceType::Cpu => ": a software GPU, so a small model",
        _ => "",
    };
    println!("{} ({}){size}", info.name, info.backend);
    println!("{model}");

    // Once: a device, a cache, two steps, one of many rows a sequence and one of one.
    let descriptor = device_descriptor(adapter);
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
    let attention = Attention::with_adapter(adapter, &device);
    let start = Instant::now();
    let mut cache = Cache::new(&device, &queue, &model);
    let prefill = Step::new(&device, &attention, &model, &cache, model.prefill_rows)?;
    let decode = Step::new(&device, &attention, &model, &cache, 1)?;
    println!("\nPlanned, compiled and bound in {:.0} ms", 1e3 * start.elapsed().as_secs_f64());
    println!("  prefill, {} tokens of each at a time: {prefill}", model.prefill_rows);
    println!("  decode, one of each: {decode}");

    // What is looked at afterwards is copied aside on the device.
    let samples = check::samples(&model);
    let steps = model.prefill_steps() + model.tokens;
    let kept = Kept::new(&device, &model, &samples, steps);
    let mut queue = Ahead::new(&device, &queue);

    let start = Instant::now();
    let mut progress = Progress::new("Prefill", model.prefill_steps());
    for step in 0..model.prefill_steps() {
        let rows = cache.rest_of_prompts(&model);
        advance(&mut queue, &prefill, &mut cache, &rows, &kept)?;
        // This one runs, those before are done.
        progress.show(step);
    }
    queue.wait()?;
    drop(progress);
    let seconds = start.elapsed().as_secs_f64();
    let tokens: u32 = model.prompts.iter().sum();
    println!("\nPrefill {}", speed(tokens, seconds));
    let at_prefill = cache.pages_in_use();

    let start = Instant::now();
    let mut progress = Progress::new("Decode", model.tokens);
    let (mut decoded, mut read_bytes) = (0, 0);
    for step in 0..model.tokens {
        // Every sequence goes on: an engine would ask here who has ended and who comes in.
        let rows = [1; SEQUENCES];
        advance(&mut queue, &decode, &mut cache, &rows, &kept)?;
        decoded += rows.iter().sum::<u32>();
        read_bytes += cache.lens.iter().map(|len| model.cache_bytes(*len)).sum::<u64>();
        progress.show(step);
    }
    queue.wait()?;
    drop(progress);
    let seconds = start.elapsed().as_secs_f64();
    println!("Decode  {}", speed(decoded, seconds));
    let rate = read_bytes as f64 / seconds;
    let copy = copy::bytes_per_second(&device, queue.queue)?;
    println!(
        "  {:.1} MiB of keys and values a step, {:.2} GB/s; a large copy moves {:.2} GB/s",
        read_bytes as f64 / f64::from(model.tokens) / f64::from(1 << 20),
        rate * 1e-9,
        copy * 1e-9
    );
    println!(
        "  pages in use: {at_prefill} after prefill, {} at the end, of {}",
        cache.pages_in_use(),
        cache.pages.pages
    );

    // All that comes back, once.
    let (rows, status) = kept.read(&device, queue.queue)?;
    if let Some(at) = status.iter().position(|status| *status != 0) {
        let (step, sequence) = (at / model.prompts.len(), at % model.prompts.len());
        return Err(format!("step {step} had no room for sequence {sequence}").into());
    }
    let verdict = check::compare(&model, &samples, &rows);
    println!("\nChecked {verdict}");
    if verdict.is_right() { Ok(()) } else { Err("the result is wrong".into()) }
}

fn speed(tokens: u32, seconds: f64) -> String {
    let per_second = f64::from(tokens) / seconds;
    format!("{tokens:>6} tokens in {:>8.1} ms: {per_second:>8.0} tokens/s", 1e3 * seconds)
}

/// The next `rows` of every sequence, as one submission.
fn advance(
    queue: &mut Ahead<'_>,
    step: &Step,
    cache: &mut Cache,
    rows: &[u32; SEQUENCES],
    kept: &Kept<'_>,
) -> Result<(), Box<dyn Error>> {
    // The host knows the lengths by its own count, and hands out pages before they are written to.
    cache.grow(queue.queue, rows)?;
    let mut encoder = queue.device.create_command_encoder(&Default::default());
    step.encode(&mut encoder);
    kept.encode(&mut encoder, step, cache, rows, queue.steps);
    queue.submit(encoder)
}
