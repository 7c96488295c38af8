//! Tuning: the candidates for a problem timed on the device, and the fastest kept.

use crate::attention::Attention;
use crate::candidates::{Candidate, candidates};
use crate::device::Capabilities;
use crate::dispatch::Dispatch;
use crate::encoding::decoded;
use crate::error::{Error, PlanError};
use crate::keys::{DeviceKey, ProblemKey};
use crate::pipeline::Checks;
use crate::plan::{Algorithm, Plan};
use crate::problem::Problem;
use crate::record::{Entry, Time, TuningRecord};
use crate::scratch::{Scratch, Small};
use crate::shape::DType;
use crate::timing::{Polling, Timer, watched};
use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

/// Bounds of one tuning.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TuneOptions {
    /// Time that it may take: no candidate is begun that is not expected to be done by then. The first, which is
    /// what is taken without tuning, always is. On the web only the time on the GPU is counted.
    pub time: Duration,
    /// Bytes of its buffers, those of intermediate results too.
    pub memory_bytes: u64,
}

impl Default for TuneOptions {
    /// A second, 256 MiB.
    fn default() -> Self {
        Self { time: Duration::from_secs(1), memory_bytes: 256 << 20 }
    }
}

/// What was tuned or loaded, by what it was tuned for.
#[derive(Debug, Default)]
pub(crate) struct Tuned {
    choices: RwLock<HashMap<(DeviceKey, ProblemKey), Candidate>>,
}

impl Tuned {
    fn insert(&self, device: DeviceKey, problem: ProblemKey, choice: Candidate) {
        let mut choices = self.choices.write().unwrap_or_else(PoisonError::into_inner);
        choices.insert((device, problem), choice);
    }

    fn get(
        &self,
        device: &wgpu::Device,
        (capabilities, checks): (&Capabilities, Checks),
        problem: &Problem,
    ) -> Option<Candidate> {
        let choices = self.choices.read().unwrap_or_else(PoisonError::into_inner);
        // Keys are made where there is something to find.
        if choices.is_empty() || problem.block_mask || Algorithm::Auto.check(problem).is_err() {
            return None;
        }
        let device = DeviceKey::of(&device.adapter_info(), capabilities, checks);
        choices.get(&(device, ProblemKey::of(problem, capabilities))).cloned()
    }
}

impl Attention {
    /// Times the algorithms and tiles that this device can take for `problem`, and takes the fastest for every plan
    /// of a problem alike from here on, in clones too. Alike are problems of the same types, widths, alignment,
    /// group size, kind of mask and features, whose lengths round up to the same powers of two, in any batch and of
    /// any number of heads.
    ///
    /// It submits to `queue` and blocks until all is done: about a second. Buffers are its own; a problem that would
    /// take too long or too much memory is timed at fewer sequences, heads and, last, queries. A candidate that
    /// does not give the result of the first is left out. What is taken without tuning stays unless
    /// another is faster by more than measurements differ. Nothing is kept unless all goes well.
    ///
    /// ```
    /// # use wgpu_attention::{Attention, Mask, Problem, Shape, TuningRecord, wgpu};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
    /// # let file = std::env::temp_dir().join("wgpu-attention-doc-tuning.json");
    /// let attention = Attention::new(&device);
    /// let problem = Problem::new(Shape::self_attention(1, 8, 512, 64)).mask(Mask::CAUSAL);
    /// let record = attention.tune(&queue, &problem)?;
    /// std::fs::write(&file, record.to_json())?;
    ///
    /// // Another run of the program, or another machine with the same adapter and driver.
    /// let attention = Attention::new(&device);
    /// attention.load(&TuningRecord::from_json(&std::fs::read_to_string(&file)?)?);
    /// let plan = attention.plan(&problem)?;
    /// # drop(plan);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Plan`]: the problem is ill-formed, has a block mask, whose tiles are given, or has functions whose
    /// caller alone knows how far they read. [`Error::Bind`]: it is too large at its smallest. What the device
    /// says: [`Error::OutOfMemory`], [`Error::Validation`], [`Error::DeviceLost`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn tune(&self, queue: &wgpu::Queue, problem: &Problem) -> Result<TuningRecord, Error> {
        self.tune_with(queue, problem, &TuneOptions::default())
    }

    /// As [`tune`](Self::tune), within other bounds.
    ///
    /// # Errors
    /// As [`tune`](Self::tune).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn tune_with(
        &self,
        queue: &wgpu::Queue,
        problem: &Problem,
        options: &TuneOptions,
    ) -> Result<TuningRecord, Error> {
        pollster::block_on(self.tune_polling(queue, problem, options, Polling::Here))
    }

    /// As [`tune_with`](Self::tune_with), without blocking. A future that is dropped leaves nothing behind. On the
    /// web it needs [`wgpu::Features::TIMESTAMP_QUERY`].
    ///
    /// # Errors
    /// As [`tune`](Self::tune).
    pub async fn tune_async(
        &self,
        queue: &wgpu::Queue,
        problem: &Problem,
        options: &TuneOptions,
    ) -> Result<TuningRecord, Error> {
        self.tune_polling(queue, problem, options, Polling::Elsewhere).await
    }

    /// Takes the choices of `record` that were made on this adapter, by this driver and version of the crate, with
    /// the same tiles, features and limits. Others are left out, with a line in the log.
    pub fn load(&self, record: &TuningRecord) {
        let device = self.device_key();
        let known = candidates(&self.capabilities);
        for entry in &record.entries {
            if entry.device != device {
                log::warn!("a tuned choice is ignored: made on {}, this is {device}", entry.device);
                continue;
            }
            match known.iter().find(|candidate| candidate.name == entry.choice) {
                Some(choice) => {
                    self.tuned.insert(device.clone(), entry.problem.clone(), choice.clone());
                }
                None => log::warn!("a tuned choice is ignored: there is no {:?}", entry.choice),
            }
        }
    }

    /// The plan that was tuned, if there is one by `algorithm`.
    pub(crate) fn tuned_plan(&self, problem: &Problem, algorithm: Algorithm) -> Option<Plan> {
        let on = (&self.capabilities, self.checks);
        let choice = self.tuned.get(&self.device, on, problem)?;
        if algorithm != Algorithm::Auto && algorithm != choice.algorithm {
            return None;
        }
        // What fits as tuned may not fit in a larger batch.
        Plan::with_tuning(problem, &self.capabilities, choice.algorithm, choice.tuning).ok()
    }

    fn device_key(&self) -> DeviceKey {
        DeviceKey::of(&self.device.adapter_info(), &self.capabilities, self.checks)
    }

    async fn tune_polling(
        &self,
        queue: &wgpu::Queue,
        problem: &Problem,
        options: &TuneOptions,
        polling: Polling,
    ) -> Result<TuningRecord, Error> {
        Algorithm::Auto.check(problem)?;
        refuse(problem, self.device.features())?;
        let s = problem.tensor_shape();
        if [s.batch, s.q_len, s.kv_len].contains(&0) {
            return Ok(TuningRecord::default());
        }
        let mut timer = Timer::new(&self.device, queue, polling);
        let small = Small::of(problem, &self.capabilities, options.time, options.memory_bytes)?;
        let trials = self.trials(queue, &small, &mut timer, options.time).await?;
        let choice = fastest(&trials);
        let (device, problem) = (self.device_key(), ProblemKey::of(problem, &self.capabilities));
        let time = |trial: &Trial<'_>| Time {
            candidate: trial.candidate.name.clone(),
            ms: trial.seconds * 1e3,
        };
        let entry = Entry {
            device: device.clone(),
            problem: problem.clone(),
            choice: choice.name.clone(),
            clock: timer.clock,
            times: trials.iter().map(time).collect(),
            left_out: u32::try_from(small.plans.len() - trials.len()).expect("few"),
        };
        self.tuned.insert(device, problem, choice.clone());
        let record = TuningRecord { entries: vec![entry] };
        log::info!("tuned: {record}");
        Ok(record)
    }

    /// The candidates that there was time for, each with the best of its times.
    async fn trials<'a>(
        &self,
        queue: &wgpu::Queue,
        small: &'a Small,
        timer: &mut Timer<'_>,
        time: Duration,
    ) -> Result<Vec<Trial<'a>>, Error> {
        let (scratch, caught) = watched(&self.device, || Scratch::new(&self.device, small));
        caught.await?;
        let mut trials: Vec<Trial<'_>> = Vec::new();
        let mut first = None;
        let mut longest = Duration::ZERO;
        for (candidate, plan) in &small.plans {
            let begun = timer.spent();
            if !trials.is_empty() && begun + longest > time {
                break;
            }
            let tried = self.trial(queue, plan, &scratch, timer).await;
            longest = longest.max(timer.spent() - begun);
            match tried {
                Ok((dispatch, out)) => {
                    let out = decoded(&out, small.problem.out_dtype, out.len() / bytes(small));
                    let expected = first.get_or_insert_with(|| out.clone());
                    if !agree(expected, &out, small.problem.out_dtype) {
                        log::warn!("{} is not tried: its result is another", candidate.name);
                        continue;
                    }
                    if trials.is_empty() {
                        timer.choose_clock(&dispatch).await?;
                    }
                    let seconds = timer.seconds(&dispatch, None).await?;
                    trials.push(Trial { candidate, dispatch, seconds });
                }
                // What the device refuses of a neighbour is no loss.
                Err(error @ (Error::OutOfMemory(_) | Error::Validation(_)))
                    if !trials.is_empty() =>
                {
                    log::warn!("{} is not tried: {error}", candidate.name);
                }
                Err(error) => return Err(error),
            }
        }
        let best = trials.iter().map(|trial| trial.seconds).fold(f64::INFINITY, f64::min);
        for _ in 0..ROUNDS {
            let close = trials.iter_mut().filter(|trial| trial.seconds < best * FAR);
            for trial in close {
                if timer.spent() >= time {
                    return Ok(trials);
                }
                let seconds = timer.seconds(&trial.dispatch, Some(trial.seconds)).await?;
                trial.seconds = trial.seconds.min(seconds);
            }
        }
        Ok(trials)
    }

    /// A plan bound, run once, for drivers compile as late as then, and what it wrote over NaN.
    async fn trial(
        &self,
        queue: &wgpu::Queue,
        plan: &Plan,
        scratch: &Scratch,
        timer: &mut Timer<'_>,
    ) -> Result<(Dispatch, Vec<u8>), Error> {
        let (bound, caught) = watched(&self.device, || self.bind(plan, &scratch.tensors()));
        caught.await?;
        let dispatch = bound?;
        scratch.poison(queue);
        let out = timer.result(&dispatch, scratch.out()).await?;
        Ok((dispatch, out))
    }
}

/// A candidate that was timed.
struct Trial<'a> {
    candidate: &'a Candidate,
    dispatch: Dispatch,
    /// Of one run, the shortest.
    seconds: f64,
}

/// Times that every candidate near the best is looked at again.
const ROUNDS: usize = 9;
/// A candidate this many times slower than the best at first sight is not looked at again.
const FAR: f64 = 1.5;
/// What is taken without tuning stays unless it takes this many times as long as the fastest.
const BETTER: f64 = 1.03;

fn fastest<'a>(trials: &[Trial<'a>]) -> &'a Candidate {
    let untuned = &trials[0];
    let shortest = trials.iter().min_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let shortest = shortest.expect("the first is there");
    if untuned.seconds > shortest.seconds * BETTER { shortest.candidate } else { untuned.candidate }
}

/// What cannot be tuned.
fn refuse(problem: &Problem, features: wgpu::Features) -> Result<(), PlanError> {
    let score = problem.score_function.iter().map(|function| &function.text);
    let mask = problem.mask_function.iter().map(|function| &function.text);
    let reads_on_trust = score.chain(mask).any(|text| text.unchecked && !text.buffers.is_empty());
    let blind = cfg!(target_arch = "wasm32") && !features.contains(wgpu::Features::TIMESTAMP_QUERY);
    for (refused, what) in [
        (problem.block_mask, "tuning with a block mask"),
        (reads_on_trust, "tuning with buffers of unchecked functions"),
        (blind, "tuning on the web without timestamp queries"),
    ] {
        if refused {
            return Err(PlanError::NotSupported { what });
        }
    }
    Ok(())
}

fn bytes(small: &Small) -> usize {
    usize::try_from(small.problem.out_dtype.bits() / 8).expect("2 or 4")
}

/// Whether two kernels gave the same, but for rounding; what neither wrote is NaN.
fn agree(expected: &[f32], got: &[f32], dtype: DType) -> bool {
    let largest =
        expected.iter().filter(|x| x.is_finite()).fold(0.0, |most: f32, x| most.max(x.abs()));
    let tolerance = largest * if dtype == DType::F32 { 1e-3 } else { 2e-2 };
    let alike = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a - b).abs() <= tolerance;
    expected.len() == got.len() && expected.iter().zip(got).all(alike)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_agree_but_for_rounding() {
        let expected = [1.0, -0.5, f32::NAN, 0.0];
        let with = |i: usize, x: f32| {
            let mut got = expected;
            got[i] = x;
            agree(&expected, &got, DType::F32)
        };
        assert!(with(0, 1.0005) && with(3, -0.0005) && with(1, -0.5));
        assert!(!with(0, 1.01) && !with(0, f32::NAN) && !with(2, 0.0) && !with(3, f32::INFINITY));
        assert!(!agree(&expected, &expected[..3], DType::F32));
        assert!(agree(&expected, &[1.01, -0.5, f32::NAN, 0.0], DType::F16));
    }
}
