//! Whole random problems, all features mixed, on every path against the definition.
//!
//! `WGPU_ATTENTION_FUZZ=2000` draws so many; `WGPU_ATTENTION_FUZZ_SEED` takes another seed than 1,
//! `WGPU_ATTENTION_FUZZ_SECONDS` ends the run early. A failing problem is shrunk, and what reproduces it is printed.

#![cfg(feature = "cpu")]

use crate::support;
use crate::support::case::Case;
use crate::support::draw::{Drawn, Kind, all_values, apart, kinds};
use crate::support::judge::Answer;
use crate::support::target::{TIGHT_BYTES, Target};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use wgpu_attention::{Algorithm, Error, Layout, Lengths, Pairs, PlanError, Problem, Shape};

/// Problems that share kernels.
const OF_A_KIND: u32 = 25;
/// Kinds of which one is taken: so many that few kinds meet every pair of values.
const TRIED: u64 = 96;

fn setting(name: &str) -> Option<u32> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

#[test]
fn random_problems_agree_with_the_definition() {
    let small = if support::small() { 24 } else { 240 };
    let count = setting("WGPU_ATTENTION_FUZZ").unwrap_or(small);
    let small_run = count <= 2 * OF_A_KIND;
    let seed = setting("WGPU_ATTENTION_FUZZ_SEED").unwrap_or(1);
    let end = setting("WGPU_ATTENTION_FUZZ_SECONDS")
        .map(|seconds| Instant::now() + Duration::from_secs(seconds.into()));
    // Where drivers take long to compile, of narrow heads.
    let of_each = if support::small() { 12 } else { 1 };
    let wanted = count.div_ceil(OF_A_KIND);
    let kinds = kinds(seed.into(), wanted * of_each, TRIED).into_iter();
    let kinds = kinds.filter(|(kind, _)| !support::small() || kind.width() <= 32);
    let kinds = kinds.take(wanted as usize);
    let kinds = Mutex::new((0_u32..).zip(kinds));
    let (done, cut) = (AtomicU32::new(0), AtomicU32::new(0));
    let (failures, tally) = (Mutex::new(Vec::new()), Mutex::new(Tally::default()));
    std::thread::scope(|scope| {
        // One where tests run one at a time: OpenGL of wgpu's bears no more.
        for _ in 0..setting("RUST_TEST_THREADS").unwrap_or(2) {
            scope.spawn(|| {
                loop {
                    let drawn = kinds.lock().expect("alive").next();
                    let Some((n, (kind, mut random))) = drawn else { break };
                    if end.is_some_and(|end| Instant::now() > end) {
                        break;
                    }
                    for i in 0..OF_A_KIND {
                        let problem = kind.problem(&mut random);
                        let sharpness = [1.0, 8.0, 20.0][random.below(3) as usize];
                        let case = Case::new("random", problem).sharp(sharpness);
                        done.fetch_add(1, Ordering::Relaxed);
                        tally.lock().expect("alive").count(&kind);
                        let mut result = verdict(&kind, &case);
                        // All of a few; a sixteenth of many.
                        let in_parts = n % 4 == 0 && (i < 6 || small_run);
                        if in_parts && result.is_ok() {
                            result = verdict_in_parts(&kind, &case);
                            cut.fetch_add(u32::from(result == Ok(true)), Ordering::Relaxed);
                        }
                        if let Err(error) = result {
                            let from = format!("seed {seed}, kind {n}, problem {i} ({kind})");
                            failures.lock().expect("alive").push(shrunk(&kind, case, &from, error));
                            break;
                        }
                    }
                }
            });
        }
    });
    let done = done.into_inner();
    let tally = tally.into_inner().expect("alive");
    eprintln!("{done} problems of seed {seed}\n{tally}");
    let cut = cut.into_inner();
    eprintln!("{cut} of them also on a device that binds {TIGHT_BYTES} bytes at once");
    assert!(cut * 30 >= done, "{cut} of {done} in parts");
    let failures = failures.into_inner().expect("alive");
    assert!(failures.is_empty(), "{} fail:\n{}", failures.len(), failures.join("\n\n"));
    assert!(done >= count || end.is_some(), "{done} of {count} problems");
    if count >= 2000 && done >= 2000 {
        let missing = tally.missing();
        assert!(missing.is_empty(), "never drawn together: {missing:?}");
    }
}

/// Two thousand problems meet every two values that go together, and no luck is in it.
#[test]
fn two_thousand_problems_meet_every_pair_of_values() {
    let mut tally = Tally::default();
    for (kind, _) in kinds(1, 2000_u32.div_ceil(OF_A_KIND), TRIED) {
        tally.count(&kind);
    }
    let missing = tally.missing();
    assert!(missing.is_empty(), "{} pairs never: {missing:?}", missing.len());
}

/// Every path against the definition; a panic is an error like any other.
fn verdict(kind: &Kind, case: &Case) -> Result<bool, String> {
    let class = kind.class;
    judged(case, &[Target::Staged(class), Target::Flash(class), Target::Split(class), Target::Cpu])
}

/// The same on a device that binds little at once; whether any of it had room.
fn verdict_in_parts(kind: &Kind, case: &Case) -> Result<bool, String> {
    let algorithms = [Algorithm::Staged, Algorithm::Flash, Algorithm::Split];
    let targets = algorithms.map(|a| Target::Tight(kind.class, a));
    judged(case, &targets)
}

/// Whether any target ran. One may refuse what it has no room for, with the limit's name.
fn judged(case: &Case, targets: &[Target]) -> Result<bool, String> {
    let run = || {
        let (answer, tensors) = (Answer::of(case), case.tensors(0));
        let mut any = false;
        for target in targets.iter().filter(|target| target.gives(&case.problem)) {
            let got = match target.try_run(&case.problem, &tensors) {
                Err(Error::Plan(PlanError::LimitExceeded { limit, .. }))
                    if matches!(target, Target::Tight(..))
                        && limit == "max_storage_buffer_binding_size" =>
                {
                    continue;
                }
                got => got.map_err(|error| format!("{target:?}: {error}"))?,
            };
            answer.check(&got).map_err(|error| format!("{target:?}: {error}"))?;
            any = true;
        }
        Ok(any)
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("panic: {}", text.unwrap_or("?")))
    })
}

/// The simplest problem that still fails, and what it says.
fn shrunk(kind: &Kind, case: Case, from: &str, error: String) -> String {
    let (mut case, mut error) = (case, error);
    let mut budget = 60;
    'simpler: loop {
        for problem in simpler(&case.problem) {
            budget -= 1;
            if budget == 0 {
                break 'simpler;
            }
            let tried = Case { problem, ..case.clone() };
            let again = verdict(kind, &tried).and_then(|_| verdict_in_parts(kind, &tried));
            if let Err(other) = again {
                (case, error) = (tried, other);
                continue 'simpler;
            }
        }
        break;
    }
    let how = support::attend::reproduce(&case, from);
    format!("{from}, shrunk: {case}\n  {error}\n  {how}")
}

/// One step simpler each.
fn simpler(problem: &Problem) -> Vec<Problem> {
    let mut all = Vec::new();
    let mut add = |change: &dyn Fn(&mut Problem)| {
        let mut other = problem.clone();
        change(&mut other);
        if other != *problem {
            all.push(other);
        }
    };
    add(&|p| p.score_function = None);
    add(&|p| p.mask_function = None);
    add(&|p| p.boolean_mask = None);
    add(&|p| p.bias = None);
    add(&|p| p.alibi = None);
    add(&|p| p.softcap = None);
    add(&|p| p.sinks = false);
    add(&|p| p.dropout = None);
    add(&|p| p.scale = None);
    add(&|p| p.weights = false);
    add(&|p| p.scores = None);
    if problem.lengths != Lengths::Packed {
        add(&|p| p.lengths = Lengths::Full);
        add(&|p| *p = p.clone().layout(Layout::Bhsd));
    }
    add(&|p| *p = p.clone().dtype(wgpu_attention::DType::F32));
    let s = problem.shape;
    let with = |change: fn(&mut Shape)| {
        let mut shape = s;
        change(&mut shape);
        shape
    };
    for shape in [
        with(|s| s.batch = s.batch.min(1)),
        with(|s| s.heads = s.kv_heads),
        with(|s| (s.heads, s.kv_heads) = (s.group_size(), 1)),
        with(|s| s.q_len /= 2),
        with(|s| s.kv_len /= 2),
        with(|s| s.q_len = s.q_len.saturating_sub(1)),
        with(|s| s.kv_len = s.kv_len.saturating_sub(1)),
    ] {
        add(&|p| *p = reshaped(p, shape));
    }
    all
}

/// The same problem of another shape, contiguous.
fn reshaped(problem: &Problem, shape: Shape) -> Problem {
    let mut other = problem.clone();
    let old = problem.shape;
    other.shape = shape;
    let packed = problem.lengths == Lengths::Packed;
    other = other.layout(if packed { Layout::Bshd } else { Layout::Bhsd });
    let before = [old.batch, old.heads, old.q_len, old.kv_len];
    let after = [shape.batch, shape.heads, shape.q_len, shape.kv_len];
    let pairs = |pairs: Pairs| {
        let axes = std::array::from_fn(|i| {
            if pairs.axes[i] == before[i] && before[i] != 1 { after[i] } else { 1 }
        });
        Pairs::new(axes)
    };
    if let Some(mask) = &mut other.boolean_mask {
        mask.pairs = pairs(mask.pairs);
    }
    if let Some(bias) = &mut other.bias {
        bias.pairs = pairs(bias.pairs);
    }
    other
}

/// How often each value, and each two of them, were drawn.
#[derive(Default)]
struct Tally {
    single: BTreeMap<Drawn, u32>,
    pairs: BTreeMap<(Drawn, Drawn), u32>,
}

impl Tally {
    fn count(&mut self, kind: &Kind) {
        for value in kind.drawn() {
            *self.single.entry(value).or_default() += 1;
        }
        for pair in kind.pairs() {
            *self.pairs.entry(pair).or_default() += 1;
        }
    }

    /// What was never drawn though it could be.
    fn missing(&self) -> Vec<(Drawn, Drawn)> {
        let all = all_values();
        let mut missing = Vec::new();
        for (i, a) in all.iter().enumerate() {
            for b in all[i + 1..].iter().filter(|b| b.0 != a.0 && !apart(*a, **b)) {
                if !self.pairs.contains_key(&(*a, *b)) {
                    missing.push((*a, *b));
                }
            }
        }
        missing
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut last = "";
        for ((feature, value), n) in &self.single {
            if *feature != last {
                write!(f, "\n  {feature}:")?;
                last = feature;
            }
            write!(f, " {value} {n},")?;
        }
        let counts = self.pairs.values();
        let (least, n) = (counts.clone().min().unwrap_or(&0), counts.len());
        write!(f, "\n  {n} pairs, each at least {least} times; {} never", self.missing().len())
    }
}
