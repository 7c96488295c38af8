//! What can go wrong, each in one line.

use std::path::{Path, PathBuf};

/// Why a command ends without a result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// A file is missing.
    #[error("no {what} in {folder}: models/fetch.sh gets one", folder = .folder.display())]
    Missing {
        /// What was looked for.
        what: &'static str,
        /// Where.
        folder: PathBuf,
    },
    /// A file is not what it should be.
    #[error("{path}: {what}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        what: String,
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
        Self::File { path: path.to_owned(), what: what.to_string() }
    }

    /// Something about the device.
    pub fn device(what: impl ToString) -> Self {
        Self::Device(what.to_string())
    }
}
