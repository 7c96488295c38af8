//! What a plan may rely on.

use crate::error::PlanError;
use crate::kernels::{Access, Kernel};

/// What kind of machine executes the kernels: tiles are chosen by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceClass {
    /// A GPU.
    Hardware,
    /// A GPU of Apple's.
    Apple,
    /// A software GPU such as lavapipe or SwiftShader: a CPU runs the kernels.
    Software,
}

/// Limits and class of a device.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Limits that the device was created with.
    pub limits: wgpu::Limits,
    /// What tiles are chosen by.
    pub class: DeviceClass,
    /// Shaders have a type f16 of their own.
    pub f16: bool,
}

/// Apple's PCI vendor.
const APPLE: u32 = 0x106b;

impl Capabilities {
    /// Reads them off a device.
    pub fn of(device: &wgpu::Device) -> Self {
        let info = device.adapter_info();
        let class = if info.device_type == wgpu::DeviceType::Cpu {
            DeviceClass::Software
        } else if info.vendor == APPLE || info.name.contains("Apple") {
            DeviceClass::Apple
        } else {
            DeviceClass::Hardware
        };
        let f16 = device.features().contains(wgpu::Features::SHADER_F16);
        Self { limits: device.limits(), class, f16 }
    }

    /// What every WebGPU device offers.
    pub fn portable() -> Self {
        Self { limits: wgpu::Limits::default(), class: DeviceClass::Hardware, f16: false }
    }

    /// The same limits, tiles of another class.
    #[must_use]
    pub fn with_class(self, class: DeviceClass) -> Self {
        Self { class, ..self }
    }

    /// The same, with or without an f16 of the device's own.
    #[must_use]
    pub fn with_f16(self, f16: bool) -> Self {
        Self { f16, ..self }
    }

    /// Bytes that one storage binding may take: the device's limit, below 2^31 so that no index overflows.
    pub(crate) fn binding_bytes(&self) -> u64 {
        let limits = &self.limits;
        limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min((1 << 31) - 16)
    }

    /// Checks what `kernel` needs of the device.
    pub(crate) fn fit(&self, kernel: &Kernel) -> Result<(), PlanError> {
        let storage = kernel.bindings.iter().filter(|b| b.access != Access::Uniform).count();
        let limits = &self.limits;
        if kernel.needs_f16() && !self.f16 {
            return Err(PlanError::NotSupported { what: "f16 of the device's own" });
        }
        for (limit, required, available) in [
            (
                "max_compute_workgroup_storage_size",
                u64::from(kernel.workgroup_bytes),
                limits.max_compute_workgroup_storage_size,
            ),
            (
                "max_compute_invocations_per_workgroup",
                u64::from(kernel.workgroup_size),
                limits.max_compute_invocations_per_workgroup,
            ),
            (
                "max_compute_workgroup_size_x",
                u64::from(kernel.workgroup_size),
                limits.max_compute_workgroup_size_x,
            ),
            (
                "max_storage_buffers_per_shader_stage",
                storage as u64,
                limits.max_storage_buffers_per_shader_stage,
            ),
        ] {
            if required > u64::from(available) {
                return Err(PlanError::LimitExceeded {
                    what: kernel.name.to_owned(),
                    limit,
                    required,
                    available: available.into(),
                });
            }
        }
        Ok(())
    }
}
