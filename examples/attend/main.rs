//! Attention on a file: reads q, k, v from a safetensors file, answers with one. The bridge to other languages.
//!
//! `attend [OPTIONS] IN.safetensors OUT.safetensors`, or `attend [OPTIONS] --jobs FILE` for many calls.

mod answer;
mod cache;
mod gradients;
mod keys;
mod merge;
mod options;
mod progress;
mod question;
mod rotary;
mod tensors;

use answer::Machines;
use options::{Call, Command};
use std::io::{self, BufRead, Read, Write};
use std::process::ExitCode;

/// Everything that goes wrong is one line for the caller.
type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(message) => {
            // Without a standard error there is nobody to tell.
            let _ = writeln!(io::stderr(), "attend: {}", one_line(&message));
            ExitCode::from(2)
        }
    }
}

/// Whether every call was answered.
fn run() -> Result<bool> {
    let arguments = std::env::args_os().skip(1).map(|argument| {
        let bad = |argument: std::ffi::OsString| format!("{} is not UTF-8", argument.display());
        argument.into_string().map_err(bad)
    });
    let command = Command::parse(arguments.collect::<Result<Vec<_>>>()?)?;
    let mut machines = Machines::new(command.adapter, command.default_limits);
    match command.jobs {
        None => {
            command.call.answer(&mut machines)?;
            Ok(true)
        }
        Some(path) => serve(&path, &command.call, &mut machines),
    }
}

/// Answers each line of a file before it reads the next.
fn serve(path: &str, defaults: &Call, machines: &mut Machines) -> Result<bool> {
    let source: Box<dyn Read> = match path {
        "-" => Box::new(io::stdin()),
        _ => Box::new(std::fs::File::open(path).map_err(|error| format!("{path}: {error}"))?),
    };
    let mut all_ok = true;
    for (line, n) in io::BufReader::new(source).split(b'\n').zip(1u64..) {
        let line = line.map_err(|error| format!("{path}: {error}"))?;
        let answered = String::from_utf8(line)
            .map_err(|_| "the line is not UTF-8".to_owned())
            .and_then(|line| defaults.with_line(&line)?.answer(machines));
        let mut out = io::stdout().lock();
        let written = match answered {
            Ok(()) => writeln!(out, "ok {n}"),
            Err(message) => {
                all_ok = false;
                writeln!(out, "error {n}: {}", one_line(&message))
            }
        };
        written.and_then(|()| out.flush()).map_err(|error| format!("standard output: {error}"))?;
    }
    Ok(all_ok)
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
