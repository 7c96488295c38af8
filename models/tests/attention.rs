//! Attention of every layer of every model against the definition, in f64, on what really goes in.

use crate::support::{machines, weights};
use wgpu_attention::{Inputs, reference};
use wgpu_attention_models::Machine;
use wgpu_attention_models::bert::Bert;
use wgpu_attention_models::chat::{Chat, SYSTEM};
use wgpu_attention_models::llama::Llama;
use wgpu_attention_models::program::{Attention, Program, Sampling};
use wgpu_attention_models::translator::Translator;

/// Runs a program up to every attention and looks at that; how many there were.
fn compare(name: &str, machine: &Machine, program: &Program) -> usize {
    let mut first = 0;
    for (count, (step, attention)) in program.attention.iter().enumerate() {
        program.run_steps(first..step + 1).expect("ran");
        first = step + 1;
        let Attention { problem, qkv, lens, weights, out } = attention;
        let [q, k, v] = qkv.each_ref().map(|tensor| machine.read::<f32>(tensor).expect("read"));
        let lens = lens.each_ref().map(|lens| {
            lens.as_ref().map_or_else(Vec::new, |lens| machine.read::<u32>(lens).expect("read"))
        });
        let inputs = Inputs::new(&q, &k, &v).q_lens(&lens[0]).kv_lens(&lens[1]);
        let expected = reference::forward(problem, &inputs);
        let mut results = vec![(machine.read::<f32>(out).expect("read"), expected.out, "out")];
        if let Some(weights) = weights {
            results.push((machine.read(weights).expect("read"), expected.weights, "weights"));
        }
        for (found, expected, what) in results {
            let largest = expected.iter().fold(1e-3_f64, |most, x| most.max(x.abs()));
            for (found, expected) in found.iter().zip(&expected) {
                let off = (f64::from(*found) - expected).abs();
                assert!(
                    off <= 2e-5 * largest,
                    "{name}, layer {count}: {what} {found}, not {expected}"
                );
            }
        }
    }
    program.attention.len()
}

#[test]
fn the_sentence_encoder_attends_as_defined() {
    let test = "the_sentence_encoder_attends_as_defined";
    let Some(folder) = weights(test, "minilm") else { return };
    for (name, machine) in machines(test) {
        let model = Bert::load(&machine, &folder).expect("a model");
        let texts = ["The cat sat on the mat because it was tired.", "A short one."];
        let tokens = texts.map(|text| model.text.encode(text).expect("tokens"));
        let batch = model.batch(&tokens).expect("a batch");
        assert_eq!(compare(&name, &machine, &batch.program), 6);
    }
}

#[test]
fn the_language_model_attends_as_defined() {
    let test = "the_language_model_attends_as_defined";
    let Some(folder) = weights(test, "smollm2") else { return };
    for (name, machine) in machines(test) {
        let model = Llama::load(&machine, &folder).expect("a model");
        let mut chat = Chat::new(&model, 64, Sampling::Greedy, SYSTEM).expect("a chat");
        chat.answer("What is the capital of France?", 3, |_| true).expect("answered");
        assert_eq!(compare(&name, &machine, &chat.decoder.program), 30);
    }
}

#[test]
fn the_translation_models_attend_as_defined() {
    let test = "the_translation_models_attend_as_defined";
    let Some(folder) = weights(test, "enpt") else { return };
    for (name, machine) in machines(test) {
        let model = Translator::load(&machine, &folder, "en", "pt").expect("a model");
        let source = model.text.encode("The cat sat on the mat.").expect("tokens");
        let ready = model.ready(&source).expect("ready");
        assert_eq!(compare(&name, &machine, &ready.encode), 6);
        assert_eq!(compare(&name, &machine, &ready.decode), 2);
    }
}
