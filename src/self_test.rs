//! Matrix kernels against plain ones, on the device itself: the ones that agree are unlocked.

use crate::attention::Attention;
use crate::device::DeviceClass;
use crate::download::Download;
use crate::error::Error;
use crate::mask::Mask;
use crate::matrices::{Matrices, MatrixInputs, MatrixKernel, MatrixKernels};
use crate::plan::{Algorithm, Plan};
use crate::problem::Problem;
use crate::shape::{DType, Shape};
use crate::tensors::Tensors;
use crate::upload::upload;
use std::fmt;

/// Which matrix kernels agreed with the plain ones on a device: to be printed, kept, and given to
/// [`Attention::load_self_test`] when the program starts again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelfTest {
    device: String,
    agreeing: MatrixKernels,
}

impl SelfTest {
    /// The kernels that agreed.
    pub fn agreeing(&self) -> MatrixKernels {
        self.agreeing
    }

    /// What makes a record another device's: adapter, driver, and this crate's version.
    fn device_of(device: &wgpu::Device) -> String {
        let info = device.adapter_info();
        let wgpu::AdapterInfo { name, vendor, device, backend, driver, driver_info, .. } = info;
        let version = env!("CARGO_PKG_VERSION");
        let text =
            format!("{version} {backend} {vendor:x}:{device:x} {name} {driver} {driver_info}");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Reads a record back.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let device = lines.next()?.strip_prefix(DEVICE)?.trim().to_owned();
        let words: Vec<_> = lines.next()?.strip_prefix(AGREE)?.split_whitespace().collect();
        let mut agreeing = MatrixKernels::default();
        for word in words {
            agreeing = agreeing.with(MatrixKernel::ALL.into_iter().find(|k| k.name() == word)?);
        }
        Some(Self { device, agreeing })
    }
}

const DEVICE: &str = "wgpu-attention self test: ";
const AGREE: &str = "agree: ";

/// Two lines.
impl fmt::Display for SelfTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let agreeing =
            MatrixKernel::ALL.into_iter().filter(|kernel| self.agreeing.contains(*kernel));
        let names: Vec<_> = agreeing.map(MatrixKernel::name).collect();
        writeln!(f, "{DEVICE}{}\n{AGREE}{}", self.device, names.join(" "))
    }
}

impl Attention {
    /// Runs the matrix kernels that the device could use against the plain ones, and has the planner choose those that
    /// agree from here on: plans made before stay as they are. A few milliseconds of work and some kernels to compile;
    /// without matrices, nothing. Blocks.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Download`]: the results could not be read. What a kernel does wrong is no error:
    /// it stays locked.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn self_test(&mut self, queue: &wgpu::Queue) -> Result<SelfTest, Error> {
        let device = self.device().clone();
        let mut test = std::pin::pin!(self.test(queue, &|_| {}, false));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        loop {
            if let std::task::Poll::Ready(result) = test.as_mut().poll(&mut context) {
                return result;
            }
            (device.poll(wgpu::PollType::wait_indefinitely()))
                .map_err(|error| Error::DeviceLost(error.to_string()))?;
        }
    }

    /// As `self_test`, without blocking.
    ///
    /// # Errors
    /// As there.
    pub async fn self_test_async(&mut self, queue: &wgpu::Queue) -> Result<SelfTest, Error> {
        self.test(queue, &|_| {}, true).await
    }

    /// Unlocks the kernels of a record that [`self_test`](Self::self_test) returned, as text, and says whether it was
    /// of this adapter, driver and version: another is ignored, with a line in the log.
    pub fn load_self_test(&mut self, text: &str) -> bool {
        let device = SelfTest::device_of(self.device());
        match SelfTest::parse(text) {
            Some(record) if record.device == device => {
                self.unlock(record.agreeing);
                true
            }
            Some(record) => {
                log::info!("self test of another device ignored: {}, not {device}", record.device);
                false
            }
            None => {
                log::info!("no record of a self test: ignored");
                false
            }
        }
    }

    fn unlock(&mut self, unlocked: MatrixKernels) {
        if let Some(matrices) = self.capabilities().matrices {
            self.set_matrices(Some(Matrices { unlocked, ..matrices }));
        }
    }

    /// `spoil` may change what the matrix kernels are told, to see them fail; `polls`: somebody has to poll.
    async fn test(
        &mut self,
        queue: &wgpu::Queue,
        spoil: &dyn Fn(&mut Plan),
        polls: bool,
    ) -> Result<SelfTest, Error> {
        let mut agreeing = MatrixKernels::default();
        self.unlock(agreeing);
        if self.capabilities().matrices.is_some() {
            for kernel in MatrixKernel::ALL {
                if self.agrees(queue, kernel, spoil, polls).await? {
                    agreeing = agreeing.with(kernel);
                }
            }
        }
        self.unlock(agreeing);
        Ok(SelfTest { device: SelfTest::device_of(self.device()), agreeing })
    }

    async fn agrees(
        &self,
        queue: &wgpu::Queue,
        kernel: MatrixKernel,
        spoil: &dyn Fn(&mut Plan),
        polls: bool,
    ) -> Result<bool, Error> {
        // To a software GPU's planner they are not worth it.
        let mut unlocked = self.clone().with_class(DeviceClass::Hardware);
        unlocked.unlock(MatrixKernels::default().with(kernel));
        for problem in problems(kernel) {
            let algorithm = kernel.algorithm();
            let plain = self.plan_with(&problem, algorithm);
            let matrix = unlocked.plan_with(&problem, algorithm);
            let (Ok(plain), Ok(mut matrix)) = (plain, matrix) else { return Ok(false) };
            if !matrix.steps.iter().any(|step| step.kernel.needs_matrices()) {
                log::debug!("{kernel:?}: no room for {}", problem.shape.head_dim);
                return Ok(false);
            }
            spoil(&mut matrix);
            let device = self.device();
            let scopes = [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation]
                .map(|filter| device.push_error_scope(filter));
            let downloads = self.run_both(queue, &problem, [&plain, &matrix]);
            let [internal, validation] = scopes;
            let caught = [validation.pop(), internal.pop()];
            #[cfg(not(target_arch = "wasm32"))]
            if polls {
                let device = device.clone();
                std::thread::spawn(move || device.poll(wgpu::PollType::wait_indefinitely()));
            }
            #[cfg(target_arch = "wasm32")]
            let _ = polls;
            for caught in caught {
                if let Some(error) = caught.await {
                    log::warn!("{kernel:?} stays locked: {error}");
                    return Ok(false);
                }
            }
            let mut results = Vec::new();
            for download in downloads? {
                results.push(download.read::<f32>().await?);
            }
            let [plain, matrix] = [0, 1].map(|i| results[2 * i..][..2].concat());
            let (most, off) = (kernel.tolerance(), difference(&plain, &matrix));
            log::debug!("{kernel:?}: off by {off:e}, of at most {most:e}");
            if off > most {
                log::warn!("{kernel:?} stays locked: off by {off:e} from the plain kernel");
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Both plans over the same inputs: out and lse of each.
    fn run_both(
        &self,
        queue: &wgpu::Queue,
        problem: &Problem,
        plans: [&Plan; 2],
    ) -> Result<Vec<Download>, Error> {
        let device = self.device();
        let s = problem.shape;
        let words = |rows: u32, dim: u32| (s.batch * rows * dim) as usize;
        let storage = wgpu::BufferUsages::STORAGE;
        let mut random = Random(7);
        let mut input =
            |name, count| upload(device, name, &random.bytes(problem.dtype, count), storage);
        let q = input("q", words(s.heads * s.q_len, s.head_dim));
        let k = input("k", words(s.kv_heads * s.kv_len, s.head_dim));
        let v = input("v", words(s.kv_heads * s.kv_len, s.v_head_dim));
        let mut encoder = device.create_command_encoder(&Default::default());
        let mut downloads = Vec::new();
        for plan in plans {
            let output = |label, elements: u64| {
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some(label),
                    size: elements * 4,
                    usage: storage | wgpu::BufferUsages::COPY_SRC,
                    mapped_at_creation: false,
                })
            };
            let rows = words(s.heads, s.q_len) as u64;
            let (out, lse) = (output("out", rows * u64::from(s.v_head_dim)), output("lse", rows));
            let tensors = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..))
                .lse(lse.slice(..));
            self.bind(plan, &tensors)?.encode(&mut encoder);
            for buffer in [&out, &lse] {
                downloads.push(Download::encode(device, &mut encoder, buffer.slice(..)));
            }
        }
        queue.submit([encoder.finish()]);
        Ok(downloads)
    }
}

impl MatrixKernel {
    fn name(self) -> &'static str {
        match self {
            Self::Products => "products",
            Self::Fused => "fused",
            Self::SplitProducts => "split-products",
            Self::SplitFused => "split-fused",
        }
    }

    fn is_split(self) -> bool {
        matches!(self, Self::SplitProducts | Self::SplitFused)
    }

    fn algorithm(self) -> Algorithm {
        match self {
            Self::Products | Self::SplitProducts => Algorithm::Staged,
            Self::Fused | Self::SplitFused => Algorithm::Flash,
        }
    }

    /// Values are at most 1: weights are rounded to 11 bits, or to 22, of which sums of 64 products leave some.
    fn tolerance(self) -> f32 {
        if self.is_split() { 1e-4 } else { 1e-3 }
    }
}

/// Tails along every axis, grouped heads, the masks' edges; scores of which some keys take most.
fn problems(kernel: MatrixKernel) -> [Problem; 3] {
    let shape = |q_len, kv_len, dim| Shape::cross_attention(1, 2, q_len, kv_len, dim);
    let widest = if kernel.is_split() { 64 } else { 128 };
    [
        Problem::new(shape(70, 150, 64)),
        Problem::new(shape(133, 133, widest).with_kv_heads(1)).mask(Mask::CAUSAL),
        Problem::new(shape(37, 101, 40).with_v_head_dim(24)).mask(Mask::window(30)).scale(2.0),
    ]
    .map(|problem| {
        let problem = problem.with_lse();
        if kernel.is_split() {
            return problem.matrix_inputs(MatrixInputs::Split);
        }
        problem.dtype(DType::F16).out_dtype(DType::F32)
    })
}

/// The largest difference of two elements; infinite where one is no number.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    off.map(|off| if off.is_nan() { f32::INFINITY } else { off }).fold(0.0, f32::max)
}

/// Numbers between -1 and 1 that look random.
struct Random(u32);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }

    fn bytes(&mut self, dtype: DType, count: usize) -> Vec<u8> {
        if dtype == DType::F32 {
            #[allow(clippy::cast_precision_loss, reason = "24 bits")]
            let unit = |bits: u32| bits as f32 / 8_388_608.0 - 1.0;
            return (0..count).flat_map(|_| unit(self.next()).to_ne_bytes()).collect();
        }
        // A sign, and an exponent and digits of numbers from 2^-4 to 1.
        let bits = |x: u32| u16::try_from((x & 0x8000) | (0x2c00 + (x & 0xfff))).expect("16 bits");
        let mut bytes: Vec<u8> = (0..count).flat_map(|_| bits(self.next()).to_ne_bytes()).collect();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_a_gpu() -> (Attention, wgpu::Queue) {
        let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
        let mut attention = Attention::new(&device);
        attention.set_matrices(Some(Matrices::new(16, 32)));
        (attention, queue)
    }

    fn unlocked(attention: &Attention) -> MatrixKernels {
        attention.capabilities().matrices.expect("set").unlocked
    }

    #[test]
    fn a_record_is_read_back() {
        let agreeing = MatrixKernels::default().with(MatrixKernel::Fused);
        for agreeing in [agreeing, MatrixKernels::default(), agreeing.with(MatrixKernel::Products)]
        {
            let device = SelfTest::device_of(without_a_gpu().0.device());
            let record = SelfTest { device, agreeing };
            assert_eq!(SelfTest::parse(&record.to_string()), Some(record.clone()));
            let (mut attention, _) = without_a_gpu();
            assert!(attention.load_self_test(&record.to_string()));
            assert_eq!(unlocked(&attention), agreeing);
        }
    }

    #[test]
    fn foreign_and_broken_records_unlock_nothing() {
        let device = SelfTest::device_of(without_a_gpu().0.device());
        let agreeing = MatrixKernels::default().with(MatrixKernel::Fused);
        let record = SelfTest { device: device.clone(), agreeing }.to_string();
        let foreign = SelfTest { device: format!("{device} another driver"), agreeing }.to_string();
        let older = record.replace(env!("CARGO_PKG_VERSION"), "0.0.1");
        let unknown = record.replace("fused", "fast");
        let cut = record.lines().next().expect("a line").to_owned();
        for text in [foreign, older, unknown, cut, String::new()] {
            let (mut attention, _) = without_a_gpu();
            assert!(!attention.load_self_test(&text), "{text}");
            assert_eq!(unlocked(&attention), MatrixKernels::default(), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_far_off() {
        assert_eq!(difference(&[1.0, f32::NAN], &[1.0, 0.0]), f32::INFINITY);
        assert_eq!(difference(&[1.0, -2.0], &[1.0, 1.0]), 3.0);
    }

    /// A plan of the planner's own choice has a matrix kernel after the test only, and never where it disagrees.
    #[cfg(feature = "vulkan")]
    #[test]
    fn kernels_that_disagree_stay_locked() {
        use crate::device::{device_descriptor, with_cooperative_matrices};
        use crate::kernels::AttentionParams;
        let instance =
            wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
        let adapter = adapters.first().expect("a GPU or a software GPU");
        // SAFETY: this crate's own shaders.
        #[allow(unsafe_code, reason = "cooperative matrices are experimental")]
        let descriptor = unsafe { with_cooperative_matrices(device_descriptor(adapter), adapter) };
        let (device, queue) =
            pollster::block_on(adapter.request_device(&descriptor)).expect("a device");
        let mut attention = Attention::with_adapter(adapter, &device);
        // One key less than there are.
        let spoil = |plan: &mut Plan| {
            for step in plan.steps.iter_mut().filter(|step| step.kernel.needs_matrices()) {
                let mut params: AttentionParams = bytemuck::pod_read_unaligned(&step.params);
                params.kv_len -= 1;
                step.params = bytemuck::bytes_of(&params).to_vec();
            }
        };
        let record = pollster::block_on(attention.test(&queue, &spoil, true)).expect("results");
        assert_eq!(record.agreeing(), MatrixKernels::default());
        let problem = Problem::new(Shape::self_attention(1, 2, 70, 32)).dtype(DType::F16);
        let plan = attention.clone().with_class(DeviceClass::Hardware).plan(&problem);
        let plan = plan.expect("a plan");
        assert!(!plan.steps.iter().any(|step| step.kernel.needs_matrices()));
        if attention.capabilities().matrices.is_none() {
            assert!(std::env::var_os("WGPU_ATTENTION_MATRICES").is_none(), "no matrices");
        }
    }
}
