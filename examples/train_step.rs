//! One layer of causal attention learns associative recall, from scratch, on the GPU.
//!
//! `cargo run --release --example train_step -- [--steps N] [--cpu] [--out FOLDER]`. A sequence is pairs of a key and a
//! value, each token the sum of the two's embeddings, and then one of the keys alone: its value is asked for. Sequences
//! are new in every step, so nothing can be learnt by heart. The same model without attention learns beside it: it sees
//! the last token only, and cannot do better than guess. `train_step/device.rs` is the part to copy: sequences, embeddings,
//! the layer, the loss, all gradients and Adam run on the device; losses come back now and then.
#![allow(clippy::print_stdout, reason = "an example talks")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use ahead::Ahead;
use progress::Progress;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use task::{BATCH, DIM, KEYS, LEN, PAIRS, PARAMETERS, Point, Sample, VALUES, chance};
use wgpu_attention::{Attention, device_descriptor, wgpu};

#[path = "support/ahead.rs"]
mod ahead;
#[path = "support/canvas.rs"]
mod canvas;
#[path = "support/colours.rs"]
mod colours;
#[path = "train_step/device.rs"]
mod device;
#[path = "train_step/host.rs"]
mod host;
#[path = "support/lettering.rs"]
mod lettering;
#[path = "train_step/pictures.rs"]
mod pictures;
#[path = "support/progress.rs"]
mod progress;
#[path = "train_step/task.rs"]
mod task;

const HELP: &str = "\
train_step [--steps N] [--cpu] [--out FOLDER]
Trains one layer of causal attention on associative recall, and the same model without attention.

  --steps N      steps of training (default: 600)
  --cpu          on the CPU path, as where there is no GPU
  --out FOLDER   where loss.png and attention.png go (default: target/train_step)";

/// Of sequences and parameters.
const SEED: u32 = 1;
/// Steps that only answer, after training: of sequences that no step has learnt from.
const FRESH: usize = 32;
/// Lines that training prints.
const LINES: usize = 10;

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
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    steps: usize,
    cpu: bool,
    out: PathBuf,
}

impl Options {
    /// `None` where help is asked for.
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Self { steps: 600, cpu: false, out: "target/train_step".into() };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--help" | "-h" => return Ok(None),
                "--cpu" => options.cpu = true,
                "--steps" => {
                    let value = arguments.next().unwrap_or_default();
                    let steps = value.parse().ok().filter(|n| (1..=1_000_000).contains(n));
                    let expected = || format!("--steps: {value:?} is no number from 1 to 1000000");
                    options.steps = steps.ok_or_else(expected)?;
                }
                "--out" => options.out = arguments.next().ok_or("--out: no folder")?.into(),
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

/// What training leaves: of the model and of the one without attention, every step; and what the last sequences attend to.
struct Trained {
    histories: [Vec<Point>; 2],
    weights: Vec<f32>,
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let adapter = if options.cpu { None } else { adapter() };
    match &adapter {
        Some(adapter) => {
            let info = adapter.get_info();
            println!("{} ({})", info.name, info.backend);
        }
        None => println!("CPU path: no GPU is asked for, or none is there"),
    }
    println!(
        "{PAIRS} pairs of {KEYS} keys and {VALUES} values, then a key; {DIM} wide, {PARAMETERS} parameters; \
         {BATCH} sequences of {LEN} tokens a step"
    );
    println!("\n{:>8}{:>10}{:>12}{:>22}", "step", "loss", "accuracy", "without attention");

    let start = Instant::now();
    let mut report = Report::new(options.steps);
    let trained = match &adapter {
        Some(adapter) => on_device(adapter, &mut report)?,
        None => on_host(&mut report)?,
    };
    let seconds = start.elapsed().as_secs_f64();
    drop(report);
    println!(
        "\n{} steps in {seconds:.1} s, {:.1} ms each, compilation included",
        options.steps,
        1e3 * seconds / options.steps as f64
    );

    let fresh = trained.histories.each_ref().map(|points| Point::mean(&points[options.steps..]));
    println!(
        "On {} fresh sequences: accuracy {:.1} %, without attention {:.1} %, chance {:.1} %",
        FRESH * BATCH,
        1e2 * fresh[0].accuracy,
        1e2 * fresh[1].accuracy,
        1e2 * chance()
    );
    let last = Sample::of_step(SEED, (options.steps + FRESH) as u32 - 1);
    let [asked, itself] = last_tokens(&last, &trained.weights).map(|share| 1e2 * share);
    println!(
        "Last tokens attend {asked:.1} % to the key that they ask for, {itself:.1} % to themselves, who have the same \
         key, {:.1} % to all others",
        1e2 - asked - itself
    );

    let (loss, attention) = (options.out.join("loss.png"), options.out.join("attention.png"));
    pictures::curves(&loss, &trained.histories.map(|points| points[..options.steps].to_vec()))?;
    pictures::map(&attention, &last, &trained.weights)?;
    println!("\nCurves: {}\nWhat tokens attend to: {}", loss.display(), attention.display());
    Ok(())
}

/// Mean weights of last tokens on the key that they ask for, and on themselves.
fn last_tokens(sample: &Sample, weights: &[f32]) -> [f64; 2] {
    let mean = |of: &dyn Fn(usize, &[f32]) -> f32| {
        let row = |sequence: usize| &weights[(sequence * LEN + LEN - 1) * LEN..][..LEN];
        (0..BATCH).map(|sequence| f64::from(of(sequence, row(sequence)))).sum::<f64>()
            / BATCH as f64
    };
    [mean(&|sequence, row| row[sample.asked(sequence)]), mean(&|_, row| row[PAIRS])]
}

/// A bar, and a line now and then.
struct Report {
    steps: usize,
    progress: Progress,
}

impl Report {
    fn new(steps: usize) -> Self {
        Self { steps, progress: Progress::new("Train", steps as u32) }
    }

    /// Steps between two lines.
    fn every(&self) -> usize {
        self.steps.div_ceil(LINES)
    }

    /// Of the steps since the last line.
    fn line(&mut self, histories: [&[Point]; 2]) {
        let done = histories[0].len();
        let recent = histories
            .map(|points| Point::mean(&points[(done - 1) / self.every() * self.every()..]));
        self.progress.clear();
        println!(
            "{done:>8}{:>10.3}{:>10.1} %{:>20.1} %",
            recent[0].loss,
            1e2 * recent[0].accuracy,
            1e2 * recent[1].accuracy
        );
        let note =
            format!("loss {:.3}, accuracy {:.1} %", recent[0].loss, 1e2 * recent[0].accuracy);
        self.progress.note(note);
        self.progress.show(done as u32);
    }
}

fn on_device(adapter: &wgpu::Adapter, report: &mut Report) -> Result<Trained, Box<dyn Error>> {
    let (device, queue) = pollster::block_on(adapter.request_device(&device_descriptor(adapter)))?;
    let attention = Attention::with_adapter(adapter, &device);
    let (steps, every) = (report.steps, report.every());
    let new =
        |attends| device::Model::new((&device, &queue), &attention, (SEED, steps + FRESH), attends);
    let models = [new(true)?, new(false)?];
    let mut ahead = Ahead::new(&device, &queue);
    for step in 1..=steps {
        device::step(&mut ahead, &models, true)?;
        if step % every == 0 || step == steps {
            let [with, without] = [models[0].history(step)?, models[1].history(step)?];
            report.line([&with, &without]);
        } else {
            report.progress.show(step as u32);
        }
    }
    for _ in 0..FRESH {
        device::step(&mut ahead, &models, false)?;
    }
    ahead.wait()?;
    let all = steps + FRESH;
    let histories = [models[0].history(all)?, models[1].history(all)?];
    Ok(Trained { histories, weights: models[0].weights()? })
}

fn on_host(report: &mut Report) -> Result<Trained, Box<dyn Error>> {
    let mut models = [true, false].map(|attends| host::Model::new(SEED, attends));
    let (steps, every) = (report.steps, report.every());
    for step in 1..=steps + FRESH {
        for model in &mut models {
            model.step(step <= steps)?;
        }
        if step <= steps && (step % every == 0 || step == steps) {
            report.line(models.each_ref().map(|model| &model.history[..]));
        } else if step < steps {
            report.progress.show(step as u32);
        }
    }
    let weights = models[0].weights()?;
    Ok(Trained { histories: models.map(|model| model.history), weights })
}
