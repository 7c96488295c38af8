//! A short training, as a newcomer runs it: the built example.

#![cfg(all(feature = "cpu", feature = "vulkan"))]

use std::path::Path;
use std::process::{Command, Output};

fn train_step(arguments: &[&str]) -> Output {
    // Where cargo puts examples when it builds tests.
    let test = std::env::current_exe().expect("a test is a file");
    let folder = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let program = folder.join("examples/train_step");
    assert!(program.exists(), "{} is not built: `cargo build --examples`", program.display());
    Command::new(program).args(arguments).output().expect("it runs")
}

#[test]
fn a_layer_learns_to_recall_and_what_has_none_does_not() {
    // Of each, as few steps as show it: the CPU path is there to agree, and alone where drivers are slow.
    let small = std::env::var("WGPU_ATTENTION_TEST").is_ok_and(|catalogue| catalogue == "small");
    for (name, place) in
        [("cpu", &["--cpu"][..]), ("gpu", &[])].into_iter().take(2 - usize::from(small))
    {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("train_step_{name}"));
        let out_text = out.to_str().expect("a path");
        let output = train_step(&[&["--steps", "300", "--out", out_text], place].concat());
        let [stdout, stderr] =
            [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        assert!(output.status.success(), "{name}: {stdout}{stderr}");
        assert!(!stderr.contains('\r'), "{name}: a bar where there is no terminal: {stderr}");
        let percent_after = |words: &str| -> f64 {
            let number = stdout.split(words).nth(1).and_then(|rest| rest.split(" %").next());
            let number = number.and_then(|number| number.parse().ok());
            number.unwrap_or_else(|| panic!("{name}: no {words:?}: {stdout}"))
        };
        let learnt = percent_after("fresh sequences: accuracy ");
        let without = percent_after(", without attention ");
        let chance = percent_after(", chance ");
        assert!(learnt > 60.0 && without < 2.0 * chance, "{name}: {stdout}");
        for picture in ["loss.png", "attention.png"] {
            assert!(out.join(picture).metadata().is_ok_and(|file| file.len() > 1000), "{picture}");
        }
    }
}

#[test]
fn what_is_not_understood_is_one_line() {
    for arguments in [&["--step"][..], &["--steps"], &["--steps", "0"], &["--out"]] {
        let output = train_step(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert_eq!(
            (stderr.lines().count(), output.stdout.len()),
            (1, 0),
            "{arguments:?}: {stderr}"
        );
    }
}
