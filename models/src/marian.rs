//! Marian's binary format, version 1: items of f32 or int8, and the settings that the model was trained with.

use crate::checkpoint::{Kind, Parsed, Stored};
use crate::reader::{bytes, text, u32, u64};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Types of items, by the numbers that files give them.
const F32: u64 = 0x404;
const INT8: u64 = 0x4101;

/// However many items there are said to be, each takes some of the bytes.
pub(crate) fn parse(file: &[u8]) -> Parsed {
    let rest = &mut &*file;
    if u64(rest)? != 1 {
        return Err("is no Marian model of version 1".to_owned());
    }
    let (count, mut headers, mut names, mut shapes) = (u64(rest)?, vec![], vec![], vec![]);
    for _ in 0..count {
        headers.push([u64(rest)?, u64(rest)?, u64(rest)?, u64(rest)?]);
    }
    for [len, ..] in &headers {
        names.push(text(rest, *len)?.trim_end_matches('\0').to_owned());
    }
    for [_, _, axes, _] in &headers {
        let shape = (0..*axes).map(|_| u32(rest).map(|n| n as usize));
        shapes.push(shape.collect::<Result<Vec<_>, _>>()?);
    }
    let padding = u64(rest)?;
    bytes(rest, padding)?;
    let (mut settings, mut tensors) = (Map::new(), HashMap::new());
    for (([_, kind, _, len], name), mut shape) in headers.into_iter().zip(names).zip(shapes) {
        let first = (file.len() - rest.len()) as u64;
        let contents = bytes(rest, len)?;
        let kind = match kind {
            F32 => Kind::F32,
            INT8 => Kind::Int8,
            _ if name == "special:model.yml" => {
                settings.extend(String::from_utf8_lossy(contents).lines().filter_map(setting));
                continue;
            }
            _ => continue,
        };
        if kind == Kind::F32 && shape.first() == Some(&1) {
            shape.remove(0);
        } else if name != "Wemb" {
            // Rows are the outputs of a layer, whatever its shape says.
            shape.reverse();
        }
        tensors.insert(hub_name(&name), Stored { kind, shape, first });
    }
    Ok((settings, tensors))
}

/// A line of YAML: a scalar looks the same in JSON, but for bare words.
fn setting(line: &str) -> Option<(String, Value)> {
    let (key, value) = line.split_once(": ")?;
    let key = if key == "type" { "model_type" } else { key };
    let value = value.trim();
    Some((key.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

/// `self_Wq` and `self_bq` are weight and bias of a layer, `self_Wo_ln_scale` and `self_Wo_ln_bias` those of a norm.
fn hub_name(name: &str) -> String {
    let Some((layer, part)) = name.rsplit_once('_') else { return name.to_owned() };
    match part.split_at_checked(1) {
        _ if part == "scale" => format!("{layer}.weight"),
        _ if part == "bias" => format!("{layer}.bias"),
        Some(("W", which)) => format!("{layer}_W{which}.weight"),
        Some(("b", which)) => format!("{layer}_W{which}.bias"),
        _ => name.to_owned(),
    }
}
