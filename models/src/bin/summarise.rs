//! A text in one sentence, by a small language model.

use std::path::Path;
use std::process::ExitCode;
use wgpu_attention_models::chat::{Chat, SYSTEM};
use wgpu_attention_models::command::{self, Arguments, print, say};
use wgpu_attention_models::llama::Llama;
use wgpu_attention_models::program::Sampling;
use wgpu_attention_models::{Error, interrupt};

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
    let path = Path::new(file);
    let text = match file.as_str() {
        "-" => {
            std::io::read_to_string(std::io::stdin()).map_err(|error| Error::file(path, error))?
        }
        _ => std::fs::read_to_string(path).map_err(|error| Error::file(path, error))?,
    };
    let positive = |n: &usize| *n > 0;
    let most = arguments.value("--tokens", 128, "a number from 1", positive)?;
    let machine = arguments.machine()?;
    let model = Llama::load(&machine, &arguments.folder())?;
    let context =
        arguments.value("--context", model.context.min(2048), "a number from 1", positive)?;
    let mut chat = Chat::new(&model, context, Sampling::Greedy, SYSTEM)?;
    interrupt::listen()?;
    let question = format!("Summarize this text in one sentence:\n\n{}", text.trim());
    let (timing, _) = interrupt::while_answering(|go_on| {
        chat.answer(&question, most, |piece| print(piece) && go_on())
    });
    let timing = timing?;
    print("\n");
    say(&format!("{timing}, on {}", machine.name()));
    Ok(())
}
