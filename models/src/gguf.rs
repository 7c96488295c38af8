//! GGUF files: metadata with the tokenizer, and tensors, of which those in 4 or 8 bits stay what they are.

use crate::error::Error;
use crate::files;
use crate::matrix::{BLOCK, Codes, Matrix};
use crate::reader::{Cut, Reader};
use half::f16;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// One file.
#[derive(Debug)]
pub struct Gguf {
    /// Where it lies.
    pub path: PathBuf,
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, Info>,
    bytes: Vec<u8>,
    /// Where the tensors start in `bytes`.
    start: usize,
}

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// Any integer, and booleans; negative ones as their two's complement.
    Integer(u64),
    /// Either float.
    Number(f64),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Self>),
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
struct Info {
    /// Innermost first.
    dims: Vec<u64>,
    kind: u32,
    offset: u64,
}

/// Types of tensors, by the numbers that files give them.
const F32: u32 = 0;
const F16: u32 = 1;
const Q4_0: u32 = 2;
const Q4_1: u32 = 3;
const Q8_0: u32 = 8;

impl Gguf {
    /// Reads a file.
    ///
    /// # Errors
    /// It is no GGUF file of version 2 or 3, or cut.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let bytes = files::read(path)?;
        let mut reader = Reader::new(&bytes);
        let parsed = parse(&mut reader).map_err(|Cut| Error::file(path, "is cut, or no GGUF"))?;
        let (metadata, tensors) = parsed.map_err(|what| Error::file(path, what))?;
        let alignment = match metadata.get("general.alignment") {
            Some(Value::Integer(n)) if (1..=1 << 16).contains(n) => *n,
            None => 32,
            _ => return Err(Error::file(path, "general.alignment is no alignment")),
        };
        let start = (reader.read as u64).next_multiple_of(alignment);
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        Ok(Self { path: path.to_owned(), metadata, tensors, bytes, start })
    }

    /// A value of the metadata.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// A text.
    ///
    /// # Errors
    /// There is none.
    pub fn text(&self, key: &str) -> Result<&str, Error> {
        match self.get(key) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(Error::file(&self.path, format!("names no {key}"))),
        }
    }

    /// A size.
    ///
    /// # Errors
    /// There is none.
    pub fn size(&self, key: &str) -> Result<usize, Error> {
        let value = match self.get(key) {
            Some(Value::Integer(value)) => Some(*value),
            _ => None,
        };
        files::checked_size(value, key, &self.path)
    }

    /// A number.
    ///
    /// # Errors
    /// There is none.
    pub fn number(&self, key: &str) -> Result<f64, Error> {
        match self.get(key) {
            Some(Value::Number(number)) => Ok(*number),
            _ => Err(Error::file(&self.path, format!("names no {key}"))),
        }
    }

    /// A list.
    ///
    /// # Errors
    /// There is none.
    pub fn list(&self, key: &str) -> Result<&[Value], Error> {
        match self.get(key) {
            Some(Value::List(list)) => Ok(list),
            _ => Err(Error::file(&self.path, format!("names no {key}"))),
        }
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor's type and bytes, where it has this shape, outermost first.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<(u32, &[u8]), Error> {
        let wrong = |what: String| Error::file(&self.path, what);
        let info = self.tensors.get(name).ok_or_else(|| wrong(format!("has no {name}")))?;
        if !info.dims.iter().rev().eq(shape.iter().map(|n| *n as u64).collect::<Vec<_>>().iter()) {
            return Err(wrong(format!("{name} is {:?} from inside, not {shape:?}", info.dims)));
        }
        let (block, bytes) = match info.kind {
            F32 => (1, 4),
            F16 => (1, 2),
            Q4_0 => (32, 18),
            Q4_1 => (32, 20),
            Q8_0 => (32, 34),
            other => return Err(wrong(format!("{name} is of type {other}: not known"))),
        };
        let columns = shape.last().copied().unwrap_or(0);
        if !columns.is_multiple_of(block) {
            return Err(wrong(format!("{name} has no whole blocks")));
        }
        let elements = shape.iter().try_fold(1_usize, |product, n| product.checked_mul(*n));
        let len = elements.and_then(|n| (n / block).checked_mul(bytes));
        let first = usize::try_from(info.offset).ok().and_then(|at| at.checked_add(self.start));
        let range = first.zip(len).and_then(|(first, len)| Some(first..first.checked_add(len)?));
        let bytes = range.and_then(|range| self.bytes.get(range));
        Ok((info.kind, bytes.ok_or_else(|| wrong(format!("{name} is cut")))?))
    }

    /// A vector as f32.
    ///
    /// # Errors
    /// It is missing, cut, of another length, or not of f32.
    pub fn numbers(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        match self.tensor(name, &[len])? {
            (F32, bytes) => Ok(floats(bytes)),
            (other, _) => Err(Error::file(&self.path, format!("{name} is of type {other}"))),
        }
    }

    /// A matrix: blocks exactly, floats in 16 bits.
    ///
    /// # Errors
    /// It is missing, cut, of another shape or an unknown type.
    pub fn matrix(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<Matrix, Error> {
        if !cols.is_multiple_of(BLOCK) {
            let what = format!("{name} has {cols} columns: no multiple of {BLOCK}");
            return Err(Error::file(&self.path, what));
        }
        let (kind, bytes) = self.tensor(name, &[rows, cols])?;
        let half = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]);
        let halves = || bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b));
        let (mut codes, mut ranges) = (Vec::new(), Vec::new());
        match kind {
            F32 => return Ok(Matrix::rounded(rows, cols, &floats(bytes))),
            F16 => return Ok(Matrix::new(rows, cols, Codes::F16(halves().collect()))),
            Q8_0 => {
                for block in bytes.chunks_exact(34) {
                    ranges.push([half(block), f16::ZERO]);
                    codes.extend(block[2..].iter().map(|code| code.cast_signed()));
                }
            }
            Q4_0 => {
                for block in bytes.chunks_exact(18) {
                    ranges.push([half(block), f16::ZERO]);
                    codes.extend(nibbles(&block[2..]).map(|code| code - 8));
                }
            }
            _ => {
                for block in bytes.chunks_exact(20) {
                    ranges.push([half(block), half(&block[2..])]);
                    codes.extend(nibbles(&block[4..]));
                }
            }
        }
        Ok(Matrix::new(rows, cols, Codes::Blocks { codes, ranges }))
    }
}

/// Of a block of 32: the first half in the low bits, the second in the high ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = i8> {
    let (low, high) = (bytes.iter().map(|both| both & 15), bytes.iter().map(|both| both >> 4));
    low.chain(high).map(u8::cast_signed)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

type Parsed = (HashMap<String, Value>, HashMap<String, Info>);

/// The inner result: why it cannot be understood.
fn parse(reader: &mut Reader<'_>) -> Result<Result<Parsed, String>, Cut> {
    if reader.bytes(4)? != b"GGUF" {
        return Ok(Err("is no GGUF file".to_owned()));
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Ok(Err(format!("is of GGUF version {version}, not 2 or 3")));
    }
    let (tensor_count, value_count) = (reader.u64()?, reader.u64()?);
    let (mut metadata, mut tensors) = (HashMap::new(), HashMap::new());
    // However many there are said to be, each takes some of the bytes.
    for _ in 0..value_count {
        let key = text(reader)?;
        let kind = reader.u32()?;
        match value(reader, kind, 0)? {
            Some(value) => metadata.insert(key, value),
            None => return Ok(Err(format!("{key} is of type {kind}: not known"))),
        };
    }
    for _ in 0..tensor_count {
        let name = text(reader)?;
        let axes = reader.u32()?;
        if axes > 4 {
            return Ok(Err(format!("{name} has {axes} axes")));
        }
        let dims = (0..axes).map(|_| reader.u64()).collect::<Result<_, _>>()?;
        tensors.insert(name, Info { dims, kind: reader.u32()?, offset: reader.u64()? });
    }
    Ok(Ok((metadata, tensors)))
}

fn text(reader: &mut Reader<'_>) -> Result<String, Cut> {
    let len = reader.u64()?;
    Ok(String::from_utf8_lossy(reader.bytes(len)?).into_owned())
}

/// `None` of a type that is not known. Lists of lists of lists are not.
fn value(reader: &mut Reader<'_>, kind: u32, depth: u32) -> Result<Option<Value>, Cut> {
    Ok(Some(match kind {
        0 | 7 => Value::Integer(reader.u8()?.into()),
        1 => Value::Integer(i64::from(reader.u8()?.cast_signed()).cast_unsigned()),
        2 => Value::Integer(reader.u16()?.into()),
        3 => Value::Integer(i64::from(reader.u16()?.cast_signed()).cast_unsigned()),
        4 => Value::Integer(reader.u32()?.into()),
        5 => Value::Integer(i64::from(reader.u32()?.cast_signed()).cast_unsigned()),
        6 => Value::Number(reader.f32()?.into()),
        8 => Value::Text(text(reader)?),
        9 if depth < 2 => {
            let (kind, count) = (reader.u32()?, reader.u64()?);
            let mut list = Vec::new();
            for _ in 0..count {
                match value(reader, kind, depth + 1)? {
                    Some(value) => list.push(value),
                    None => return Ok(None),
                }
            }
            Value::List(list)
        }
        10 | 11 => Value::Integer(reader.u64()?),
        12 => Value::Number(reader.f64()?),
        _ => return Ok(None),
    }))
}
