//! The loss curve and the attention map, as PNG.

use crate::canvas::{Anchor, Canvas, Style};
use crate::colours::{magma, mix};
use crate::task::{KEYS, LEN, NO_VALUE, Point, Sample, VALUES, chance};
use std::error::Error;
use std::path::Path;

const GROUND: [u8; 3] = [16, 14, 24];
const INK: [u8; 3] = [228, 226, 234];
const QUIET: [u8; 3] = [158, 154, 172];
const MARK: [u8; 3] = [92, 225, 230];
const OTHER: [u8; 3] = [240, 160, 80];

/// Steps that a point of a curve is the mean of: a hundredth of all.
const POINTS: usize = 100;

/// Loss and accuracy by steps, of the model and of the one without attention.
pub(crate) fn curves(path: &Path, histories: &[Vec<Point>; 2]) -> Result<(), Box<dyn Error>> {
    let mut canvas = Canvas::new(1180, 560, GROUND);
    let title = Style::new(20.0, INK, Anchor::Start);
    canvas.text("Associative recall, learnt by one layer of causal attention", (70.0, 44.0), title);
    let names = ["with attention", "without"];
    for (i, (name, colour)) in names.iter().zip([MARK, OTHER]).enumerate() {
        let left = 70.0 + 190.0 * i as f32;
        canvas.line(&[(left, 80.0), (left + 26.0, 80.0)], 3.0, colour);
        canvas.text(name, (left + 36.0, 80.0), Style::new(13.0, INK, Anchor::Start));
    }
    let guess = (VALUES as f64).ln();
    let loss: fn(&Point) -> f64 = |point| point.loss;
    let accuracy: fn(&Point) -> f64 = |point| point.accuracy;
    let panels =
        [("loss, nats", (1.25 * guess).ceil(), guess, loss), ("accuracy", 1.0, chance(), accuracy)];
    for (i, (name, top, guess, of)) in panels.into_iter().enumerate() {
        let (left, first, width, height) = (70.0 + 570.0 * i as f32, 130.0, 480.0, 350.0);
        let steps = histories[0].len();
        let y = |value: f64| first + height * (1.0 - (value / top).clamp(0.0, 1.0)) as f32;
        canvas.text(name, (left, first - 18.0), Style::new(13.0, INK, Anchor::Start));
        for tick in 0..=4 {
            let value = top * f64::from(tick) / 4.0;
            canvas.line(
                &[(left, y(value)), (left + width, y(value))],
                1.0,
                mix(GROUND, QUIET, 0.3),
            );
            let label = Style::new(11.0, QUIET, Anchor::End);
            canvas.text(&format!("{value:.2}"), (left - 8.0, y(value)), label);
            let step = steps * tick as usize / 4;
            let x = left + width * tick as f32 / 4.0;
            let label = Style::new(11.0, QUIET, Anchor::Middle);
            canvas.text(&format!("{step}"), (x, first + height + 18.0), label);
        }
        let place = (left + width / 2.0, first + height + 44.0);
        canvas.text("steps", place, Style::new(13.0, INK, Anchor::Middle));
        for x in (0..48).step_by(2) {
            let from = left + width * x as f32 / 48.0;
            canvas.line(&[(from, y(guess)), (from + width / 48.0, y(guess))], 1.0, QUIET);
        }
        let chance = Style::new(11.0, QUIET, Anchor::End);
        canvas.text("who guesses", (left + width, y(guess) - 22.0), chance);
        for (history, colour) in histories.iter().zip([MARK, OTHER]).rev() {
            let len = steps.div_ceil(POINTS);
            let points: Vec<_> = (history.chunks(len).enumerate())
                .map(|(i, points)| {
                    let middle = (i * len) as f32 + points.len() as f32 / 2.0;
                    (left + width * middle / steps as f32, y(of(&Point::mean(points))))
                })
                .collect();
            canvas.line(&points, 2.5, colour);
        }
    }
    canvas.write(path)
}

/// Sequences side by side.
const SHOWN: usize = 3;
const CELL: usize = 22;

/// What the tokens of some sequences attend to: `weights` is `[BATCH, LEN, LEN]`. The key that the last token asks for is
/// framed.
pub(crate) fn map(path: &Path, sample: &Sample, weights: &[f32]) -> Result<(), Box<dyn Error>> {
    let panel = CELL * LEN;
    let (left, top, gap) = (110, 130, 110);
    let mut canvas = Canvas::new(left + SHOWN * (panel + gap), top + panel + 110, GROUND);
    let title = Style::new(20.0, INK, Anchor::Start);
    canvas.text("What each token attends to, after training", (left as f32, 42.0), title);
    let note = format!(
        "a row: the token that looks, {KEYS} keys by number, {VALUES} values by letter.  framed: what the last one asks for"
    );
    canvas.text(&note, (left as f32, 76.0), Style::new(13.0, QUIET, Anchor::Start));
    for shown in 0..SHOWN {
        let left = left + shown * (panel + gap);
        let tokens = &sample.tokens[shown * LEN..][..LEN];
        let names = tokens.iter().map(|[key, value]| match *value {
            NO_VALUE => format!("{key}:"),
            value => format!("{key}:{}", char::from(b'a' + u8::try_from(value).unwrap_or(25))),
        });
        for (i, name) in names.enumerate() {
            let along = (i * CELL + CELL / 2) as f32;
            let row = (left as f32 - 8.0, top as f32 + along);
            canvas.text(&name, row, Style::new(11.0, INK, Anchor::End));
            let column = (left as f32 + along, (top + panel) as f32 + 10.0);
            canvas.text(&name, column, Style::new(11.0, INK, Anchor::End).upright());
        }
        let rows = weights[shown * LEN * LEN..][..LEN * LEN].chunks(LEN);
        for (i, row) in rows.enumerate() {
            for (j, weight) in row.iter().enumerate() {
                let colour = if j > i { GROUND } else { magma(*weight) };
                canvas.rectangle((left + j * CELL, top + i * CELL), (CELL, CELL), colour);
            }
        }
        canvas.frame((left, top), (panel, panel), 1, mix(GROUND, QUIET, 0.5));
        let asked = left + sample.asked(shown) * CELL;
        canvas.frame((asked, top + (LEN - 1) * CELL), (CELL, CELL), 2, MARK);
    }
    canvas.write(path)
}
