//! Every kernel variant of every device class, checked without a GPU: naga parses and validates it, and what
//! the host says of it is what the shader says.

use std::sync::LazyLock;

use naga::valid::{ValidationFlags, Validator};
use naga::{AddressSpace, StorageAccess, TypeInner};
use wgpu_attention::kernels::{self, Access, Kernel};
use wgpu_attention::{Capabilities, DeviceClass, Matrices};

/// Parsed once for all tests.
static ALL: LazyLock<Vec<(Kernel, naga::Module)>> = LazyLock::new(parse_all);

fn all() -> impl Iterator<Item = &'static (Kernel, naga::Module)> {
    ALL.iter()
}

fn parse_all() -> Vec<(Kernel, naga::Module)> {
    let kernels: Vec<_> = DeviceClass::ALL
        .into_iter()
        .flat_map(|class| [false, true].map(|f16| (class, f16)))
        .map(|(class, f16)| {
            // The two go together: what has both has each.
            Capabilities::portable().with_class(class).with_f16(f16).with_subgroups(if f16 {
                16
            } else {
                0
            })
        })
        .chain(with_matrices())
        .flat_map(|capabilities| kernels::all(&capabilities))
        .collect::<std::collections::HashSet<_>>()
        .into_iter()
        .collect();
    assert!(kernels.len() > 100, "{} variants", kernels.len());
    kernels.into_iter().map(|kernel| (kernel.clone(), parse(&kernel))).collect()
}

/// Devices with matrices, each with its size and its subgroups.
fn with_matrices() -> impl Iterator<Item = Capabilities> {
    [
        (DeviceClass::Hardware, 16, 32),
        (DeviceClass::Hardware, 16, 64),
        (DeviceClass::Apple, 8, 32),
        (DeviceClass::Software, 8, 8),
    ]
    .into_iter()
    .map(|(class, size, subgroup_size)| {
        let matrices = Some(Matrices::new(size, subgroup_size));
        Capabilities::portable().with_class(class).with_f16(true).with_matrices(matrices)
    })
}

fn parse(kernel: &Kernel) -> naga::Module {
    let text = kernel.wgsl();
    let module = naga::front::wgsl::parse_str(&text).unwrap_or_else(|error| {
        let at = error.location(&text).map(|at| kernel.locate(at.line_number as usize));
        panic!("{} at {at:?}: {}", kernel.label(), error.emit_to_string(&text))
    });
    let mut capabilities = naga::valid::Capabilities::SHADER_FLOAT16
        | naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32
        | naga::valid::Capabilities::SUBGROUP;
    capabilities.set(naga::valid::Capabilities::COOPERATIVE_MATRIX, kernel.needs_matrices());
    Validator::new(ValidationFlags::all(), capabilities)
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
        .validate(&module)
        .unwrap_or_else(|error| panic!("{}: {}", kernel.label(), error.emit_to_string(&text)));
    module
}

#[test]
fn params_have_the_fields_that_the_host_writes() {
    for (kernel, module) in all() {
        let (_, uniform) = (module.global_variables.iter())
            .find(|(_, global)| global.space == AddressSpace::Uniform)
            .expect("a uniform");
        let TypeInner::Struct { members, .. } = &module.types[uniform.ty].inner else {
            panic!("{}: the uniform is no struct", kernel.name)
        };
        let wgsl: Vec<_> = (members.iter())
            .map(|member| {
                let size = module.types[member.ty].inner.size(module.to_ctx());
                (member.name.clone().expect("a name"), member.offset, size)
            })
            .collect();
        let host: Vec<_> = (kernel.fields.iter())
            .map(|(name, offset, size)| ((*name).to_owned(), *offset, *size))
            .collect();
        assert_eq!(wgsl, host, "{}", kernel.name);
    }
}

#[test]
fn bindings_are_those_that_the_host_makes() {
    for (kernel, module) in all() {
        let mut wgsl: Vec<_> = (module.global_variables.iter())
            .filter_map(|(_, global)| {
                let access = match global.space {
                    AddressSpace::Uniform => Access::Uniform,
                    AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => {
                        Access::ReadWrite
                    }
                    AddressSpace::Storage { .. } => Access::Read,
                    _ => return None,
                };
                Some((global.binding?.binding, global.name.clone()?, access))
            })
            .collect();
        wgsl.sort_by_key(|(binding, ..)| *binding);
        let host: Vec<_> = (0..)
            .zip(&kernel.bindings)
            .map(|(index, binding)| (index, binding.name.to_string(), binding.access))
            .collect();
        assert_eq!(wgsl, host, "{}", kernel.name);
    }
}

#[test]
fn every_storage_binding_has_a_base_in_the_params() {
    for (kernel, _) in all() {
        for binding in kernel.bindings[1..].iter().filter(|binding| binding.bits > 0) {
            let base = format!("{}_base", binding.name);
            assert!(
                kernel.fields.iter().any(|(name, ..)| *name == base),
                "{}: {base}",
                kernel.name
            );
        }
    }
}

#[test]
fn at_most_eight_storage_buffers_are_bound() {
    for (kernel, _) in all() {
        assert!(kernel.bindings.len() <= 1 + 8, "{}", kernel.name);
    }
}

#[test]
fn workgroup_memory_is_what_the_planner_counts() {
    for (kernel, module) in all() {
        let bytes: u32 = (module.global_variables.iter())
            .filter(|(_, global)| global.space == AddressSpace::WorkGroup)
            .map(|(_, global)| module.types[global.ty].inner.size(module.to_ctx()))
            .sum();
        assert_eq!(bytes, kernel.workgroup_bytes, "{kernel:?}");
    }
}

#[test]
fn workgroups_are_as_large_as_the_planner_says() {
    for (kernel, module) in all() {
        let entry = (module.entry_points.iter())
            .find(|entry| entry.name == kernel.entry_point())
            .expect("the entry point is named for the kernel");
        let evaluated = module.to_ctx();
        let size = match entry.workgroup_size_overrides {
            None => entry.workgroup_size,
            Some(_) => panic!("{}: {evaluated:?}", kernel.name),
        };
        assert_eq!(size, [kernel.workgroup_size, 1, 1], "{kernel:?}");
    }
}

#[test]
fn every_portable_device_has_room_for_every_kernel() {
    let limits = wgpu::Limits::default();
    for (kernel, _) in all() {
        // What has matrices has 32 KiB.
        let most = if kernel.needs_matrices() {
            32 << 10
        } else {
            limits.max_compute_workgroup_storage_size
        };
        assert!(kernel.workgroup_bytes <= most, "{kernel:?}");
        assert!(
            kernel.workgroup_size <= limits.max_compute_invocations_per_workgroup,
            "{kernel:?}"
        );
    }
}

#[test]
fn lines_are_located_in_their_files() {
    let mut located = 0;
    for (kernel, _) in all() {
        let text = kernel.wgsl();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| line.starts_with("fn ")) {
            let (path, at) = kernel.locate(number);
            let Ok(file) = std::fs::read_to_string(format!("shaders/{path}")) else {
                assert!(path.starts_with('('), "{path}");
                continue;
            };
            let original = file.lines().nth(at - 1).expect("a line");
            // A file that serves several tensors has their names in it.
            assert!(original.starts_with("fn "), "{path}:{at}: {line} is not {original}");
            located += 1;
        }
    }
    assert!(located > 1000, "{located} functions");
}

#[test]
fn every_wgsl_file_says_what_it_is() {
    let mut count = 0;
    for folder in std::fs::read_dir("shaders").expect("shaders") {
        for file in std::fs::read_dir(folder.expect("a folder").path()).expect("a folder") {
            let path = file.expect("a file").path();
            let text = std::fs::read_to_string(&path).expect("text");
            for fact in ["// Expects: ", "// Provides: "] {
                assert!(text.contains(fact), "{} lacks {fact}", path.display());
            }
            count += 1;
        }
    }
    assert!(count > 15, "{count} files");
}

#[test]
fn matrix_kernels_are_those_of_every_size() {
    for size in ["coop_mat8x8", "coop_mat16x16"] {
        for name in ["scores", "values", "flash_coop"] {
            let is_one = |kernel: &Kernel| kernel.name == name && kernel.wgsl().contains(size);
            assert!(all().any(|(kernel, _)| is_one(kernel)), "{name} with {size}");
        }
    }
}
