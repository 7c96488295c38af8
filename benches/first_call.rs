//! The first call of a program: plan, compile, bind, run, on a device that has compiled nothing yet.
//!
//! Each line is the median of some processes: with the driver's own cache of compiled shaders switched off, where
//! Mesa or NVIDIA make it; with that cache, warm; and, where the device has them, without it but through a
//! `wgpu::PipelineCache` that the process before left. `WGPU_ADAPTER_NAME`: the first adapter whose name contains
//! this. `WGPU_ATTENTION_FIRST_CALL`: a CSV file that the lines are appended to.
#![allow(clippy::print_stdout, reason = "the table is what a bench is for")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use wgpu_attention::{Algorithm, Attention, Mask, Problem, Shape, Tensors, wgpu};

/// How a process finds what was compiled before it.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    Nothing,
    DriversCache,
    PipelineCache,
}

impl Before {
    const ALL: [(Self, &str); 3] = [
        (Self::Nothing, "nothing compiled"),
        (Self::DriversCache, "driver's cache"),
        (Self::PipelineCache, "PipelineCache"),
    ];
}

const ALGORITHMS: [(Algorithm, &str); 2] =
    [(Algorithm::Flash, "fused"), (Algorithm::Staged, "staged")];
const HEAD_DIMS: [u32; 2] = [64, 128];
const PROCESSES: usize = 3;
/// Milliseconds: planning, compiling, binding, the first run, the second.
const PHASES: usize = 5;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, algorithm, head_dim, file] = &arguments[..]
        && first == "one"
    {
        return one(algorithm, head_dim.parse().expect("a width"), Path::new(file));
    }
    let Some(adapter) = adapter() else { return println!("no GPU") };
    let info = adapter.get_info();
    println!("first call on {} ({}), ms", info.name, info.driver_info);
    println!("8 heads on 2, 128 positions, causal; compiled: before the first dispatch, or in it");
    println!(
        "{:<7} {:>8}  {:<16} {:>7} {:>8} {:>7} {:>9} {:>9} {:>9}",
        "kernels", "head_dim", "before", "plan", "compile", "bind", "first run", "total", "again"
    );
    let record = std::env::var_os("WGPU_ATTENTION_FIRST_CALL").map(PathBuf::from);
    for head_dim in HEAD_DIMS {
        for (_, algorithm) in ALGORITHMS {
            for (before, name) in Before::ALL {
                let Some([plan, compile, bind, first, again]) =
                    median(&adapter, before, algorithm, head_dim)
                else {
                    continue;
                };
                let total = plan + compile + bind + first;
                println!(
                    "{algorithm:<7} {head_dim:>8}  {name:<16} {plan:>7.2} {compile:>8.1} {bind:>7.2} {first:>9.1} \
                     {total:>9.1} {again:>9.2}"
                );
                if let Some(path) = &record {
                    let mut file = std::fs::File::options().create(true).append(true).open(path);
                    let file = file.as_mut().expect("the record can be written");
                    writeln!(file, "{algorithm} {head_dim} {name},{total:.3}").expect("written");
                }
            }
        }
    }
}

/// The middle one of some processes, by their sums; `None` where the device has no such cache.
fn median(
    adapter: &wgpu::Adapter,
    before: Before,
    algorithm: &str,
    head_dim: u32,
) -> Option<[f64; PHASES]> {
    let has_cache = adapter.features().contains(wgpu::Features::PIPELINE_CACHE);
    if before == Before::PipelineCache && !has_cache {
        return None;
    }
    let file = std::env::current_exe().expect("this program").with_extension("pipelines");
    let _ = std::fs::remove_file(&file);
    let run = || {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        let path: &Path = if before == Before::PipelineCache { &file } else { Path::new("") };
        command.args(["one", algorithm, &head_dim.to_string()]).arg(path);
        if before != Before::DriversCache {
            command.env("MESA_SHADER_CACHE_DISABLE", "true").env("__GL_SHADER_DISK_CACHE", "0");
        }
        let output = command.output().expect("this program runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("numbers");
        let phases: Vec<f64> =
            text.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        <[f64; PHASES]>::try_from(phases).expect("one number a phase")
    };
    if before != Before::Nothing {
        run();
    }
    let mut runs: Vec<_> = (0..PROCESSES).map(|_| run()).collect();
    let _ = std::fs::remove_file(&file);
    runs.sort_unstable_by(|a, b| a[..4].iter().sum::<f64>().total_cmp(&b[..4].iter().sum()));
    Some(runs[PROCESSES / 2])
}

fn adapter() -> Option<wgpu::Adapter> {
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    let instance = wgpu::Instance::new(descriptor);
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let wanted = std::env::var("WGPU_ADAPTER_NAME").unwrap_or_default();
    let hardware = |a: &&wgpu::Adapter| a.get_info().device_type != wgpu::DeviceType::Cpu;
    let mut named = adapters.into_iter().filter(|a| a.get_info().name.contains(&wanted));
    let named: Vec<_> = named.by_ref().collect();
    named.iter().find(hardware).or(named.first()).cloned()
}

/// One first call in this process; prints its phases.
fn one(algorithm: &str, head_dim: u32, file: &Path) {
    let (algorithm, _) =
        ALGORITHMS.into_iter().find(|(_, name)| *name == algorithm).expect("an algorithm");
    let adapter = adapter().expect("the adapter of before");
    let cached = !file.as_os_str().is_empty();
    let wanted = wgpu::Features::PIPELINE_CACHE;
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        required_limits: adapter.limits(),
        required_features: if cached { wanted } else { wgpu::Features::empty() },
        ..Default::default()
    }))
    .expect("a device");
    let problem = Problem::new(Shape::self_attention(1, 8, 128, head_dim).with_kv_heads(2))
        .mask(Mask::CAUSAL);
    let buffer = |heads: u64| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: heads * 128 * u64::from(head_dim) * 4,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    };
    let (q, k, v, out) = (buffer(8), buffer(2), buffer(2), buffer(8));
    let cache = cached.then(|| {
        let data = std::fs::read(file).ok();
        let descriptor =
            wgpu::PipelineCacheDescriptor { label: None, data: data.as_deref(), fallback: true };
        // SAFETY: the file is what `get_data` gave the process before this one.
        #[expect(unsafe_code, reason = "what a caller of `with_pipeline_cache` does")]
        unsafe {
            device.create_pipeline_cache(&descriptor)
        }
    });
    let mut attention = Attention::new(&device);
    if let Some(cache) = &cache {
        attention = attention.with_pipeline_cache(cache.clone());
    }

    let mut phases = Vec::new();
    let mut start = Instant::now();
    let mut done = || {
        phases.push(start.elapsed().as_secs_f64() * 1e3);
        start = Instant::now();
    };
    let plan = attention.plan_with(&problem, algorithm).expect("a plan");
    done();
    attention.compile([&plan]);
    done();
    let tensors = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
    let dispatch = attention.bind(&plan, &tensors).expect("buffers that fit");
    done();
    for _ in 0..2 {
        let mut encoder = device.create_command_encoder(&Default::default());
        dispatch.encode(&mut encoder);
        queue.submit([encoder.finish()]);
        device.poll(wgpu::PollType::wait_indefinitely()).expect("the device is alive");
        done();
    }
    println!("{}", phases.iter().map(f64::to_string).collect::<Vec<_>>().join(" "));
    if let Some(data) = cache.and_then(|cache| cache.get_data()) {
        std::fs::write(file, data).expect("the cache can be written");
    }
}
