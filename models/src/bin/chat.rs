//! A conversation with a small language model.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use wgpu_attention_models::Error;
use wgpu_attention_models::chat::{Chat, SYSTEM};
use wgpu_attention_models::command::{self, Arguments};
use wgpu_attention_models::llama::Llama;
use wgpu_attention_models::program::Sampling;

const HELP: &str = "\
chat [--greedy] [PROMPT]
Answers a prompt and ends; without one, converses until the end of input. Ctrl-C ends an answer.

  --greedy          always the most probable token
  --temperature T   else: from 0.001; low is careful (default 0.2)
  --top-p P         of the most probable tokens that together have P (default 0.9)
  --seed N          the same seed, the same answer (default 1)
  --tokens N        tokens of an answer, at most (default 512)
  --context N       tokens of the whole conversation, at most (default 2048)
  --system TEXT     who the model is told to be";
const OPTIONS: &[&str] =
    &["--temperature", "--top-p", "--seed", "--tokens", "--context", "--system"];

fn main() -> ExitCode {
    command::run(HELP, &["--greedy"], OPTIONS, converse)
}

fn converse(arguments: &Arguments) -> Result<(), Error> {
    let above_0 = |x: &f32| *x >= 0.001 && x.is_finite();
    let share = |x: &f32| above_0(x) && *x <= 1.0;
    let mut sampling = Sampling::Random {
        temperature: arguments.value("--temperature", 0.2, "a number from 0.001", above_0)?,
        top_p: arguments.value("--top-p", 0.9, "a number from 0.001 to 1", share)?,
        seed: arguments.value("--seed", 1, "a whole number", |_| true)?,
    };
    if arguments.text("--greedy").is_some() {
        sampling = Sampling::Greedy;
    }
    let most = arguments.value("--tokens", 512, "a number from 1", |n| *n > 0)?;
    let machine = arguments.machine()?;
    let model = Llama::load(&machine, &arguments.folder())?;
    let context = model.context.min(2048);
    let context = arguments.value("--context", context, "a number from 1", |n| *n > 0)?;
    let system = arguments.text("--system").unwrap_or(SYSTEM);
    let mut chat = Chat::new(&model, context, sampling, system)?;
    command::listen()?;
    if !arguments.rest.is_empty() {
        return command::answer(&mut chat, &arguments.rest.join(" "), most, &machine);
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if std::io::stdin().is_terminal() {
            // Without a new line, so that the question stands beside it.
            let _ = write!(std::io::stderr(), "> ");
        }
        match lines.next() {
            Some(Ok(line)) if line.trim().is_empty() => {}
            Some(Ok(line)) => command::answer(&mut chat, line.trim(), most, &machine)?,
            Some(Err(error)) => return Err(Error::Usage(format!("standard input: {error}"))),
            None => return Ok(()),
        }
    }
}
