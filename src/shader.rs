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
    /// `enable` lines, which come first.
    enables: String,
    prelude: String,
    files: Vec<File>,
    /// Names of the files that are a caller's.
    callers: Vec<Cow<'static, str>>,
    checked: bool,
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

    /// `const name: f32 = value;`
    pub(crate) fn real(mut self, name: &str, value: &str) -> Self {
        let _ = writeln!(self.prelude, "const {name}: f32 = {value};");
        self
    }

    /// `alias name = ty;`; `f16` is enabled where it is used.
    pub(crate) fn alias(mut self, name: &str, ty: &str) -> Self {
        let _ = writeln!(self.prelude, "alias {name} = {ty};");
        self
    }

    /// Enables f16.
    pub(crate) fn with_f16(mut self, used: bool) -> Self {
        if used && self.enables.is_empty() {
            self.enables.push_str("enable f16;\n");
        }
        self
    }

    /// Enables cooperative matrices and f16. What a subgroup does is uniform over it, not over the workgroup: the
    /// analysis that could not know is turned off.
    pub(crate) fn with_matrices(self) -> Self {
        let enables = "enable f16;\nenable wgpu_cooperative_matrix;\n\
                       diagnostic(off, derivative_uniformity);\n";
        Self { enables: enables.to_owned(), ..self }
    }

    /// Whether cooperative matrices are enabled.
    pub(crate) fn uses_matrices(&self) -> bool {
        self.enables.contains("wgpu_cooperative_matrix")
    }

    /// Appends a caller's file.
    pub(crate) fn callers_file(mut self, file: File) -> Self {
        self.callers.push(file.path.clone());
        self.file(file)
    }

    /// Keeps wgpu's run-time checks.
    pub(crate) fn checked(self) -> Self {
        Self { checked: true, ..self }
    }

    /// Whether wgpu's run-time checks are kept.
    pub(crate) fn is_checked(&self) -> bool {
        self.checked
    }

    /// Names of the files that are a caller's.
    pub(crate) fn callers(&self) -> &[Cow<'static, str>] {
        &self.callers
    }

    /// Appends files.
    pub(crate) fn files(mut self, files: impl IntoIterator<Item = File>) -> Self {
        self.files.extend(files);
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
            let chosen = !matches!(folder, "kernels")
                && !matches!(
                    name,
                    "attention" | "pair" | "record" | "none" | "contiguous" | "few_rows"
                )
                && !name.starts_with("no_");
            chosen.then(|| name.to_owned())
        });
        let f16 = (!self.enables.is_empty()).then(|| "f16".to_owned());
        let mut parts: Vec<_> = constants.chain(f16).chain(files).collect();
        parts.dedup();
        parts.join(".")
    }

    /// The whole text, with `declarations` between the constants and the files.
    pub(crate) fn text(&self, declarations: &str) -> String {
        let mut text = format!("{}{}{declarations}", self.enables, self.prelude);
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
        let head = [&self.enables, &self.prelude, declarations];
        let mut first: usize = head.iter().map(|text| text.lines().count()).sum();
        if line <= first {
            return ("[prelude]", line);
        }
        for file in &self.files {
            // Of an empty text the end of a line is left.
            let lines = file.text.lines().count().max(1);
            if line <= first + lines {
                return (&file.path, line - first);
            }
            first += lines;
        }
        ("[end]", line)
    }
}

/// The constants and the files it is made of; the text is long.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let constants = self.prelude.lines().map(|line| line.trim_start_matches("const "));
        f.debug_list().entries(constants).entries(self.files.iter().map(|file| &file.path)).finish()
    }
}
