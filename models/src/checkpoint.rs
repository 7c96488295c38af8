//! Trained weights as files hold them: settings and tensors by their names, whatever the format.
//!
//! Names are those of the Hugging Face hub; what reads another format brings its names onto these.

use crate::error::Error;
use crate::machine::Machine;
use crate::matrix::{BLOCK, Form, Matrix};
use crate::program::{Linear, Norm};
use crate::{gguf, marian, safetensors};
use half::{bf16, f16};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Folders below the one that is given, at most: so that no tangle of them takes for ever.
const DEPTH: u32 = 16;

/// One model's files.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where its weights lie.
    pub path: PathBuf,
    pub(crate) settings: Map<String, Value>,
    tensors: HashMap<String, Stored>,
    bytes: Vec<u8>,
}

/// A tensor of a file.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) kind: Kind,
    pub(crate) shape: Vec<usize>,
    /// Where its bytes start.
    pub(crate) first: u64,
}

/// How a file stores numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    F32,
    F16,
    Bf16,
    /// Blocks of 32: scale and minimum in f16, 4 bits each.
    Q4_1,
    /// Blocks of 32: a scale in f16, 8 bits each.
    Q8_0,
    /// Marian's: 8 bits each, then an f32 that they were multiplied by.
    Int8,
}

/// What a format makes of a file's bytes, or what is wrong with them.
pub(crate) type Parsed = Result<(Map<String, Value>, HashMap<String, Stored>), String>;

impl Checkpoint {
    /// The first model of this architecture in a folder, in files whose names are `wanted`: GGUF before others.
    ///
    /// # Errors
    /// There is none, or a file is not what it should be.
    pub fn find(
        folder: &Path,
        what: &'static str,
        wanted: impl Fn(&str) -> bool,
        architecture: &'static str,
    ) -> Result<Self, Error> {
        let mut paths = find(folder, wanted)?;
        paths.sort_by_key(|path| path.extension().is_none_or(|extension| extension != "gguf"));
        let mut others = Vec::new();
        for path in paths {
            match Self::open(&path, architecture) {
                Err(error @ Error::Architecture { .. }) => others.push(error),
                result => return result,
            }
        }
        Err(others.into_iter().next().unwrap_or(Error::Missing(what, folder.to_owned())))
    }

    /// Reads a file; `config.json` lies beside one of the hub.
    ///
    /// # Errors
    /// It is of another architecture, no such file, or cut.
    pub fn open(path: &Path, wanted: &'static str) -> Result<Self, Error> {
        let check = |settings: &Map<String, Value>| match settings.get("model_type") {
            Some(found) if found == wanted => Ok(()),
            Some(Value::String(found)) => {
                Err(Error::Architecture { path: path.to_owned(), found: found.clone(), wanted })
            }
            _ => Err(Error::file(path, "names no architecture")),
        };
        let parse = match path.extension().and_then(|extension| extension.to_str()) {
            Some("gguf") => gguf::parse,
            Some("bin") => marian::parse,
            _ => {
                // Asked first: no file is read for nothing.
                check(&config(path)?)?;
                safetensors::parse
            }
        };
        let bytes = read(path)?;
        let (mut settings, tensors) = parse(&bytes).map_err(|what| Error::file(path, what))?;
        if settings.is_empty() {
            settings = config(path)?;
        }
        check(&settings)?;
        Ok(Self { path: path.to_owned(), settings, tensors, bytes })
    }

    /// Whether it is a GGUF file.
    pub fn is_gguf(&self) -> bool {
        self.path.extension().is_some_and(|extension| extension == "gguf")
    }

    pub(crate) fn wrong(&self, what: impl ToString) -> Error {
        Error::file(&self.path, what)
    }

    /// A setting that is a size: at least 1, and no larger than any model's.
    ///
    /// # Errors
    /// It is missing, or no such number.
    pub fn size(&self, key: &str) -> Result<usize, Error> {
        let value = self.settings.get(key).and_then(Value::as_u64);
        let size = value.filter(|value| (1..=1 << 24).contains(value));
        let size = size.and_then(|value| usize::try_from(value).ok());
        size.ok_or_else(|| self.wrong(format!("{key} is no size: {value:?}")))
    }

    /// A setting that is a number.
    ///
    /// # Errors
    /// It is missing, or none.
    pub fn number(&self, key: &str) -> Result<f64, Error> {
        let number = self.settings.get(key).and_then(Value::as_f64);
        number.ok_or_else(|| self.wrong(format!("{key} is no number")))
    }

    /// Settings that this crate has only one way for; where one is missing or null, it is taken for granted.
    ///
    /// # Errors
    /// One is something else.
    pub fn expect(&self, settings: &[(&str, Value)]) -> Result<(), Error> {
        for (key, known) in settings {
            match self.settings.get(*key) {
                Some(found) if found != known && !found.is_null() => {
                    return Err(self.wrong(format!("{key} is {found}, not {known}")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor's type and bytes, where it has this shape.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<(Kind, &[u8]), Error> {
        let found = self.tensors.get(name);
        let Stored { kind, shape: found, first } =
            found.ok_or_else(|| self.wrong(format!("has no {name}")))?;
        if found != shape {
            return Err(self.wrong(format!("{name} is {found:?}, not {shape:?}")));
        }
        let elements: usize = shape.iter().product();
        let len = match kind {
            Kind::F32 => elements * 4,
            Kind::F16 | Kind::Bf16 => elements * 2,
            Kind::Q4_1 => elements / BLOCK * 20,
            Kind::Q8_0 => elements / BLOCK * 34,
            Kind::Int8 => elements + 4,
        };
        let rest = usize::try_from(*first).ok().and_then(|first| self.bytes.get(first..));
        let bytes = rest.and_then(|rest| rest.get(..len));
        Ok((*kind, bytes.ok_or_else(|| self.wrong(format!("{name} is cut")))?))
    }

    /// A tensor as f32.
    ///
    /// # Errors
    /// It is missing, cut, of another shape, or of no float.
    pub fn numbers(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let (kind, bytes) = self.tensor(name, shape)?;
        let halves = || bytes.as_chunks().0.iter();
        Ok(match kind {
            Kind::F32 => bytemuck::pod_collect_to_vec(bytes),
            Kind::F16 => halves().map(|half| f16::from_le_bytes(*half).to_f32()).collect(),
            Kind::Bf16 => halves().map(|half| bf16::from_le_bytes(*half).to_f32()).collect(),
            _ => return Err(self.wrong(format!("{name} is of {kind:?}"))),
        })
    }

    /// A matrix: 8 bits and blocks of 4 exactly, floats in 16 bits.
    ///
    /// # Errors
    /// It is missing, cut or of another shape.
    pub fn matrix(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<Matrix, Error> {
        if !cols.is_multiple_of(BLOCK) {
            return Err(self.wrong(format!("{name} has {cols} columns: no multiple of {BLOCK}")));
        }
        let (kind, bytes) = self.tensor(name, &[rows, cols])?;
        let (mut codes, mut ranges) = (Vec::with_capacity(rows * cols), Vec::new());
        let form = match kind {
            Kind::F16 => {
                codes.extend(bytes);
                Form::F16
            }
            Kind::F32 | Kind::Bf16 => {
                return Ok(Matrix::rounded(rows, cols, &self.numbers(name, &[rows, cols])?));
            }
            Kind::Q8_0 => {
                for block in bytes.chunks_exact(34) {
                    ranges.extend([block[0], block[1], 0, 0]);
                    codes.extend(&block[2..]);
                }
                Form::Blocks
            }
            Kind::Q4_1 => {
                for block in bytes.chunks_exact(20) {
                    let (range, both) = block.split_at(4);
                    ranges.extend(range);
                    // The first half of a block in the low bits, the second in the high ones.
                    codes.extend(both.iter().map(|both| both & 15));
                    codes.extend(both.iter().map(|both| both >> 4));
                }
                Form::Blocks
            }
            Kind::Int8 => {
                let (weights, multiplier) = bytes.split_at(rows * cols);
                let multiplier: f32 = bytemuck::pod_read_unaligned(multiplier);
                if !multiplier.is_finite() || multiplier <= 0.0 {
                    return Err(self.wrong(format!("{name} has no scale")));
                }
                codes.extend(weights);
                ranges = multiplier.recip().to_le_bytes().repeat(rows);
                Form::Rows
            }
        };
        Ok(Matrix { rows, cols, form, codes, ranges })
    }

    /// Layers with the same inputs as one, `NAME.weight` of `[outputs, inputs]` and, where `biased`, `NAME.bias`.
    ///
    /// # Errors
    /// Something of them is missing, cut, of another shape, or does not fit the machine.
    pub fn linear(
        &self,
        machine: &Machine,
        parts: &[(String, usize)],
        inputs: usize,
        biased: bool,
    ) -> Result<Linear, Error> {
        let (mut weights, mut bias) = (Vec::new(), Vec::new());
        for (name, outputs) in parts {
            weights.push(self.matrix(&format!("{name}.weight"), [*outputs, inputs])?);
            if biased {
                bias.extend(self.numbers(&format!("{name}.bias"), &[*outputs])?);
            }
        }
        let bias = biased.then(|| machine.tensor(&bias)).transpose()?;
        Ok(Linear { w: machine.weights(&Matrix::stacked(&weights))?, bias })
    }

    /// A norm, `NAME.weight` and, of a layer norm, `NAME.bias`.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn norm(
        &self,
        machine: &Machine,
        name: &str,
        width: usize,
        (epsilon, biased): (f64, bool),
    ) -> Result<Norm, Error> {
        let vector = |part| machine.tensor(&self.numbers(&format!("{name}.{part}"), &[width])?);
        let bias = biased.then(|| vector("bias")).transpose()?;
        #[allow(clippy::cast_possible_truncation, reason = "rounded once")]
        Ok(Norm { scale: vector("weight")?, bias, epsilon: epsilon as f32 })
    }
}

/// Files at any depth whose names are `wanted`, sorted. Links to files count, links to folders are not followed.
fn find(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, Error> {
    let (mut found, mut folders) = (Vec::new(), vec![(folder.to_owned(), 0)]);
    while let Some((folder, depth)) = folders.pop() {
        let entries = std::fs::read_dir(&folder).map_err(|error| Error::file(&folder, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| Error::file(&folder, error))?;
            let (path, is_folder) = (entry.path(), entry.file_type().is_ok_and(|ty| ty.is_dir()));
            if is_folder && depth < DEPTH {
                folders.push((path, depth + 1));
            } else if entry.file_name().to_str().is_some_and(&wanted) && path.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn config(path: &Path) -> Result<Map<String, Value>, Error> {
    let path = path.with_file_name("config.json");
    serde_json::from_slice(&read(&path)?).map_err(|error| Error::file(&path, error))
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| Error::file(path, error))
}
