//! Marian's binary format, version 1: items of f32 or int8, and the settings that the model was trained with.

use crate::error::Error;
use crate::files;
use crate::matrix::{BLOCK, Codes, Matrix};
use crate::reader::{Cut, Reader};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// One file.
#[derive(Debug)]
pub struct Marian {
    /// Where it lies.
    pub path: PathBuf,
    items: HashMap<String, Item>,
    settings: HashMap<String, String>,
}

#[derive(Debug)]
struct Item {
    kind: u64,
    shape: Vec<u32>,
    bytes: Vec<u8>,
}

/// Types of items, by the numbers that files give them.
const F32: u64 = 0x404;
const INT8: u64 = 0x4101;
const SETTINGS: &str = "special:model.yml";

impl Marian {
    /// Reads a file.
    ///
    /// # Errors
    /// It is no such file, or cut.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let bytes = files::read(path)?;
        let items = parse(&mut Reader::new(&bytes));
        let items = items.map_err(|Cut| Error::file(path, "is cut, or no Marian model"))?;
        let items = items.map_err(|what| Error::file(path, what))?;
        let text = items.get(SETTINGS).map(|item| String::from_utf8_lossy(&item.bytes));
        let text = text.ok_or_else(|| Error::file(path, "has no settings"))?;
        let settings = text.lines().filter_map(|line| line.split_once(": "));
        let settings = settings.map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
        Ok(Self { path: path.to_owned(), settings: settings.collect(), items })
    }

    /// What the settings say of `key`; empty where nothing.
    pub fn setting(&self, key: &str) -> &str {
        self.settings.get(key).map_or("", |value| value.trim_matches('"'))
    }

    /// A setting that is a size.
    ///
    /// # Errors
    /// It is none.
    pub fn size(&self, key: &str) -> Result<usize, Error> {
        files::checked_size(self.setting(key).parse().ok(), key, &self.path)
    }

    fn item(&self, name: &str, kind: u64, shape: &[usize]) -> Result<&Item, Error> {
        let wrong = |what: String| Error::file(&self.path, what);
        let item = self.items.get(name).ok_or_else(|| wrong(format!("has no {name}")))?;
        if item.kind != kind {
            return Err(wrong(format!("{name} is of type {:#x}, not {kind:#x}", item.kind)));
        }
        if !item.shape.iter().map(|n| *n as usize).eq(shape.iter().copied()) {
            return Err(wrong(format!("{name} is {:?}, not {shape:?}", item.shape)));
        }
        Ok(item)
    }

    /// A vector.
    ///
    /// # Errors
    /// It is missing, cut, of another length, or not of f32.
    pub fn numbers(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let item = self.item(name, F32, &[1, len])?;
        let numbers = item.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).take(len);
        let numbers: Vec<f32> = numbers.collect();
        if numbers.len() < len {
            return Err(Error::file(&self.path, format!("{name} is cut")));
        }
        Ok(numbers)
    }

    /// The weights of a layer, `[outputs, inputs]`: files name them the other way round.
    ///
    /// # Errors
    /// It is missing, cut, of another shape, or not of int8.
    pub fn matrix(&self, name: &str, [outputs, inputs]: [usize; 2]) -> Result<Matrix, Error> {
        self.codes(self.item(name, INT8, &[inputs, outputs])?, name, [outputs, inputs])
    }

    /// A table, `[tokens, width]`.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    pub fn table(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<Matrix, Error> {
        self.codes(self.item(name, INT8, &[rows, cols])?, name, [rows, cols])
    }

    /// Row by row, then what the weights were multiplied by before they were rounded.
    fn codes(&self, item: &Item, name: &str, [rows, cols]: [usize; 2]) -> Result<Matrix, Error> {
        let wrong = |what: &str| Error::file(&self.path, format!("{name} {what}"));
        if !cols.is_multiple_of(BLOCK) {
            return Err(wrong("has no multiple of 32 columns"));
        }
        let mut reader = Reader::new(&item.bytes);
        let codes = reader.bytes(rows as u64 * cols as u64).map_err(|Cut| wrong("is cut"))?;
        let codes = codes.iter().map(|code| code.cast_signed()).collect();
        let multiplier = reader.f32().map_err(|Cut| wrong("is cut"))?;
        if !multiplier.is_finite() || multiplier <= 0.0 {
            return Err(wrong("has no scale"));
        }
        let factors = vec![multiplier.recip(); rows];
        Ok(Matrix::new(rows, cols, Codes::Rows { codes, factors }))
    }
}

/// The inner result: why it cannot be understood.
fn parse(reader: &mut Reader<'_>) -> Result<Result<HashMap<String, Item>, String>, Cut> {
    let version = reader.u64()?;
    if version != 1 {
        return Ok(Err("is no Marian model of version 1".to_owned()));
    }
    let count = reader.u64()?;
    // However many there are said to be, each takes some of the bytes.
    let mut headers = Vec::new();
    for _ in 0..count {
        headers.push([reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?]);
    }
    let mut names = Vec::new();
    for [len, ..] in &headers {
        let name = String::from_utf8_lossy(reader.bytes(*len)?).into_owned();
        names.push(name.trim_end_matches('\0').to_owned());
    }
    let mut shapes = Vec::new();
    for [_, _, axes, _] in &headers {
        let mut shape = Vec::new();
        for _ in 0..*axes {
            shape.push(reader.u32()?);
        }
        shapes.push(shape);
    }
    let padding = reader.u64()?;
    reader.bytes(padding)?;
    let mut items = HashMap::new();
    for (([_, kind, _, len], name), shape) in headers.into_iter().zip(names).zip(shapes) {
        items.insert(name, Item { kind, shape, bytes: reader.bytes(len)?.to_vec() });
    }
    Ok(Ok(items))
}
