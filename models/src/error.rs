//! What can go wrong, each in one line.

use std::path::{Path, PathBuf};

/// Why a command ends without a result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// A file is missing: which, and where it was looked for.
    #[error("no {0} in {folder}: models/fetch.sh gets one", folder = .1.display())]
    Missing(&'static str, PathBuf),
    /// A file is not what it should be, and why.
    #[error("{path}: {1}", path = .0.display())]
    File(PathBuf, String),
    /// A file holds a model of another architecture.
    #[error("{path}: is of architecture {found}, not {wanted}", path = .path.display())]
    Architecture {
        /// Which file.
        path: PathBuf,
        /// What it names.
        found: String,
        /// What was looked for.
        wanted: &'static str,
    },
    /// A text is longer than a model's context.
    #[error("{tokens} tokens are more than the context of {context} holds")]
    Context {
        /// Of the text, and what is to follow it at least.
        tokens: usize,
        /// Most that the model takes here.
        context: usize,
    },
    /// The device cannot, or the library says why not.
    #[error("{0}")]
    Device(String),
}

impl Error {
    /// Something about a file.
    pub fn file(path: &Path, what: impl ToString) -> Self {
        Self::File(path.to_owned(), what.to_string())
    }

    /// Something about the device.
    pub fn device(what: impl ToString) -> Self {
        Self::Device(what.to_string())
    }
}
