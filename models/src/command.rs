//! What the four commands have in common: options, Ctrl-C, and how they end.

use crate::chat::Chat;
use crate::error::Error;
use crate::machine::{Choice, Machine};
use std::collections::HashMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

const COMMON: &str = "
  --model-dir DIR   where the model's files are, in any depth
                    (default: $WGPU_ATTENTION_MODELS, else models/weights; models/fetch.sh fills it)
  --gpu             a GPU, a software one where there is no other (default: a hardware GPU, else the CPU)
  --cpu             the CPU
  --help            this";

/// An answer is under way; it is to stop.
static ANSWERING: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);

/// A command line.
#[derive(Debug, Default)]
pub struct Arguments {
    choice: Choice,
    values: HashMap<String, String>,
    /// What is no option.
    pub rest: Vec<String>,
}

impl Arguments {
    /// Reads a command line; `flags` stand alone, `options` take a value. `None` where help is asked for.
    fn parse(flags: &[&str], options: &[&str]) -> Result<Option<Self>, Error> {
        let (mut parsed, mut arguments) = (Self::default(), std::env::args().skip(1));
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--" => parsed.rest.extend(arguments.by_ref()),
                "--help" => return Ok(None),
                "--cpu" => parsed.choice = Choice::Cpu,
                "--gpu" => parsed.choice = Choice::Gpu,
                known if known == "--model-dir" || options.contains(&known) => {
                    let missing = || Error::Usage(format!("{argument} takes a value: see --help"));
                    let value = arguments.next().ok_or_else(missing)?;
                    parsed.values.insert(argument, value);
                }
                known if flags.contains(&known) => {
                    parsed.values.insert(argument, String::new());
                }
                unknown if unknown.starts_with("--") => {
                    return Err(Error::Usage(format!("unknown option {argument}: see --help")));
                }
                _ => parsed.rest.push(argument),
            }
        }
        Ok(Some(parsed))
    }

    /// An option's value as it is; a flag's is empty.
    pub fn text(&self, option: &str) -> Option<&str> {
        self.values.get(option).map(String::as_str)
    }

    /// An option's value, of a kind and within bounds that `expected` says.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub fn value<T: FromStr>(
        &self,
        option: &str,
        default: T,
        expected: &str,
        holds: impl Fn(&T) -> bool,
    ) -> Result<T, Error> {
        let Some(text) = self.text(option) else { return Ok(default) };
        let value = text.parse().ok().filter(holds);
        value.ok_or_else(|| Error::Usage(format!("{option}: {text:?} is not {expected}")))
    }

    /// The lines that a command is to work on: its arguments with `between` them, without any standard input.
    ///
    /// # Errors
    /// There are none.
    pub fn lines(&self, between: &str) -> Result<Vec<String>, Error> {
        let mut text = self.rest.join(between);
        if self.rest.is_empty() {
            let all = std::io::read_to_string(std::io::stdin());
            text = all.map_err(|error| Error::Usage(format!("standard input: {error}")))?;
        }
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let lines: Vec<String> = lines.map(Into::into).collect();
        match lines.is_empty() {
            true => Err(Error::Usage("a TEXT is wanted: see --help".to_owned())),
            false => Ok(lines),
        }
    }

    /// Where the model's files are.
    pub fn folder(&self) -> PathBuf {
        let given = self.text("--model-dir").map(PathBuf::from);
        let given = given.or_else(|| std::env::var_os("WGPU_ATTENTION_MODELS").map(Into::into));
        given.unwrap_or_else(|| "models/weights".into())
    }

    /// The machine that is asked for.
    ///
    /// # Errors
    /// There is none.
    pub fn machine(&self) -> Result<Machine, Error> {
        Machine::new(self.choice)
    }
}

/// Runs a command: 0 where it succeeds, else one line on standard error and 2.
pub fn run(
    help: &str,
    flags: &[&str],
    options: &[&str],
    body: impl FnOnce(&Arguments) -> Result<(), Error>,
) -> ExitCode {
    let ended = match Arguments::parse(flags, options) {
        Ok(Some(arguments)) => body(&arguments),
        Ok(None) => {
            say(&format!("{help}{COMMON}"));
            return ExitCode::SUCCESS;
        }
        Err(error) => Err(error),
    };
    let Err(error) = ended else { return ExitCode::SUCCESS };
    // Some libraries explain in several lines.
    say(&error.to_string().split_whitespace().collect::<Vec<_>>().join(" "));
    ExitCode::from(2)
}

/// A line for the person at the terminal; standard output is for results.
pub fn say(line: &str) {
    // Nobody may be there to read it.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes text to standard output at once; `false` where nobody reads it any more.
pub fn print(text: &str) -> bool {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// From now on Ctrl-C ends an answer that is under way, and the program where there is none.
///
/// # Errors
/// The system does not let it.
pub fn listen() -> Result<(), Error> {
    ctrlc::set_handler(|| {
        // A second one ends the program, in case that the machine is stuck.
        if !ANSWERING.load(Ordering::SeqCst) || STOP.swap(true, Ordering::SeqCst) {
            say("");
            std::process::exit(0);
        }
    })
    .map_err(Error::device)
}

/// Answers a question on standard output, until Ctrl-C.
///
/// # Errors
/// The conversation is longer than the context, or the machine cannot.
pub fn answer(
    chat: &mut Chat<'_>,
    question: &str,
    most: usize,
    machine: &Machine,
) -> Result<(), Error> {
    STOP.store(false, Ordering::SeqCst);
    ANSWERING.store(true, Ordering::SeqCst);
    let timing = chat.answer(question, most, |piece| print(piece) && !STOP.load(Ordering::SeqCst));
    ANSWERING.store(false, Ordering::SeqCst);
    let timing = timing?;
    print("\n");
    say(&format!("{timing}, on {}", machine.name()));
    Ok(())
}
