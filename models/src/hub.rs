//! Weights as the Hugging Face hub keeps them: `config.json` and `model.safetensors` side by side.

use crate::error::Error;
use crate::files;
use crate::matrix::{BLOCK, Codes, Matrix};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::Metadata};
use std::path::{Path, PathBuf};

/// One model's files.
#[derive(Debug)]
pub struct Hub {
    /// Where `model.safetensors` lies.
    pub path: PathBuf,
    /// What `config.json` beside it says.
    pub config: serde_json::Value,
    bytes: Vec<u8>,
    header: Metadata,
    /// Where the tensors start in `bytes`.
    start: usize,
}

impl Hub {
    /// The first model of this type in a folder. `Ok(Err(types))`: those that are there are of other types.
    ///
    /// # Errors
    /// A file is no such file, or cut.
    pub fn find(folder: &Path, model_type: &str) -> Result<Result<Self, Vec<String>>, Error> {
        let mut others = Vec::new();
        for path in files::find(folder, |name| name == "model.safetensors")? {
            let config = path.with_file_name("config.json");
            let json = files::json(&config)?;
            match json.get("model_type").and_then(serde_json::Value::as_str) {
                Some(found) if found == model_type => return Self::open(path, json).map(Ok),
                Some(found) => others.push(found.to_owned()),
                None => return Err(Error::file(&config, "names no model_type")),
            }
        }
        Ok(Err(others))
    }

    fn open(path: PathBuf, config: serde_json::Value) -> Result<Self, Error> {
        let bytes = files::read(&path)?;
        let (header_bytes, header) =
            SafeTensors::read_metadata(&bytes).map_err(|error| Error::file(&path, error))?;
        Ok(Self { path, config, start: header_bytes + 8, bytes, header })
    }

    /// A file beside the weights.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.path.with_file_name(name)
    }

    /// A size that the configuration names.
    ///
    /// # Errors
    /// It names none.
    pub fn size(&self, key: &str) -> Result<usize, Error> {
        files::size(&self.config, key, &self.beside("config.json"))
    }

    /// A number that the configuration names.
    ///
    /// # Errors
    /// It names none.
    pub fn number(&self, key: &str) -> Result<f64, Error> {
        let number = self.config.get(key).and_then(serde_json::Value::as_f64);
        let path = self.beside("config.json");
        number.ok_or_else(|| Error::file(&path, format!("{key} is no number")))
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// A tensor's type and bytes, where it has this shape.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<(Dtype, &[u8]), Error> {
        let info = self.header.info(name);
        let info = info.ok_or_else(|| Error::file(&self.path, format!("has no {name}")))?;
        if info.shape != shape {
            let what = format!("{name} is {:?}, not {shape:?}", info.shape);
            return Err(Error::file(&self.path, what));
        }
        let (first, end) = info.data_offsets;
        let bytes = self.bytes.get(self.start + first..self.start + end);
        let bytes = bytes.ok_or_else(|| Error::file(&self.path, format!("{name} is cut")))?;
        Ok((info.dtype, bytes))
    }

    /// A tensor as f32.
    ///
    /// # Errors
    /// It is missing, of another shape, or of a type that is no float.
    pub fn numbers(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let (dtype, bytes) = self.tensor(name, shape)?;
        let halves = || bytes.as_chunks::<2>().0.iter();
        Ok(match dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => halves().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => halves().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            other => return Err(Error::file(&self.path, format!("{name} is of {other:?}"))),
        })
    }

    /// A matrix in 16 bits.
    ///
    /// # Errors
    /// As [`numbers`](Self::numbers).
    pub fn matrix(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<Matrix, Error> {
        if !cols.is_multiple_of(BLOCK) {
            let what = format!("{name} has {cols} columns: no multiple of {BLOCK}");
            return Err(Error::file(&self.path, what));
        }
        if let (Dtype::F16, bytes) = self.tensor(name, &[rows, cols])? {
            let halves = bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
            return Ok(Matrix::new(rows, cols, Codes::F16(halves)));
        }
        Ok(Matrix::rounded(rows, cols, &self.numbers(name, &[rows, cols])?))
    }
}
