//! A picture under construction: rectangles, text, a PNG file.

use crate::colours::mix;
use crate::lettering::{self, CAPITAL, Stroke};
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

/// Where on a text its position lies.
#[derive(Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// How a text is set.
#[derive(Clone, Copy)]
pub(crate) struct Style {
    /// Height of a capital in pixels.
    pub(crate) size: f32,
    pub(crate) colour: [u8; 3],
    pub(crate) anchor: Anchor,
    /// Read from bottom to top.
    pub(crate) upright: bool,
}

impl Style {
    pub(crate) fn new(size: f32, colour: [u8; 3], anchor: Anchor) -> Self {
        Self { size, colour, anchor, upright: false }
    }

    pub(crate) fn upright(self) -> Self {
        Self { upright: true, ..self }
    }
}

/// RGB pixels, row by row.
pub(crate) struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<[u8; 3]>,
}

impl Canvas {
    pub(crate) fn new(width: usize, height: usize, colour: [u8; 3]) -> Self {
        Self { width, height, pixels: vec![colour; width * height] }
    }

    pub(crate) fn rectangle(
        &mut self,
        (left, top): (usize, usize),
        (width, height): (usize, usize),
        colour: [u8; 3],
    ) {
        for y in top..(top + height).min(self.height) {
            for x in left..(left + width).min(self.width) {
                self.pixels[y * self.width + x] = colour;
            }
        }
    }

    /// The border of a rectangle, `line` wide, outside of it.
    pub(crate) fn frame(
        &mut self,
        (left, top): (usize, usize),
        (width, height): (usize, usize),
        line: usize,
        colour: [u8; 3],
    ) {
        let (outer_left, outer_top) = (left - line, top - line);
        let (outer_width, outer_height) = (width + 2 * line, height + 2 * line);
        self.rectangle((outer_left, outer_top), (outer_width, line), colour);
        self.rectangle((outer_left, top + height), (outer_width, line), colour);
        self.rectangle((outer_left, outer_top), (line, outer_height), colour);
        self.rectangle((left + width, outer_top), (line, outer_height), colour);
    }

    /// One line of text, its capitals centred on `y`; on `x` where it is upright.
    pub(crate) fn text(&mut self, text: &str, (x, y): (f32, f32), style: Style) {
        let scale = style.size / CAPITAL;
        let before = match style.anchor {
            Anchor::Start => 0.0,
            Anchor::Middle => lettering::width(text) / 2.0,
            Anchor::End => lettering::width(text),
        };
        let place = |(along, down): (f32, f32)| {
            let (along, down) = ((along - before) * scale, (down - CAPITAL / 2.0) * scale);
            if style.upright { (x + down, y - along) } else { (x + along, y + down) }
        };
        let radius = (0.062 * style.size).max(0.75);
        self.strokes(
            lettering::strokes(text).iter().map(|line| line.map(place)),
            radius,
            style.colour,
        );
    }

    /// A line through `points`, `width` wide.
    pub(crate) fn line(&mut self, points: &[(f32, f32)], width: f32, colour: [u8; 3]) {
        self.strokes(points.windows(2).map(|pair| [pair[0], pair[1]]), width / 2.0, colour);
    }

    /// Lines with round ends; where they meet, no pixel is painted twice.
    fn strokes(&mut self, lines: impl Iterator<Item = Stroke>, radius: f32, colour: [u8; 3]) {
        let mut cover = std::collections::BTreeMap::<usize, f32>::new();
        let reach = radius + 1.0;
        for [a, b] in lines {
            let columns = pixels(a.0.min(b.0) - reach, a.0.max(b.0) + reach, self.width);
            for y in pixels(a.1.min(b.1) - reach, a.1.max(b.1) + reach, self.height) {
                for x in columns.clone() {
                    let far = distance((x as f32 + 0.5, y as f32 + 0.5), a, b);
                    let share = (radius + 0.5 - far).clamp(0.0, 1.0);
                    let most = cover.entry(y * self.width + x).or_default();
                    *most = most.max(share);
                }
            }
        }
        for (index, share) in cover {
            self.pixels[index] = mix(self.pixels[index], colour, share);
        }
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let (width, height) = (u32::try_from(self.width)?, u32::try_from(self.height)?);
        let mut encoder = png::Encoder::new(BufWriter::new(File::create(path)?), width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::High);
        encoder.write_header()?.write_image_data(self.pixels.as_flattened())?;
        Ok(())
    }
}

/// Whole pixels from `first` to `last`, within `0..len`.
fn pixels(first: f32, last: f32, len: usize) -> std::ops::Range<usize> {
    #[expect(clippy::cast_possible_truncation, reason = "a place in a picture")]
    #[expect(clippy::cast_sign_loss, reason = "not below 0")]
    let index = |place: f32| (place.max(0.0) as usize).min(len);
    index(first)..index(last.ceil())
}

/// From `p` to the line between `a` and `b`.
fn distance(p: (f32, f32), a: (f32, f32), b: (f32, f32)) -> f32 {
    let (dx, dy) = (b.0 - a.0, b.1 - a.1);
    let squared = dx * dx + dy * dy;
    let along = ((p.0 - a.0) * dx + (p.1 - a.1) * dy) / squared.max(f32::MIN_POSITIVE);
    let along = along.clamp(0.0, 1.0);
    (p.0 - a.0 - along * dx).hypot(p.1 - a.1 - along * dy)
}
