//! Files of a folder, at any depth.

use crate::error::Error;
use std::path::{Path, PathBuf};

/// Folders below the one that is given, at most: so that no tangle of them takes for ever.
const DEPTH: u32 = 16;

/// Files whose names are `wanted`, sorted. Links to files count, links to folders are not followed.
///
/// # Errors
/// The folder cannot be read.
pub fn find(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
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

/// A whole file.
///
/// # Errors
/// It cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| Error::file(path, error))
}

/// A JSON file.
///
/// # Errors
/// It cannot be read, or is no JSON.
pub fn json(path: &Path) -> Result<serde_json::Value, Error> {
    serde_json::from_slice(&read(path)?).map_err(|error| Error::file(path, error))
}

/// A number of a JSON configuration that is a size: at least 1, and no larger than any model's.
///
/// # Errors
/// It is missing, or no such number.
pub fn size(config: &serde_json::Value, key: &str, path: &Path) -> Result<usize, Error> {
    let value = config.get(key).and_then(serde_json::Value::as_u64);
    checked_size(value, key, path)
}

/// A size that a file names.
///
/// # Errors
/// It is missing, or no such number.
pub fn checked_size(value: Option<u64>, key: &str, path: &Path) -> Result<usize, Error> {
    let size = value.filter(|value| (1..=1 << 24).contains(value));
    let size = size.and_then(|value| usize::try_from(value).ok());
    size.ok_or_else(|| Error::file(path, format!("{key} is no size: {value:?}")))
}
