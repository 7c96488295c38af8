//! Attention weights as a picture: panels of rows that look at columns.

use crate::canvas::{Anchor, Canvas, Style};
use crate::colours::magma;
use crate::error::Error;
use crate::lettering;
use std::path::Path;

const GROUND: [u8; 3] = [16, 14, 24];
const INK: [u8; 3] = [228, 226, 234];
const QUIET: [u8; 3] = [158, 154, 172];
const MARK: [u8; 3] = [92, 225, 230];
const GAP: usize = 24;
const TITLE: usize = 34;
const TOP: usize = 122;
const RIGHT: usize = 120;
/// Of a long sentence; of a short one cells are larger.
const WIDEST_PANEL: usize = 420;
/// Height of a capital of the names of rows and columns.
const LABEL: f32 = 13.0;

/// Panels of the same rows and columns.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "filled in by field name")]
pub struct Picture<'a> {
    /// What it shows.
    pub heading: String,
    /// How to read it.
    pub note: &'a str,
    /// What there is to find.
    pub finding: String,
    /// Who looks.
    pub rows: &'a [String],
    /// Who is looked at.
    pub columns: &'a [String],
    /// Name and weights of each, `[rows, columns]`.
    pub panels: Vec<(String, &'a [f32])>,
    /// Panels side by side.
    pub across: usize,
    /// Panel, row and column of a cell to point at.
    pub mark: Option<[usize; 3]>,
}

impl Picture<'_> {
    /// Draws it and writes the PNG file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let most = self.rows.len().max(self.columns.len()).max(1);
        let single = if self.panels.len() == 1 { 44 } else { 25 };
        let cell = (WIDEST_PANEL * single / 25 / most).clamp(9, single);
        let label = LABEL.min(0.62 * cell as f32);
        let longest = |names: &[String]| {
            let widths = names.iter().map(|name| lettering::width(&clean(name)));
            pixels(widths.fold(0.0, f32::max) * label / lettering::CAPITAL) + 30
        };
        let (left, bottom) = (longest(self.rows).max(60), longest(self.columns) + 12);
        let (panel_width, panel_height) = (cell * self.columns.len(), cell * self.rows.len());
        let (across, down) = (self.across, self.panels.len().div_ceil(self.across));
        let panels = across * panel_width + (across - 1) * GAP;
        let wide = |text: &str| lettering::width(&clean(text)) / lettering::CAPITAL;
        // A long heading is set smaller, down to the size of a note.
        let room = (panels + RIGHT) as f32;
        let heading = (room / wide(&self.heading).max(1.0)).clamp(15.0, 26.0);
        let texts = (wide(&self.heading) * heading).max(wide(self.note) * 15.0);
        let width = left + (panels + RIGHT).max(pixels(texts) + 30);
        let bar_height = (down * (TITLE + panel_height) - TITLE).max(160);
        let height = TOP + (down * (TITLE + panel_height)).max(TITLE + bar_height) + bottom;
        let mut canvas = Canvas::new(width, height, GROUND);

        let start = |size, colour| Style::new(size, colour, Anchor::Start);
        let x = left as f32;
        canvas.text(&clean(&self.heading), (x, 36.0), start(heading, INK));
        canvas.text(&clean(self.note), (x, 72.0), start(15.0, QUIET));
        canvas.text(&clean(&self.finding), (x, 102.0), start(15.0, MARK));
        for (index, (name, weights)) in self.panels.iter().enumerate() {
            let (column, row) = (index % across, index / across);
            let origin =
                [left + column * (panel_width + GAP), TOP + row * (TITLE + panel_height) + TITLE];
            let marked = self.mark.filter(|[panel, ..]| *panel == index);
            let name_colour = if marked.is_some() { MARK } else { INK };
            let place = (origin[0] as f32, origin[1] as f32 - 16.0);
            canvas.text(&clean(name), place, start(15.0, name_colour));
            for (i, weight) in weights.iter().enumerate() {
                let [x, y] = [i % self.columns.len(), i / self.columns.len()];
                let corner = (origin[0] + x * cell, origin[1] + y * cell);
                // One pixel of ground between cells.
                canvas.rectangle(corner, (cell - 1, cell - 1), shade(*weight));
            }
            if let Some([_, row, column]) = marked {
                let corner = (origin[0] + column * cell, origin[1] + row * cell);
                canvas.frame(corner, (cell - 1, cell - 1), 3, MARK);
            }
            let (is_first, is_lowest) = (column == 0, index + across >= self.panels.len());
            let end = Style::new(label, INK, Anchor::End);
            for (i, name) in self.rows.iter().enumerate().filter(|_| is_first) {
                let y = (origin[1] + i * cell + cell / 2) as f32;
                canvas.text(&clean(name), (origin[0] as f32 - 11.0, y), end);
            }
            for (i, name) in self.columns.iter().enumerate().filter(|_| is_lowest) {
                let x = (origin[0] + i * cell + cell / 2) as f32;
                let y = (origin[1] + panel_height) as f32 + 11.0;
                canvas.text(&clean(name), (x, y), end.upright());
            }
        }
        bar(&mut canvas, (left + panels + 28, TOP + TITLE), bar_height);
        canvas.write(path).map_err(|error| Error::file(path, error))
    }
}

/// What begins a word in a vocabulary is a space to a reader.
fn clean(text: &str) -> String {
    text.replace('▁', "")
}

/// By the square root: most weights are small, and they differ too.
fn shade(weight: f32) -> [u8; 3] {
    magma(0.07 + 0.93 * weight.max(0.0).sqrt())
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
    canvas.text("weight", (left as f32, top as f32 - 28.0), name);
}

fn pixels(width: f32) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "the width of a text in a picture")]
    #[expect(clippy::cast_sign_loss, reason = "not below 0")]
    let pixels = width.max(0.0).ceil() as usize;
    pixels
}
