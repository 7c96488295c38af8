//! A device of the adapter that there is, with limits of the test's choosing, and buffers on it.
//!
//! `WGPU_ATTENTION_LIMITS=default` starts from WebGPU's default limits and lets wgpu check every shader.

#![cfg(feature = "cpu")]

use wgpu_attention::{Attention, Checks, DeviceClass, Dispatch, Download, wgpu};

pub(crate) const CLASSES: [DeviceClass; 2] = [DeviceClass::Hardware, DeviceClass::Software];

/// Those whose tiles a feature is tested with: where `WGPU_ATTENTION_TEST=small` says that compiling takes long, of software
/// GPUs alone; of all with run-time checks, which no other run has.
pub(crate) fn classes() -> impl Iterator<Item = DeviceClass> + Clone {
    let small = std::env::var("WGPU_ATTENTION_TEST").is_ok_and(|value| value == "small");
    CLASSES.into_iter().skip(usize::from(small && !checks()))
}

/// What is in a buffer before a test: a NaN that no computation makes.
pub(crate) const POISON: u32 = 0x7fc0_beef;

/// Whether limits are WebGPU's default ones and wgpu checks every shader.
fn checks() -> bool {
    std::env::var("WGPU_ATTENTION_LIMITS").is_ok_and(|value| value == "default")
}

pub(crate) struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    /// For each of [`CLASSES`].
    attention: [Attention; 2],
}

impl Gpu {
    /// # Panics
    /// If there is no adapter, or it gives no device: a test that needs a GPU fails without one.
    pub(crate) fn new(change: impl FnOnce(&mut wgpu::Limits)) -> Self {
        let adapter = pollster::block_on(adapter());
        let defaults = checks();
        let mut limits = adapter.limits();
        if defaults {
            limits = wgpu::Limits::default().or_worse_values_from(&limits);
        }
        change(&mut limits);
        let descriptor = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
        let (device, queue) =
            pollster::block_on(adapter.request_device(&descriptor)).expect("a device");
        let checks = if defaults { Checks::On } else { Checks::Off };
        let attention = Attention::new(&device).with_checks(checks);
        Self { attention: CLASSES.map(|class| attention.clone().with_class(class)), device, queue }
    }

    /// Attention with tiles of a class.
    pub(crate) fn attention(&self, class: DeviceClass) -> &Attention {
        let index = CLASSES.iter().position(|other| *other == class).expect("one of CLASSES");
        &self.attention[index]
    }

    /// A buffer with these words.
    pub(crate) fn upload(&self, words: &[f32], usage: wgpu::BufferUsages) -> wgpu::Buffer {
        use wgpu::util::DeviceExt as _;
        self.device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents: bytemuck::cast_slice(words),
            usage,
        })
    }

    /// A buffer that a kernel only reads.
    pub(crate) fn input(&self, words: &[f32]) -> wgpu::Buffer {
        self.upload(words, wgpu::BufferUsages::STORAGE)
    }

    /// A poisoned buffer that can be read back.
    pub(crate) fn output(&self, words: usize) -> wgpu::Buffer {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
        self.upload(&poisoned(words), usage)
    }

    /// Runs these, one after the other in one pass.
    pub(crate) fn run(&self, dispatches: &[&Dispatch]) {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            dispatches.iter().for_each(|dispatch| dispatch.record(&mut pass));
        }
        self.queue.submit([encoder.finish()]);
        self.device.poll(wgpu::PollType::wait_indefinitely()).expect("a device");
    }

    /// What is in a buffer.
    pub(crate) fn read(&self, buffer: &wgpu::Buffer) -> Vec<f32> {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let download = Download::encode(&self.device, &mut encoder, buffer.slice(..));
        self.queue.submit([encoder.finish()]);
        self.device.poll(wgpu::PollType::wait_indefinitely()).expect("a device");
        pollster::block_on(download.read()).expect("data")
    }
}

/// A hardware adapter, else a software one.
async fn adapter() -> wgpu::Adapter {
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    let adapters = wgpu::Instance::new(descriptor).enumerate_adapters(wgpu::Backends::all()).await;
    let software = |a: &wgpu::Adapter| a.get_info().device_type == wgpu::DeviceType::Cpu;
    let hardware = adapters.iter().find(|adapter| !software(adapter));
    hardware.or(adapters.first()).cloned().expect("a GPU or a software GPU")
}

/// Words that a test finds again where nothing was written.
pub(crate) fn poisoned(words: usize) -> Vec<f32> {
    vec![f32::from_bits(POISON); words]
}

/// Bits, which compare where NaN does not.
pub(crate) fn bits(words: &[f32]) -> Vec<u32> {
    words.iter().map(|word| word.to_bits()).collect()
}
