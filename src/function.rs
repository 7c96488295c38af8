//! The caller's own score and mask functions, as WGSL text and as Rust closures.

use crate::error::ProblemError;
use std::fmt;
use std::sync::Arc;

/// A pair of a query and a key, as functions are told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pair {
    /// Which sequence.
    pub batch: u32,
    /// Which query head.
    pub head: u32,
    /// The query's position in its sequence, from 0.
    pub q_pos: u32,
    /// The key's position in its sequence, from 0.
    pub kv_pos: u32,
    /// The key that the first query stands at: what WGSL calls `diagonal(batch)`.
    pub diagonal: i64,
}

impl Pair {
    /// A pair, for a call of a function's closure.
    pub const fn new(batch: u32, head: u32, q_pos: u32, kv_pos: u32, diagonal: i64) -> Self {
        Self { batch, head, q_pos, kv_pos, diagonal }
    }
}

/// A function that changes a score.
///
/// The text defines `fn score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32`. `s` has the scale, the
/// soft cap, ALiBi and the bias in it; masks come after. It may call `diagonal(batch) -> i32`, the key position that
/// query 0 stands at, and read the buffers that it declares with [`with_buffer`](Self::with_buffer). It must be a
/// function of its arguments and buffers alone; it may be called for positions past the end, and the result is then
/// not used. Names of the text's own must not be those of the kernel around it: prefix them. The text may have
/// further functions, constants, types and private variables; it may touch nothing else of the kernel. A loop that ends
/// by returning has a return after it.
///
/// wgpu's run-time checks stay on in a kernel with a caller's text: an index past a buffer reads some element of the
/// buffer, or 0; a division by zero gives some number. Loops of one call take fewer than 16,384 rounds in all: once
/// they would not, all loops of that invocation end at once, and what pairs of its rows come to is unspecified.
///
/// The closure is the same function for [`reference`](mod@crate::reference) and the CPU path.
#[derive(Clone)]
pub struct ScoreFunction {
    pub(crate) text: Text,
    pub(crate) derivative: Option<Derivative>,
    twin: Arc<dyn Fn(f64, Pair) -> f64 + Send + Sync>,
}

/// The derivative of a score function by the score.
#[derive(Clone)]
pub(crate) struct Derivative {
    pub(crate) wgsl: Arc<str>,
    twin: Arc<dyn Fn(f64, Pair) -> f64 + Send + Sync>,
}

/// A function that hides pairs.
///
/// The text defines `fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool`; all else is as with
/// [`ScoreFunction`].
#[derive(Clone)]
pub struct MaskFunction {
    pub(crate) text: Text,
    twin: Arc<dyn Fn(Pair) -> bool + Send + Sync>,
}

/// A caller's WGSL and the buffers that it reads.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Text {
    /// What errors call it.
    pub(crate) name: Arc<str>,
    pub(crate) wgsl: Arc<str>,
    /// Name and element type.
    pub(crate) buffers: Vec<(Arc<str>, &'static str)>,
    pub(crate) unchecked: bool,
}

/// Type of the elements of a function's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BufferElement {
    /// `array<f32>`.
    F32,
    /// `array<u32>`.
    U32,
    /// `array<i32>`.
    I32,
}

impl Text {
    fn new(name: &str, wgsl: &str) -> Self {
        let wgsl = uncommented(wgsl).into();
        Self { name: name.into(), wgsl, buffers: Vec::new(), unchecked: false }
    }

    fn with_buffer(mut self, name: &str, element: BufferElement) -> Self {
        let element = match element {
            BufferElement::F32 => "f32",
            BufferElement::U32 => "u32",
            BufferElement::I32 => "i32",
        };
        self.buffers.push((name.into(), element));
        self
    }
}

/// What both kinds of functions have: their text.
macro_rules! of_text {
    ($($function:ty),*) => {
        $(impl $function {
            /// Declares `var<storage, read> name: array<element>`, bound with [`Tensors::buffer`](crate::Tensors::buffer).
            #[must_use]
            pub fn with_buffer(self, name: &str, element: BufferElement) -> Self {
                Self { text: self.text.with_buffer(name, element), ..self }
            }

            /// Compiles the kernels around it without wgpu's run-time checks and without an end to its loops.
            ///
            /// # Safety
            /// For all arguments, every index of the text is inside its buffer or array, every loop ends, and no integer is
            /// divided by zero.
            #[must_use]
            #[allow(unsafe_code, reason = "the caller vouches for the text")]
            pub unsafe fn unchecked(self) -> Self {
                Self { text: Text { unchecked: true, ..self.text }, ..self }
            }

            /// Names of the buffers that the text declares.
            pub fn buffers(&self) -> impl Iterator<Item = &str> {
                self.text.buffers.iter().map(|(name, _)| &**name)
            }
        })*
    };
}

of_text!(ScoreFunction, MaskFunction);

impl ScoreFunction {
    /// A function called `name` in errors, as WGSL and as a closure.
    pub fn new(
        name: &str,
        wgsl: &str,
        twin: impl Fn(f64, Pair) -> f64 + Send + Sync + 'static,
    ) -> Self {
        Self { text: Text::new(name, wgsl), derivative: None, twin: Arc::new(twin) }
    }

    /// Gives the derivative by the score, which gradients need:
    /// `fn d_score(s: f32, batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> f32`, with the same `s` that `score` gets.
    /// It may call what the text of `score` has, and read the same buffers.
    #[must_use]
    pub fn with_derivative(
        self,
        wgsl: &str,
        twin: impl Fn(f64, Pair) -> f64 + Send + Sync + 'static,
    ) -> Self {
        let derivative = Derivative { wgsl: uncommented(wgsl).into(), twin: Arc::new(twin) };
        Self { derivative: Some(derivative), ..self }
    }

    /// What the closure makes of the score of a pair.
    pub fn apply(&self, s: f64, pair: Pair) -> f64 {
        (self.twin)(s, pair)
    }

    /// The derivative of [`apply`](Self::apply) by the score; `None` where none was given.
    pub fn derivative(&self, s: f64, pair: Pair) -> Option<f64> {
        self.derivative.as_ref().map(|derivative| (derivative.twin)(s, pair))
    }
}

impl MaskFunction {
    /// A function called `name` in errors, as WGSL and as a closure.
    pub fn new(
        name: &str,
        wgsl: &str,
        twin: impl Fn(Pair) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { text: Text::new(name, wgsl), twin: Arc::new(twin) }
    }

    /// Whether the closure shows a pair.
    pub fn shows(&self, pair: Pair) -> bool {
        (self.twin)(pair)
    }
}

/// Buffers of all functions, each name once.
///
/// # Errors
/// [`ProblemError::BufferName`] of a name that none may have; [`ProblemError::BufferTypes`] where two functions give
/// one name other elements.
pub(crate) fn buffers<'a>(
    texts: impl Iterator<Item = &'a Text>,
) -> Result<Vec<(Arc<str>, &'static str)>, ProblemError> {
    let mut all: Vec<(Arc<str>, &'static str)> = Vec::new();
    for (name, element) in texts.flat_map(|text| &text.buffers) {
        if !is_free(name) {
            return Err(ProblemError::BufferName { buffer: name.to_string() });
        }
        match all.iter().find(|(other, _)| other == name) {
            None => all.push((name.clone(), element)),
            Some((_, other)) if other == element => {}
            Some((_, other)) => {
                return Err(ProblemError::BufferTypes {
                    buffer: name.to_string(),
                    elements: [other, element],
                });
            }
        }
    }
    Ok(all)
}

/// What every loop of a caller's starts with.
pub(crate) const LOOP_CHECK: &str = " if loop_budget == 0u { break; } loop_budget -= 1u; ";

/// Names of the kernels' own bindings.
const BOUND: [&str; 21] = [
    "params",
    "q",
    "k",
    "v",
    "out",
    "lse",
    "scores",
    "kept",
    "tables",
    "mask",
    "bias",
    "classes",
    "partial_out",
    "partial_lse",
    "x",
    "d_out",
    "d_lse",
    "stats",
    "d_scores",
    "d_biased",
    "sums",
];

/// Whether a buffer may be called this: an identifier that no kernel's own binding has.
fn is_free(name: &str) -> bool {
    let word = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    word && name.starts_with(|c: char| c.is_ascii_alphabetic()) && !BOUND.contains(&name)
}

/// The text with an end to every loop: `loop_budget`, which all loops of one call share, must not be used up.
/// Lines stay where they are.
pub(crate) fn bounded(wgsl: &str) -> String {
    let mut text = String::with_capacity(wgsl.len());
    let mut rest = wgsl;
    // Whether a loop's body is yet to open.
    let mut in_head = false;
    while let Some(c) = rest.chars().next() {
        let token = if c.is_alphanumeric() || c == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else {
            c.len_utf8()
        };
        let (token, after) = rest.split_at(token);
        text.push_str(token);
        if matches!(token, "loop" | "for" | "while") {
            in_head = true;
        } else if token == "{" && in_head {
            in_head = false;
            text.push_str(LOOP_CHECK);
        }
        rest = after;
    }
    text
}

/// The text without its comments, of which block comments may hold others: what stands in them is no WGSL, and nobody
/// has to know. Lines stay where they are.
fn uncommented(wgsl: &str) -> String {
    let mut text = String::with_capacity(wgsl.len());
    let mut rest = wgsl;
    let mut depth = 0;
    while let Some(c) = rest.chars().next() {
        if depth == 0 && rest.starts_with("//") {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
        } else if rest.starts_with("/*") {
            depth += 1;
            rest = &rest[2..];
        } else if depth > 0 && rest.starts_with("*/") {
            depth -= 1;
            rest = &rest[2..];
            // What stood on either side stays apart.
            text.push(' ');
        } else {
            if depth == 0 || c == '\n' {
                text.push(c);
            }
            rest = &rest[c.len_utf8()..];
        }
    }
    text
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)
    }
}

impl fmt::Debug for ScoreFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl fmt::Debug for MaskFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

/// Equal where the text is and the closure is one and the same.
impl PartialEq for ScoreFunction {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && Arc::ptr_eq(&self.twin, &other.twin)
    }
}

/// Equal where the text is and the closure is one and the same.
impl PartialEq for MaskFunction {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && Arc::ptr_eq(&self.twin, &other.twin)
    }
}

#[cfg(test)]
mod tests {
    use super::{LOOP_CHECK, bounded, uncommented};

    #[test]
    fn every_loop_gets_an_end_and_no_line_moves() {
        let text = "fn f() {\n  for (var i = 0; i < 3; i++) { g(); }\n  while a {\n\
                    loop { continuing { x(); } } }\n  let loops = 1; if a { }\n}";
        let ended = bounded(text);
        assert_eq!(ended.matches(LOOP_CHECK).count(), 3, "{ended}");
        assert_eq!(ended.lines().count(), text.lines().count());
        assert!(ended.contains("if a { }"));
    }

    #[test]
    fn comments_go_and_lines_stay() {
        for (text, bare) in [
            ("a // { b\nc", "a \nc"),
            ("a /* { // */ b", "a   b"),
            ("a/* 1 /* 2 \n */ { */b\n// *", "a\n  b\n"),
            ("a // /* b\nc */ d", "a \nc */ d"),
            ("a /* b", "a "),
        ] {
            assert_eq!(uncommented(text), bare);
        }
    }
}
