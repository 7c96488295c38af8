//! The catalogue against the definition in f64, on every kernel and on the CPU path.

#![cfg(feature = "cpu")]

use crate::support::At;
use crate::support::case::{Case, Tensors, rows, start};
use crate::support::catalogue::catalogue;
use crate::support::judge::{self, Answer};
use crate::support::real;
use crate::support::target::{Target, runner};
use std::sync::{LazyLock, OnceLock};
use wgpu_attention::{Algorithm, DeviceClass, Inputs, Mask, Problem, Shape, reference};

/// Cases and their answers, which all targets share; an answer is made by the first that needs it.
static CASES: LazyLock<Vec<(Case, OnceLock<Answer>)>> =
    LazyLock::new(|| catalogue().into_iter().map(|case| (case, OnceLock::new())).collect());

/// Runs the whole catalogue and names every case that is wrong.
fn agrees_with_the_definition(target: Target) {
    let failures: Vec<_> = (CASES.iter())
        .filter(|(case, _)| target.gives(&case.problem))
        .filter_map(|(case, answer)| {
            let answer = answer.get_or_init(|| Answer::of(case));
            match target.try_run(&case.problem, &case.tensors(0)) {
                Ok(got) => answer.check(&got).err(),
                Err(error) => Some(format!("{error}: {case}")),
            }
        })
        .collect();
    assert!(failures.is_empty(), "{target:?}:\n{}", failures.join("\n"));
}

#[test]
fn staged_kernels_with_hardware_tiles_agree_with_the_definition() {
    agrees_with_the_definition(Target::Staged(DeviceClass::Hardware));
}

#[test]
fn staged_kernels_with_software_tiles_agree_with_the_definition() {
    agrees_with_the_definition(Target::Staged(DeviceClass::Software));
}

#[test]
fn flash_kernels_with_hardware_tiles_agree_with_the_definition() {
    agrees_with_the_definition(Target::Flash(DeviceClass::Hardware));
}

#[test]
fn flash_kernels_with_software_tiles_agree_with_the_definition() {
    agrees_with_the_definition(Target::Flash(DeviceClass::Software));
}

#[test]
fn split_kernels_of_hardware_agree_with_the_definition() {
    agrees_with_the_definition(Target::Split(DeviceClass::Hardware));
}

#[test]
fn split_kernels_of_software_agree_with_the_definition() {
    agrees_with_the_definition(Target::Split(DeviceClass::Software));
}

/// Cases for which a class takes other kernels than a GPU of which nothing is known.
#[test]
fn tiles_of_every_class_agree_with_the_definition() {
    // The steps as the plan prints them: other tiles, other numbers of workgroups.
    let steps = |class, problem: &Problem, algorithm| {
        let (_, _, attention) = runner(class).device().expect("a GPU");
        let plan = attention.plan_with(problem, algorithm).ok()?.to_string();
        let steps = plan.lines().filter(|line| line.contains(" workgroups of "));
        Some(steps.map(str::to_owned).collect::<Vec<_>>())
    };
    // Heads wide enough that tiles by columns of out differ.
    let shape = Shape::self_attention(1, 2, 70, 128);
    let wide = Case::new("wide", Problem::new(shape).mask(Mask::CAUSAL).with_lse()).sharp(8.0);
    let wide = (wide, OnceLock::new());
    let mut count = 0;
    for class in DeviceClass::ALL {
        if matches!(class, DeviceClass::Hardware | DeviceClass::Software) {
            continue;
        }
        for (case, answer) in CASES.iter().chain([&wide]) {
            for (target, algorithm) in [
                (Target::Staged(class), Algorithm::Staged),
                (Target::Flash(class), Algorithm::Flash),
            ] {
                let general = steps(DeviceClass::Hardware, &case.problem, algorithm);
                if !target.gives(&case.problem) || steps(class, &case.problem, algorithm) == general
                {
                    continue;
                }
                let got = target.run(&case.to_string(), &case.problem, &case.tensors(0));
                if let Err(wrong) = answer.get_or_init(|| Answer::of(case)).check(&got) {
                    panic!("{target:?}: {wrong}");
                }
                count += 1;
            }
        }
    }
    assert!(count > 0, "no class has a tile of its own");
}

#[test]
fn the_cpu_path_agrees_with_the_definition() {
    agrees_with_the_definition(Target::Cpu);
}

/// Real calls against the answers stored with them: by the rule, and below 1e-5 where the rule allows less.
#[test]
fn calls_inside_trained_models_give_the_stored_answers() {
    for call in real::calls() {
        let (problem, what) = (&call.case.problem, call.case.to_string());
        let rows = judge::sampled(&problem.shape, 300);
        let answer = Answer::for_rows(what.clone(), problem, &call.tensors, &rows);
        let bound = answer.bounds.out.max(1e-5);
        for target in Target::ALL {
            let got = target.run(&what, problem, &call.tensors);
            answer.check(&got).unwrap_or_else(|error| panic!("{target:?}: {error}"));
            for (i, (got, want)) in got.out.iter().zip(&call.out).enumerate() {
                let off = judge::error(*got, f64::from(*want));
                assert!(off <= bound, "{target:?}: {what}: {got} at {i} is not {want}");
            }
        }
    }
}

/// The stored answers were evaluated in f64 by another program.
#[test]
fn the_definition_gives_the_stored_answers() {
    for call in real::calls() {
        let (problem, Tensors { q, k, v, .. }) = (&call.case.problem, &call.tensors);
        for at in judge::sampled(&problem.shape, 300) {
            let row = reference::row(problem, &Inputs::new(q, k, v), at);
            let stored = &call.out[start(problem.out, at)..][..row.out.len()];
            for (want, stored) in row.out.iter().zip(stored) {
                let rounding = f64::from(f32::EPSILON) * want.abs().max(1.0);
                let off = judge::error(*stored, *want);
                assert!(off <= rounding, "{}: row {at:?}: {want} is not {stored}", call.case);
            }
        }
    }
}

/// A NaN in a key and in a value reaches the rows that see it, and no other.
#[test]
fn a_nan_stays_in_the_rows_that_see_it() {
    let shape = Shape::self_attention(1, 2, 199, 32);
    for (mask, name) in [(Mask::window(17), "window"), (Mask::CAUSAL, "causal")] {
        let case = Case::new(name, Problem::new(shape).mask(mask).with_lse()).sharp(8.0);
        let (problem, clean) = (&case.problem, case.tensors(0));
        let sees = |at: &At| mask.kv_range(shape.kv_len, 0, at.2).contains(&20);
        let (affected, spared): (Vec<At>, Vec<At>) = rows(&shape).partition(sees);
        let answer = Answer::for_rows(case.to_string(), problem, &clean, &spared);
        let mut dirty = clean.clone();
        for head in 0..shape.kv_heads {
            dirty.k[start(problem.k, (0, head, 20))..][..32].fill(f32::NAN);
            dirty.v[start(problem.v, (0, head, 20))..][..32].fill(f32::NAN);
        }
        for target in Target::ALL {
            let mut got = target.run(&case.to_string(), problem, &dirty);
            for at in &affected {
                // Whatever they are: that is not specified.
                got.out[start(problem.out, *at)..][..32].fill(0.0);
            }
            answer.check(&got).unwrap_or_else(|error| panic!("{target:?}: {error}"));
        }
    }
}
