//! A chart whose two axes are logarithmic.

use crate::canvas::{Anchor, Canvas, Style};
use crate::colours::mix;
use std::ops::Range;

pub(crate) const GROUND: [u8; 3] = [16, 14, 24];
pub(crate) const INK: [u8; 3] = [228, 226, 234];
pub(crate) const QUIET: [u8; 3] = [158, 154, 172];

/// How a point is drawn.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    Disc,
    Square,
    Diamond,
    Triangle,
    Cross,
    Ring,
}

impl Shape {
    pub(crate) const ALL: [Self; 6] =
        [Self::Disc, Self::Square, Self::Diamond, Self::Triangle, Self::Cross, Self::Ring];
}

/// Where on a picture the axes lie, and what they reach over.
pub(crate) struct Chart {
    pub(crate) left: f32,
    pub(crate) top: f32,
    pub(crate) width: f32,
    pub(crate) height: f32,
    pub(crate) x: Range<f64>,
    pub(crate) y: Range<f64>,
}

impl Chart {
    /// The pixel of a value.
    pub(crate) fn place(&self, x: f64, y: f64) -> (f32, f32) {
        let share = |value: f64, range: &Range<f64>| {
            #[expect(clippy::cast_possible_truncation, reason = "a place in a picture")]
            let share = ((value / range.start).ln() / (range.end / range.start).ln()) as f32;
            share
        };
        let (x, y) = (share(x, &self.x), share(y, &self.y));
        (self.left + x * self.width, self.top + (1.0 - y) * self.height)
    }

    /// The grid, the values along it, and what the axes are.
    pub(crate) fn axes(&self, canvas: &mut Canvas, x_name: &str, y_name: &str) {
        let (bottom, right) = (self.top + self.height, self.left + self.width);
        let number = Style::new(14.0, QUIET, Anchor::Middle);
        for (value, label) in ticks(&self.x) {
            let (x, _) = self.place(value, self.y.start);
            let strength = if label.is_some() { 0.2 } else { 0.08 };
            canvas.line(&[(x, self.top), (x, bottom)], 1.0, mix(GROUND, QUIET, strength));
            if let Some(label) = label {
                canvas.text(&label, (x, bottom + 24.0), number);
            }
        }
        for (value, label) in ticks(&self.y) {
            let (_, y) = self.place(self.x.start, value);
            let strength = if label.is_some() { 0.2 } else { 0.08 };
            canvas.line(&[(self.left, y), (right, y)], 1.0, mix(GROUND, QUIET, strength));
            if let Some(label) = label {
                let number = Style { anchor: Anchor::End, ..number };
                canvas.text(&label, (self.left - 14.0, y), number);
            }
        }
        let corner = [(self.left, self.top), (self.left, bottom), (right, bottom)];
        canvas.line(&corner, 1.5, QUIET);
        let name = Style::new(16.0, INK, Anchor::Middle);
        canvas.text(x_name, (self.left + self.width / 2.0, bottom + 60.0), name);
        let middle = self.top + self.height / 2.0;
        canvas.text(y_name, (self.left - 82.0, middle), name.upright());
    }
}

/// A point of a chart, or of its legend.
pub(crate) fn mark(canvas: &mut Canvas, (x, y): (f32, f32), shape: Shape, colour: [u8; 3]) {
    const R: f32 = 8.0;
    let fill = |canvas: &mut Canvas, half: &dyn Fn(f32) -> f32, from: f32, to: f32| {
        let mut down = from;
        while down <= to {
            let half = half(down);
            canvas.line(&[(x - half, y + down), (x + half, y + down)], 1.6, colour);
            down += 0.5;
        }
    };
    match shape {
        Shape::Disc => fill(canvas, &|down| (R * R - down * down).max(0.0).sqrt(), -R, R),
        Shape::Square => fill(canvas, &|_| 6.5, -6.5, 6.5),
        Shape::Diamond => fill(canvas, &|down| 9.5 - down.abs(), -9.5, 9.5),
        Shape::Triangle => fill(canvas, &|down| (down + 8.5) * 0.6, -8.5, 7.0),
        Shape::Cross => {
            canvas.line(&[(x - 6.5, y - 6.5), (x + 6.5, y + 6.5)], 4.0, colour);
            canvas.line(&[(x - 6.5, y + 6.5), (x + 6.5, y - 6.5)], 4.0, colour);
        }
        Shape::Ring => {
            let point = |i: u8| {
                let angle = f32::from(i) * std::f32::consts::TAU / 32.0;
                (x + 6.5 * angle.cos(), y + 6.5 * angle.sin())
            };
            canvas.line(&(0..=32).map(point).collect::<Vec<_>>(), 4.0, colour);
        }
    }
}

/// One to nine times every power of ten in `range`; 1, and 2 and 5 where there are few powers, with their numbers.
fn ticks(range: &Range<f64>) -> Vec<(f64, Option<String>)> {
    let few = range.end / range.start < 300.0;
    let powers = (-6..=9).map(|power| 10.0_f64.powi(power));
    let all = powers.flat_map(|ten| (1_u8..10).map(move |n| (n, f64::from(n) * ten)));
    let within = all.filter(|(_, value)| range.contains(value));
    within
        .map(|(n, value)| {
            let named = n == 1 || few && (n == 2 || n == 5);
            (value, named.then(|| number(value)))
        })
        .collect()
}

/// Without needless zeros.
fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
