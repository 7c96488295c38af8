//! A conversation with a small language model.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use wgpu_attention_models::Error;
use wgpu_attention_models::chat::{Chat, SYSTEM};
use wgpu_attention_models::command::{self, Arguments, print, say};
use wgpu_attention_models::interrupt;
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
    let sampling = Sampling::Random {
        temperature: arguments.value("--temperature", 0.2, "a number from 0.001", above_0)?,
        top_p: arguments
            .value("--top-p", 0.9, "a number from 0.001 to 1", |p| above_0(p) && *p <= 1.0)?,
        seed: arguments.value("--seed", 1, "a whole number", |_| true)?,
    };
    let sampling = if arguments.has("--greedy") { Sampling::Greedy } else { sampling };
    let positive = |n: &usize| *n > 0;
    let most = arguments.value("--tokens", 512, "a number from 1", positive)?;
    let machine = arguments.machine()?;
    let model = Llama::load(&machine, &arguments.folder())?;
    let context =
        arguments.value("--context", model.context.min(2048), "a number from 1", positive)?;
    let system = arguments.text("--system").unwrap_or(SYSTEM);
    let mut chat = Chat::new(&model, context, sampling, system)?;
    interrupt::listen()?;

    let (prompt, name) = (arguments.rest.join(" "), machine.name());
    if !prompt.is_empty() {
        return answer(&mut chat, &prompt, most, &name);
    }
    let person = std::io::stdin().is_terminal();
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if person {
            // Without a new line, so that the question stands beside it.
            let _ = write!(std::io::stderr(), "> ");
        }
        match lines.next() {
            Some(Ok(line)) if line.trim().is_empty() => {}
            Some(Ok(line)) => answer(&mut chat, line.trim(), most, &name)?,
            Some(Err(error)) => return Err(Error::Usage(format!("standard input: {error}"))),
            None => return Ok(()),
        }
    }
}

fn answer(chat: &mut Chat<'_>, question: &str, most: usize, machine: &str) -> Result<(), Error> {
    let (timing, _) = interrupt::while_answering(|go_on| {
        chat.answer(question, most, |piece| print(piece) && go_on())
    });
    let timing = timing?;
    print("\n");
    say(&format!("{timing}, on {machine}"));
    Ok(())
}
