//! English to Portuguese and back, and which word came from which.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use wgpu_attention_models::command::{self, Arguments, print, say};
use wgpu_attention_models::picture::Picture;
use wgpu_attention_models::translator::{Translation, Translator, sentences};
use wgpu_attention_models::{Error, terminal};

const HELP: &str = "\
translate [--from en|pt] TEXT
From English to Portuguese, or from Portuguese to English; without TEXT, the lines of standard input.

  --from LANGUAGE   en or pt (default: en)
  --align           also show which words each word came from
  --png FILE        a picture of that, of the first sentence";

fn main() -> ExitCode {
    command::run(HELP, &["--align"], &["--from", "--png"], translate)
}

fn translate(arguments: &Arguments) -> Result<(), Error> {
    let from = arguments.text("--from").unwrap_or("en");
    let to = match from {
        "en" => "pt",
        "pt" => "en",
        _ => return Err(Error::Usage(format!("--from: {from:?} is neither en nor pt"))),
    };
    let mut text = arguments.rest.join(" ");
    if text.trim().is_empty() {
        let all = std::io::read_to_string(std::io::stdin());
        text = all.map_err(|error| Error::Usage(format!("standard input: {error}")))?;
    }
    if text.trim().is_empty() {
        return Err(Error::Usage("a TEXT is wanted: see --help".to_owned()));
    }
    let machine = arguments.machine()?;
    let model = Translator::load(&machine, &arguments.folder(), from, to)?;
    let mut png = arguments.text("--png").map(PathBuf::from);
    for line in text.lines() {
        let translations = sentences(line).into_iter().map(|one| model.translate(one));
        let translations = translations.collect::<Result<Vec<_>, _>>()?;
        let texts: Vec<&str> = translations.iter().map(|one| one.text.as_str()).collect();
        print(&format!("{}\n", texts.join(" ")));
        for translation in &translations {
            if arguments.has("--align") {
                align(translation);
            }
            if let Some(png) = png.take() {
                draw(translation, &png)?;
                say(&format!("picture: {}", png.display()));
            }
        }
    }
    Ok(())
}

/// Every word of the translation, and where it looked most.
fn align(translation: &Translation) {
    let Translation { source, target, alignment, .. } = translation;
    for (word, looks) in target.iter().zip(alignment.chunks(source.len())) {
        let mut order: Vec<usize> = (0..source.len()).collect();
        order.sort_by(|a, b| looks[*b].total_cmp(&looks[*a]));
        let best = order.iter().take(2).filter(|i| looks[**i] > 0.1);
        let best = best.map(|i| {
            let text = format!("{} {:.2}", source[*i].replace('▁', ""), looks[*i]);
            terminal::shaded(&text, looks[*i], terminal::colours())
        });
        say(&format!("{:>16}  {}", word.replace('▁', ""), best.collect::<Vec<_>>().join("  ")));
    }
}

fn draw(translation: &Translation, path: &Path) -> Result<(), Error> {
    let Translation { source, target, alignment, text, .. } = translation;
    let picture = Picture {
        heading: text.clone(),
        note: "a row: a token of the translation.  a column: where it came from.",
        finding: "head 0 of the last cross-attention".to_owned(),
        rows: target,
        columns: source,
        panels: vec![(String::new(), alignment)],
        across: 1,
        mark: None,
    };
    picture.write(path)
}
