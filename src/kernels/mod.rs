//! One module a kernel family: what it binds, what is compiled into it.

use crate::shader::Source;
use std::borrow::Cow;
use std::fmt::Write as _;

mod append;
mod backward;
mod callers;
mod coop;
mod covering;
mod decode;
mod element;
mod features;
mod flash;
mod gradients;
mod linear;
mod merge;
mod params;
mod staged;
mod tables;

pub(crate) use append::{Advance, AdvanceParams, Append, AppendParams, Rotate, RotateParams};
pub(crate) use backward::{Delta, KeyGradients, PairSums, SinkGradients, SoftmaxGradient, Summed};
pub(crate) use coop::{FlashCoop, Fragments};
pub(crate) use decode::{DecodeLane, DecodeTeam};
pub(crate) use element::Element;
pub(crate) use features::{Features, Rows, Uses};
pub(crate) use flash::{FlashLane, FlashTile};
pub(crate) use gradients::{Gradient, GradientTile, GradientsLane};
pub(crate) use linear::{
    ColumnSums, ColumnSumsParams, Linear, LinearGradient, LinearGradientParams, LinearParams,
};
pub(crate) use merge::{Convert, Fill, Merge};
pub use params::Field;
pub(crate) use params::{AttentionParams, params};
pub(crate) use staged::{Product, Scores, Softmax, Values};
pub(crate) use tables::{Classify, Gather, GatherParams, THREADS as TABLE_THREADS};

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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Binding {
    /// Its name in WGSL. The params field `NAME_base` takes the first element's index, `NAME_words` the first word's of
    /// elements in blocks; a buffer of a caller's function starts at its binding.
    pub name: Cow<'static, str>,
    /// What the kernel does with it.
    pub access: Access,
    /// Type of an element in WGSL, or of the whole for a uniform.
    pub element: &'static str,
    /// Bits of one element of the tensor, of which WGSL's may hold several; 0 of a caller's own buffer.
    pub bits: u32,
}

impl Binding {
    /// The uniform that every kernel has first.
    pub(crate) const PARAMS: Self = Self {
        name: Cow::Borrowed("params"),
        access: Access::Uniform,
        element: "Params",
        bits: 32,
    };

    /// 32-bit words that are read.
    pub(crate) const fn read(name: &'static str, element: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), access: Access::Read, element, bits: 32 }
    }

    /// 32-bit words that are written.
    pub(crate) const fn write(name: &'static str, element: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), access: Access::ReadWrite, element, bits: 32 }
    }

    /// Whether elements come in blocks that share a scale.
    pub(crate) fn is_blocks(&self) -> bool {
        !self.bits.is_power_of_two() && self.bits > 0
    }

    /// Bytes of one WGSL element of a storage binding: where it starts must be a multiple.
    pub(crate) fn element_bytes(&self) -> u64 {
        match self.element {
            "u32" if self.is_blocks() => 4,
            "vec4<f32>" => 16,
            "vec4<f16>" | "vec2<u32>" => 8,
            "f16" => 2,
            // Words of which each holds some elements: the base says which is the first.
            "u32" | "atomic<u32>" if self.bits < 32 => 1,
            _ => 4,
        }
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
        for (index, Binding { name, access, element, .. }) in self.bindings.iter().enumerate() {
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
        self.bindings.iter().any(|binding| binding.element.starts_with("vec"))
    }

    /// How many of its subgroups a core of the class is to have room for, as the class's compiler counts them: what
    /// its tile was chosen by. `None` where nothing is said.
    pub fn least_waves(&self, class: crate::DeviceClass) -> Option<u32> {
        let is_product = self.needs_matrices() && self.name != "flash_coop";
        crate::tuning::least_waves(class, if is_product { "product_coop" } else { self.name })
    }

    /// Whether every device binds so many storage buffers at once.
    fn is_portable(&self) -> bool {
        self.bindings.len() <= 1 + 8
    }

    /// Whether it needs the device's own f16.
    pub(crate) fn needs_f16(&self) -> bool {
        self.source.uses_matrices()
            || self.bindings.iter().any(|binding| binding.element.contains("f16"))
    }

    /// Whether it needs the device's cooperative matrices, and subgroups that tell who they are.
    pub fn needs_matrices(&self) -> bool {
        self.source.uses_matrices()
    }
}

/// Kernels that the planner can choose on a device, at some sizes that stand for all, in which every two features
/// that go together do: what the tests without a GPU and `compile_all` go through.
pub fn all(capabilities: &crate::Capabilities) -> Vec<Kernel> {
    let tuning = crate::tuning::Tuning::of(capabilities);
    let covering = Features::covering(capabilities.f16);
    let mut kernels: Vec<Kernel> = Vec::new();
    kernels.extend(staged::variants(&tuning, &covering));
    kernels.extend(flash::variants(&tuning, &covering, capabilities.f16));
    kernels.extend(decode::variants(&tuning, &covering));
    kernels.extend(linear::variants(&tuning));
    kernels.extend(merge::variants(&tuning, &covering, capabilities.f16));
    kernels.extend(tables::variants(&tuning, &covering));
    kernels.extend(append::variants(capabilities.f16));
    kernels.extend(backward::variants(&tuning, &covering));
    kernels.extend(gradients::variants(&tuning, &covering, capabilities.f16));
    if let Some(matrices) = capabilities.matrices {
        kernels.extend(coop::variants(matrices.size, matrices.subgroup_size, &covering));
    }
    let mut seen = std::collections::HashSet::new();
    kernels.retain(|kernel| seen.insert(kernel.clone()));
    kernels
}
