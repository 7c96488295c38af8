//! Matrix units: which ones a device has, which inputs they may take, and when the planner takes them.

use crate::device::{Capabilities, DeviceClass};
use crate::kernels::{Features, FlashCoop, Fragments, Kernel, Product, Scores};
use crate::problem::Problem;
use crate::shape::DType;
use crate::tuning::{Flash, Tuning};

/// Which inputs may be rounded to f16 for the sake of matrix units. f16 always goes there as it is; where no matrix
/// kernel can be had, inputs are taken as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MatrixInputs {
    /// None.
    #[default]
    AsStored,
    /// bf16, whose digits f16 has: for values up to 65504, and not so small that f16 loses them (below 2^-14 it loses
    /// digits, below 2^-25 all). Larger values make the rows that see them infinite or NaN.
    Bf16AsF16,
    /// f32 and bf16, each as the sum of two f16: 22 bits instead of 24, at a third of the speed. The range is that of
    /// f16, as above.
    Split,
}

/// A kind of kernel on matrix units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MatrixKernel {
    /// The matrix products of the staged kernels.
    Products,
    /// The fused kernel.
    Fused,
    /// The matrix products, of inputs split in two.
    SplitProducts,
    /// The fused kernel, of inputs split in two.
    SplitFused,
}

impl MatrixKernel {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Products, Self::Fused, Self::SplitProducts, Self::SplitFused];

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Kinds of kernels on matrix units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MatrixKernels(u8);

impl MatrixKernels {
    /// Whether this kind is among them.
    pub fn contains(self, kernel: MatrixKernel) -> bool {
        self.0 & kernel.bit() != 0
    }

    /// With this kind.
    #[must_use]
    pub fn with(self, kernel: MatrixKernel) -> Self {
        Self(self.0 | kernel.bit())
    }
}

/// The matrix units of a device: square cooperative matrices with f16 inputs and f32 sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Matrices {
    /// Rows and columns of a matrix: 8 or 16.
    pub size: u32,
    /// Lanes of the largest subgroup: how many invocations four of them have.
    pub subgroup_size: u32,
    /// What the planner may choose: nothing, before [`Attention::self_test`](crate::Attention::self_test).
    pub unlocked: MatrixKernels,
}

impl Matrices {
    /// Matrices of a size that shaders of this crate can use.
    ///
    /// # Panics
    /// If the size is neither 8 nor 16.
    pub fn new(size: u32, subgroup_size: u32) -> Self {
        assert!(matches!(size, 8 | 16), "matrices of {size} rows");
        Self { size, subgroup_size, unlocked: MatrixKernels::default() }
    }

    /// What the device's shaders may use of the adapter's; `None` without the features they need.
    pub(crate) fn of(adapter: &wgpu::Adapter, device: &wgpu::Device) -> Option<Self> {
        if !device.features().contains(FEATURES) {
            return None;
        }
        let sums = wgpu::CooperativeScalarType::F32;
        let halves = wgpu::CooperativeScalarType::F16;
        let sizes = adapter.cooperative_matrix_properties().into_iter().filter_map(|matrix| {
            let square = matrix.m_size == matrix.n_size && matrix.n_size == matrix.k_size;
            let types = matrix.ab_type == halves && matrix.cr_type == sums;
            (square && types && matches!(matrix.m_size, 8 | 16)).then_some(matrix.m_size)
        });
        let size = sizes.max()?;
        let info = adapter.get_info();
        // Metal says at most 64, and has 32.
        let most = if info.backend == wgpu::Backend::Metal { 32 } else { 64 };
        Some(Self::new(size, info.subgroup_max_size.clamp(4, most)))
    }
}

/// What kernels on matrix units need of a device.
pub(crate) const FEATURES: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::SUBGROUP);

impl Tuning {
    /// With the matrix kernels that are unlocked and have room, where the problem's inputs may go there.
    pub(crate) fn with_matrices(
        mut self,
        capabilities: &Capabilities,
        problem: &Problem,
        features: &Features,
    ) -> Self {
        let Some(matrices) = capabilities.matrices else { return self };
        // A software GPU has no matrix units: lavapipe takes 4 times as long for the fused kernel, 3 for the products.
        if capabilities.class == DeviceClass::Software {
            return self;
        }
        let Some(split) = needs_split(problem) else { return self };
        let Matrices { size, subgroup_size, unlocked } = matrices;
        let fragments = Fragments { size, subgroup_size, split };
        let (products, fused) = if split {
            (MatrixKernel::SplitProducts, MatrixKernel::SplitFused)
        } else {
            (MatrixKernel::Products, MatrixKernel::Fused)
        };
        let has_room = |kernel: Kernel| capabilities.fit(&kernel).is_ok();
        let (head_dim, v_head_dim) = (problem.shape.head_dim, problem.shape.v_head_dim);
        let product = Product::Coop(fragments);
        let vec4 = false;
        if unlocked.contains(products)
            && has_room(Scores { features, product, head_dim, vec4 }.into())
        {
            self.product = product;
        }
        // A block mask may have been made before matrix kernels were unlocked, for other tiles.
        if unlocked.contains(fused)
            && !problem.block_mask
            && head_dim.max(v_head_dim) <= fragments.widest()
            && has_room(
                FlashCoop { features, head_dim, v_head_dim, fragments, ranges: true, vec4 }.into(),
            )
        {
            self.flash = Flash::Coop(fragments);
        }
        self
    }
}

/// Whether inputs go to matrix units in two parts; `None` where they must not go there.
fn needs_split(problem: &Problem) -> Option<bool> {
    let parts = |dtype| match (dtype, problem.matrix_inputs) {
        (DType::F16, _) | (DType::BF16, MatrixInputs::Bf16AsF16) => Some(false),
        (_, MatrixInputs::Split) => Some(true),
        _ => None,
    };
    Some(parts(problem.dtype)? | parts(problem.kv_dtype)?)
}
