//! Tensors of a safetensors file, as numbers.

use crate::Result;
use crate::keys::Keys;
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use wgpu_attention::DType;

/// What an input file holds.
pub(crate) struct Contents {
    pub(crate) q: Tensor<f32>,
    /// Keys: a sequence's own, those of a pool's pages, or those of a cache.
    pub(crate) k: Tensor<f32>,
    /// Values, in the same way.
    pub(crate) v: Tensor<f32>,
    pub(crate) keys: Keys,
    pub(crate) mask: Option<Tensor<bool>>,
    pub(crate) bias: Option<Tensor<f32>>,
    pub(crate) alibi_slopes: Option<Tensor<f32>>,
    pub(crate) sinks: Option<Tensor<f32>>,
    pub(crate) diag_offset: Option<Tensor<i32>>,
    pub(crate) q_lens: Option<Tensor<u32>>,
    pub(crate) kv_lens: Option<Tensor<u32>>,
    pub(crate) cu_seqlens_q: Option<Tensor<u32>>,
    pub(crate) cu_seqlens_k: Option<Tensor<u32>>,
    pub(crate) keep: Option<Tensor<bool>>,
    pub(crate) cos: Option<Tensor<f32>>,
    pub(crate) sin: Option<Tensor<f32>>,
    /// Gradient of out.
    pub(crate) d_out: Option<Tensor<f32>>,
    /// Gradient of lse.
    pub(crate) d_lse: Option<Tensor<f32>>,
}

/// A tensor in host memory.
pub(crate) struct Tensor<T> {
    pub(crate) name: &'static str,
    pub(crate) shape: Vec<u32>,
    /// As the file stores it.
    pub(crate) dtype: Dtype,
    pub(crate) data: Vec<T>,
}

/// Name, axes and data of a tensor to write.
pub(crate) type Written = (&'static str, Vec<usize>, Vec<f32>);

/// What a file may hold wherever its keys and values come from.
const READ: [&str; 15] = [
    "q",
    "mask",
    "bias",
    "alibi_slopes",
    "sinks",
    "diag_offset",
    "q_lens",
    "kv_lens",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "keep",
    "cos",
    "sin",
    "d_out",
    "d_lse",
];

pub(crate) const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

impl Contents {
    pub(crate) fn read(file: &SafeTensors<'_>) -> Result<Self> {
        let names = names(file);
        for name in &names {
            if !READ.contains(name) && !Keys::has(name) {
                return Err(format!("tensor {name} is unknown"));
            }
        }
        let (k, v, keys) = Keys::read(file, &names)?;
        let floats = |name, types| Tensor::read(file, name, types, float_values);
        let integers = |name| Tensor::read(file, name, &[Dtype::I32], integer_values);
        let counts = |name| integers(name)?.map(Tensor::counts).transpose();
        Ok(Self {
            q: Tensor::needed(file, "q", &FLOATS, float_values)?,
            k,
            v,
            mask: Tensor::read(file, "mask", &[Dtype::BOOL, Dtype::U8], truth_values)?,
            bias: floats("bias", &FLOATS)?,
            alibi_slopes: floats("alibi_slopes", &[Dtype::F32])?,
            sinks: floats("sinks", &[Dtype::F32])?,
            diag_offset: integers("diag_offset")?,
            q_lens: counts("q_lens")?,
            kv_lens: keys.lens(counts("kv_lens")?)?,
            cu_seqlens_q: counts("cu_seqlens_q")?,
            cu_seqlens_k: counts("cu_seqlens_k")?,
            keep: Tensor::read(file, "keep", &[Dtype::BOOL], truth_values)?,
            cos: floats("cos", &[Dtype::F32])?,
            sin: floats("sin", &[Dtype::F32])?,
            d_out: floats("d_out", &FLOATS)?,
            d_lse: floats("d_lse", &[Dtype::F32])?,
            keys,
        })
    }

    /// Rounds queries, keys, values and the gradient of out to a storage type.
    pub(crate) fn round(&mut self, dtype: DType) {
        let tensors = [&mut self.q, &mut self.k, &mut self.v].into_iter().chain(&mut self.d_out);
        for tensor in tensors {
            round(&mut tensor.data, dtype);
        }
        if let Keys::Cache(cache) = &mut self.keys {
            round(&mut cache.k_new.data, dtype);
            round(&mut cache.v_new.data, dtype);
        }
    }
}

/// Partial results, as an input file holds them in place of q, k and v.
pub(crate) struct Parts {
    pub(crate) out_parts: Tensor<f32>,
    pub(crate) lse_parts: Tensor<f32>,
}

const PARTS: [&str; 2] = ["out_parts", "lse_parts"];

impl Parts {
    /// Those of the file, if it has any.
    pub(crate) fn read(file: &SafeTensors<'_>) -> Result<Option<Self>> {
        let names = names(file);
        if !names.iter().any(|name| PARTS.contains(name)) {
            return Ok(None);
        }
        for name in names {
            if READ.contains(&name) || Keys::has(name) {
                return Err(format!("tensor {name} does not go with partial results"));
            }
            if !PARTS.contains(&name) {
                return Err(format!("tensor {name} is unknown"));
            }
        }
        let needed = |name| Tensor::needed(file, name, &[Dtype::F32], float_values);
        Ok(Some(Self { out_parts: needed("out_parts")?, lse_parts: needed("lse_parts")? }))
    }
}

/// In the same order always, whatever the file's.
fn names<'a>(file: &'a SafeTensors<'_>) -> Vec<&'a str> {
    let mut names = file.names();
    names.sort_unstable();
    names
}

/// Rounds numbers to a storage type.
pub(crate) fn round(data: &mut [f32], dtype: DType) {
    let round: fn(f32) -> f32 = match dtype {
        DType::F16 => |x| f16::from_f32(x).to_f32(),
        DType::BF16 => |x| bf16::from_f32(x).to_f32(),
        _ => return,
    };
    data.iter_mut().for_each(|x| *x = round(*x));
}

impl<T> Tensor<T> {
    /// The tensor of this name, if the file has it.
    fn read(
        file: &SafeTensors<'_>,
        name: &'static str,
        types: &[Dtype],
        values: fn(&TensorView<'_>) -> Vec<T>,
    ) -> Result<Option<Self>> {
        let Ok(view) = file.tensor(name) else { return Ok(None) };
        let dtype = view.dtype();
        if !types.contains(&dtype) {
            let types: Vec<_> = types.iter().map(Dtype::to_string).collect();
            return Err(format!("tensor {name} is {dtype}, needed is {}", types.join(" or ")));
        }
        let too_long = |_| format!("tensor {name} has shape {:?}, beyond 2^32", view.shape());
        let extent = |n: &usize| u32::try_from(*n).map_err(too_long);
        let shape = view.shape().iter().map(extent).collect::<Result<_>>()?;
        Ok(Some(Self { name, shape, dtype, data: values(&view) }))
    }

    /// As `read`, of a tensor that a file must have.
    pub(crate) fn needed(
        file: &SafeTensors<'_>,
        name: &'static str,
        types: &[Dtype],
        values: fn(&TensorView<'_>) -> Vec<T>,
    ) -> Result<Self> {
        Self::read(file, name, types, values)?.ok_or_else(|| format!("tensor {name} is missing"))
    }

    /// An error unless the shape is this one.
    pub(crate) fn check_shape(&self, needed: &[u32]) -> Result<()> {
        if self.shape == needed {
            return Ok(());
        }
        Err(format!("tensor {} has shape {:?}, needed is {needed:?}", self.name, self.shape))
    }

    /// The error that an entry of a tensor of one axis is wrong.
    pub(crate) fn wrong(&self, index: usize, needed: &str) -> String
    where
        T: std::fmt::Display,
    {
        format!("tensor {}: entry {index} is {}, needed is {needed}", self.name, self.data[index])
    }
}

impl Tensor<f32> {
    pub(crate) fn storage(&self) -> DType {
        match self.dtype {
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            _ => DType::F32,
        }
    }
}

impl Tensor<i32> {
    pub(crate) fn counts(self) -> Result<Tensor<u32>> {
        let count = |(index, n): (usize, &i32)| {
            u32::try_from(*n).map_err(|_| self.wrong(index, "at least 0"))
        };
        let data = self.data.iter().enumerate().map(count).collect::<Result<_>>()?;
        Ok(Tensor { name: self.name, shape: self.shape, dtype: self.dtype, data })
    }
}

pub(crate) fn float_values(view: &TensorView<'_>) -> Vec<f32> {
    let halves = || view.data().as_chunks::<2>().0.iter().copied();
    match view.dtype() {
        Dtype::F16 => halves().map(|bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
        Dtype::BF16 => halves().map(|bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
        _ => view.data().as_chunks().0.iter().copied().map(f32::from_le_bytes).collect(),
    }
}

pub(crate) fn integer_values(view: &TensorView<'_>) -> Vec<i32> {
    view.data().as_chunks().0.iter().copied().map(i32::from_le_bytes).collect()
}

fn truth_values(view: &TensorView<'_>) -> Vec<bool> {
    view.data().iter().map(|byte| *byte != 0).collect()
}

/// Writes all of a file or nothing of it.
pub(crate) fn write(path: &str, tensors: &[(&str, Vec<usize>, Vec<f32>)]) -> Result<()> {
    let bytes: Vec<(&str, Vec<usize>, Vec<u8>)> = (tensors.iter())
        .map(|(name, shape, data)| {
            (*name, shape.clone(), data.iter().flat_map(|x| x.to_le_bytes()).collect())
        })
        .collect();
    let views = (bytes.iter())
        .map(|(name, shape, data)| {
            Ok((
                *name,
                TensorView::new(Dtype::F32, shape.clone(), data).map_err(|e| e.to_string())?,
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    let file = safetensors::serialize(views, None).map_err(|error| format!("{path}: {error}"))?;
    let partial = format!("{path}.partial");
    let written = std::fs::write(&partial, file).and_then(|()| std::fs::rename(&partial, path));
    written.map_err(|error| {
        // Whatever stands there is not worth keeping, and may not be there at all.
        let _ = std::fs::remove_file(&partial);
        format!("{path}: {error}")
    })
}
