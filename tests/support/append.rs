//! Caches in buffers of a test's own, appended to by kernels and by the definition.

use super::random::Random;
use half::{bf16, f16};
use wgpu_attention::reference::{self, Appended};
use wgpu_attention::{
    Append, AppendInputs, Attention, DType, Download, Rotary, Strides, Tensors, wgpu,
};

/// What unused bytes of a cache hold: NaN, of whatever type it is.
pub(crate) const UNUSED: u8 = 0xff;

/// A device and what runs on it.
#[derive(Clone, Copy)]
pub(crate) struct On<'a> {
    pub(crate) device: &'a wgpu::Device,
    pub(crate) queue: &'a wgpu::Queue,
    pub(crate) attention: &'a Attention,
}

impl On<'_> {
    pub(crate) fn buffer(&self, bytes: &[u8]) -> wgpu::Buffer {
        use wgpu::util::DeviceExt as _;
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(4), UNUSED);
        self.device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents: &bytes,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        })
    }

    /// What is in buffers after `record`.
    pub(crate) fn read_after<const N: usize>(
        &self,
        record: impl FnOnce(&mut wgpu::CommandEncoder),
        buffers: [&wgpu::Buffer; N],
    ) -> [Vec<u8>; N] {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        record(&mut encoder);
        let downloads =
            buffers.map(|buffer| Download::encode(self.device, &mut encoder, buffer.slice(..)));
        self.queue.submit([encoder.finish()]);
        self.device.poll(wgpu::PollType::wait_indefinitely()).expect("a device");
        downloads.map(|download| pollster::block_on(download.read()).expect("data"))
    }
}

/// Numbers as a type stores them, in bytes: of types that rows may have.
pub(crate) fn stored(data: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => data.iter().flat_map(|x| x.to_ne_bytes()).collect(),
        DType::F16 => data.iter().flat_map(|x| f16::from_f32(*x).to_ne_bytes()).collect(),
        DType::BF16 => data.iter().flat_map(|x| bf16::from_f32(*x).to_ne_bytes()).collect(),
        other => panic!("rows are never {other:?}"),
    }
}

/// What a row's type makes of its numbers.
pub(crate) fn rounded(data: &[f32], dtype: DType) -> Vec<f32> {
    let bytes = stored(data, dtype);
    (0..data.len()).map(|i| Element::of(&bytes, dtype, i).value).collect()
}

/// An element as it is stored: its value, how far from the right one it may be relatively, and by how much at least.
pub(crate) struct Element {
    pub(crate) value: f32,
    pub(crate) bound: [f64; 2],
    /// Whether its bytes were never written.
    pub(crate) unused: bool,
}

impl Element {
    /// Element `i` of bytes, by the definition of its type.
    pub(crate) fn of(bytes: &[u8], dtype: DType, i: usize) -> Self {
        let half = |at: usize| f16::from_ne_bytes([bytes[at], bytes[at + 1]]).to_f32();
        // Rotary embedding in f32, of numbers below 4.
        let computed = 1e-6;
        match dtype {
            DType::F32 => {
                let mine = &bytes[4 * i..][..4];
                let value = f32::from_ne_bytes(mine.try_into().expect("four"));
                Self { value, bound: [0.0, computed], unused: is_unused(mine) }
            }
            DType::F16 => {
                // A device may round its own f16 either way.
                let bound = [f64::from(f16::EPSILON), computed];
                Self { value: half(2 * i), bound, unused: is_unused(&bytes[2 * i..][..2]) }
            }
            DType::BF16 => {
                let mine = [bytes[2 * i], bytes[2 * i + 1]];
                let bound = [0.501 * f64::from(bf16::EPSILON), computed];
                let value = bf16::from_ne_bytes(mine).to_f32();
                Self { value, bound, unused: is_unused(&mine) }
            }
            DType::Q8 | DType::Q4 => {
                let size = bits(dtype) * 4;
                let (first, code) = (i / 32 * size, i % 32);
                let block = &bytes[first..][..size];
                let scale = half(first);
                let value = if dtype == DType::Q8 {
                    scale * f32::from(block[4 + code].cast_signed())
                } else {
                    let both = block[4 + code / 2];
                    let code = if code % 2 == 0 { both & 15 } else { both >> 4 };
                    half(first + 2) + scale * f32::from(code)
                };
                let bound = [2e-7, 0.5001 * f64::from(scale) + computed];
                Self { value, bound, unused: is_unused(block) }
            }
            other => panic!("no test of {other:?}"),
        }
    }
}

/// Bits of an element.
pub(crate) fn bits(dtype: DType) -> usize {
    usize::try_from(dtype.bits()).expect("small")
}

fn is_unused(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == UNUSED)
}

/// An append and what it is of.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) append: Append,
    pub(crate) k_new: Vec<f32>,
    pub(crate) v_new: Vec<f32>,
    pub(crate) kv_lens: Vec<u32>,
    pub(crate) new_lens: Vec<u32>,
    /// What a counted append finds; empty is 0.
    pub(crate) earlier: Vec<u32>,
    pub(crate) block_table: Vec<u32>,
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
    /// Elements before a tensor in its buffer, or words where it is of blocks.
    pub(crate) first: usize,
}

/// What is in the caller's buffers afterwards.
pub(crate) struct Ran {
    pub(crate) k: Vec<u8>,
    pub(crate) v: Vec<u8>,
    pub(crate) kv_lens: Vec<u32>,
    pub(crate) status: Vec<u32>,
}

pub(crate) fn extent(strides: Strides, [batch, heads, len, dim]: [u32; 4]) -> usize {
    let last = |n: u32, stride: u64| u64::from(n.saturating_sub(1)) * stride;
    let elements = last(batch, strides.batch)
        + last(heads, strides.head)
        + last(len, strides.row)
        + u64::from(dim);
    if batch == 0 || len == 0 { 0 } else { usize::try_from(elements).expect("small") }
}

impl Case {
    /// Random rows; of a cache in pages, these in random order, of which the table names those alone that new rows of
    /// the lengths need.
    pub(crate) fn new(append: Append, kv_lens: &[u32]) -> Self {
        let mut random = Random::new(7);
        let mut data = |n: usize| (0..n).map(|_| random.unit() * 3.0).collect::<Vec<_>>();
        let Append { batch, kv_heads, new_len, head_dim, v_head_dim, .. } = append;
        let k_new = data(extent(append.k_new, [batch, kv_heads, new_len, head_dim]));
        let v_new = data(extent(append.v_new, [batch, kv_heads, new_len, v_head_dim]));
        let (cos, sin) = append.rotary.map(|rotary| tables(&rotary)).unwrap_or_default();
        let mut block_table = Vec::new();
        if let Some(pages) = append.pages {
            let mut order = Random::new(11).permutation(pages.pages).into_iter();
            for kv_len in kv_lens {
                let first = if append.counted { kv_len - new_len } else { *kv_len };
                let needed =
                    first / pages.page_len..first.saturating_add(new_len).div_ceil(pages.page_len);
                let entries = (0..append.capacity.div_ceil(pages.page_len))
                    .map(|entry| needed.contains(&entry).then(|| order.next().expect("a page")));
                block_table.extend(entries.map(|page| page.unwrap_or(u32::MAX)));
            }
        }
        let (kv_lens, new_lens) = (kv_lens.to_vec(), Vec::new());
        let earlier = Vec::new();
        Self { append, k_new, v_new, kv_lens, new_lens, earlier, block_table, cos, sin, first: 0 }
    }

    pub(crate) fn inputs<'a>(&'a self, k: &'a [f32], v: &'a [f32]) -> AppendInputs<'a> {
        let Self { k_new, v_new, kv_lens, new_lens, earlier, block_table, cos, sin, .. } = self;
        let append_status = earlier;
        AppendInputs { k_new, v_new, k, v, kv_lens, new_lens, append_status, block_table, cos, sin }
    }

    /// Elements of both caches.
    pub(crate) fn cache_lens(&self) -> [usize; 2] {
        let Append { batch, kv_heads, capacity, pages, .. } = self.append;
        let (batch, len) = pages.map_or((batch, capacity), |p| (p.pages, p.page_len));
        let append = &self.append;
        [(append.k, append.head_dim), (append.v, append.v_head_dim)]
            .map(|(strides, dim)| extent(strides, [batch, kv_heads, len, dim]))
    }

    /// The definition, so many times: NaN where nothing is written.
    pub(crate) fn expected(&self, times: usize) -> Appended {
        let [k_new, v_new] = [&self.k_new, &self.v_new].map(|x| rounded(x, self.append.dtype));
        let mut case = Self { k_new, v_new, ..self.clone() };
        let [k, v] = self.cache_lens().map(|n| vec![f32::NAN; n]);
        let mut all = reference::append(&case.append, &case.inputs(&k, &v));
        for _ in 1..times {
            case.kv_lens.clone_from(&all.kv_lens);
            let next = reference::append(&case.append, &case.inputs(&k, &v));
            let join = |all: &mut [f64], next: &[f64]| {
                for (all, next) in all.iter_mut().zip(next).filter(|(_, next)| !next.is_nan()) {
                    *all = *next;
                }
            };
            join(&mut all.k, &next.k);
            join(&mut all.v, &next.v);
            (all.kv_lens, all.status) = (next.kv_lens, next.status);
        }
        all
    }

    fn first_bytes(&self, dtype: DType) -> usize {
        self.first * if dtype.is_quantised() { 4 } else { bits(dtype) / 8 }
    }

    /// The kernels, so many times with one binding.
    pub(crate) fn run(&self, on: On<'_>, times: usize) -> Ran {
        let append = &self.append;
        let plan = on.attention.plan_append(append).unwrap_or_else(|e| panic!("{append:?}: {e}"));
        let rows = [&self.k_new, &self.v_new].map(|data| {
            let mut bytes = vec![UNUSED; self.first_bytes(append.dtype)];
            bytes.extend(stored(data, append.dtype));
            on.buffer(&bytes)
        });
        let cache_first = self.first_bytes(append.kv_dtype);
        let caches = self.cache_lens().map(|n| {
            let bytes = n * bits(append.kv_dtype) / 8;
            on.buffer(&vec![UNUSED; cache_first + bytes + 20])
        });
        let words = |data: &[u32]| {
            let all = [vec![u32::MAX; self.first], data.to_vec()].concat();
            on.buffer(bytemuck::cast_slice(&all))
        };
        let small = [&self.kv_lens, &self.new_lens, &self.block_table].map(|data| words(data));
        let [kv_lens, new_lens, table] = &small;
        let mut found = vec![if append.counted { 0 } else { u32::MAX }; self.kv_lens.len()];
        found[..self.earlier.len()].copy_from_slice(&self.earlier);
        let status = words(&found);
        let angles = [&self.cos, &self.sin].map(|data| {
            let bits: Vec<u32> = data.iter().map(|x| x.to_bits()).collect();
            words(&bits)
        });
        let first = self.first as u64 * 4;
        let rows_first = self.first_bytes(append.dtype) as u64;
        let mut tensors = Tensors::default()
            .k_new(rows[0].slice(rows_first..))
            .v_new(rows[1].slice(rows_first..))
            .k(caches[0].slice(cache_first as u64..))
            .v(caches[1].slice(cache_first as u64..))
            .kv_lens(kv_lens.slice(first..))
            .append_status(status.slice(first..));
        if append.new_lens {
            tensors = tensors.new_lens(new_lens.slice(first..));
        }
        if append.pages.is_some() {
            tensors = tensors.block_table(table.slice(first..));
        }
        if append.rotary.is_some() {
            tensors = tensors.cos(angles[0].slice(first..)).sin(angles[1].slice(first..));
        }
        let dispatch =
            on.attention.bind(&plan, &tensors).unwrap_or_else(|e| panic!("{e}: {append:?}"));
        let record = |encoder: &mut wgpu::CommandEncoder| {
            (0..times).for_each(|_| dispatch.encode(encoder));
        };
        let read = [&caches[0], &caches[1], kv_lens, &status];
        let [k, v, kv_lens, status] = on.read_after(record, read);
        let numbers =
            |bytes: &[u8]| bytemuck::pod_collect_to_vec::<_, u32>(bytes)[self.first..].to_vec();
        Ran { k, v, kv_lens: numbers(&kv_lens), status: numbers(&status) }
    }

    /// That every element is what it should be, and every other byte what it was.
    pub(crate) fn compare(&self, ran: &Ran, expected: &Appended) -> Result<(), String> {
        if ran.kv_lens != expected.kv_lens || ran.status != expected.status {
            let (lens, status) = (&expected.kv_lens, &expected.status);
            return Err(format!(
                "lengths {:?}, not {lens:?}; status {:?}, not {status:?}",
                ran.kv_lens, ran.status
            ));
        }
        let dtype = self.append.kv_dtype;
        let first = self.first_bytes(dtype);
        for (name, bytes, want) in [("k", &ran.k, &expected.k), ("v", &ran.v, &expected.v)] {
            let end = first + want.len() * bits(dtype) / 8;
            if !is_unused(&bytes[..first]) || !is_unused(&bytes[end..]) {
                return Err(format!("bytes around {name} are written"));
            }
            let bytes = &bytes[first..end];
            for (i, want) in want.iter().enumerate() {
                let Element { value, bound: [relative, least], unused } =
                    Element::of(bytes, dtype, i);
                if want.is_nan() != unused {
                    return Err(format!("{name}[{i}] is {value}, not {want}"));
                }
                let off = (f64::from(value) - want).abs();
                let most = relative * want.abs() + least;
                if !want.is_nan() && (off > most || !value.is_finite()) {
                    return Err(format!("{name}[{i}] is {value}, not {want}: {off:e} > {most:e}"));
                }
            }
            if dtype.is_quantised() {
                check_scales(bytes, dtype, want).map_err(|wrong| format!("{name}: {wrong}"))?;
            }
        }
        Ok(())
    }

    /// # Panics
    /// If the kernels do something else than the definition.
    pub(crate) fn is_right(&self, on: On<'_>) {
        self.is_right_after(on, 1);
    }

    /// # Panics
    /// If the kernels do something else than the definition.
    pub(crate) fn is_right_after(&self, on: On<'_>, times: usize) {
        let ran = self.run(on, times);
        if let Err(wrong) = self.compare(&ran, &self.expected(times)) {
            panic!("{wrong}: {times} times {:?} of {:?}", self.append, self.kv_lens);
        }
    }
}

/// That every block has the scale it needs, so that codes reach its ends, and none larger: half of it bounds the error.
fn check_scales(bytes: &[u8], dtype: DType, want: &[f64]) -> Result<(), String> {
    let blocks = bytes.chunks_exact(bits(dtype) * 4);
    for (block, want) in blocks.zip(want.chunks(32)).filter(|(_, want)| !want[0].is_nan()) {
        let scale = f64::from(f16::from_ne_bytes([block[0], block[1]]).to_f32());
        let largest = want.iter().fold(f64::MIN, |a, b| a.max(*b));
        let smallest = want.iter().fold(f64::MAX, |a, b| a.min(*b));
        let up = 1.0 + f64::from(f16::EPSILON);
        let most = if dtype == DType::Q8 {
            largest.abs().max(smallest.abs()) / 127.0 * up
        } else {
            (largest - smallest + smallest.abs() * f64::from(f16::EPSILON)) / 15.0 * up
        };
        let minimum = f64::from(f16::from_ne_bytes([block[2], block[3]]).to_f32());
        let (reach, ends) = if dtype == DType::Q8 {
            (127.0 * scale, largest.abs().max(smallest.abs()))
        } else {
            (15.0 * scale, largest - minimum)
        };
        let beyond = 2e-7 * largest.abs() + 1e-6;
        if scale > most + 1e-6 || reach < ends - beyond {
            return Err(format!("a scale is {scale}, not {most} or a little less"));
        }
        if dtype == DType::Q4 && minimum > smallest + beyond {
            return Err(format!("a minimum is {minimum}, above {smallest}"));
        }
    }
    Ok(())
}

/// Angles that no two pairs or positions share.
pub(crate) fn tables(rotary: &Rotary) -> (Vec<f32>, Vec<f32>) {
    rotary.tables(20.0)
}
