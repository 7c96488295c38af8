//! Every kernel variant of every device class, written in what each back end of wgpu compiles: SPIR-V, MSL,
//! HLSL and GLSL, by naga with the options that wgpu gives it. No GPU is needed.
//!
//! Where `WGPU_ATTENTION_SHADERS` names a folder, the texts are written there: `ci/shaders` has other compilers
//! read them.

use naga::back::{glsl, hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{
    Capabilities, ModuleInfo, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator,
};
use naga::{ResourceBinding, ShaderStage};
use std::collections::HashSet;
use std::fmt::{Debug, Write as _};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use wgpu_attention::kernels::{self, Access, Kernel};
use wgpu_attention::{DeviceClass, Matrices};

/// What wgpu 30 derives naga's options from.
#[derive(Clone, Copy)]
struct Device {
    name: &'static str,
    /// `Checks::On` of this crate: wgpu's run-time checks and zeroed workgroup memory.
    checks: bool,
    /// The version of Vulkan decides: 1.0 has SPIR-V 1.0, 1.3 has 1.6.
    spirv: (u8, u8),
    /// Vulkan 1.3 has it.
    zeroes_memory: bool,
    /// `VK_EXT_robustness2`: wgpu leaves the bounds of buffers to it.
    robust_buffers: bool,
    /// The version of macOS decides: 12 has MSL 2.4, 26 has 4.0.
    metal: (u8, u8),
}

const OLD: Device = Device {
    name: "old",
    checks: false,
    spirv: (1, 0),
    zeroes_memory: false,
    robust_buffers: false,
    metal: (2, 4),
};
const NEW: Device = Device {
    name: "new",
    checks: false,
    spirv: (1, 6),
    zeroes_memory: true,
    robust_buffers: true,
    metal: (4, 0),
};
const DEVICES: [Device; 4] = [
    OLD,
    NEW,
    Device { name: "old_checked", checks: true, ..OLD },
    Device { name: "new_checked", checks: true, ..NEW },
];

/// A valid kernel.
struct Parsed<'a> {
    kernel: &'a Kernel,
    text: String,
    module: naga::Module,
    info: ModuleInfo,
}

/// Every kernel, those with the same text once.
fn all() -> Vec<Kernel> {
    let mut seen = HashSet::new();
    DeviceClass::ALL
        .into_iter()
        .flat_map(|class| [false, true].map(|f16| (class, f16)))
        .map(|(class, f16)| {
            // The two go together: what has both has each.
            let portable = wgpu_attention::Capabilities::portable().with_class(class);
            portable.with_f16(f16).with_subgroups(if f16 { 16 } else { 0 })
        })
        .flat_map(|capabilities| {
            // 16 as NVIDIA's and AMD's GPUs have it, 8 as Apple's and software have it.
            let (size, subgroup_size) = match capabilities.class {
                DeviceClass::Hardware => (16, 32),
                DeviceClass::Apple => (8, 32),
                _ => (8, 8),
            };
            let matrices = capabilities.f16.then(|| Matrices::new(size, subgroup_size));
            kernels::all(&capabilities.with_matrices(matrices))
        })
        .filter(|kernel| seen.insert(kernel.wgsl()))
        .collect()
}

impl<'a> Parsed<'a> {
    fn of(kernel: &'a Kernel) -> Self {
        let text = kernel.wgsl();
        let fail = |line: Option<u32>, message: String| -> ! {
            let (file, line) = kernel.locate(line.map_or(1, |line| line as usize));
            panic!("{} at {file}:{line}: {message}", kernel.label())
        };
        let module = naga::front::wgsl::parse_str(&text).unwrap_or_else(|error| {
            fail(error.location(&text).map(|at| at.line_number), error.emit_to_string(&text))
        });
        // What wgpu allows on a device with the features that the kernel asks for.
        let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        capabilities.set(Capabilities::SHADER_FLOAT16, has_f16(&text));
        capabilities.set(Capabilities::SUBGROUP, has_subgroups(&text));
        let of_matrices = Capabilities::COOPERATIVE_MATRIX | Capabilities::SUBGROUP;
        if kernel.needs_matrices() {
            capabilities |= of_matrices;
        }
        let info = Validator::new(ValidationFlags::all(), capabilities)
            .subgroup_stages(ShaderStages::COMPUTE)
            .subgroup_operations(SubgroupOperationSet::all())
            .validate(&module)
            .unwrap_or_else(|error| {
                fail(error.location(&text).map(|at| at.line_number), error.emit_to_string(&text))
            });
        // Otherwise wgpu would reduce the module to one entry point and put values for overrides first.
        assert!(
            module.entry_points.len() == 1 && module.overrides.is_empty(),
            "{}",
            kernel.label()
        );
        Self { kernel, text, module, info }
    }

    /// A writer's error. It says no line: the entry point's is given.
    fn fail(&self, language: &str, device: &str, error: &dyn Debug) -> ! {
        let entry = format!("fn {}(", self.kernel.entry_point());
        let line = self.text.lines().position(|line| line.starts_with(&entry)).unwrap_or(0) + 1;
        let (file, line) = self.kernel.locate(line);
        panic!("{} at {file}:{line}: {language} for {device}: {error:?}", self.kernel.label())
    }

    /// The bindings, each with its access and its position among those for which `same` holds.
    fn bindings(&self, same: fn(Access, Access) -> bool) -> Vec<(ResourceBinding, Access, usize)> {
        let bindings = &self.kernel.bindings;
        (0..)
            .zip(bindings)
            .map(|(binding, &kernels::Binding { access, .. })| {
                let before = &bindings[..binding as usize];
                let slot = before.iter().filter(|other| same(other.access, access)).count();
                (ResourceBinding { group: 0, binding }, access, slot)
            })
            .collect()
    }

    /// As wgpu-hal's vulkan/adapter.rs and vulkan/device.rs.
    fn spirv(&self, device: Device) -> Vec<u32> {
        // Capabilities that every device has and that a feature adds.
        let mut capabilities = vec![
            spv::Capability::Shader,
            spv::Capability::Matrix,
            spv::Capability::Sampled1D,
            spv::Capability::Image1D,
            spv::Capability::ImageQuery,
            spv::Capability::DerivativeControl,
            spv::Capability::StorageImageExtendedFormats,
        ];
        if has_f16(&self.text) {
            capabilities.push(spv::Capability::Float16);
        }
        if has_subgroups(&self.text) {
            capabilities.extend([
                spv::Capability::GroupNonUniform,
                spv::Capability::GroupNonUniformVote,
                spv::Capability::GroupNonUniformArithmetic,
                spv::Capability::GroupNonUniformBallot,
                spv::Capability::GroupNonUniformShuffle,
                spv::Capability::GroupNonUniformShuffleRelative,
                spv::Capability::GroupNonUniformQuad,
            ]);
        }
        let matrices = self.kernel.needs_matrices();
        if matrices {
            capabilities.push(spv::Capability::GroupNonUniform);
            capabilities.push(spv::Capability::CooperativeMatrixKHR);
            capabilities.push(spv::Capability::VulkanMemoryModel);
        }
        let (restrict, unchecked) = (BoundsCheckPolicy::Restrict, BoundsCheckPolicy::Unchecked);
        let options = spv::Options {
            lang_version: device.spirv,
            // wgpu adds the names in debug builds only: here they make messages readable.
            flags: spv::WriterFlags::DEBUG
                | spv::WriterFlags::LABEL_VARYINGS
                | spv::WriterFlags::FORCE_POINT_SIZE,
            fake_missing_bindings: false,
            binding_map: (self.bindings(|_, _| true).into_iter())
                .map(|(resource, ..)| {
                    let ResourceBinding { group, binding } = resource;
                    let info = spv::BindingInfo {
                        descriptor_set: group,
                        binding,
                        binding_array_size: None,
                    };
                    (resource, info)
                })
                .collect(),
            capabilities: Some(capabilities.into_iter().collect()),
            bounds_check_policies: BoundsCheckPolicies {
                index: if device.checks { restrict } else { unchecked },
                buffer: if device.checks && !device.robust_buffers { restrict } else { unchecked },
                image_load: unchecked,
                binding_array: unchecked,
            },
            zero_initialize_workgroup_memory: match (device.checks, device.zeroes_memory) {
                (false, _) => spv::ZeroInitializeWorkgroupMemoryMode::None,
                (true, false) => spv::ZeroInitializeWorkgroupMemoryMode::Polyfill,
                (true, true) => spv::ZeroInitializeWorkgroupMemoryMode::Native,
            },
            force_loop_bounding: device.checks,
            ray_query_initialization_tracking: device.checks,
            mesh_shader_primitive_indices_clamp: device.checks,
            emit_int_div_checks: device.checks,
            ..Default::default()
        };
        let pipeline = spv::PipelineOptions {
            entry_point: self.kernel.entry_point(),
            shader_stage: ShaderStage::Compute,
        };
        spv::write_vec(&self.module, &self.info, &options, Some(&pipeline))
            .unwrap_or_else(|error| self.fail("SPIR-V", device.name, &error))
    }

    /// As wgpu-hal's metal/device.rs.
    fn msl(&self, device: Device) -> String {
        let entry = self.kernel.entry_point();
        let bindings = self.bindings(|_, _| true);
        let resources = msl::EntryPointResources {
            immediates_buffer: None,
            sizes_buffer: u8::try_from(bindings.len()).ok(),
            resources: (bindings.into_iter())
                .map(|(resource, access, slot)| {
                    let target = msl::BindTarget {
                        buffer: u8::try_from(slot).ok(),
                        mutable: access == Access::ReadWrite,
                        ..Default::default()
                    };
                    (resource, target)
                })
                .collect(),
        };
        let policy =
            if device.checks { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked };
        let options = msl::Options {
            lang_version: device.metal,
            per_entry_point_map: [(entry.clone(), resources)].into(),
            inline_samplers: Vec::new(),
            spirv_cross_compatibility: false,
            fake_missing_bindings: false,
            bounds_check_policies: BoundsCheckPolicies {
                index: policy,
                buffer: policy,
                image_load: policy,
                binding_array: BoundsCheckPolicy::Unchecked,
            },
            zero_initialize_workgroup_memory: device.checks,
            force_loop_bounding: device.checks,
            task_dispatch_limits: None,
            mesh_shader_primitive_indices_clamp: device.checks,
            emit_int_div_checks: device.checks,
            ray_query_initialization_tracking: device.checks,
        };
        let pipeline = msl::PipelineOptions {
            entry_point: Some((ShaderStage::Compute, entry)),
            allow_and_force_point_size: false,
            vertex_pulling_transform: true,
            ..Default::default()
        };
        let (text, reflected) = msl::write_string(&self.module, &self.info, &options, &pipeline)
            .unwrap_or_else(|error| self.fail("MSL", device.name, &error));
        for name in reflected.entry_point_names {
            name.unwrap_or_else(|error| self.fail("MSL", device.name, &error));
        }
        text
    }

    /// As wgpu-hal's dx12/device.rs: the text and the entry point's name in it.
    fn hlsl(&self, device: Device) -> (String, String) {
        // Each kind of register is counted for itself: b, t, u.
        let bindings = self.bindings(|a, b| a == b);
        let uniforms = bindings.iter().filter(|(_, access, _)| *access == Access::Uniform).count();
        let register = |register: usize| hlsl::BindTarget {
            register: u32::try_from(register).expect("a few"),
            ..Default::default()
        };
        let options = hlsl::Options {
            // The first that has it.
            shader_model: match has_f16(&self.text) {
                true => hlsl::ShaderModel::V6_2,
                false => hlsl::ShaderModel::V6_0,
            },
            binding_map: (bindings.into_iter())
                .map(|(resource, _, slot)| (resource, register(slot)))
                .collect(),
            fake_missing_bindings: false,
            special_constants_binding: Some(register(uniforms)),
            immediates_target: None,
            zero_initialize_workgroup_memory: device.checks,
            restrict_indexing: device.checks,
            force_loop_bounding: device.checks,
            task_dispatch_limits: None,
            mesh_shader_primitive_indices_clamp: device.checks,
            ray_query_initialization_tracking: device.checks,
            ..Default::default()
        };
        let pipeline = hlsl::PipelineOptions {
            entry_point: Some((ShaderStage::Compute, self.kernel.entry_point())),
        };
        let mut text = String::new();
        let mut reflected = hlsl::Writer::new(&mut text, &options, &pipeline)
            .write(&self.module, &self.info, None)
            .unwrap_or_else(|error| self.fail("HLSL", device.name, &error));
        let entry = (reflected.entry_point_names.pop().expect("one"))
            .unwrap_or_else(|error| self.fail("HLSL", device.name, &error));
        (text, entry)
    }

    /// As wgpu-hal's gles/device.rs.
    fn glsl(&self, device: Device) -> String {
        // Uniforms are counted for themselves.
        let bindings = self.bindings(|a, b| (a == Access::Uniform) == (b == Access::Uniform));
        let options = glsl::Options {
            version: glsl::Version::new_gles(310),
            writer_flags: glsl::WriterFlags::ADJUST_COORDINATE_SPACE
                | glsl::WriterFlags::FORCE_POINT_SIZE,
            binding_map: (bindings.into_iter())
                .map(|(resource, _, slot)| (resource, u8::try_from(slot).expect("a few")))
                .collect(),
            zero_initialize_workgroup_memory: device.checks,
        };
        let pipeline = glsl::PipelineOptions {
            shader_stage: ShaderStage::Compute,
            entry_point: self.kernel.entry_point(),
            multiview: None,
        };
        let unchecked = BoundsCheckPolicies::default();
        let mut text = String::new();
        glsl::Writer::new(&mut text, &self.module, &self.info, &options, &pipeline, unchecked)
            .and_then(|mut writer| writer.write())
            .unwrap_or_else(|error| self.fail("GLSL", device.name, &error));
        text
    }
}

/// Whether a kernel needs the device's own f16.
fn has_f16(text: &str) -> bool {
    text.starts_with("enable f16;")
}

/// Whether a kernel needs subgroups: nothing in WGSL as naga reads it enables them.
fn has_subgroups(text: &str) -> bool {
    text.contains("@builtin(subgroup_")
}

/// Writes `NUMBER.EXTENSION` in a folder of its own for what a compiler must be told.
fn save(root: &Path, folder: &str, file: &str, bytes: &[u8]) {
    let folder = root.join(folder);
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join(file), bytes).expect("a file");
}

/// Writes a kernel in every language, and the texts below `root`; says how many.
fn write(number: usize, kernel: &Kernel, root: Option<&Path>) -> usize {
    let parsed = Parsed::of(kernel);
    let mut count = 0;
    let mut keep = |folder: &str, extension: &str, bytes: &[u8]| {
        count += 1;
        if let Some(root) = root {
            save(root, folder, &format!("{number:04}.{extension}"), bytes);
        }
    };
    for device in DEVICES {
        let name = device.name;
        // Subgroups came with Vulkan 1.1, and what distributions have of spirv-val does not know cooperative matrices:
        // they get a folder of their own.
        let matrices = kernel.needs_matrices();
        if device.spirv >= (1, 3) || !(matrices || has_subgroups(&parsed.text)) {
            let words = parsed.spirv(device);
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let folder = if matrices { "spirv_with_matrices" } else { "spirv" };
            keep(&format!("{folder}/{name}"), "spv", &bytes);
        }
        keep(&format!("msl/{name}"), "metal", parsed.msl(device).as_bytes());
    }
    // HLSL and GLSL have no cooperative matrices, naga's writers refuse them, and wgpu offers them on no such device: the
    // planner then has no such kernel.
    if kernel.needs_matrices() {
        return count;
    }
    // Here a device's age decides nothing.
    for device in DEVICES.into_iter().filter(|device| device.name.starts_with("new")) {
        let name = device.name;
        let (text, entry) = parsed.hlsl(device);
        let f16 = if has_f16(&parsed.text) { "f16" } else { "f32" };
        keep(&format!("hlsl/{name}/{f16}/{entry}"), "hlsl", text.as_bytes());
        // OpenGL ES has no type f16 and no subgroups, naga's writer refuses them, and wgpu offers neither on such a
        // device: the planner then has no such kernel.
        if !has_f16(&parsed.text) && !has_subgroups(&parsed.text) {
            keep(&format!("glsl/{name}"), "comp", parsed.glsl(device).as_bytes());
        }
    }
    count
}

#[test]
fn every_kernel_is_written_for_every_back_end() {
    let root = std::env::var_os("WGPU_ATTENTION_SHADERS").map(PathBuf::from);
    let kernels = all();
    assert!(kernels.len() > 100, "{} variants", kernels.len());
    if let Some(root) = &root {
        fs::create_dir_all(root).expect("a folder");
        let mut list = String::new();
        for (number, kernel) in kernels.iter().enumerate() {
            let _ = writeln!(list, "{number:04} {}", kernel.label());
        }
        fs::write(root.join("kernels.txt"), list).expect("a file");
    }
    let (next, count) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let work = || {
            while let Some((number, kernel)) = {
                let number = next.fetch_add(1, Ordering::Relaxed);
                kernels.get(number).map(|kernel| (number, kernel))
            } {
                let texts = write(number, kernel, root.as_deref());
                count.fetch_add(texts, Ordering::Relaxed);
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            if let Err(panic) = worker.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    let (kernels, count) = (kernels.len(), count.into_inner());
    assert!(count >= 8 * kernels, "{count} texts of {kernels} kernels");
}
