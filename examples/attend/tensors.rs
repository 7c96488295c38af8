//! Tensors of a safetensors file, as f32.

use crate::Result;
use crate::options::unsupported;
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// What an input file holds.
pub(crate) struct Contents {
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
    /// The storage type of q in the file.
    pub(crate) q_dtype: Dtype,
    pub(crate) diag_offset: Option<Vec<i32>>,
}

/// `[batch, .., .., dim]`.
pub(crate) struct Tensor {
    pub(crate) shape: [u32; 4],
    pub(crate) data: Vec<f32>,
}

/// Tensors that a file may hold, but nothing reads yet.
const LATER: [&str; 24] = [
    "mask",
    "bias",
    "alibi_slopes",
    "sinks",
    "q_lens",
    "kv_lens",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "k_pages",
    "v_pages",
    "block_table",
    "k_cache",
    "v_cache",
    "cache_lens",
    "k_new",
    "v_new",
    "cos",
    "sin",
    "d_out",
    "d_lse",
    "keep",
    "out_parts",
    "lse_parts",
    "d_bias",
];

impl Contents {
    pub(crate) fn read(path: &str) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| format!("{path}: {error}"))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| format!("{path}: {error}"))?;
        let mut names = file.names();
        names.sort_unstable();
        for name in names {
            if LATER.contains(&name) {
                return Err(unsupported(&format!("tensor {name}")));
            }
            if !["q", "k", "v", "diag_offset"].contains(&name) {
                return Err(format!("tensor {name} is unknown"));
            }
        }
        let get = |name: &str| file.tensor(name).map_err(|_| format!("tensor {name} is missing"));
        let offsets = file.tensor("diag_offset").ok();
        Ok(Self {
            q: Tensor::of("q", &get("q")?)?,
            k: Tensor::of("k", &get("k")?)?,
            v: Tensor::of("v", &get("v")?)?,
            q_dtype: get("q")?.dtype(),
            diag_offset: offsets.map(|view| integers("diag_offset", &view)).transpose()?,
        })
    }
}

impl Tensor {
    fn of(name: &str, view: &TensorView<'_>) -> Result<Self> {
        let wrong = || format!("tensor {name} has shape {:?}, needed are 4 axes", view.shape());
        let shape: Vec<u32> = (view.shape().iter())
            .map(|&n| u32::try_from(n).map_err(|_| wrong()))
            .collect::<Result<_>>()?;
        let shape = shape.try_into().map_err(|_| wrong())?;
        let halves = || view.data().as_chunks::<2>().0.iter().copied();
        let data = match view.dtype() {
            Dtype::F32 => {
                view.data().as_chunks().0.iter().copied().map(f32::from_le_bytes).collect()
            }
            Dtype::F16 => halves().map(|bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
            Dtype::BF16 => halves().map(|bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
            other => return Err(format!("tensor {name} is {other}, needed is F32, F16 or BF16")),
        };
        Ok(Self { shape, data })
    }
}

fn integers(name: &str, view: &TensorView<'_>) -> Result<Vec<i32>> {
    if view.dtype() != Dtype::I32 || view.shape().len() != 1 {
        let (dtype, shape) = (view.dtype(), view.shape());
        return Err(format!("tensor {name} is {dtype} {shape:?}, needed is I32 [batch]"));
    }
    Ok(view.data().as_chunks().0.iter().copied().map(i32::from_le_bytes).collect())
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
