//! Prints the whole WGSL of a kernel: constants, bindings, files, as the device gets it.
//!
//! `cargo run --example print_wgsl`: the labels of all kernels that the planner can choose.
//! `cargo run --example print_wgsl flash head_dim=64`: the first whose label contains every word; `--all`: all of
//! them. `--class hardware` (the default) or `--class software`: the tiles for a GPU, or for a software one.
#![allow(clippy::print_stdout, reason = "its output is the point")]

use wgpu_attention::{Capabilities, DeviceClass, kernels};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut class = DeviceClass::Hardware;
    let mut all = false;
    let mut words = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--all" => all = true,
            "--class" => {
                class = match arguments.next().as_deref() {
                    Some("hardware") => DeviceClass::Hardware,
                    Some("software") => DeviceClass::Software,
                    _ => return Err("--class takes hardware or software".into()),
                }
            }
            option if option.starts_with('-') => return Err(format!("no option {option}").into()),
            _ => words.push(argument),
        }
    }

    let mut found: Vec<_> = (kernels::all(&Capabilities::portable().with_class(class)).into_iter())
        .map(|kernel| (kernel.label(), kernel))
        .filter(|(label, _)| words.iter().all(|word| label.contains(word)))
        .collect();
    if found.is_empty() {
        return Err(format!("no label contains all of {words:?}").into());
    }
    if words.is_empty() && !all {
        for (label, _) in &found {
            println!("{label}");
        }
        return Ok(());
    }
    if !all {
        found.truncate(1);
    }
    for (label, kernel) in &found {
        println!("// {label}: entry point {}\n\n{}", kernel.entry_point(), kernel.wgsl());
    }
    Ok(())
}
