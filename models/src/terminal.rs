//! What the terminal shows: bars, and colours where they are welcome.

use crate::colours::magma;
use std::io::IsTerminal as _;

/// Cells of the longest bar.
const BAR: f32 = 40.0;

/// Whether standard output is a terminal and nobody asked for plain text.
pub fn colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stdout().is_terminal() && !refused
}

/// One line a token: its name, its weight, a bar as long as the weight.
pub fn bars(tokens: &[String], weights: &[f32], colours: bool) -> String {
    let width = tokens.iter().map(|token| token.chars().count()).max().unwrap_or(0);
    let line = |(token, weight): (&String, &f32)| {
        let bar = shaded(&bar(*weight), *weight, colours);
        format!("  {token:>width$}  {weight:.2}  {bar}").trim_end().to_owned() + "\n"
    };
    tokens.iter().zip(weights).map(line).collect()
}

/// In eighths of a cell.
fn bar(weight: f32) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "a few hundred eighths at most")]
    #[expect(clippy::cast_sign_loss, reason = "not below 0")]
    let eighths = (weight.clamp(0.0, 1.0) * BAR * 8.0).round() as usize;
    let part = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    "█".repeat(eighths / 8) + part
}

/// In the colour of a weight. Dark colours would not show on a dark ground.
pub fn shaded(text: &str, weight: f32, colours: bool) -> String {
    if !colours || text.is_empty() {
        return text.to_owned();
    }
    let [red, green, blue] = magma(0.35 + 0.55 * weight.clamp(0.0, 1.0).sqrt());
    format!("\x1b[38;2;{red};{green};{blue}m{text}\x1b[0m")
}

/// A heading that stands out.
pub fn heading(text: &str, colours: bool) -> String {
    if colours { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}
