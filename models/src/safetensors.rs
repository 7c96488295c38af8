//! The hub's `model.safetensors`, by the `safetensors` crate.

use crate::checkpoint::{Kind, Parsed, Stored};
use safetensors::{Dtype, SafeTensors};
use serde_json::Map;

/// The settings lie in a file of their own.
pub(crate) fn parse(bytes: &[u8]) -> Parsed {
    let (len, header) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    let mut tensors = std::collections::HashMap::new();
    for (name, info) in header.tensors() {
        let kind = match info.dtype {
            Dtype::F32 => Kind::F32,
            Dtype::F16 => Kind::F16,
            Dtype::BF16 => Kind::Bf16,
            // Of no use here, such as indices of positions.
            _ => continue,
        };
        let first = (8 + len + info.data_offsets.0) as u64;
        tensors.insert(name, Stored { kind, shape: info.shape.clone(), first });
    }
    Ok((Map::new(), tensors))
}
