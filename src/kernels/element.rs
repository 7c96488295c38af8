//! Storage types as shaders see them: how a tensor is declared, loaded and stored.

use super::{Access, Binding};
use crate::shader::{File, file};
use crate::shape::DType;
use std::borrow::Cow;

/// A storage type as shaders see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    F32,
    /// The device's own f16.
    F16,
    /// f16, two of a 32-bit word.
    PackedF16,
    /// bf16, two of a 32-bit word.
    PackedBf16,
    /// Blocks of i8.
    Q8,
    /// Blocks of four bits.
    Q4,
}

impl Element {
    /// `native`: the device has f16 of its own.
    pub(crate) fn of(dtype: DType, native: bool) -> Self {
        match dtype {
            DType::F32 => Self::F32,
            DType::F16 if native => Self::F16,
            DType::F16 => Self::PackedF16,
            DType::BF16 => Self::PackedBf16,
            DType::Q8 => Self::Q8,
            DType::Q4 => Self::Q4,
        }
    }

    /// What WGSL converts a result to.
    pub(super) fn alias(self) -> &'static str {
        if self == Self::F16 { "f16" } else { "f32" }
    }

    pub(super) fn bits(self) -> u32 {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::PackedF16 | Self::PackedBf16 => 16,
            Self::Q8 => 9,
            Self::Q4 => 5,
        }
    }

    fn binding(self, name: &'static str, access: Access, vec4: bool) -> Binding {
        let element = match (self, vec4, access) {
            (Self::F32, true, _) => "vec4<f32>",
            (Self::F32, false, _) => "f32",
            (Self::F16, true, _) => "vec4<f16>",
            (Self::F16, false, _) => "f16",
            (Self::PackedF16 | Self::PackedBf16, true, _) => "vec2<u32>",
            // Neighbours share a word: their writers must not undo one another.
            (Self::PackedF16 | Self::PackedBf16, false, Access::ReadWrite) => "atomic<u32>",
            (Self::PackedF16 | Self::PackedBf16, false, _) | (Self::Q8 | Self::Q4, ..) => "u32",
        };
        Binding { name: Cow::Borrowed(name), access, element, bits: self.bits() }
    }

    /// An input, read four elements at a time where it may be, and the files that load it.
    pub(super) fn read(self, name: &'static str, vec4: bool) -> (Binding, Vec<File>) {
        let unpack = match self {
            Self::Q8 => {
                return (
                    self.binding(name, Access::Read, vec4),
                    vec![file!("load/q8.wgsl").of(name)],
                );
            }
            Self::Q4 => {
                return (
                    self.binding(name, Access::Read, vec4),
                    vec![file!("load/q4.wgsl").of(name)],
                );
            }
            Self::F32 | Self::F16 => None,
            Self::PackedF16 => Some(file!("load/unpack_f16.wgsl").of(name)),
            Self::PackedBf16 => Some(file!("load/unpack_bf16.wgsl").of(name)),
        };
        let load = match (unpack.is_some(), vec4) {
            (false, false) => file!("load/scalar.wgsl"),
            (false, true) => file!("load/vec4.wgsl"),
            (true, false) => file!("load/half_scalar.wgsl"),
            (true, true) => file!("load/half_vec4.wgsl"),
        };
        let files = unpack.into_iter().chain([load.of(name)]).collect();
        (self.binding(name, Access::Read, vec4), files)
    }

    /// `out`, written four elements at a time where it may be, or in whole blocks, and the files that store it.
    pub(super) fn write_out(self, vec4: bool) -> (Binding, Vec<File>) {
        let (binding, store) = self.write("out", vec4);
        (binding, self.rounding().into_iter().chain([store]).collect())
    }

    /// An output, written as `out` is, and the file that stores it, which needs that of [`rounding`](Self::rounding).
    pub(super) fn write(self, name: &'static str, vec4: bool) -> (Binding, File) {
        let store = match (self, vec4) {
            (Self::Q8, _) => file!("store/q8.wgsl"),
            (Self::Q4, _) => file!("store/q4.wgsl"),
            (Self::F32 | Self::F16, false) => file!("store/scalar.wgsl"),
            (Self::F32 | Self::F16, true) => file!("store/vec4.wgsl"),
            (Self::PackedF16 | Self::PackedBf16, false) => file!("store/half_scalar.wgsl"),
            (Self::PackedF16 | Self::PackedBf16, true) => file!("store/half_vec4.wgsl"),
        };
        (self.binding(name, Access::ReadWrite, vec4), store.of(name))
    }

    /// What rounds an f32 to an element of 16 bits, where the device cannot.
    pub(super) fn rounding(self) -> Option<File> {
        match self {
            Self::PackedF16 => Some(file!("store/half_f16.wgsl")),
            Self::PackedBf16 => Some(file!("store/half_bf16.wgsl")),
            _ => None,
        }
    }
}
