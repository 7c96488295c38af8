//! Attention weights of every head as a picture: small multiples, one panel a head.

use crate::canvas::{Anchor, Canvas, Style};
use crate::colours::magma;
use crate::sentence::Sentence;
use std::path::Path;

const COLUMNS: usize = 4;
const CELL: usize = 25;
const GAP: usize = 24;
const TITLE: usize = 34;
const LEFT: usize = 124;
const TOP: usize = 122;
const RIGHT: usize = 120;
const BOTTOM: usize = 118;

const GROUND: [u8; 3] = [16, 14, 24];
const INK: [u8; 3] = [228, 226, 234];
const QUIET: [u8; 3] = [158, 154, 172];
const MARK: [u8; 3] = [92, 225, 230];

/// A cell to point at.
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    pub(crate) head: usize,
    pub(crate) row: usize,
    pub(crate) column: usize,
}

/// Draws `weights`, `[heads, len, len]`, and writes the file.
pub(crate) fn write(
    path: &Path,
    sentence: &Sentence,
    weights: &[f32],
    mark: Mark,
) -> Result<(), Box<dyn std::error::Error>> {
    let panel = CELL * sentence.tokens.len();
    let rows = sentence.heads.div_ceil(COLUMNS);
    let width = LEFT + COLUMNS * panel + (COLUMNS - 1) * GAP + RIGHT;
    let height = TOP + rows * (TITLE + panel) + BOTTOM;
    let mut canvas = Canvas::new(width, height, GROUND);
    title(&mut canvas, sentence, weights, mark);
    for head in 0..sentence.heads {
        let origin =
            (LEFT + head % COLUMNS * (panel + GAP), TOP + head / COLUMNS * (TITLE + panel) + TITLE);
        cells(&mut canvas, origin, sentence.head(weights, head), sentence.tokens.len());
        let name_colour = if head == mark.head { MARK } else { INK };
        let name = Style::new(15.0, name_colour, Anchor::Start);
        canvas.text(&format!("head {head}"), (origin.0 as f32, origin.1 as f32 - 16.0), name);
        if head.is_multiple_of(COLUMNS) {
            row_labels(&mut canvas, origin, sentence);
        }
        if head + COLUMNS >= sentence.heads {
            column_labels(&mut canvas, origin, sentence);
        }
        if head == mark.head {
            let cell = (origin.0 + mark.column * CELL, origin.1 + mark.row * CELL);
            canvas.frame(cell, (CELL - 1, CELL - 1), 3, MARK);
        }
    }
    let bar_left = width - RIGHT + 28;
    bar(&mut canvas, (bar_left, TOP + TITLE), rows * (TITLE + panel) - TITLE);
    canvas.write(path)
}

fn title(canvas: &mut Canvas, sentence: &Sentence, weights: &[f32], mark: Mark) {
    let left = LEFT as f32;
    let heading = format!("What {} heads attend to", sentence.heads);
    canvas.text(&heading, (left, 40.0), Style::new(26.0, INK, Anchor::Start));
    let note = "a row: the token that looks.  a column: the token it looks at.";
    canvas.text(note, (left, 84.0), Style::new(15.0, QUIET, Anchor::Start));
    let len = sentence.tokens.len();
    let weight = sentence.head(weights, mark.head)[mark.row * len + mark.column];
    let (from, to) = (&sentence.tokens[mark.row], &sentence.tokens[mark.column]);
    let found = format!("head {}: \"{from}\" looks at \"{to}\", {weight:.2}", mark.head);
    let right = left + (COLUMNS * (CELL * len + GAP) - GAP) as f32;
    canvas.text(&found, (right, 84.0), Style::new(15.0, MARK, Anchor::End));
}

fn cells(canvas: &mut Canvas, (left, top): (usize, usize), weights: &[f32], len: usize) {
    for (index, weight) in weights.iter().enumerate() {
        let cell = (left + index % len * CELL, top + index / len * CELL);
        // One pixel of ground between cells.
        canvas.rectangle(cell, (CELL - 1, CELL - 1), shade(*weight));
    }
}

/// By the square root: most weights are small, and they differ too.
fn shade(weight: f32) -> [u8; 3] {
    magma(0.07 + 0.93 * weight.max(0.0).sqrt())
}

fn row_labels(canvas: &mut Canvas, (left, top): (usize, usize), sentence: &Sentence) {
    for (row, token) in sentence.tokens.iter().enumerate() {
        let y = (top + row * CELL + CELL / 2) as f32;
        canvas.text(token, (left as f32 - 11.0, y), Style::new(13.0, INK, Anchor::End));
    }
}

fn column_labels(canvas: &mut Canvas, (left, top): (usize, usize), sentence: &Sentence) {
    let bottom = (top + sentence.tokens.len() * CELL) as f32;
    for (column, token) in sentence.tokens.iter().enumerate() {
        let x = (left + column * CELL + CELL / 2) as f32;
        let style = Style::new(13.0, INK, Anchor::End).upright();
        canvas.text(token, (x, bottom + 11.0), style);
    }
}

/// The scale of the colours.
fn bar(canvas: &mut Canvas, (left, top): (usize, usize), height: usize) {
    for y in 0..height {
        let place = 1.0 - y as f32 / (height - 1) as f32;
        canvas.rectangle((left, top + y), (18, 1), shade(place * place));
    }
    for (weight, label) in [
        (0.0_f32, "0"),
        (0.01, "0.01"),
        (0.05, "0.05"),
        (0.1, "0.1"),
        (0.25, "0.25"),
        (0.5, "0.5"),
        (1.0, "1"),
    ] {
        let y = top as f32 + (1.0 - weight.sqrt()) * (height - 1) as f32;
        canvas.text(label, (left as f32 + 28.0, y), Style::new(13.0, INK, Anchor::Start));
    }
    let name = Style::new(15.0, INK, Anchor::Start);
    canvas.text("weight", (left as f32, top as f32 - 24.0), name);
}
