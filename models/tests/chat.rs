//! A language model with trained weights.

use crate::support::{machines, weights};
use wgpu_attention_models::chat::{Chat, SYSTEM};
use wgpu_attention_models::llama::Llama;
use wgpu_attention_models::program::Sampling;
use wgpu_attention_models::{Error, Machine};

const LIGHTHOUSE: &str = "Summarize this text in one sentence:\n\nThe lighthouse at Cape Morrow was built in 1871 \
    after three ships were lost on the reef in a single winter. For more than a century a keeper lived in the tower \
    and lit the lamp by hand every evening. In 1984 the light was made automatic and the last keeper, Anna Reyes, moved \
    to the village. Today the tower is a museum, and visitors can climb its 142 steps to see the old lamp.";
const SUMMARY: &str = "The lighthouse at Cape Morrow was built in 1871 after three ships were lost on the reef in a \
    single winter, and a keeper lived in the tower and lit the lamp every evening. Today, the lighthouse is a museum, \
    and visitors can climb its 142 steps to see the old lamp";

fn said(chat: &mut Chat<'_>, question: &str, most: usize) -> (usize, String) {
    let mut answer = String::new();
    let timing = chat.answer(question, most, |piece| {
        answer.push_str(piece);
        true
    });
    (timing.expect("answered").read, answer)
}

fn ask(model: &Llama, sampling: Sampling, question: &str) -> String {
    let mut chat = Chat::new(model, 256, sampling, SYSTEM).expect("a chat");
    said(&mut chat, question, 24).1
}

#[test]
fn greedy_answers_are_the_models_own() {
    let test = "greedy_answers_are_the_models_own";
    let Some(folder) = weights(test, "smollm2") else { return };
    for (name, machine) in machines(test) {
        let model = Llama::load(&machine, &folder).expect("a model");
        let question = "What is the capital of France?";
        let answer = ask(&model, Sampling::Greedy, question);
        assert_eq!(answer, "The capital of France is Paris.", "{name}");
        let mut chat = Chat::new(&model, 256, Sampling::Greedy, SYSTEM).expect("a chat");
        let (read, summary) = said(&mut chat, LIGHTHOUSE, 64);
        assert_eq!((read, summary.as_str()), (136, SUMMARY), "{name}");
    }
}

/// The cache keeps what was said: a second question is understood by the first.
#[test]
fn turns_follow_one_another_as_if_read_at_once() {
    let test = "turns_follow_one_another_as_if_read_at_once";
    let Some(folder) = weights(test, "smollm2") else { return };
    let machine = Machine::of(wgpu_attention::Runner::cpu());
    let model = Llama::load(&machine, &folder).expect("a model");
    let mut chat = Chat::new(&model, 256, Sampling::Greedy, SYSTEM).expect("a chat");
    said(&mut chat, "What is the capital of France?", 24);
    let (read, second) = said(&mut chat, "And of Italy?", 24);
    assert!(read < 20, "{read} tokens: the first turn was read again");
    assert!(second.contains("Rome"), "{second}");
}

#[test]
fn the_same_seed_draws_the_same_answer() {
    let test = "the_same_seed_draws_the_same_answer";
    let Some(folder) = weights(test, "smollm2") else { return };
    let machine = Machine::of(wgpu_attention::Runner::cpu());
    let model = Llama::load(&machine, &folder).expect("a model");
    let draw = |seed, temperature| {
        let sampling = Sampling::Random { temperature, top_p: 0.95, seed };
        ask(&model, sampling, "Tell me a story.")
    };
    assert_eq!(draw(1, 1.0), draw(1, 1.0));
    assert_ne!(draw(1, 1.0), draw(2, 1.0));
    // Next to no temperature leaves nothing to chance.
    assert_eq!(draw(1, 0.001), draw(2, 0.001));
}

#[test]
fn a_text_longer_than_the_context_is_refused() {
    let test = "a_text_longer_than_the_context_is_refused";
    let Some(folder) = weights(test, "smollm2") else { return };
    let machine = Machine::of(wgpu_attention::Runner::cpu());
    let model = Llama::load(&machine, &folder).expect("a model");
    let mut chat = Chat::new(&model, 64, Sampling::Greedy, SYSTEM).expect("a chat");
    let refused = chat.answer(LIGHTHOUSE, 8, |_| true);
    assert!(matches!(refused, Err(Error::Context { tokens: 137, context: 64 })), "{refused:?}");
    let refused = Chat::new(&model, 8193, Sampling::Greedy, SYSTEM).map(|_| ());
    assert!(matches!(refused, Err(Error::Context { tokens: 8193, context: 8192 })), "{refused:?}");
}
