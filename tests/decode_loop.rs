//! The decode loop, as a newcomer runs it: the built example.

#![cfg(feature = "vulkan")]

use std::path::Path;
use std::process::{Command, Output};

fn decode_loop(arguments: &str) -> Output {
    // Where cargo puts examples when it builds tests.
    let test = std::env::current_exe().expect("a test is a file");
    let folder = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let program = folder.join("examples/decode_loop");
    assert!(program.exists(), "{} is not built: `cargo build --examples`", program.display());
    Command::new(program).args(arguments.split_whitespace()).output().expect("it runs")
}

#[test]
fn decoded_over_pages_is_attention_over_each_whole_sequence() {
    for arguments in ["--tokens 8", "--tokens 8 --q8"] {
        let output = decode_loop(arguments);
        let [stdout, stderr] =
            [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        assert!(output.status.success(), "{arguments}: {stdout}{stderr}");
        assert!(!stderr.contains('\r'), "{arguments}: a bar where there is no terminal: {stderr}");
        let number_after = |words: &str| {
            let rest = stdout.split(words).nth(1)?;
            rest.split([';', ' ']).next()?.parse::<f64>().ok()
        };
        let numbers = number_after("is off by ").zip(number_after(" allows "));
        let (error, allowed) = numbers.unwrap_or_else(|| panic!("{arguments}: {stdout}"));
        // What is stored in 16 or 8 bits is never exact.
        assert!(error > 1e-6 && error <= allowed, "{arguments}: {stdout}");
    }
}

#[test]
fn what_is_not_understood_is_one_line() {
    for arguments in ["--q9", "--tokens", "--tokens 0", "--tokens many"] {
        let output = decode_loop(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {stderr}");
        assert_eq!((stderr.lines().count(), output.stdout.len()), (1, 0), "{arguments}: {stderr}");
    }
}
