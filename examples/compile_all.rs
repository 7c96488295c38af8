//! Compiles every kernel that the planner can choose on an adapter, and names each on standard error before.
//!
//! `cargo run --release --example compile_all [NAME,..]`: only kernels whose name contains one NAME. Real compilers
//! can be set to report on what they make of each; after the name stands how many subgroups at least are to fit a core.

use wgpu_attention::{Attention, device_descriptor, kernels, wgpu, with_cooperative_matrices};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let instance =
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let adapter = adapters.first().ok_or("no adapter found")?;
    // SAFETY: nothing runs on the device.
    #[allow(unsafe_code, reason = "cooperative matrices are experimental")]
    let descriptor = unsafe { with_cooperative_matrices(device_descriptor(adapter), adapter) };
    let (device, _queue) = pollster::block_on(adapter.request_device(&descriptor))?;
    let attention = Attention::with_adapter(adapter, &device);
    let class = attention.capabilities().class;
    let kernels = kernels::all(attention.capabilities());
    let chosen: Vec<_> = kernels
        .iter()
        .filter(|kernel| wanted.split(',').any(|name| kernel.label().contains(name)))
        .collect();
    if chosen.is_empty() {
        return Err(format!("no kernel's name contains {wanted:?}").into());
    }
    for kernel in &chosen {
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        eprintln!("kernel: {}", kernel.label());
        if let Some(waves) = kernel.least_waves(class) {
            eprintln!("waves: {waves}");
        }
        attention.compile_kernel(kernel);
        if let Some(error) = pollster::block_on(scope.pop()) {
            return Err(format!("{}: {error}", kernel.label()).into());
        }
    }
    eprintln!("{} kernels for {class:?} compiled on {}", chosen.len(), adapter.get_info().name);
    Ok(())
}
