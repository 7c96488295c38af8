//! Gradients of the slopes of ALiBi.

use super::super::attend::narrow;
use super::Row;
use super::tile::Task;

/// Of what each row gives, in the order of rows.
pub(super) fn gradient<'a>(
    task: &Task<'_>,
    rows: &[Row],
    by_row: impl Iterator<Item = &'a f64>,
) -> Vec<f32> {
    let shape = &task.problem().shape;
    let Some(slopes) = task.problem().alibi else { return Vec::new() };
    let count = usize::try_from(slopes.count(shape)).expect("in memory");
    let mut sums = vec![0.0; count];
    for (row, given) in rows.iter().zip(by_row) {
        if let Some(place) = row.place {
            sums[slopes.index(shape, place.sequence.batch, row.at.1)] += given;
        }
    }
    sums.into_iter().map(narrow).collect()
}
