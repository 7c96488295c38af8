//! What a problem costs at least: floating-point operations and bytes moved.

use crate::problem::{Lengths, Problem};

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
    /// FLOP per byte; infinite where there is nothing to move.
    pub fn intensity(&self) -> f64 {
        if self.bytes == 0 { f64::INFINITY } else { self.flops as f64 / self.bytes as f64 }
    }

    /// The cost of `problem`, whatever kernel runs it.
    pub fn of(problem: &Problem) -> Self {
        let s = problem.shape;
        let head_rows = u64::from(s.batch) * u64::from(s.heads);
        let batch = u64::from(problem.tensor_shape().batch);
        let rows = (batch * u64::from(s.heads)).saturating_mul(s.q_len.into());
        let keys = (batch * u64::from(s.kv_heads)).saturating_mul(s.kv_len.into());
        let widths = u64::from(s.head_dim) + u64::from(s.v_head_dim);
        let stored = [
            (rows, u64::from(s.head_dim), problem.dtype),
            (rows, u64::from(s.v_head_dim), problem.out_dtype),
            (keys, widths, problem.kv_dtype),
        ]
        .map(|(rows, width, dtype)| dtype.bytes_of(rows.saturating_mul(width)).unwrap_or(u64::MAX))
        .into_iter()
        .fold(0, u64::saturating_add);
        let lse = if problem.lse { rows.saturating_mul(4) } else { 0 };
        let matrices = u64::from(problem.weights) + u64::from(problem.scores.is_some());
        let weights = rows.saturating_mul(4 * matrices * u64::from(s.kv_len));
        let bits = |pairs: crate::Pairs, bits: u64| {
            pairs.axes.into_iter().fold(bits, |n, axis| n.saturating_mul(axis.into())) / 8
        };
        let mask = problem.boolean_mask.map_or(0, |mask| bits(mask.pairs, mask.format.bits()));
        let bias = problem.bias.map_or(0, |bias| bits(bias.pairs, bias.dtype.bits()));
        let keep = problem.keep_pairs().map_or(0, |pairs| bits(pairs, 8));
        Self {
            flops: head_rows.saturating_mul(visible_pairs(problem)).saturating_mul(2 * widths),
            bytes: [lse, weights, mask, bias, keep].into_iter().fold(stored, u64::saturating_add),
        }
    }
}

/// Pairs of query and key of one head of which the query sees the key, by the band and the shape: lengths and masks
/// in buffers are not known. Packed sequences count as if equally long.
fn visible_pairs(problem: &Problem) -> u64 {
    let s = problem.shape;
    let (q_len, kv_len) = match problem.lengths {
        Lengths::Packed => (s.q_len.div_ceil(s.batch.max(1)), s.kv_len.div_ceil(s.batch.max(1))),
        _ => (s.q_len, s.kv_len),
    };
    let diagonal = problem.mask.diagonal(q_len, kv_len).unwrap_or(0);
    let (q_len, kv_len) = (i64::from(q_len), i64::from(kv_len));
    // The sum over all rows i of i + bound, clamped to 0..=kv_len.
    let sum = |bound: i64| {
        let rising = (-bound).clamp(0, q_len)..(kv_len - bound).clamp(0, q_len);
        let terms = rising.end - rising.start;
        let ramp = terms * bound + (rising.start + rising.end - 1) * terms / 2;
        ramp + (q_len - rising.end) * kv_len
    };
    let (begin, end) = problem.mask.bounds(diagonal);
    let pairs = end.map_or(q_len * kv_len, sum) - begin.map_or(0, sum);
    u64::try_from(pairs).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::{Diagonal, Mask};
    use crate::shape::Shape;

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
                    let counted: u64 = {
                        let diagonal = problem.mask.diagonal(q_len, kv_len).expect("given");
                        let seen = |i| problem.mask.kv_range(kv_len, diagonal, i).len() as u64;
                        (0..q_len).map(seen).sum()
                    };
                    assert_eq!(visible_pairs(&problem), counted, "{problem:?}");
                }
            }
        }
    }
}
