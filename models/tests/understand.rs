//! A sentence encoder with trained weights: what its authors' own code computes.

use crate::support;
use crate::support::{machines, weights};
use std::process::Command;
use wgpu_attention_models::bert::{Bert, Understood};

const CAT: &str = "The cat sat on the mat because it was tired.";
const OTHERS: [&str; 2] =
    ["A sleepy kitten rested on the rug.", "Stock prices fell sharply on Monday."];

fn sentences() -> Vec<String> {
    [CAT].into_iter().chain(OTHERS).map(Into::into).collect()
}

#[test]
fn similarities_and_the_look_of_it_are_the_models_own() {
    let test = "similarities_and_the_look_of_it_are_the_models_own";
    let Some(folder) = weights(test, "minilm") else { return };
    let mut all: Vec<Understood> = Vec::new();
    for (name, machine) in machines(test) {
        let model = Bert::load(&machine, &folder).expect("a model");
        let understood = model.understand(&sentences()).expect("understood");
        for (a, b, expected) in [(0, 0, 1.0), (0, 1, 0.685), (0, 2, 0.045)] {
            let found = understood.similarity(a, b);
            assert!((found - expected).abs() < 0.001, "{name}: {a} and {b} are {found} similar");
        }
        let tokens = &understood.tokens[0];
        let place = |word: &str| tokens.iter().position(|token| token == word).expect("a token");
        let looks = understood.weights(0, 5, 11, model.heads);
        let look = looks[place("it") * tokens.len() + place("cat")];
        assert!((look - 0.7118).abs() < 0.001, "{name}: it looks at cat with {look}");
        let found = understood.strongest(0, 5, model.heads);
        assert_eq!(found, [11, place("it"), place("cat")], "{name}");
        for row in understood.attention.iter().flat_map(|all| all.chunks(tokens.len())).take(72) {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-4, "{name}: {row:?}");
        }
        all.push(understood);
    }
    for other in &all[1..] {
        for (a, b) in all[0].embeddings.iter().zip(&other.embeddings) {
            let off = support::difference(b, a);
            assert!(off < 1e-4, "an embedding is off by {off}");
        }
    }
}

/// The short sentences of a batch are padded: that must not show.
#[test]
fn a_sentence_means_the_same_in_every_batch() {
    let test = "a_sentence_means_the_same_in_every_batch";
    let Some(folder) = weights(test, "minilm") else { return };
    for (name, machine) in machines(test) {
        let model = Bert::load(&machine, &folder).expect("a model");
        let together = model.understand(&sentences()).expect("understood");
        for (index, sentence) in sentences().into_iter().enumerate() {
            let alone = model.understand(&[sentence]).expect("understood");
            let off = support::difference(&alone.embeddings[0], &together.embeddings[index]);
            assert!(off < 1e-5, "{name}: sentence {index} is off by {off}");
            let off = support::difference(&alone.attention[0], &together.attention[index]);
            assert!(off < 1e-5, "{name}: attention in sentence {index} is off by {off}");
        }
    }
}

#[test]
fn the_command_prints_similarities_and_draws() {
    let test = "the_command_prints_similarities_and_draws";
    let Some(folder) = weights(test, "minilm") else { return };
    let place = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (png, html) = (place.join("understand.png"), place.join("understand.html"));
    let output = Command::new(env!("CARGO_BIN_EXE_understand"))
        .args(["--cpu", "--model-dir"])
        .arg(folder)
        .arg("--png")
        .arg(&png)
        .arg("--html")
        .arg(&html)
        .args(sentences())
        .output()
        .expect("ran");
    let printed = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.contains("  1  1.000  0.685  0.045\n"), "{printed}");
    assert!(printed.contains("layer 5, head 11: \"it\" looks at \"cat\", 0.71\n"), "{printed}");

    let file = std::io::BufReader::new(std::fs::File::open(png).expect("a picture"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG file");
    let mut pixels = vec![0; reader.output_buffer_size().expect("fits memory")];
    let info = reader.next_frame(&mut pixels).expect("pixels");
    assert!(info.width > 800 && info.height > 600, "{} x {}", info.width, info.height);
    let colours: std::collections::HashSet<_> = pixels.chunks(3).collect();
    assert!(colours.len() > 100, "{} colours", colours.len());

    let page = std::fs::read_to_string(html).expect("a page");
    assert!(page.contains(CAT) && page.contains("\"similarity\":"));
    let elsewhere = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!elsewhere.contains("http"), "the page needs another file");
}
