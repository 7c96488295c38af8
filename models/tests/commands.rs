//! What the commands say of files that are missing, cut, foreign or of another architecture. Needs no weights.

use crate::support::files;
use std::path::Path;
use std::process::{Command, Stdio};

const COMMANDS: [(&str, &str, &[&str]); 4] = [
    ("understand", env!("CARGO_BIN_EXE_understand"), &["a text"]),
    ("chat", env!("CARGO_BIN_EXE_chat"), &["a question"]),
    ("summarise", env!("CARGO_BIN_EXE_summarise"), &["-"]),
    ("translate", env!("CARGO_BIN_EXE_translate"), &["a text"]),
];

/// One line on standard error, nothing on standard output, 2.
fn refused(program: &str, arguments: &[&str], folder: &Path, expected: &str) {
    let output = Command::new(program)
        .args(["--cpu", "--model-dir"])
        .arg(folder)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("ran");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{program}: {said}");
    assert_eq!(said.lines().count(), 1, "{program}: {said}");
    assert!(said.contains(expected), "{program}: {said:?} has no {expected:?}");
    assert!(output.stdout.is_empty(), "{program}");
}

#[test]
fn a_missing_folder_is_named() {
    for (name, program, arguments) in COMMANDS {
        let folder = files::folder(&format!("missing-{name}")).join("nowhere");
        refused(program, arguments, &folder, "nowhere: No such file");
    }
}

#[test]
fn an_empty_folder_has_no_model() {
    for (name, program, arguments) in COMMANDS {
        refused(program, arguments, &files::folder(&format!("empty-{name}")), "models/fetch.sh");
    }
}

#[test]
fn a_foreign_file_is_no_model() {
    for (name, program, arguments) in COMMANDS {
        let folder = files::folder(&format!("foreign-{name}"));
        for (file, contents) in [
            ("config.json", "{\"model_type\": \"bert\"}"),
            ("model.safetensors", "a letter, not a model"),
            ("some.gguf", "GIF89a and so on"),
            ("model.enpt.bin", "a translation of something else"),
            ("tokenizer.json", "{}"),
        ] {
            std::fs::write(folder.join(file), contents).expect("written");
        }
        let expected = match name {
            "understand" => "model.safetensors: ",
            "translate" => "model.enpt.bin: ",
            _ => "some.gguf: is no GGUF file",
        };
        refused(program, arguments, &folder, expected);
    }
}

#[test]
fn another_architecture_is_named() {
    let folder = files::folder("architecture");
    std::fs::write(folder.join("config.json"), "{\"model_type\": \"gpt2\"}").expect("written");
    std::fs::write(folder.join("model.safetensors"), "").expect("written");
    for (_, program, arguments) in &COMMANDS[..3] {
        refused(program, arguments, &folder, "gpt2");
    }
    std::fs::write(folder.join("a.gguf"), files::llama_gguf("mamba").0).expect("written");
    refused(COMMANDS[1].1, COMMANDS[1].2, &folder, "is of architecture mamba, not llama");
    std::fs::write(folder.join("model.enpt.bin"), files::marian("gru")).expect("written");
    std::fs::write(folder.join("tokenizer.json"), files::tokenizer()).expect("written");
    refused(COMMANDS[3].1, COMMANDS[3].2, &folder, "dec-cell is \"gru\", not \"ssru\"");
}

#[test]
fn a_cut_file_is_no_model() {
    let folder = files::folder("cut");
    files::bert_hub(&folder);
    let cut = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.join(name), &bytes[..bytes.len() - 100]).expect("written");
    };
    cut("model.safetensors", &std::fs::read(folder.join("model.safetensors")).expect("read"));
    cut("a.gguf", &files::llama_gguf("llama").0);
    cut("model.enpt.bin", &files::marian("ssru"));
    for ((_, program, arguments), file) in
        COMMANDS.iter().zip(["model.safetensors", "a.gguf", "a.gguf", "model.enpt.bin"])
    {
        refused(program, arguments, &folder, file);
    }
}

#[test]
fn a_text_longer_than_the_context_is_refused() {
    let folder = files::folder("long");
    files::bert_hub(&folder);
    std::fs::write(folder.join("a.gguf"), files::llama_gguf("llama").0).expect("written");
    std::fs::write(folder.join("model.enpt.bin"), files::marian("ssru")).expect("written");
    let long = "a".repeat(600);
    let file = folder.join("long.txt");
    std::fs::write(&file, &long).expect("written");
    let file = file.to_str().expect("text");
    for ((name, program, _), context) in COMMANDS.iter().zip([32, 128, 128, 512]) {
        let argument = if *name == "summarise" { file } else { &long };
        refused(program, &[argument], &folder, &format!("the context of {context} holds"));
    }
    refused(COMMANDS[1].1, &["--context", "129", "a"], &folder, "the context of 128 holds");
}

#[test]
fn a_wrong_command_line_is_refused() {
    let folder = files::folder("usage");
    for (_, program, _) in COMMANDS {
        refused(program, &["--such"], &folder, "unknown option --such");
        refused(program, &["--model-dir"], &folder, "--model-dir takes a value");
    }
    refused(COMMANDS[1].1, &["--top-p", "2", "a"], &folder, "--top-p: \"2\" is not");
    refused(COMMANDS[3].1, &["--from", "fr", "a"], &folder, "neither en nor pt");
    refused(COMMANDS[2].1, &[], &folder, "one FILE is wanted");
}

#[test]
fn small_models_run() {
    let folder = files::folder("small");
    files::bert_hub(&folder);
    std::fs::write(folder.join("a.gguf"), files::llama_gguf("llama").0).expect("written");
    std::fs::write(folder.join("model.enpt.bin"), files::marian("ssru")).expect("written");
    for (name, program, arguments) in COMMANDS {
        let pictures = folder.join("pictures");
        let output = Command::new(program)
            .args(["--cpu", "--model-dir"])
            .arg(&folder)
            .args(arguments)
            .stdin(Stdio::null())
            .current_dir({
                std::fs::create_dir_all(&pictures).expect("a folder");
                &pictures
            })
            .output()
            .expect("ran");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{name}: {said}");
        assert!(!output.stdout.is_empty(), "{name}");
    }
}
