//! What a problem costs at least: floating-point operations and bytes moved.

use crate::problem::Problem;

/// The least that any kernel must do for a problem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cost {
    /// Multiplications and additions of the two products, over visible pairs only.
    pub flops: u64,
    /// Bytes of every input read once and every output written once.
    pub bytes: u64,
}

impl Cost {
    /// The cost of `problem`, whatever kernel runs it.
    pub fn of(problem: &Problem) -> Self {
        let s = problem.shape;
        let head_rows = u64::from(s.batch) * u64::from(s.heads);
        let rows = head_rows.saturating_mul(s.q_len.into());
        let keys = (u64::from(s.batch) * u64::from(s.kv_heads)).saturating_mul(s.kv_len.into());
        let widths = u64::from(s.head_dim) + u64::from(s.v_head_dim);
        let stored = rows.saturating_add(keys).saturating_mul(widths * problem.dtype.bytes());
        let lse = if problem.lse { rows.saturating_mul(4) } else { 0 };
        let weights =
            if problem.weights { rows.saturating_mul(4 * u64::from(s.kv_len)) } else { 0 };
        Self {
            flops: head_rows.saturating_mul(visible_pairs(problem)).saturating_mul(2 * widths),
            bytes: stored.saturating_add(lse).saturating_add(weights),
        }
    }
}

/// Pairs of query and key of one head of which the query sees the key.
fn visible_pairs(problem: &Problem) -> u64 {
    let s = problem.shape;
    let (q_len, kv_len) = (i64::from(s.q_len), i64::from(s.kv_len));
    // The sum over all rows i of i + bound, clamped to 0..=kv_len.
    let sum = |bound: i64| {
        let rising = (-bound).clamp(0, q_len)..(kv_len - bound).clamp(0, q_len);
        let terms = rising.end - rising.start;
        let ramp = terms * bound + (rising.start + rising.end - 1) * terms / 2;
        ramp + (q_len - rising.end) * kv_len
    };
    let (begin, end) = problem.mask.bounds(&s);
    let pairs = end.map_or(q_len * kv_len, sum) - begin.map_or(0, sum);
    u64::try_from(pairs).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::{Diagonal, Mask};
    use crate::problem::Shape;

    #[test]
    fn visible_pairs_are_those_of_the_definition() {
        for (q_len, kv_len) in [(1, 1), (5, 9), (9, 5), (7, 7), (0, 3), (3, 0), (40, 13)] {
            for (left, right) in [
                (None, None),
                (None, Some(0)),
                (Some(2), Some(0)),
                (Some(3), Some(4)),
                (Some(0), None),
            ] {
                for diagonal in [
                    Diagonal::BottomRight,
                    Diagonal::TopLeft,
                    Diagonal::Offset(-6),
                    Diagonal::Offset(50),
                ] {
                    let shape = Shape::cross_attention(1, 1, q_len, kv_len, 8);
                    let problem = Problem::new(shape).mask(Mask::band(left, right).along(diagonal));
                    let counted: u64 =
                        (0..q_len).map(|i| problem.mask.kv_range(&shape, i).len() as u64).sum();
                    assert_eq!(visible_pairs(&problem), counted, "{problem:?}");
                }
            }
        }
    }
}
