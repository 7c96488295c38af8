//! One module a kernel family: what it binds, what is compiled into it.

use crate::shader::Source;
use std::fmt::Write as _;

mod flash;
mod linear;
mod merge;
mod params;
mod staged;

pub(crate) use flash::{FlashLane, FlashTile};
pub(crate) use linear::{Linear, LinearParams};
pub(crate) use merge::{Fill, Merge};
pub use params::Field;
pub(crate) use params::{AttentionParams, params};
pub(crate) use staged::{Product, Scores, Softmax, Values};

/// How WGSL declares a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Access {
    /// `var<uniform>`.
    Uniform,
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    ReadWrite,
}

/// A buffer that a kernel binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Binding {
    /// Its name in WGSL. The params field `NAME_base` takes the first element's index.
    pub name: &'static str,
    /// What the kernel does with it.
    pub access: Access,
    /// Type of an element, or of the whole for a uniform.
    pub element: &'static str,
}

impl Binding {
    /// The uniform that every kernel has first.
    pub(crate) const PARAMS: Self =
        Self { name: "params", access: Access::Uniform, element: "Params" };

    /// f32 that is read four at a time where it may be.
    pub(crate) fn read(name: &'static str, vec4: bool) -> Self {
        Self { name, access: Access::Read, element: if vec4 { "vec4<f32>" } else { "f32" } }
    }

    /// f32 that is written, four at a time where it may be.
    pub(crate) fn write(name: &'static str, vec4: bool) -> Self {
        Self { access: Access::ReadWrite, ..Self::read(name, vec4) }
    }

    /// Bytes of one element of a storage binding.
    pub(crate) fn element_bytes(&self) -> u64 {
        if self.element == "vec4<f32>" { 16 } else { 4 }
    }
}

/// One WGSL entry point with everything that is compiled into it.
///
/// A value, not a trait: equal values share a compiled pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Kernel {
    /// Name of the file under `shaders/kernels`, and the `wgpu` label; the entry point is `NAME_kernel`.
    pub name: &'static str,
    /// Constants and files.
    pub source: Source,
    /// Bindings; the position is the `@binding` index. The first is the uniform.
    pub bindings: Vec<Binding>,
    /// Fields of the params struct, as the host lays them out.
    pub fields: &'static [Field],
    /// Invocations of a workgroup.
    pub workgroup_size: u32,
    /// Bytes of `var<workgroup>`; `wgpu` 30 does not check these, the planner does.
    pub workgroup_bytes: u32,
}

impl Kernel {
    /// The whole WGSL text.
    pub fn wgsl(&self) -> String {
        self.source.text(&self.declarations())
    }

    /// The entry point.
    pub fn entry_point(&self) -> String {
        format!("{}_kernel", self.name)
    }

    /// Its name and what tells it from its variants: constants and files, in one word.
    pub fn label(&self) -> String {
        format!("{}.{}", self.name, self.source.variant())
    }

    /// Which file and line a 1-based line of [`wgsl`](Self::wgsl) came from.
    pub fn locate(&self, line: usize) -> (String, usize) {
        let declarations = self.declarations();
        let (path, line) = self.source.locate(&declarations, line);
        (path.to_owned(), line)
    }

    /// The declarations of its bindings: made from the list that bind groups are made from.
    fn declarations(&self) -> String {
        let mut text = String::new();
        for (index, Binding { name, access, element }) in self.bindings.iter().enumerate() {
            let _ = match access {
                Access::Uniform => {
                    writeln!(text, "@group(0) @binding({index}) var<uniform> {name}: {element};")
                }
                Access::Read => writeln!(
                    text,
                    "@group(0) @binding({index}) var<storage, read> {name}: array<{element}>;"
                ),
                Access::ReadWrite => writeln!(
                    text,
                    "@group(0) @binding({index}) var<storage, read_write> {name}: array<{element}>;"
                ),
            };
        }
        text
    }

    /// Whether some storage binding is read or written four elements at a time.
    pub(crate) fn is_vec4(&self) -> bool {
        self.bindings.iter().any(|binding| binding.element == "vec4<f32>")
    }
}

/// Every kernel variant that the planner can choose for a device class, at some sizes that stand for all: what
/// the tests without a GPU and `compile_all` go through.
pub fn all(class: crate::DeviceClass) -> Vec<Kernel> {
    let tuning = crate::tuning::Tuning::of(class);
    let mut kernels: Vec<Kernel> = Vec::new();
    kernels.extend(staged::variants(&tuning));
    kernels.extend(flash::variants(&tuning));
    kernels.extend(linear::variants(&tuning));
    kernels.extend(merge::variants(&tuning));
    kernels
}
