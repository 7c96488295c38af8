//! What the four commands have in common: options, and how they end.

use crate::error::Error;
use crate::machine::{Choice, Machine};
use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

/// Where weights are looked for if nobody says where.
const MODELS: &str = "WGPU_ATTENTION_MODELS";
/// What every command takes.
const COMMON: &str = "
  --model-dir DIR   where the model's files are, in any depth
                    (default: $WGPU_ATTENTION_MODELS, else models/weights; models/fetch.sh fills it)
  --gpu             a GPU, a software one where there is no other (default: a hardware GPU, else the CPU)
  --cpu             the CPU
  --help            this";

/// A command line.
#[derive(Debug, Default)]
pub struct Arguments {
    choice: Choice,
    folder: Option<PathBuf>,
    values: HashMap<String, String>,
    /// What is no option.
    pub rest: Vec<String>,
}

impl Arguments {
    /// Reads a command line; `flags` stand alone, `options` take a value. `None` where help is asked for.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub fn parse(
        mut arguments: impl Iterator<Item = String>,
        flags: &[&str],
        options: &[&str],
    ) -> Result<Option<Self>, Error> {
        let mut parsed = Self::default();
        let mut only_rest = false;
        while let Some(argument) = arguments.next() {
            let mut value = || {
                let missing = || Error::Usage(format!("{argument} takes a value: see --help"));
                arguments.next().ok_or_else(missing)
            };
            match argument.as_str() {
                _ if only_rest || !argument.starts_with("--") => parsed.rest.push(argument),
                "--" => only_rest = true,
                "--help" => return Ok(None),
                "--cpu" => parsed.choice = Choice::Cpu,
                "--gpu" => parsed.choice = Choice::Gpu,
                "--model-dir" => parsed.folder = Some(value()?.into()),
                flag if flags.contains(&flag) => {
                    parsed.values.insert(argument, String::new());
                }
                option if options.contains(&option) => {
                    let value = value()?;
                    parsed.values.insert(argument, value);
                }
                _ => return Err(Error::Usage(format!("unknown option {argument}: see --help"))),
            }
        }
        Ok(Some(parsed))
    }

    /// Whether a flag is given.
    pub fn has(&self, flag: &str) -> bool {
        self.values.contains_key(flag)
    }

    /// An option's value as it is.
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

    /// Where the model's files are.
    pub fn folder(&self) -> PathBuf {
        let given = self.folder.clone().or_else(|| std::env::var_os(MODELS).map(PathBuf::from));
        given.unwrap_or_else(|| Path::new("models").join("weights"))
    }

    /// The machine that is asked for.
    ///
    /// # Errors
    /// There is none.
    pub fn machine(&self) -> Result<Machine, Error> {
        Machine::new(self.choice)
    }
}

/// A line for the person at the terminal; standard output is for results.
pub fn say(line: &str) {
    // Nobody may be there to read it.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Runs a command: 0 where it succeeds, else one line on standard error and 2.
pub fn run(
    help: &str,
    flags: &[&str],
    options: &[&str],
    body: impl FnOnce(&Arguments) -> Result<(), Error>,
) -> ExitCode {
    let ended = match Arguments::parse(std::env::args().skip(1), flags, options) {
        Ok(Some(arguments)) => body(&arguments),
        Ok(None) => {
            say(&format!("{help}{COMMON}"));
            return ExitCode::SUCCESS;
        }
        Err(error) => Err(error),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Some libraries explain in several lines.
            let text = error.to_string();
            say(&text.split_whitespace().collect::<Vec<_>>().join(" "));
            ExitCode::from(2)
        }
    }
}

/// Writes text to standard output at once; `false` where nobody reads it any more.
pub fn print(text: &str) -> bool {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}
