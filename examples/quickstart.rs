//! One layer of a trained model on every adapter and on the CPU: what it attends to, how exact, how fast.
//!
//! `cargo run --release --example quickstart [PNG]`: writes a picture of all heads, to `target/heatmap.png` by
//! default. Needs no GPU.
#![allow(clippy::print_stdout, reason = "an example talks")]

use sentence::Sentence;
use std::error::Error;
use std::path::PathBuf;
use wgpu_attention::{Algorithm, Runner, RunnerOptions, wgpu};

#[allow(dead_code, reason = "charts are the other example's")]
#[path = "support/canvas.rs"]
mod canvas;
#[path = "support/colours.rs"]
mod colours;
#[path = "support/heatmap.rs"]
mod heatmap;
#[path = "support/lettering.rs"]
mod lettering;
#[path = "support/noise.rs"]
mod noise;
#[path = "support/sentence.rs"]
mod sentence;
#[path = "support/speed.rs"]
mod speed;
#[path = "support/terminal.rs"]
mod terminal;

/// A head that looks at one noun, and a word that looks there.
const HEAD: usize = 11;
const WORD: &str = "it";
/// Far above what rounding explains.
const TOLERANCE: f64 = 1e-4;

fn main() -> Result<(), Box<dyn Error>> {
    env_logger::init();
    let picture = std::env::args_os().nth(1).map_or("target/heatmap.png".into(), PathBuf::from);
    let sentence = Sentence::load()?;
    let colours = terminal::colours();
    let heading = |text: &str| println!("\n{}", terminal::heading(text, colours));

    println!("{}", terminal::heading("Devices", colours));
    let places = places();

    let mut weights = None;
    let mut reports = Vec::new();
    for place in &places {
        match Report::of(place, &sentence) {
            Ok(report) => {
                // Of the first device that gave an answer.
                weights = weights.or_else(|| report.weights.clone());
                reports.push(report);
            }
            Err(error) => println!("  {} failed: {error}", place.name),
        }
    }
    let weights = weights.ok_or("nothing gave attention weights")?;

    heading("Tokens");
    println!("  {}", sentence.tokens.join(" "));

    let row = sentence.tokens.iter().position(|token| token == WORD).ok_or("no such word")?;
    let len = sentence.tokens.len();
    let seen = &sentence.head(&weights, HEAD)[row * len..][..len];
    heading(&format!("What \"{WORD}\" attends to in head {HEAD}"));
    print!("{}", terminal::bars(&sentence.tokens, seen, colours));
    let column = greatest(seen);
    let rows = sentence.head(&weights, HEAD).chunks(len);
    let same = rows.filter(|row| greatest(row) == column).count();
    let noun = &sentence.tokens[column];
    println!("  In this head, {same} of {len} tokens attend most to \"{noun}\".");

    heading("This layer: greatest error against the answer in f64");
    println!("  {:<34}{:<8}{:>10}{:>10}", "", "", "output", "weights");
    for report in &reports {
        for (method, name) in report.lines() {
            let weights = method.weights_error.map_or("-".into(), |error| format!("{error:.1e}"));
            println!("  {name:<34}{:<8}{:>10.1e}{weights:>10}", method.name, method.output_error);
        }
    }

    heading("Attention alone, f32, 64 a head, tensors already in place");
    println!(
        "  {:<34}{:<8}{:>15}{:>11}{:>11}{:>10}",
        "", "", "heads x len", "time", "GFLOP/s", "error"
    );
    for report in &reports {
        for (method, name) in report.lines() {
            let Some(speed) = &method.speed else { continue };
            let size = format!("{} x {}", speed.shape.heads, speed.shape.q_len);
            println!(
                "  {name:<34}{:<8}{size:>15}{:>8.2} ms{:>11.1}{:>10.1e}",
                method.name,
                speed.seconds * 1e3,
                speed.gflops,
                speed.error
            );
        }
    }

    let mark = heatmap::Mark { head: HEAD, row, column };
    heatmap::write(&picture, &sentence, &weights, mark)?;
    println!("\nAll {} heads: {}", sentence.heads, picture.display());
    let wrong = reports.iter().find(|report| report.greatest_error() > TOLERANCE);
    wrong.map_or(Ok(()), |report| Err(format!("{}: a wrong answer", report.name).into()))
}

/// Index of the greatest weight.
fn greatest(weights: &[f32]) -> usize {
    (0..weights.len()).max_by(|a, b| weights[*a].total_cmp(&weights[*b])).unwrap_or(0)
}

/// Somewhere to run.
struct Place {
    name: String,
    device: String,
    runner: Runner,
    /// A device that is here already, through OpenGL: its speed says nothing new.
    again: bool,
}

/// Every adapter that gives a device, then the CPU; each is printed.
fn places() -> Vec<Place> {
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    let instance = wgpu::Instance::new(descriptor);
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let mut places = Vec::new();
    for adapter in adapters {
        let info = adapter.get_info();
        let driver = format!("{} {}", info.driver, info.driver_info);
        println!("  {} ({}), {}", info.name, info.backend, driver.trim());
        match pollster::block_on(Runner::on_adapter(adapter, RunnerOptions::default())) {
            Ok(runner) => {
                let device = info.name.split(" (").next().unwrap_or_default().to_owned();
                let known = |place: &Place| info.name.starts_with(&place.device);
                let again = info.backend == wgpu::Backend::Gl && places.iter().any(known);
                let name = format!("{device}, {}", info.backend);
                if again {
                    println!("    the same device again: its speed is not measured twice");
                }
                places.push(Place { name, device, runner, again });
            }
            Err(error) => println!("    left out: {error}"),
        }
    }
    if places.is_empty() {
        println!(
            "  no GPU: install its driver, or a software one (apt install mesa-vulkan-drivers)"
        );
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let name = format!("CPU path, {threads} threads");
    println!("  {name}");
    places.push(Place { device: name.clone(), name, runner: Runner::cpu(), again: false });
    places
}

/// What one algorithm did in one place.
struct Method {
    name: &'static str,
    output_error: f64,
    weights_error: Option<f64>,
    speed: Option<speed::Speed>,
}

/// What all did.
struct Report {
    name: String,
    methods: Vec<Method>,
    /// `[heads, len, len]`.
    weights: Option<Vec<f32>>,
}

impl Report {
    fn of(place: &Place, sentence: &Sentence) -> Result<Self, Box<dyn Error>> {
        // The CPU path has but one algorithm.
        let algorithms: &[_] = match place.runner.adapter_info() {
            Some(_) => &[("staged", Algorithm::Staged), ("fused", Algorithm::Flash)],
            None => &[("", Algorithm::Auto)],
        };
        let kinds: Vec<_> = algorithms.iter().map(|(_, algorithm)| *algorithm).collect();
        let mut speeds = Vec::new();
        if !place.again {
            speeds = speed::measure(&place.runner, &kinds)?;
        }
        let mut speeds = speeds.into_iter();
        let mut report = Self { name: place.name.clone(), methods: Vec::new(), weights: None };
        for (name, algorithm) in algorithms {
            // The fused kernel never has the weights: that is its point.
            let fused = *algorithm == Algorithm::Flash;
            let layer = if fused { sentence.layer } else { sentence.layer.with_weights() };
            let outputs = place.runner.layer(&layer, *algorithm, &sentence.inputs())?;
            let error = |got: &[f32], expected: &[f32]| {
                speed::difference(got, expected.iter().copied().map(f64::from))
            };
            report.methods.push(Method {
                name,
                output_error: error(&outputs.out, &sentence.expected_output),
                weights_error: (outputs.weights.as_ref())
                    .map(|weights| error(weights, &sentence.expected_weights)),
                speed: speeds.next(),
            });
            report.weights = report.weights.or(outputs.weights);
        }
        Ok(report)
    }

    fn greatest_error(&self) -> f64 {
        let errors = |method: &Method| {
            let weights = method.weights_error.unwrap_or(0.0);
            let speed = method.speed.as_ref().map_or(0.0, |speed| speed.error);
            method.output_error.max(weights).max(speed)
        };
        self.methods.iter().map(errors).fold(0.0, f64::max)
    }

    /// Its methods; the first line bears the name.
    fn lines(&self) -> impl Iterator<Item = (&Method, &str)> {
        let names = std::iter::once(self.name.as_str()).chain(std::iter::repeat(""));
        self.methods.iter().zip(names)
    }
}
