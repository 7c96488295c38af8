//! What sentences mean to a trained encoder, and who attends to whom in them.

use std::path::PathBuf;
use std::process::ExitCode;
use wgpu_attention_models::bert::{Bert, Understood};
use wgpu_attention_models::command::{self, Arguments, print, say};
use wgpu_attention_models::picture::Picture;
use wgpu_attention_models::{Error, page};

// The library's examples show the same.
#[allow(dead_code, reason = "mixed colours are the examples'")]
#[path = "../../../examples/support/colours.rs"]
mod colours;
#[path = "../../../examples/support/terminal.rs"]
mod terminal;

const HELP: &str = "\
understand TEXT...
How similar each text is to each, and who attends to whom in them: a picture of the first text, and a page to explore
them all. Without TEXT, the lines of standard input.

  --layer N         the layer of the picture, from 0 (default: the last)
  --png FILE        the picture (default: target/understand.png)
  --html FILE       the page (default: target/understand.html)";

fn main() -> ExitCode {
    command::run(HELP, &[], &["--layer", "--png", "--html"], understand)
}

fn understand(arguments: &Arguments) -> Result<(), Error> {
    let texts = arguments.lines("\n")?;
    let machine = arguments.machine()?;
    let model = Bert::load(&machine, &arguments.folder())?;
    let in_model = |layer: &usize| *layer < model.layers;
    let expected = format!("a layer from 0 to {}", model.layers.saturating_sub(1));
    let layer = arguments.value("--layer", model.layers.saturating_sub(1), &expected, in_model)?;
    let understood = model.understand(&texts)?;

    similarities(&texts, &understood);
    let tokens = &understood.tokens[0];
    let [head, row, column] = understood.strongest(0, layer, model.heads);
    let looks =
        &understood.weights(0, layer, head, model.heads)[row * tokens.len()..][..tokens.len()];
    let (from, to, weight) = (&tokens[row], &tokens[column], looks[column]);
    let finding = format!("layer {layer}, head {head}: \"{from}\" looks at \"{to}\", {weight:.2}");
    print(&format!("\n{}\n", terminal::heading(&finding, terminal::colours())));
    print(&terminal::bars(tokens, looks, terminal::colours()));

    let panel = |head| (format!("head {head}"), understood.weights(0, layer, head, model.heads));
    let picture = Picture {
        heading: format!("Layer {layer}: what {} heads attend to", model.heads),
        note: "a row: the token that looks.  a column: the token it looks at.",
        finding,
        rows: tokens,
        columns: tokens,
        panels: (0..model.heads).map(panel).collect(),
        across: 4,
        mark: Some([head, row, column]),
    };
    let file = |option, default: &str| PathBuf::from(arguments.text(option).unwrap_or(default));
    let (png, html) =
        (file("--png", "target/understand.png"), file("--html", "target/understand.html"));
    picture.write(&png)?;
    page::write(&html, &model, &texts, &understood, [layer, head, row])?;
    let name = machine.name();
    say(&format!("picture: {}, page: {}, on {name}", png.display(), html.display()));
    Ok(())
}

/// A table of all pairs.
fn similarities(texts: &[String], understood: &Understood) {
    for (index, text) in texts.iter().enumerate() {
        print(&format!("{:>3}  {text}\n", index + 1));
    }
    if texts.len() > 1 {
        let numbers = (1..=texts.len()).map(|index| format!("{index:>7}"));
        print(&format!("\n   {}\n", numbers.collect::<String>()));
        for row in 0..texts.len() {
            let cells = (0..texts.len())
                .map(|column| format!("{:>7.3}", understood.similarity(row, column)));
            print(&format!("{:>3}{}\n", row + 1, cells.collect::<String>()));
        }
    }
}
