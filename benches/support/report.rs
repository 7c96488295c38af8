//! The table, and its record in a file.

use super::gpu::Gpu;
use super::work::Work;
use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};
use wgpu_attention::{DeviceClass, Roofs};

/// One benchmark that ran.
pub(crate) struct Row {
    pub(crate) problem: &'static str,
    pub(crate) what: String,
    pub(crate) median: Duration,
    pub(crate) work: Work,
    /// Not on the adapter.
    pub(crate) on_cpu: bool,
}

/// A rate that a machine can reach, in FLOP or bytes a second, measured beside every problem.
#[derive(Default)]
pub(crate) struct Roof {
    measured: Vec<f64>,
}

impl Extend<f64> for Roof {
    fn extend<T: IntoIterator<Item = f64>>(&mut self, rates: T) {
        self.measured.extend(rates);
    }
}

impl Roof {
    /// A peak is the best of what was seen.
    pub(crate) fn peak(&self) -> Option<f64> {
        self.measured.iter().copied().reduce(f64::max)
    }
}

impl Roof {
    fn write(&self, f: &mut fmt::Formatter<'_>, unit: &str) -> fmt::Result {
        let peak = self.peak().unwrap_or_default();
        let least = self.measured.iter().copied().fold(peak, f64::min);
        write!(f, "{:.1} {unit}", peak * 1e-9)?;
        if least < BUSY * peak {
            write!(f, " (the machine was busy: {:.1} for a time)", least * 1e-9)?;
        }
        writeln!(f)
    }
}

/// A roof that fell below this part of its peak says that something else ran.
const BUSY: f64 = 0.9;

/// What it ran on.
pub(crate) struct Machine {
    adapter: Option<Adapter>,
    cpu_roof: Roof,
    /// Empty where the GPU is software.
    gpu_roof: Roof,
    /// Of the adapter; of a software one, that of the CPU.
    bandwidth: Roof,
}

struct Adapter {
    name: String,
    driver: String,
    class: DeviceClass,
    clock: &'static str,
}

impl Machine {
    pub(crate) fn of(
        gpu: Option<&Gpu<'_>>,
        cpu_roof: Roof,
        gpu_roof: Roof,
        bandwidth: Roof,
    ) -> Self {
        let adapter = gpu.map(|gpu| Adapter {
            name: gpu.info.name.clone(),
            driver: format!("{} {}", gpu.info.driver, gpu.info.driver_info).trim().to_owned(),
            class: gpu.attention.capabilities().class,
            clock: gpu.clock.name(),
        });
        Self { adapter, cpu_roof, gpu_roof, bandwidth }
    }

    /// What was not measured is no bound.
    pub(crate) fn roofs(&self, on_cpu: bool) -> Roofs {
        let no_bound = f64::INFINITY;
        let gpu = self.gpu_roof.peak();
        let cpu = self.cpu_roof.peak().unwrap_or(no_bound);
        // The copy runs where the kernels do.
        let elsewhere = on_cpu && gpu.is_some();
        let bandwidth = self.bandwidth.peak().filter(|_| !elsewhere).unwrap_or(no_bound);
        Roofs::new(gpu.filter(|_| !on_cpu).unwrap_or(cpu), bandwidth)
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.adapter {
            Some(Adapter { name, driver, class, clock }) => {
                writeln!(f, "{name}, {driver}; tiles for {class:?}; times by {clock}")?;
            }
            None => writeln!(f, "no adapter: the CPU path alone")?,
        }
        if self.gpu_roof.peak().is_some() {
            write!(f, "roof of the GPU, f32 FMA in registers: ")?;
            self.gpu_roof.write(f, "GFLOP/s")?;
        }
        write!(f, "roof of the CPU, f32 gemm of 1024^3: ")?;
        self.cpu_roof.write(f, "GFLOP/s")?;
        if self.bandwidth.peak().is_some() {
            write!(f, "roof of memory, a copy read and written: ")?;
            self.bandwidth.write(f, "GB/s")?;
        }
        Ok(())
    }
}

/// All that was measured.
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rows: Vec<Row>,
}

/// A row's figures; no rate where there is no product.
struct Figures {
    ms: f64,
    gflops: Option<f64>,
    gbs: f64,
    /// Of the least time under the roofs in the time taken.
    share: f64,
}

impl Report {
    fn figures(&self, row: &Row) -> Figures {
        let seconds = row.median.as_secs_f64();
        let rate = (row.work.flops > 0).then(|| row.work.flops as f64 / seconds);
        Figures {
            ms: seconds * 1e3,
            gflops: rate.map(|rate| rate * 1e-9),
            gbs: row.work.bytes as f64 / seconds * 1e-9,
            share: row.work.least_seconds(&self.machine.roofs(row.on_cpu)) / seconds,
        }
    }

    /// Appends the rows to a CSV file; a new one gets a header.
    pub(crate) fn append_to(&self, path: &Path) -> std::io::Result<()> {
        let mut file = std::fs::File::options().create(true).append(true).open(path)?;
        if file.metadata()?.len() == 0 {
            writeln!(file, "date,adapter,driver,problem,kernel,ms,gflops,gbs,share of bound")?;
        }
        let date = today();
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let Machine { adapter, cpu_roof, gpu_roof, bandwidth } = &self.machine;
        let (name, driver) = adapter.as_ref().map_or(("cpu", ""), |a| (&a.name, &a.driver));
        let roofs = [("gemm", cpu_roof, true), ("fma", gpu_roof, true), ("copy", bandwidth, false)];
        for (what, roof, is_rate) in roofs {
            let Some(peak) = roof.peak() else { continue };
            let peak = format!("{:.3}", peak * 1e-9);
            let (gflops, gbs) = if is_rate { (&*peak, "") } else { ("", &*peak) };
            let (name, driver) = (quoted(name), quoted(driver));
            writeln!(file, "{date},{name},{driver},roof,{what},,{gflops},{gbs},")?;
        }
        for row in &self.rows {
            let adapter = self.machine.adapter.as_ref().filter(|_| !row.on_cpu);
            let (name, driver) = adapter.map_or(("cpu", ""), |a| (&a.name, &a.driver));
            let Figures { ms, gflops, gbs, share } = self.figures(row);
            let gflops = gflops.map(|x| format!("{x:.3}")).unwrap_or_default();
            let (problem, what) = (row.problem, &row.what);
            let (name, driver) = (quoted(name), quoted(driver));
            writeln!(
                file,
                "{date},{name},{driver},{problem},{what},{ms:.4},{gflops},{gbs:.3},{share:.4}"
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.machine)?;
        let width = self.rows.iter().map(|row| row.what.len()).max().unwrap_or(0);
        writeln!(
            f,
            "{:<11}  {:<width$}  {:>10}  {:>9}  {:>8}  {:>8}",
            "problem", "kernel", "ms", "GFLOP/s", "GB/s", "of bound"
        )?;
        for row in &self.rows {
            let Figures { ms, gflops, gbs, share } = self.figures(row);
            let number = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.1}"));
            let percent = format!("{:.1} %", share * 100.0);
            writeln!(
                f,
                "{:<11}  {:<width$}  {ms:>10.4}  {:>9}  {gbs:>8.2}  {percent:>8}",
                row.problem,
                row.what,
                number(gflops),
            )?;
        }
        Ok(())
    }
}

/// `YYYY-MM-DD` in UTC.
fn today() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut days = now.as_secs() / 86_400;
    let leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}
