//! A text in one sentence, by a small language model.

use std::path::Path;
use std::process::ExitCode;
use wgpu_attention_models::Error;
use wgpu_attention_models::chat::{Chat, SYSTEM};
use wgpu_attention_models::command::{self, Arguments};
use wgpu_attention_models::llama::Llama;
use wgpu_attention_models::program::Sampling;

const HELP: &str = "\
summarise FILE
A text in one sentence; - is standard input. Ctrl-C ends it.

  --tokens N        tokens of the summary, at most (default 128)
  --context N       tokens of text and summary, at most (default 2048)";

fn main() -> ExitCode {
    command::run(HELP, &[], &["--tokens", "--context"], summarise)
}

fn summarise(arguments: &Arguments) -> Result<(), Error> {
    let [file] = arguments.rest.as_slice() else {
        return Err(Error::Usage("one FILE is wanted: see --help".to_owned()));
    };
    let text = match file.as_str() {
        "-" => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(file),
    };
    let text = text.map_err(|error| Error::file(Path::new(file), error))?;
    let most = arguments.value("--tokens", 128, "a number from 1", |n| *n > 0)?;
    let machine = arguments.machine()?;
    let model = Llama::load(&machine, &arguments.folder())?;
    let context = model.context.min(2048);
    let context = arguments.value("--context", context, "a number from 1", |n| *n > 0)?;
    let mut chat = Chat::new(&model, context, Sampling::Greedy, SYSTEM)?;
    command::listen()?;
    let question = format!("Summarize this text in one sentence:\n\n{}", text.trim());
    command::answer(&mut chat, &question, most, &machine)
}
