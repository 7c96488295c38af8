//! How near the kernels come to what the adapter can do: measured roofs, and measured points under them.
//!
//! `cargo run --release --example roofline [PNG]`: prints a table and draws it, to `target/roofline.png` by default.
//! A software GPU has the roof of its CPU, the `gemm` crate's rate on all cores; a GPU that of a kernel which only
//! multiplies and adds in registers. The slope is the rate of a large copy. The environment is that of the bench
//! `kernels`: `WGPU_ADAPTER_NAME`, `WGPU_ATTENTION_CLASS`, `WGPU_ATTENTION_PROBLEMS`, `WGPU_ATTENTION_RECORD`.
#![allow(clippy::print_stdout, reason = "an example talks")]

use bench::data::{LayerTensors, Tensors};
use bench::gpu::{Bound, Gpu};
use bench::problems::{CASES, Case};
use bench::report::{Machine, Report, Roof, Row};
use bench::work::Work;
use bench::{gpu, product, verify};
use chart::{Chart, GROUND, INK, QUIET, Shape, mark};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wgpu_attention::{Algorithm, Roofs};

#[allow(dead_code, reason = "the CPU path is the bench's")]
#[path = "../benches/support/mod.rs"]
mod bench;
#[allow(dead_code, reason = "pictures are the other example's")]
#[path = "support/canvas.rs"]
mod canvas;
#[path = "support/chart.rs"]
mod chart;
#[allow(dead_code, reason = "the colour map is the other example's")]
#[path = "support/colours.rs"]
mod colours;
#[path = "support/lettering.rs"]
mod lettering;

use canvas::{Anchor, Canvas, Style};
use colours::mix;

/// Time for the runs of one point.
const MEASURE: Duration = Duration::from_millis(300);

/// What is measured of a problem, as the legend calls it.
const KINDS: [(&str, [u8; 3]); 5] = [
    ("fused", [92, 225, 230]),
    ("staged, whole", [251, 135, 97]),
    ("scores", [254, 194, 135]),
    ("values", [229, 89, 152]),
    ("projection", [150, 220, 130]),
];

fn main() -> Result<(), Box<dyn Error>> {
    let picture = std::env::args_os().nth(1).map_or("target/roofline.png".into(), PathBuf::from);
    let runner = gpu::runner();
    let gpu =
        Gpu::of(&runner).ok_or("no GPU, and no software GPU: there are no kernels to draw")?;
    let [mut cpu, mut fma, mut copy] = [(); 3].map(|()| Roof::default());
    let mut rows = Vec::new();
    for case in CASES.iter().filter(|case| case.is_wanted(gpu.is_software())) {
        // Beside every problem: other programs come and go.
        cpu.extend([product::roof()]);
        fma.extend(gpu.roof());
        copy.extend(gpu.bandwidth());
        rows.extend(attention(&gpu, case)?);
        rows.push(projection(&gpu, case)?);
    }
    let title = format!("Roofline of {}", gpu.info.name);
    let driver = format!("{} {}", gpu.info.driver, gpu.info.driver_info);
    let report = Report { machine: Machine::of(Some(&gpu), cpu, fma, copy), rows };
    println!("{report}");
    if let Some(path) = std::env::var_os("WGPU_ATTENTION_RECORD") {
        report.append_to(path.as_ref())?;
    }
    let roof = if gpu.is_software() { "CPU, matrix product" } else { "multiply-add in registers" };
    draw(&picture, [&title, &driver, roof], &report)?;
    println!("written: {}", picture.display());
    Ok(())
}

/// The fused kernel, the staged ones, and two of these alone.
fn attention(gpu: &Gpu<'_>, case: &Case) -> Result<Vec<Row>, Box<dyn Error>> {
    let problem = case.problem();
    let tensors = Tensors::of(&problem);
    let mut rows = Vec::new();
    for (algorithm, name) in [(Algorithm::Flash, "fused"), (Algorithm::Staged, "staged, whole")] {
        let plan = gpu.attention.plan_with(&problem, algorithm)?;
        let bound = Bound::attention(gpu, &plan, &tensors, problem.dtype);
        verify::attention(&case.id(name), &problem, &tensors, &bound.run(gpu));
        rows.push(row(case, name, Work::of(plan.cost()), median(gpu, &bound, |_| true)));
        for stage in ["scores", "values"] {
            if plan.kernels().any(|kernel| kernel == stage) {
                let time = median(gpu, &bound, |kernel| kernel == stage);
                rows.push(row(case, stage, Work::of_stage(stage, &problem), time));
            }
        }
    }
    Ok(rows)
}

/// The projections of a layer.
fn projection(gpu: &Gpu<'_>, case: &Case) -> Result<Row, Box<dyn Error>> {
    let layer = case.layer();
    let plan = gpu.attention.plan_layer(&layer)?;
    let tensors = LayerTensors::of(&layer);
    let bound = Bound::layer(gpu, &plan, &tensors);
    verify::layer(&case.id("projection"), &layer, &tensors, &bound.run(gpu));
    let time = median(gpu, &bound, |kernel| kernel == "linear");
    Ok(row(case, "projection", Work::of_projections(&layer), time))
}

fn row(case: &Case, what: &str, work: Work, median: Duration) -> Row {
    Row { problem: case.name, what: what.to_owned(), median, work, on_cpu: false }
}

/// Of the runs that there is time for; the first, cold, was another.
fn median(gpu: &Gpu<'_>, bound: &Bound, timed: impl Fn(&str) -> bool) -> Duration {
    let passes = bound.passes(timed);
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < 3 || start.elapsed() < MEASURE {
        times.extend(gpu.clock.times(&passes, 3));
    }
    times.sort_unstable();
    times[times.len() / 2]
}

/// FLOP per byte, and GFLOP/s.
fn point(row: &Row) -> (f64, f64) {
    let Work { flops, bytes } = row.work;
    (flops as f64 / bytes as f64, flops as f64 / row.median.as_secs_f64() * 1e-9)
}

fn draw(path: &Path, names: [&str; 3], report: &Report) -> Result<(), Box<dyn Error>> {
    let roofs = report.machine.roofs(false);
    let points = || report.rows.iter().map(point);
    let least = |pick: fn((f64, f64)) -> f64| points().map(pick).fold(f64::INFINITY, f64::min);
    let most = |pick: fn((f64, f64)) -> f64| points().map(pick).fold(0.0, f64::max);
    let peak = roofs.flops_per_s * 1e-9;
    let chart = Chart {
        left: 140.0,
        top: 150.0,
        width: 900.0,
        height: 640.0,
        x: least(|p| p.0).min(roofs.ridge()) / 4.0..most(|p| p.0).max(roofs.ridge()) * 2.0,
        y: least(|p| p.1).min(peak) / 3.0..most(|p| p.1).max(peak) * 1.8,
    };
    let mut canvas = Canvas::new(1320, 900, GROUND);
    let [title, driver, roof] = names;
    canvas.text(title, (chart.left, 46.0), Style::new(26.0, INK, Anchor::Start));
    canvas.text(driver, (chart.left, 88.0), Style::new(15.0, QUIET, Anchor::Start));
    chart.axes(&mut canvas, "FLOP per byte of inputs and outputs", "GFLOP/s");
    draw_roofs(&mut canvas, &chart, roof, &roofs);
    let problems = problems(report);
    for row in &report.rows {
        let (intensity, rate) = point(row);
        let share = row.work.least_seconds(&roofs) / row.median.as_secs_f64();
        let at = chart.place(intensity, rate);
        if row.what == "fused" {
            // How far it is to its roof.
            let roof = chart.place(intensity, rate / share);
            canvas.line(&[at, roof], 1.0, mix(GROUND, KINDS[0].1, 0.45));
        }
    }
    for row in &report.rows {
        let (intensity, rate) = point(row);
        let problem = problems.iter().position(|name| *name == row.problem).unwrap_or(0);
        let kind = KINDS.iter().find(|(name, _)| *name == row.what).unwrap_or(&KINDS[0]);
        let shape = Shape::ALL[problem % Shape::ALL.len()];
        mark(&mut canvas, chart.place(intensity, rate), shape, kind.1);
    }
    legend(&mut canvas, &chart, report, &roofs);
    canvas.write(path)
}

/// Problems in the order measured.
fn problems(report: &Report) -> Vec<&'static str> {
    let mut names: Vec<_> = report.rows.iter().map(|row| row.problem).collect();
    names.dedup();
    names
}

fn draw_roofs(canvas: &mut Canvas, chart: &Chart, name: &str, roofs: &Roofs) {
    let (peak, slope) = (roofs.flops_per_s * 1e-9, roofs.bytes_per_s * 1e-9);
    let ridge = chart.place(roofs.ridge(), peak);
    // The slope begins at the axis that it meets first.
    let start = chart.x.start.max(chart.y.start / slope);
    let foot = chart.place(start, start * slope);
    let end = chart.place(chart.x.end, peak);
    canvas.line(&[foot, ridge, end], 3.0, INK);
    let style = Style::new(15.0, INK, Anchor::End);
    canvas.text(&format!("{name} {peak:.0} GFLOP/s"), (end.0 - 10.0, end.1 - 20.0), style);
    let style = Style::new(15.0, INK, Anchor::End);
    let middle = ((foot.0 + ridge.0) / 2.0 - 18.0, (foot.1 + ridge.1) / 2.0 - 14.0);
    let style = if middle.0 < chart.left + 160.0 {
        // No room to its left: to its right.
        Style { anchor: Anchor::Start, ..style }
    } else {
        style
    };
    let right = if matches!(style.anchor, Anchor::Start) { 36.0 } else { 0.0 };
    canvas.text(&format!("copy {slope:.1} GB/s"), (middle.0 + right, middle.1 + right), style);
}

/// Colours, shapes, and how much of its bound the fused kernel reaches.
fn legend(canvas: &mut Canvas, chart: &Chart, report: &Report, roofs: &Roofs) {
    let left = chart.left + chart.width + 40.0;
    let mut y = chart.top + 8.0;
    let heading = Style::new(15.0, INK, Anchor::Start);
    let entry = Style::new(14.0, QUIET, Anchor::Start);
    canvas.text("kernels", (left, y), heading);
    for (name, colour) in KINDS {
        y += 30.0;
        mark(canvas, (left + 8.0, y), Shape::Disc, colour);
        canvas.text(name, (left + 30.0, y), entry);
    }
    y += 54.0;
    canvas.text("problems", (left, y), heading);
    for (name, shape) in problems(report).into_iter().zip(Shape::ALL.into_iter().cycle()) {
        y += 30.0;
        mark(canvas, (left + 8.0, y), shape, QUIET);
        canvas.text(name, (left + 30.0, y), entry);
    }
    y += 54.0;
    canvas.text("fused, of its roof", (left, y), heading);
    for row in report.rows.iter().filter(|row| row.what == "fused") {
        y += 28.0;
        let share = row.work.least_seconds(roofs) / row.median.as_secs_f64();
        canvas.text(row.problem, (left, y), entry);
        let percent = Style { anchor: Anchor::End, colour: KINDS[0].1, ..entry };
        canvas.text(&format!("{:.0} %", share * 100.0), (left + 210.0, y), percent);
    }
}
