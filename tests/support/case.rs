//! A named problem and its inputs.

use super::At;
use super::random::Random;
use std::fmt;
use wgpu_attention::{Inputs, Problem, Shape, Strides};

/// A named problem.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) problem: Problem,
    /// Factor on unit-range queries: with 1, softmax is almost flat and hides errors of the scores; with 8 to
    /// 30, a few keys take all and hide errors of the sums. Cases have the one or the other.
    pub(crate) sharpness: f32,
}

impl Case {
    pub(crate) fn new(name: &str, problem: Problem) -> Self {
        Self { name: name.to_owned(), problem, sharpness: 1.0 }
    }

    pub(crate) fn sharp(self, sharpness: f32) -> Self {
        Self { sharpness, ..self }
    }

    /// The inputs of this case; those of another `draw` are others of the same kind.
    pub(crate) fn tensors(&self, draw: u64) -> Tensors {
        let s = self.problem.shape;
        let mut random = Random::new(draw + 1);
        let seen = seen_keys(&self.problem);
        let Problem { q, k, v, .. } = self.problem;
        let (q_axes, kv_axes) = ([s.batch, s.heads, s.q_len], [s.batch, s.kv_heads, s.kv_len]);
        let seen = |j: u32| seen[j as usize];
        Tensors {
            q: filled(&mut random, q_axes, s.head_dim, q, |_| true, self.sharpness),
            k: filled(&mut random, kv_axes, s.head_dim, k, seen, 1.0),
            v: filled(&mut random, kv_axes, s.v_head_dim, v, seen, 1.0),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, problem, sharpness } = self;
        write!(f, "{name} (q times {sharpness}): {problem:?}")
    }
}

/// Whether any query sees a key.
fn seen_keys(problem: &Problem) -> Vec<bool> {
    let mut seen = vec![false; problem.shape.kv_len as usize];
    for q_pos in 0..problem.shape.q_len {
        let range = problem.mask.kv_range(&problem.shape, q_pos);
        seen[range.start as usize..range.end as usize].fill(true);
    }
    seen
}

/// Random rows where `used`; NaN in all others and in gaps between rows.
fn filled(
    random: &mut Random,
    [batch, heads, len]: [u32; 3],
    dim: u32,
    strides: Strides,
    used: impl Fn(u32) -> bool,
    amplitude: f32,
) -> Vec<f32> {
    let mut data = vec![f32::NAN; extent(strides, [batch, heads, len], dim)];
    for at in positions([batch, heads, len]).filter(|at| used(at.2)) {
        for x in &mut data[start(strides, at)..][..dim as usize] {
            *x = random.unit() * amplitude;
        }
    }
    data
}

/// Inputs of one problem; each as long as its strides reach.
#[derive(Clone, Debug)]
pub(crate) struct Tensors {
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

impl Tensors {
    pub(crate) fn inputs(&self) -> Inputs<'_> {
        Inputs::new(&self.q, &self.k, &self.v)
    }
}

/// Every row of three outer axes, the last fastest.
pub(crate) fn positions([batch, heads, len]: [u32; 3]) -> impl Iterator<Item = At> {
    (0..batch).flat_map(move |b| (0..heads).flat_map(move |h| (0..len).map(move |i| (b, h, i))))
}

/// Every query row.
pub(crate) fn rows(shape: &Shape) -> impl Iterator<Item = At> + use<> {
    positions([shape.batch, shape.heads, shape.q_len])
}

/// Index of a row's first element.
pub(crate) fn start(strides: Strides, (batch, head, row): At) -> usize {
    let index = u64::from(batch) * strides.batch
        + u64::from(head) * strides.head
        + u64::from(row) * strides.row;
    usize::try_from(index).expect("in memory")
}

/// Elements from the first to one past the last.
pub(crate) fn extent(strides: Strides, [batch, heads, len]: [u32; 3], dim: u32) -> usize {
    if batch == 0 || heads == 0 || len == 0 {
        return 0;
    }
    start(strides, (batch - 1, heads - 1, len - 1)) + dim as usize
}

/// The same tensor laid out by other strides; NaN in the gaps.
pub(crate) fn relaid(
    data: &[f32],
    axes: [u32; 3],
    dim: u32,
    (from, to): (Strides, Strides),
) -> Vec<f32> {
    let mut other = vec![f32::NAN; extent(to, axes, dim)];
    for at in positions(axes) {
        let row = &data[start(from, at)..][..dim as usize];
        other[start(to, at)..][..dim as usize].copy_from_slice(row);
    }
    other
}
