//! What the command line asks for.

use crate::Result;
use std::str::FromStr;
use wgpu_attention::{Algorithm, DType, Diagonal, RotaryPairs, ScoreStage};

/// One process: a call, or many of them from a file.
pub(crate) struct Command {
    pub(crate) call: Call,
    pub(crate) jobs: Option<String>,
    pub(crate) adapter: Option<String>,
    pub(crate) default_limits: bool,
}

/// Where attention is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Backend {
    #[default]
    Gpu,
    Cpu,
    Reference,
}

/// In which order tensors have their axes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Axes {
    /// `[batch, heads, len, dim]`.
    #[default]
    Bhsd,
    /// `[batch, len, heads, dim]`.
    Bshd,
    /// `[tokens, heads, dim]`: sequences behind one another.
    Thd,
}

/// One call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Call {
    pub(crate) axes: Axes,
    pub(crate) causal: Option<Diagonal>,
    pub(crate) window_left: Option<u32>,
    pub(crate) window_right: Option<u32>,
    pub(crate) scale: Option<f32>,
    pub(crate) softcap: Option<f32>,
    pub(crate) dropout: Option<f32>,
    pub(crate) seed: Option<u64>,
    pub(crate) rotary: Option<RotaryPairs>,
    pub(crate) dtype: Option<DType>,
    pub(crate) algorithm: Algorithm,
    pub(crate) backend: Backend,
    pub(crate) weights: bool,
    pub(crate) scores: Option<ScoreStage>,
    pub(crate) files: Vec<String>,
}

impl Command {
    pub(crate) fn parse(arguments: Vec<String>) -> Result<Self> {
        let mut command =
            Self { call: Call::default(), jobs: None, adapter: None, default_limits: false };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = || next(&argument, &mut arguments);
            match argument.as_str() {
                "--jobs" => command.jobs = Some(value()?),
                // Of the calls with another backend they say nothing.
                "--adapter" => command.adapter = Some(value()?),
                "--limits" => command.default_limits = choice(&argument, &value()?, &LIMITS)?,
                _ => command.call.take(&argument, &mut arguments)?,
            }
        }
        if command.jobs.is_some() && !command.call.files.is_empty() {
            return Err(format!("--jobs takes no other file, not {}", command.call.files[0]));
        }
        Ok(command)
    }
}

const LIMITS: [(&str, bool); 2] = [("default", true), ("adapter", false)];

impl Call {
    /// This call, with what a line of a file of calls adds.
    pub(crate) fn with_line(&self, line: &str) -> Result<Self> {
        let mut call = self.clone();
        let mut arguments = line.split_whitespace().map(str::to_owned);
        while let Some(argument) = arguments.next() {
            if ["--jobs", "--adapter", "--limits"].contains(&argument.as_str()) {
                return Err(format!("{argument} stands only before --jobs"));
            }
            call.take(&argument, &mut arguments)?;
        }
        Ok(call)
    }

    /// Takes one argument and its value.
    fn take(&mut self, argument: &str, rest: &mut impl Iterator<Item = String>) -> Result<()> {
        let mut value = || next(argument, rest);
        match argument {
            "--layout" => {
                let layouts = [("bhsd", Axes::Bhsd), ("bshd", Axes::Bshd), ("thd", Axes::Thd)];
                self.axes = choice(argument, &value()?, &layouts)?;
            }
            "--causal" => {
                let diagonals =
                    [("bottom-right", Diagonal::BottomRight), ("top-left", Diagonal::TopLeft)];
                self.causal = Some(choice(argument, &value()?, &diagonals)?);
            }
            "--window-left" => self.window_left = Some(number(argument, &value()?)?),
            "--window-right" => self.window_right = Some(number(argument, &value()?)?),
            "--scale" => self.scale = Some(number(argument, &value()?)?),
            "--softcap" => self.softcap = Some(number(argument, &value()?)?),
            "--dropout" => self.dropout = Some(number(argument, &value()?)?),
            "--seed" => self.seed = Some(number(argument, &value()?)?),
            "--rotary" => {
                let pairs =
                    [("half", RotaryPairs::HalfSplit), ("interleaved", RotaryPairs::Interleaved)];
                self.rotary = Some(choice(argument, &value()?, &pairs)?);
            }
            "--dtype" => {
                let types = [("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16)];
                self.dtype = Some(choice(argument, &value()?, &types)?);
            }
            "--algorithm" => {
                let algorithms = [
                    ("auto", Algorithm::Auto),
                    ("staged", Algorithm::Staged),
                    ("flash", Algorithm::Flash),
                    ("split", Algorithm::Split),
                ];
                self.algorithm = choice(argument, &value()?, &algorithms)?;
            }
            "--backend" => {
                let backends = [
                    ("gpu", Backend::Gpu),
                    ("cpu", Backend::Cpu),
                    ("reference", Backend::Reference),
                ];
                self.backend = choice(argument, &value()?, &backends)?;
            }
            "--weights" => self.weights = true,
            "--scores" => {
                let stages = [
                    ("raw", ScoreStage::Raw),
                    ("capped", ScoreStage::Capped),
                    ("biased", ScoreStage::Biased),
                ];
                self.scores = Some(choice(argument, &value()?, &stages)?);
            }
            _ if argument.starts_with("--") => return Err(format!("unknown option {argument}")),
            _ => self.files.push(argument.to_owned()),
        }
        Ok(())
    }

    /// IN and OUT, and that the options go together.
    pub(crate) fn checked(&self) -> Result<(&str, &str)> {
        let [input, output] = self.files.as_slice() else {
            let n = self.files.len();
            return Err(format!("two files are needed, IN and OUT, not {n}"));
        };
        if self.backend != Backend::Gpu && self.algorithm != Algorithm::Auto {
            return Err("--algorithm is for --backend gpu alone".to_owned());
        }
        if self.seed.is_some() && self.dropout.is_none() {
            return Err("--seed needs --dropout".to_owned());
        }
        let fused = self.fused();
        for (option, given) in [("--weights", self.weights), ("--scores", self.scores.is_some())] {
            if let Some(fused) = fused.filter(|_| given) {
                return Err(format!("{option}: --algorithm {fused} does not give them"));
            }
            if given && self.axes == Axes::Thd {
                return Err(format!("{option}: --layout thd does not give them"));
            }
        }
        Ok((input, output))
    }

    /// The algorithm, if it is one of the fused kernels.
    pub(crate) fn fused(&self) -> Option<&'static str> {
        match self.algorithm {
            Algorithm::Flash => Some("flash"),
            Algorithm::Split => Some("split"),
            _ => None,
        }
    }
}

fn next(option: &str, rest: &mut impl Iterator<Item = String>) -> Result<String> {
    rest.next().ok_or_else(|| format!("{option} needs a value"))
}

fn number<T: FromStr>(option: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| format!("{option}: {value} is no number that it can take"))
}

fn choice<T: Copy>(option: &str, value: &str, choices: &[(&str, T)]) -> Result<T> {
    let found = choices.iter().find(|(name, _)| *name == value);
    let names = || choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    found
        .map(|(_, choice)| *choice)
        .ok_or_else(|| format!("{option}: {value} is none of {}", names()))
}
