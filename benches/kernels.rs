//! How fast every kernel is, beside what the machine could do: verified, then timed, then one table.
//!
//! A filter is a regular expression on ids such as `gpt2/flash_tile`: `cargo bench --bench kernels -- gpt2`.
//! On software adapters only the small problems and `bert` run unless a filter names another, and kernels on matrix
//! units only if a filter names `f16` and the class is `hardware`. Environment:
//!
//! - `WGPU_ADAPTER_NAME`: the first adapter whose name contains this, not the default.
//! - `WGPU_ATTENTION_CLASS`: `hardware` or `software`, tiles of this class, not the adapter's own.
//! - `WGPU_ATTENTION_PROBLEMS`: `all`, also on software adapters.
//! - `WGPU_ATTENTION_RECORD`: a CSV file that the rows of the table are appended to.
#![allow(clippy::print_stdout, reason = "the table is what a bench is for")]

mod support;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, PlottingBackend, SamplingMode};
use std::cell::LazyCell;
use std::time::Duration;
use support::data::{LayerTensors, Tensors};
use support::gpu::{Bound, Gpu};
use support::problems::{CASES, Case};
use support::report::{Machine, Report, Roof, Row};
use support::work::Work;
use support::{gpu, product, verify};
use wgpu_attention::{Algorithm, DType, Plan, Runner};

fn main() {
    let runner = gpu::runner();
    let gpu = Gpu::of(&runner);
    let names_f16 = std::env::args().skip(1).any(|filter| filter.contains("f16"));
    let takes_matrices = names_f16 || gpu.as_ref().is_some_and(|gpu| !gpu.is_software());
    let on_matrices = if takes_matrices { gpu::runner_on_matrices() } else { None };
    let on_matrices = on_matrices.as_ref().and_then(Gpu::of);
    let mut criterion = Criterion::default()
        .plotting_backend(PlottingBackend::Plotters)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(10)
        .nresamples(10_000)
        .configure_from_args();

    let mut rows = Vec::new();
    let [mut cpu, mut fma, mut copy] = [(); 3].map(|()| Roof::default());
    for case in CASES.iter().filter(|case| is_wanted(case, gpu.as_ref())) {
        // Beside every problem: other programs come and go.
        cpu.extend([product::roof()]);
        fma.extend(gpu.as_ref().and_then(Gpu::roof));
        copy.extend(gpu.as_ref().and_then(Gpu::bandwidth));
        let mut group = criterion.benchmark_group(case.name);
        group.sampling_mode(SamplingMode::Flat);
        let mut bench = Bench { case, group, rows: &mut rows };
        if let Some(gpu) = &gpu {
            bench.attention(gpu, DType::F32);
            bench.layer(gpu);
        }
        if let Some(gpu) = &on_matrices {
            bench.attention(gpu, DType::F16);
        }
        #[cfg(feature = "cpu")]
        bench.cpu();
        bench.group.finish();
    }
    criterion.final_summary();
    if rows.is_empty() {
        return;
    }
    let report = Report { machine: Machine::of(gpu.as_ref(), cpu, fma, copy), rows };
    println!("\n{report}");
    if let Some(path) = std::env::var_os("WGPU_ATTENTION_RECORD") {
        report.append_to(path.as_ref()).expect("the record can be written");
    }
}

/// Whether a default run, or a filter by name, takes this problem on this adapter.
fn is_wanted(case: &Case, gpu: Option<&Gpu<'_>>) -> bool {
    let on_cpu = gpu.is_none_or(Gpu::is_software);
    case.is_wanted(on_cpu) || std::env::args().skip(1).any(|filter| filter.contains(case.name))
}

/// The benchmarks of one problem.
struct Bench<'a> {
    case: &'a Case,
    group: BenchmarkGroup<'a, WallTime>,
    rows: &'a mut Vec<Row>,
}

impl Bench<'_> {
    /// The staged kernels one by one and as a whole, and the fused one.
    fn attention(&mut self, gpu: &Gpu<'_>, dtype: DType) {
        let problem = self.case.problem().dtype(dtype).out_dtype(DType::F32);
        let half = dtype == DType::F16;
        let named = |what: &str| if half { format!("f16_{what}") } else { what.to_owned() };
        let tensors = LazyCell::new(|| match half {
            true => Tensors::halves_of(&problem),
            false => Tensors::of(&problem),
        });
        for algorithm in [Algorithm::Staged, Algorithm::Flash] {
            let plan = gpu.attention.plan_with(&problem, algorithm).expect("a plan");
            let id = named(&kernels(&plan));
            let bound = LazyCell::new(|| {
                let bound = Bound::attention(gpu, &plan, &tensors, dtype);
                verify::attention(&self.case.id(&id), &problem, &tensors, &bound.run(gpu));
                bound
            });
            let mut rows = Vec::new();
            if algorithm == Algorithm::Staged {
                for kernel in distinct(&plan) {
                    let work = Work::of_stage(kernel, &problem);
                    let run = |n| gpu.clock.times(&bound.passes(|name| name == kernel), n);
                    let id = named(kernel);
                    rows.extend(time(&mut self.group, self.case, &id, work, run));
                }
            }
            let work = Work::of(plan.cost());
            let run = |n| gpu.clock.times(&bound.passes(|_| true), n);
            rows.extend(time(&mut self.group, self.case, &id, work, run));
            self.rows.extend(rows);
        }
    }

    /// The projections of a layer alone, and the whole layer.
    fn layer(&mut self, gpu: &Gpu<'_>) {
        let layer = self.case.layer();
        let plan = gpu.attention.plan_layer(&layer).expect("a plan");
        let id = kernels(&plan);
        let bound = LazyCell::new(|| {
            let tensors = LayerTensors::of(&layer);
            let bound = Bound::layer(gpu, &plan, &tensors);
            verify::layer(&self.case.id(&id), &layer, &tensors, &bound.run(gpu));
            bound
        });
        let run = |n| gpu.clock.times(&bound.passes(|name| name == "linear"), n);
        let row = time(&mut self.group, self.case, "linear", Work::of_projections(&layer), run);
        self.rows.extend(row);
        let run = |n| gpu.clock.times(&bound.passes(|_| true), n);
        let row = time(&mut self.group, self.case, &id, Work::of_layer(&layer), run);
        self.rows.extend(row);
    }

    /// The path without a GPU, from host memory to host memory.
    #[cfg(feature = "cpu")]
    fn cpu(&mut self) {
        let (problem, layer, runner) = (self.case.problem(), self.case.layer(), Runner::cpu());
        let wall = |run: &dyn Fn() -> Vec<f32>, n: u64| -> Vec<Duration> {
            let once = |_| {
                let start = std::time::Instant::now();
                std::hint::black_box(run());
                start.elapsed()
            };
            (0..n).map(once).collect()
        };

        let tensors = LazyCell::new(|| Tensors::of(&problem));
        let forward = || runner.forward(&problem, &tensors.inputs()).expect("the CPU path").out;
        let verified = LazyCell::new(|| {
            verify::attention(&self.case.id("cpu"), &problem, &tensors, &forward());
        });
        let run = |n| {
            LazyCell::force(&verified);
            wall(&forward, n)
        };
        let work = Work::of(wgpu_attention::Cost::of(&problem));
        let row = time(&mut self.group, self.case, "cpu", work, run);
        self.rows.extend(row.map(|row| Row { on_cpu: true, ..row }));

        let tensors = LazyCell::new(|| LayerTensors::of(&layer));
        let forward = || {
            let inputs = tensors.inputs();
            runner.layer(&layer, Algorithm::Auto, &inputs).expect("the CPU path").out
        };
        let verified = LazyCell::new(|| {
            verify::layer(&self.case.id("cpu_layer"), &layer, &tensors, &forward());
        });
        let run = |n| {
            LazyCell::force(&verified);
            wall(&forward, n)
        };
        let row = time(&mut self.group, self.case, "cpu_layer", Work::of_layer(&layer), run);
        self.rows.extend(row.map(|row| Row { on_cpu: true, ..row }));
    }
}

/// One benchmark; no row where the filter leaves it out.
fn time(
    group: &mut BenchmarkGroup<'_, WallTime>,
    case: &Case,
    what: &str,
    work: Work,
    mut run: impl FnMut(u64) -> Vec<Duration>,
) -> Option<Row> {
    let mut times = Vec::new();
    group.bench_function(what, |bencher| {
        bencher.iter_custom(|iterations| {
            let runs = run(iterations);
            times.extend_from_slice(&runs);
            runs.iter().sum()
        });
    });
    times.sort_unstable();
    let median = *times.get(times.len() / 2)?;
    Some(Row { problem: case.name, what: what.to_owned(), median, work, on_cpu: false })
}

/// Kernels in launch order, repetitions left out.
fn kernels(plan: &Plan) -> String {
    let mut names: Vec<_> = plan.kernels().collect();
    names.dedup();
    // Chunks repeat the whole sequence.
    let period = (1..names.len()).find(|n| {
        names.len().is_multiple_of(*n) && names.chunks(*n).all(|chunk| chunk == &names[..*n])
    });
    names.truncate(period.unwrap_or(names.len()));
    names.join("+")
}

fn distinct(plan: &Plan) -> Vec<&'static str> {
    let mut names = Vec::new();
    for name in plan.kernels() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
