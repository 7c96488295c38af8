//! Translation models with trained weights.

use crate::support::{machines, weights};
use wgpu_attention_models::Error;
use wgpu_attention_models::translator::{CONTEXT, Translator, sentences};

const ENGLISH: &str = "The cat sat on the mat because it was tired.";
const PORTUGUESE: &str = "O gato sentou-se no tapete porque estava cansado.";
const BACK: &str = "The cat sat on the carpet because he was tired.";

#[test]
fn translations_are_the_models_own_both_ways() {
    let test = "translations_are_the_models_own_both_ways";
    for (model, [from, to], [text, expected]) in
        [("enpt", ["en", "pt"], [ENGLISH, PORTUGUESE]), ("pten", ["pt", "en"], [PORTUGUESE, BACK])]
    {
        let Some(folder) = weights(test, model) else { continue };
        for (name, machine) in machines(test) {
            let model = Translator::load(&machine, &folder, from, to).expect("a model");
            let translation = model.translate(text).expect("translated");
            assert_eq!(translation.text, expected, "{name}");
            assert_eq!(translation.target.last().map(String::as_str), Some("</s>"), "{name}");
        }
    }
}

#[test]
fn words_come_from_where_the_alignment_says() {
    let test = "words_come_from_where_the_alignment_says";
    let Some(folder) = weights(test, "enpt") else { return };
    for (name, machine) in machines(test) {
        let model = Translator::load(&machine, &folder, "en", "pt").expect("a model");
        let translation = model.translate(ENGLISH).expect("translated");
        let source = &translation.source;
        assert_eq!(translation.alignment.len(), source.len() * translation.target.len(), "{name}");
        for (to, from) in [
            ("▁gato", "▁cat"),
            ("▁tapete", "▁mat"),
            ("▁porque", "▁because"),
            ("▁cansado", "▁tired"),
        ] {
            let row = translation.target.iter().position(|word| word == to).expect("a word");
            let looks = &translation.alignment[row * source.len()..][..source.len()];
            let best = (0..source.len()).max_by(|a, b| looks[*a].total_cmp(&looks[*b]));
            assert_eq!(best.map(|best| source[best].as_str()), Some(from), "{name}: {to}");
        }
    }
}

#[test]
fn a_sentence_longer_than_the_context_is_refused() {
    let test = "a_sentence_longer_than_the_context_is_refused";
    let Some(folder) = weights(test, "enpt") else { return };
    let machine = wgpu_attention_models::Machine::of(wgpu_attention::Runner::cpu());
    let model = Translator::load(&machine, &folder, "en", "pt").expect("a model");
    let refused = model.translate(&"word ".repeat(600));
    assert!(
        matches!(refused, Err(Error::Context { tokens: 601, context: CONTEXT })),
        "{refused:?}"
    );
}

#[test]
fn sentences_end_with_a_mark_and_a_capital() {
    for (line, expected) in [
        ("", &[][..]),
        ("One only.", &["One only."]),
        ("It rains. We stay in! Do we?  Yes.", &["It rains.", "We stay in!", "Do we?", "Yes."]),
        ("Mr. Smith has 3.5 litres. of milk", &["Mr. Smith has 3.5 litres. of milk"]),
        ("É tarde. Água, por favor.", &["É tarde.", "Água, por favor."]),
    ] {
        assert_eq!(sentences(line), expected);
    }
}
