//! What a plan may rely on.

use crate::error::PlanError;
use crate::kernels::{Access, Kernel};
use crate::matrices::{self, Matrices};

/// What kind of machine executes the kernels: tiles are chosen by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceClass {
    /// A GPU that is none of those below.
    Hardware,
    /// A GPU of NVIDIA's.
    Nvidia,
    /// A GPU of AMD's with subgroups of 32: RDNA.
    AmdRdna,
    /// A GPU of AMD's with subgroups of 64 alone: GCN.
    AmdGcn,
    /// A GPU of Intel's.
    Intel,
    /// A GPU of Apple's.
    Apple,
    /// A GPU of Qualcomm's.
    Adreno,
    /// A GPU of ARM's.
    Mali,
    /// A software GPU such as lavapipe or SwiftShader: a CPU runs the kernels.
    Software,
}

impl DeviceClass {
    /// Every class.
    pub const ALL: [Self; 9] = [
        Self::Hardware,
        Self::Nvidia,
        Self::AmdRdna,
        Self::AmdGcn,
        Self::Intel,
        Self::Apple,
        Self::Adreno,
        Self::Mali,
        Self::Software,
    ];

    /// By PCI vendor, or by name where a back end tells no vendor.
    fn of(info: &wgpu::AdapterInfo) -> Self {
        if info.device_type == wgpu::DeviceType::Cpu {
            return Self::Software;
        }
        let is = |vendor: u32, names: &[&str]| {
            info.vendor == vendor || names.iter().any(|name| info.name.contains(name))
        };
        if is(0x106b, &["Apple"]) {
            Self::Apple
        } else if is(0x10de, &["NVIDIA", "GeForce", "Quadro"]) {
            Self::Nvidia
        } else if is(0x1002, &["AMD", "Radeon"]) {
            if info.subgroup_min_size == 64 { Self::AmdGcn } else { Self::AmdRdna }
        } else if is(0x8086, &["Intel"]) {
            Self::Intel
        } else if is(0x5143, &["Adreno"]) {
            Self::Adreno
        } else if is(0x13b5, &["Mali", "Immortalis"]) {
            Self::Mali
        } else {
            Self::Hardware
        }
    }
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
    /// The least invocations of a subgroup, where shaders may use subgroups; 0 where not.
    pub subgroup_size: u32,
    /// About how many cores (compute units, multiprocessors) there are: keys are split so that none is idle.
    pub cores: u32,
    /// The compiler wants loops left as they are: SwiftShader's takes gigabytes for long texts.
    pub rolled: bool,
    /// Matrix units, where [`Attention::with_adapter`](crate::Attention::with_adapter) found that shaders may use them.
    pub matrices: Option<Matrices>,
}

impl Capabilities {
    /// Reads them off a device.
    pub fn of(device: &wgpu::Device) -> Self {
        let info = device.adapter_info();
        let class = DeviceClass::of(&info);
        let f16 = device.features().contains(wgpu::Features::SHADER_F16);
        let rolled = info.name.contains("SwiftShader");
        let subgroups = device.features().contains(wgpu::Features::SUBGROUP);
        let subgroup_size = if subgroups { info.subgroup_min_size } else { 0 };
        let cores = cores_of(info.device_type);
        Self { limits: device.limits(), class, f16, subgroup_size, cores, rolled, matrices: None }
    }

    /// What every WebGPU device offers.
    pub fn portable() -> Self {
        Self {
            limits: wgpu::Limits::default(),
            class: DeviceClass::Hardware,
            f16: false,
            subgroup_size: 0,
            cores: cores_of(wgpu::DeviceType::Other),
            rolled: false,
            matrices: None,
        }
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

    /// The same, with subgroups of at least so many invocations; 0: with none.
    #[must_use]
    pub fn with_subgroups(self, subgroup_size: u32) -> Self {
        Self { subgroup_size, ..self }
    }

    /// The same, with about so many cores.
    #[must_use]
    pub fn with_cores(self, cores: u32) -> Self {
        Self { cores, ..self }
    }

    /// The same, with or without matrix units.
    #[must_use]
    pub fn with_matrices(self, matrices: Option<Matrices>) -> Self {
        Self { matrices, ..self }
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
        if kernel.needs_matrices() && self.matrices.is_none() {
            return Err(PlanError::NotSupported {
                what: "cooperative matrices of the device's own",
            });
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

/// No interface says how many: those of a common GPU of the type, or the threads that a software GPU runs on.
fn cores_of(device_type: wgpu::DeviceType) -> u32 {
    match device_type {
        wgpu::DeviceType::IntegratedGpu => 16,
        wgpu::DeviceType::DiscreteGpu | wgpu::DeviceType::VirtualGpu => 64,
        wgpu::DeviceType::Cpu => {
            let threads = std::thread::available_parallelism().map_or(4, usize::from);
            u32::try_from(threads).unwrap_or(u32::MAX).clamp(1, 256)
        }
        wgpu::DeviceType::Other => 32,
    }
}

/// A device with everything that makes attention fast on this adapter and nothing experimental: the adapter's own
/// limits, and of the features f16, timestamps, subgroups and the pipeline cache those that it has.
pub fn device_descriptor(adapter: &wgpu::Adapter) -> wgpu::DeviceDescriptor<'static> {
    let useful = wgpu::Features::SHADER_F16
        | wgpu::Features::TIMESTAMP_QUERY
        | wgpu::Features::SUBGROUP
        | wgpu::Features::PIPELINE_CACHE;
    wgpu::DeviceDescriptor {
        label: Some("attention"),
        required_features: adapter.features() & useful,
        required_limits: adapter.limits(),
        ..Default::default()
    }
}

/// The same device with cooperative matrices, where the adapter has them and what goes with them; else as it was.
///
/// On Vulkan, all shaders of such a device get the Vulkan memory model, the application's own too.
///
/// # Safety
/// wgpu calls the feature experimental: it may have bugs that are undefined behaviour. See
/// [`wgpu::ExperimentalFeatures::enabled`].
#[allow(unsafe_code, reason = "passed on to the caller")]
pub unsafe fn with_cooperative_matrices<'a>(
    descriptor: wgpu::DeviceDescriptor<'a>,
    adapter: &wgpu::Adapter,
) -> wgpu::DeviceDescriptor<'a> {
    if !adapter.features().contains(matrices::FEATURES) {
        return descriptor;
    }
    wgpu::DeviceDescriptor {
        required_features: descriptor.required_features | matrices::FEATURES,
        // SAFETY: the caller vouches for it.
        experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
        ..descriptor
    }
}
