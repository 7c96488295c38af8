//! Where tensors may lie: any multiple of 4 bytes, several in one buffer; nothing beside them is written.

#![cfg(feature = "cpu")]

use crate::device::{CLASSES, Gpu, POISON, bits, poisoned};
use crate::support;
use crate::support::case::{Case, Tensors as Data, extent, rows, start};
use crate::support::emulation::Got;
use crate::support::judge::Answer;
use crate::support::random::Random;
use std::sync::LazyLock;
use wgpu_attention::{
    Algorithm, Attention, DeviceClass, Layout, Mask, Problem, Shape, Strides, Tensors, wgpu,
};

/// Binds so little at once that a test can have its keys come in ranges.
static GPU: LazyLock<Gpu> =
    LazyLock::new(|| Gpu::new(|limits| limits.max_storage_buffer_binding_size = 1 << 17));

/// Words after a tensor.
const GUARD: usize = 70;

/// A tensor that starts anywhere in a poisoned buffer of its own.
struct Placed {
    buffer: wgpu::Buffer,
    first: usize,
    len: usize,
}

impl Placed {
    /// Usable as storage and for nothing else.
    fn input(first: usize, data: &[f32]) -> Self {
        let words = [&poisoned(first), data, &poisoned(GUARD)].concat();
        Self { buffer: GPU.input(&words), first, len: data.len() }
    }

    fn output(first: usize, len: usize) -> Self {
        Self { buffer: GPU.output(first + len + GUARD), first, len }
    }

    fn slice(&self) -> wgpu::BufferSlice<'_> {
        let first = self.first as u64 * 4;
        self.buffer.slice(first..first + self.len as u64 * 4)
    }

    /// The tensor; all around it must be as it was.
    fn read(&self, what: &str) -> Vec<f32> {
        let words = GPU.read(&self.buffer);
        for (i, word) in bits(&words).into_iter().enumerate() {
            let inside = (self.first..self.first + self.len).contains(&i);
            assert!(inside || word == POISON, "{what}: word {i} was written");
        }
        words[self.first..][..self.len].to_vec()
    }
}

/// Outputs of one problem.
struct Outputs {
    out: Placed,
    lse: Placed,
    weights: Placed,
}

impl Outputs {
    fn new([out, lse, weights]: [usize; 3], problem: &Problem) -> Self {
        let s = problem.shape;
        let rows = rows(&s).count();
        let out_len = extent(problem.out, [s.batch, s.heads, s.q_len], s.v_head_dim);
        Self {
            out: Placed::output(out, out_len),
            lse: Placed::output(lse, rows),
            weights: Placed::output(weights, rows * s.kv_len as usize),
        }
    }

    fn give<'a>(&'a self, problem: &Problem, tensors: Tensors<'a>) -> Tensors<'a> {
        let tensors = tensors.out(self.out.slice());
        let tensors = if problem.lse { tensors.lse(self.lse.slice()) } else { tensors };
        if problem.weights { tensors.weights(self.weights.slice()) } else { tensors }
    }

    /// What was written; gaps between rows must be as they were.
    fn read(&self, problem: &Problem, what: &str) -> Got {
        let mut out = self.out.read(what);
        without_gaps(problem, &mut out, what);
        let lse = problem.lse.then(|| self.lse.read(what));
        let weights = problem.weights.then(|| self.weights.read(what));
        Got { out, lse, weights, scores: None }
    }
}

/// Puts zeros where rows of `out` leave gaps, and poison must be.
fn without_gaps(problem: &Problem, out: &mut [f32], what: &str) {
    let mut gap = vec![true; out.len()];
    for at in rows(&problem.shape) {
        gap[start(problem.out, at)..][..problem.shape.v_head_dim as usize].fill(false);
    }
    for (i, (x, _)) in out.iter_mut().zip(gap).enumerate().filter(|(_, (_, gap))| *gap) {
        assert_eq!(x.to_bits(), POISON, "{what}: the gap at {i} was written");
        *x = 0.0;
    }
}

/// Every attention: tiles of each class, each algorithm that gives the outputs; where drivers are slow, each algorithm
/// with tiles of one class.
fn each(weights: bool) -> impl Iterator<Item = (&'static Attention, Algorithm)> {
    let few =
        [(DeviceClass::Software, Algorithm::Staged), (DeviceClass::Hardware, Algorithm::Flash)];
    let all = CLASSES.into_iter().flat_map(|class| {
        [Algorithm::Staged, Algorithm::Flash].map(|algorithm| (class, algorithm))
    });
    let chosen = all.filter(move |one| !support::small() || few.contains(one));
    let given = chosen.filter(move |(_, algorithm)| !weights || *algorithm == Algorithm::Staged);
    given.map(|(class, algorithm)| (GPU.attention(class), algorithm))
}

/// All of them, or where time is short the first.
fn some<const N: usize>(starts: [usize; N]) -> impl Iterator<Item = usize> {
    starts.into_iter().take(if support::small() { 1 } else { N })
}

/// What the tests place: two groups of heads, lengths that no tile likes, not all keys seen.
fn usual() -> Case {
    let shape = Shape::cross_attention(2, 4, 37, 53, 16).with_kv_heads(2);
    Case::new("usual", Problem::new(shape).mask(Mask::CAUSAL).with_lse()).sharp(8.0)
}

/// Right with inputs q, k, v and outputs out, lse, weights that start so many words into their buffers.
fn is_right_at(case: &Case, data: &Data, answer: &Answer, starts: [usize; 6]) {
    let [q, k, v, outputs @ ..] = starts;
    let problem = &case.problem;
    let inputs = [(q, &data.q), (k, &data.k), (v, &data.v)];
    let [q, k, v] = inputs.map(|(first, data)| Placed::input(first, data));
    for (attention, algorithm) in each(problem.weights) {
        let what = format!("{algorithm:?} at {starts:?}");
        let outputs = Outputs::new(outputs, problem);
        let tensors = Tensors::default().q(q.slice()).k(k.slice()).v(v.slice());
        let plan = attention.plan_with(problem, algorithm).expect("a plan");
        let dispatch = attention.bind(&plan, &outputs.give(problem, tensors)).expect("buffers");
        GPU.run(&[&dispatch]);
        let got = outputs.read(problem, &what);
        answer.check(&got).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

#[test]
fn tensors_may_start_at_any_multiple_of_4_bytes() {
    let case = usual();
    let (data, answer) = (case.tensors(0), Answer::of(&case));
    is_right_at(&case, &data, &answer, [0; 6]);
    is_right_at(&case, &data, &answer, [1, 2, 3, 5, 65, 0]);
    for operand in 0..5 {
        for first in some([1, 2, 3, 5, 65]) {
            let mut starts = [0; 6];
            starts[operand] = first;
            is_right_at(&case, &data, &answer, starts);
        }
    }
}

#[test]
fn weights_may_start_at_any_multiple_of_4_bytes() {
    for kv_len in if support::small() { &[53][..] } else { &[53, 52] } {
        let shape = Shape::cross_attention(2, 4, 37, *kv_len, 16).with_kv_heads(2);
        let case = Case::new("weights", Problem::new(shape).mask(Mask::CAUSAL).with_weights());
        let (data, answer) = (case.tensors(0), Answer::of(&case));
        for first in some([1, 0, 2, 3, 5, 65]) {
            is_right_at(&case, &data, &answer, [0, 0, 0, 0, 0, first]);
        }
    }
}

#[test]
fn gaps_between_rows_stay_as_they_are() {
    let shape = Shape::cross_attention(2, 4, 37, 53, 16).with_kv_heads(2);
    let strides = |batch, head, row| Strides { batch, head, row };
    let problem = Problem::new(shape).mask(Mask::CAUSAL).with_lse();
    for (name, out) in [
        ("whole vectors apart", strides(4 * 40 * 36, 40 * 36, 36)),
        ("one word apart", strides(4 * 37 * 33 + 7, 37 * 33 + 2, 33)),
        ("heads side by side", strides(40 * 135, 33, 135)),
    ] {
        let case = Case::new(name, problem.clone().out_strides(out)).sharp(8.0);
        is_right_at(&case, &case.tensors(0), &Answer::of(&case), [0, 0, 0, 3, 0, 0]);
    }
}

#[test]
fn all_tensors_may_lie_in_one_buffer() {
    let case = usual();
    let (problem, data, answer) = (&case.problem, case.tensors(0), Answer::of(&case));
    let s = problem.shape;
    let out = poisoned(extent(problem.out, [s.batch, s.heads, s.q_len], s.v_head_dim));
    let lse = poisoned(rows(&s).count());
    for gap in some([1, 0, 64]) {
        let mut words = Vec::new();
        // Outputs in the middle: what is read lies on both sides.
        let [q, out_at, k, lse_at, v] = [&data.q, &out, &data.k, &lse, &data.v].map(|part| {
            words.extend(poisoned(gap));
            let first = words.len();
            words.extend(part);
            first..words.len()
        });
        words.extend(poisoned(gap));
        for (attention, algorithm) in each(false) {
            let what = format!("{algorithm:?}, {gap} words apart");
            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
            let buffer = GPU.upload(&words, usage);
            let [q, k, v, out, lse] = [&q, &k, &v, &out_at, &lse_at]
                .map(|at| buffer.slice(at.start as u64 * 4..at.end as u64 * 4));
            let plan = attention.plan_with(problem, algorithm).expect("a plan");
            let tensors = Tensors::new(q, k, v, out).lse(lse);
            GPU.run(&[&attention.bind(&plan, &tensors).expect("disjoint slices")]);
            let after = GPU.read(&buffer);
            for (i, (was, is)) in bits(&words).into_iter().zip(bits(&after)).enumerate() {
                let output = out_at.contains(&i) || lse_at.contains(&i);
                assert!(output || was == is, "{what}: word {i} was written");
            }
            let (out, lse) = (after[out_at.clone()].to_vec(), after[lse_at.clone()].to_vec());
            let got = Got { out, lse: Some(lse), weights: None, scores: None };
            answer.check(&got).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }
}

#[test]
fn packed_q_k_v_are_read_where_they_are() {
    let shape = Shape::self_attention(2, 6, 47, 16).with_kv_heads(2);
    let problem = Problem::new(shape).mask(Mask::CAUSAL).layout(Layout::PackedQkv).with_lse();
    let (k_first, v_first) = (6 * 32, 8 * 32);
    let mut random = Random::new(5);
    let words = 2 * 47 * (v_first + 2 * 32);
    let packed: Vec<f32> = (0..words).map(|_| random.unit() * 3.0).collect();
    let [q, k, v] = [0, k_first, v_first].map(|first| packed[first..].to_vec());
    let all: Vec<_> = rows(&shape).collect();
    let answer =
        Answer::for_rows("packed".to_owned(), &problem, &Data { q, k, v, ..Data::default() }, &all);
    for first in [0, 1] {
        let buffer = Placed::input(first, &packed);
        let end = (first + words) as u64 * 4;
        let [q, k, v] = [0, k_first, v_first]
            .map(|column| buffer.buffer.slice((first + column) as u64 * 4..end));
        for (attention, algorithm) in each(false) {
            let outputs = Outputs::new([0; 3], &problem);
            let plan = attention.plan_with(&problem, algorithm).expect("a plan");
            let tensors = outputs.give(&problem, Tensors::default().q(q).k(k).v(v));
            GPU.run(&[&attention.bind(&plan, &tensors).expect("buffers")]);
            let got = outputs.read(&problem, "packed");
            answer.check(&got).unwrap_or_else(|error| panic!("{algorithm:?}: {error}"));
        }
    }
}

#[test]
fn an_axis_of_zero_needs_no_buffer() {
    let problem = |batch, q_len| {
        Problem::new(Shape::cross_attention(batch, 4, q_len, 53, 16).with_kv_heads(2)).with_lse()
    };
    let empty = [problem(2, 0), problem(0, 37)];
    for problem in empty.clone().into_iter().chain(empty.map(|problem| problem.with_weights())) {
        for (attention, algorithm) in each(problem.weights) {
            let plan = attention.plan_with(&problem, algorithm).expect("a plan");
            assert_eq!((plan.kernels().count(), plan.workspace_bytes()), (0, 0), "{plan}");
            GPU.run(&[&attention.bind(&plan, &Tensors::default()).expect("nothing to bind")]);
        }
    }
}

#[test]
fn without_keys_zeros_and_minus_infinity_are_written() {
    let shape = Shape::cross_attention(2, 4, 37, 0, 16).with_kv_heads(2);
    let gapped = Strides { batch: 4 * 37 * 33 + 7, head: 37 * 33 + 2, row: 33 };
    let problem = Problem::new(shape).with_lse();
    let strided = problem.clone().out_strides(gapped);
    let causal = problem.clone().mask(Mask::CAUSAL).with_weights();
    for problem in [problem, strided, causal] {
        for (attention, algorithm) in each(problem.weights) {
            let outputs = Outputs::new([3, 1, 0], &problem);
            let tensors = Tensors::default().out(outputs.out.slice()).lse(outputs.lse.slice());
            let plan = attention.plan_with(&problem, algorithm).expect("a plan");
            GPU.run(&[&attention.bind(&plan, &tensors).expect("no q, k, v or weights")]);
            let got = outputs.read(&problem, "no keys");
            assert!(bits(&got.out).iter().all(|word| *word == 0), "{algorithm:?}");
            let lse = got.lse.expect("asked for");
            assert!(lse.iter().all(|x| *x == f32::NEG_INFINITY), "{algorithm:?}: {lse:?}");
        }
    }
}

#[test]
fn the_workspace_may_be_the_callers() {
    let shape = Shape::cross_attention(1, 1, 37, 2001, 32);
    let case = Case::new("workspace", Problem::new(shape).mask(Mask::CAUSAL).with_lse()).sharp(8.0);
    let (problem, data, answer) = (&case.problem, case.tensors(0), Answer::of(&case));
    let [q, k, v] = [&data.q, &data.k, &data.v].map(|data| Placed::input(0, data));
    for (attention, algorithm) in each(false) {
        let plan = attention.plan_with(problem, algorithm).expect("a plan");
        assert!(
            plan.kernels().any(|name| name.contains("merge")) == (algorithm == Algorithm::Flash)
        );
        let words = usize::try_from(plan.workspace_bytes() / 4).expect("small");
        assert!(words > 0, "{plan}");
        for first in some([1, 0, 3, 65]) {
            let what = format!("{algorithm:?} with its workspace at {first}");
            let outputs = Outputs::new([0; 3], problem);
            let workspace = Placed::output(first, words);
            let tensors = Tensors::default().q(q.slice()).k(k.slice()).v(v.slice());
            let tensors = outputs.give(problem, tensors).workspace(workspace.slice());
            GPU.run(&[&attention.bind(&plan, &tensors).expect("buffers")]);
            let got = outputs.read(problem, &what);
            answer.check(&got).unwrap_or_else(|error| panic!("{what}: {error}"));
            // What it holds is nobody's business; what lies beside it is.
            workspace.read(&what);
        }
    }
}

#[test]
fn a_dispatch_may_be_recorded_twice_and_two_in_one_pass() {
    let shape = Shape::self_attention(2, 4, 53, 16);
    let case = Case::new("chain", Problem::new(shape).mask(Mask::CAUSAL).with_lse()).sharp(8.0);
    let (problem, data, answer) = (&case.problem, case.tensors(0), Answer::of(&case));
    let [q, k, v] = [&data.q, &data.k, &data.v].map(|data| Placed::input(0, data));
    for (attention, algorithm) in each(false) {
        let plan = attention.plan_with(problem, algorithm).expect("a plan");
        let [first, second] = [0, 1].map(|at| Outputs::new([at; 3], problem));
        // The queries of the second are the results of the first.
        let [once, chained] = [(&q, &first), (&first.out, &second)].map(|(q, outputs)| {
            let tensors = Tensors::default().q(q.slice()).k(k.slice()).v(v.slice());
            attention.bind(&plan, &outputs.give(problem, tensors)).expect("buffers")
        });
        GPU.run(&[&once]);
        let one = first.read(problem, "once");
        answer.check(&one).unwrap_or_else(|error| panic!("{algorithm:?}: {error}"));
        GPU.run(&[&once, &chained, &once]);
        let again = first.read(problem, "again");
        assert_eq!(bits(&one.out), bits(&again.out), "{algorithm:?}");
        assert_eq!(one.lse.map(|lse| bits(&lse)), again.lse.map(|lse| bits(&lse)));
        let data = Data { q: one.out, ..data.clone() };
        let all: Vec<_> = rows(&shape).collect();
        let answer = Answer::for_rows("chained".to_owned(), problem, &data, &all);
        let got = second.read(problem, "chained");
        answer.check(&got).unwrap_or_else(|error| panic!("{algorithm:?}: {error}"));
    }
}
