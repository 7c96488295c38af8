//! Assembles a kernel's WGSL: constants, then whole files, and a map from lines back to files.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

/// A WGSL file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct File {
    /// Path under `shaders/`, or a caller's name for its own text.
    pub(crate) path: Cow<'static, str>,
    /// Its text.
    pub(crate) text: Cow<'static, str>,
}

impl File {
    /// The same file for another tensor: `operand` becomes `name`.
    pub(crate) fn of(self, name: &str) -> Self {
        Self { text: self.text.replace("operand", name).into(), ..self }
    }
}

/// A file under `shaders/`, compiled into the crate.
macro_rules! file {
    ($path:literal) => {
        $crate::shader::File {
            path: std::borrow::Cow::Borrowed($path),
            text: std::borrow::Cow::Borrowed(include_str!(concat!("../../shaders/", $path))),
        }
    };
}
pub(crate) use file;

/// WGSL under construction.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Source {
    prelude: String,
    files: Vec<File>,
}

impl Source {
    /// `const name: u32 = value;`
    pub(crate) fn constant(mut self, name: &str, value: u32) -> Self {
        let _ = writeln!(self.prelude, "const {name}: u32 = {value}u;");
        self
    }

    /// `const name: bool = value;`
    pub(crate) fn flag(mut self, name: &str, value: bool) -> Self {
        let _ = writeln!(self.prelude, "const {name}: bool = {value};");
        self
    }

    /// Appends a file.
    pub(crate) fn file(mut self, file: File) -> Self {
        self.files.push(file);
        self
    }

    /// The constants, and the files that others may stand in for, in one word.
    pub(crate) fn variant(&self) -> String {
        let constants = self.prelude.lines().filter_map(|line| {
            let (name, value) = line.strip_prefix("const ")?.split_once(": ")?;
            let value = value.split(" = ").nth(1)?.trim_end_matches([';', 'u']);
            Some(format!("{}={value}", name.to_lowercase()))
        });
        let files = self.files.iter().filter_map(|file| {
            let (folder, name) = file.path.split_once('/')?;
            let name = name.trim_end_matches(".wgsl");
            let chosen = !matches!(folder, "kernels") && !matches!(name, "attention");
            chosen.then(|| name.to_owned())
        });
        let mut parts: Vec<_> = constants.chain(files).collect();
        parts.dedup();
        parts.join(".")
    }

    /// The whole text, with `declarations` between the constants and the files.
    pub(crate) fn text(&self, declarations: &str) -> String {
        let mut text = format!("{}{declarations}", self.prelude);
        for file in &self.files {
            text.push_str(&file.text);
            if !file.text.ends_with('\n') {
                text.push('\n');
            }
        }
        text
    }

    /// Which file and line a 1-based line of the whole text came from.
    pub(crate) fn locate(&self, declarations: &str, line: usize) -> (&str, usize) {
        let mut first = self.prelude.lines().count() + declarations.lines().count();
        if line <= first {
            return ("(prelude)", line);
        }
        for file in &self.files {
            let lines = file.text.lines().count();
            if line <= first + lines {
                return (&file.path, line - first);
            }
            first += lines;
        }
        ("(end)", line)
    }
}

/// The constants and the files it is made of; the text is long.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let constants = self.prelude.lines().map(|line| line.trim_start_matches("const "));
        f.debug_list().entries(constants).entries(self.files.iter().map(|file| &file.path)).finish()
    }
}
