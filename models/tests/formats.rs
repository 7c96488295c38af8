//! Small models in every format: the same in two of them, and no file, however broken, ends in a panic.

use crate::support;
use crate::support::difference;
use crate::support::files;
use std::path::Path;
use wgpu_attention::Runner;
use wgpu_attention_models::bert::Bert;
use wgpu_attention_models::llama::{Decoder, Llama};
use wgpu_attention_models::program::Sampling;
use wgpu_attention_models::translator::Translator;
use wgpu_attention_models::{Error, Machine};

fn logits(machine: &Machine, folder: &Path) -> Vec<f32> {
    let model = Llama::load(machine, folder).expect("a model");
    let mut decoder = Decoder::new(&model, 64, Sampling::Greedy).expect("a decoder");
    decoder.read(&[9, 17, 30, 11, 25, 8], || true).expect("read");
    decoder.advance().expect("a token");
    decoder.logits().expect("read")
}

/// GGUF turns neighbours, the hub halves: told apart, they are one model.
#[test]
fn one_model_in_two_layouts_is_the_same() {
    let (gguf, [right, wrong]) = (files::folder("gguf"), ["hub", "hub-wrong"].map(files::folder));
    let (bytes, weights) = files::llama_gguf("llama");
    std::fs::write(gguf.join("a.gguf"), bytes).expect("written");
    files::llama_hub(&right, &weights, true);
    files::llama_hub(&wrong, &weights, false);
    for (name, machine) in support::machines("one_model_in_two_layouts_is_the_same") {
        let expected = logits(&machine, &gguf);
        // The hub's weights are rounded to 16 bits.
        let off = difference(&logits(&machine, &right), &expected);
        assert!(off < 0.005, "{name}: off by {off}");
        let off = difference(&logits(&machine, &wrong), &expected);
        assert!(off > 0.02, "{name}: turned the wrong way, off by {off} only");
    }
}

/// Prompts are read in parts: that must not show, nor on what machine.
#[test]
fn a_prompt_in_parts_is_the_prompt() {
    let folder = files::folder("parts");
    std::fs::write(folder.join("a.gguf"), files::llama_gguf("llama").0).expect("written");
    let prompt: Vec<u32> = (0..50).map(|i| 6 + i * 7 % 26).collect();
    let mut all = Vec::new();
    for (name, machine) in support::machines("a_prompt_in_parts_is_the_prompt") {
        let model = Llama::load(&machine, &folder).expect("a model");
        for parts in [50, 17, 1] {
            let mut decoder = Decoder::new(&model, 64, Sampling::Greedy).expect("a decoder");
            for part in prompt.chunks(parts) {
                decoder.read(part, || true).expect("read");
            }
            all.push((format!("{name} in parts of {parts}"), decoder.logits().expect("read")));
        }
    }
    for (name, logits) in &all[1..] {
        let off = difference(logits, &all[0].1);
        assert!(off < 2e-5, "{name}: off by {off}");
    }
}

/// Loads the model of one format.
fn load(machine: &Machine, folder: &Path, format: &str) -> Result<(), Error> {
    match format {
        "model.safetensors" => Bert::load(machine, folder).map(|_| ()),
        "a.gguf" => Llama::load(machine, folder).map(|_| ()),
        _ => Translator::load(machine, folder, "en", "pt").map(|_| ()),
    }
}

/// Cuts a file, and changes bytes of it, near the front more often: sizes are there.
fn break_file(format: &str, bytes: &[u8]) {
    let folder = files::folder(&format!("broken-{format}"));
    files::bert_hub(&folder);
    let write = |name: &str, bytes: &[u8]| {
        // A new file: of one that is written over, some file systems wait for the disk.
        let _ = std::fs::remove_file(folder.join(name));
        std::fs::write(folder.join(name), bytes).expect("written");
    };
    let machine = Machine::of(Runner::cpu());
    write(format, bytes);
    assert!(load(&machine, &folder, format).is_ok(), "{format} as it is");
    let cuts = (0..2000).step_by(13).chain((2000..bytes.len()).step_by(9999));
    for len in cuts.filter(|len| *len < bytes.len()) {
        write(format, &bytes[..len]);
        assert!(load(&machine, &folder, format).is_err(), "{format} cut at {len} was taken");
    }
    let mut refused = 0;
    for place in (0..bytes.len().min(6000)).step_by(23) {
        for value in [0, 0x7f, 0xff] {
            let mut changed = bytes.to_vec();
            changed[place] = value;
            write(format, &changed);
            refused += u32::from(load(&machine, &folder, format).is_err());
        }
    }
    assert!(refused > 50, "{format}: {refused} refused");
    write(format, bytes);
    for name in ["config.json", "tokenizer.json"] {
        if format == "a.gguf" || format == "model.enpt.bin" && name == "config.json" {
            continue;
        }
        let whole = std::fs::read(folder.join(name)).expect("read");
        for len in (0..whole.len()).step_by(17) {
            write(name, &whole[..len]);
            assert!(load(&machine, &folder, format).is_err(), "{name} cut at {len} was taken");
        }
        write(name, &whole);
    }
}

#[test]
fn broken_safetensors_are_refused_and_never_panic() {
    let folder = files::folder("whole");
    files::bert_hub(&folder);
    break_file(
        "model.safetensors",
        &std::fs::read(folder.join("model.safetensors")).expect("read"),
    );
}

#[test]
fn broken_gguf_files_are_refused_and_never_panic() {
    break_file("a.gguf", &files::llama_gguf("llama").0);
}

#[test]
fn broken_marian_models_are_refused_and_never_panic() {
    break_file("model.enpt.bin", &files::marian("ssru"));
}
