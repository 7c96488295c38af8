//! English to Portuguese and back, and which word came from which.

use std::path::Path;
use std::process::ExitCode;
use wgpu_attention_models::Error;
use wgpu_attention_models::command::{self, Arguments, print, say};
use wgpu_attention_models::picture::Picture;
use wgpu_attention_models::translator::{Translation, Translator, sentences};

const HELP: &str = "\
translate [--from en|pt] TEXT
From English to Portuguese, or from Portuguese to English; without TEXT, the lines of standard input.

  --from LANGUAGE   en or pt (default: en)
  --png FILE        a picture of which word came from which, of the first sentence";

fn main() -> ExitCode {
    command::run(HELP, &[], &["--from", "--png"], translate)
}

fn translate(arguments: &Arguments) -> Result<(), Error> {
    let from = arguments.text("--from").unwrap_or("en");
    let to = match from {
        "en" => "pt",
        "pt" => "en",
        _ => return Err(Error::Usage(format!("--from: {from:?} is neither en nor pt"))),
    };
    let lines = arguments.lines(" ")?;
    let machine = arguments.machine()?;
    let model = Translator::load(&machine, &arguments.folder(), from, to)?;
    let mut png = arguments.text("--png").map(Path::new);
    for line in lines {
        let translations = sentences(&line).into_iter().map(|one| model.translate(one));
        let translations = translations.collect::<Result<Vec<_>, _>>()?;
        let texts: Vec<&str> = translations.iter().map(|one| one.text.as_str()).collect();
        print(&format!("{}\n", texts.join(" ")));
        if let (Some(png), Some(first)) = (png.take(), translations.first()) {
            draw(first, png)?;
            say(&format!("picture: {}", png.display()));
        }
    }
    Ok(())
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
