//! What was tuned, as a value that can be saved: which candidate is fastest, for which problem, on which device.

use crate::keys::{DeviceKey, ProblemKey};
use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

/// Choices made by [`Attention::tune`](crate::Attention::tune), to be saved, shipped and
/// [loaded](crate::Attention::load). One record may hold those of many problems and devices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TuningRecord {
    pub(crate) entries: Vec<Entry>,
}

/// A text is no tuning record.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("not a tuning record: {0}")]
pub struct RecordError(String);

/// What a file holds.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    entries: Vec<Entry>,
}

/// Of [`File`]; another format is another file.
const FORMAT: u32 = 1;

/// One tuned problem on one device.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) device: DeviceKey,
    pub(crate) problem: ProblemKey,
    /// Name of the fastest candidate.
    pub(crate) choice: String,
    pub(crate) clock: Clock,
    pub(crate) times: Vec<Time>,
    /// Candidates that there was no time for.
    pub(crate) left_out: u32,
}

/// What one run of a candidate takes.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Time {
    pub(crate) candidate: String,
    pub(crate) ms: f64,
}

/// What times were taken by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Clock {
    Timestamps,
    Wall,
}

impl TuningRecord {
    /// The record as JSON.
    pub fn to_json(&self) -> String {
        let file = File { format: FORMAT, entries: self.entries.clone() };
        serde_json::to_string_pretty(&file).expect("text, numbers and lists of them")
    }

    /// Reads what [`to_json`](Self::to_json) wrote. What another version of the format holds is left out, with a
    /// line in the log.
    ///
    /// # Errors
    /// [`RecordError`]: the text is no record at all.
    pub fn from_json(text: &str) -> Result<Self, RecordError> {
        let error = |error: serde_json::Error| RecordError(error.to_string());
        let value: serde_json::Value = serde_json::from_str(text).map_err(error)?;
        let format = value.get("format").and_then(serde_json::Value::as_u64);
        let Some(format) = format else { return Err(RecordError("it has no format".to_owned())) };
        if format != u64::from(FORMAT) {
            log::warn!("a tuning record of format {format} is ignored: this is format {FORMAT}");
            return Ok(Self::default());
        }
        let File { entries, .. } = serde_json::from_value(value).map_err(error)?;
        Ok(Self { entries })
    }

    /// Adds the choices of `newer`, which stand where both have one.
    pub fn merge(&mut self, newer: Self) {
        for entry in newer.entries {
            self.entries
                .retain(|old| (&old.device, &old.problem) != (&entry.device, &entry.problem));
            self.entries.push(entry);
        }
    }

    /// Number of choices.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds no choice.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Every choice with the times that it was made by, fastest first.
impl fmt::Display for TuningRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Entry { device, problem, choice, clock, times, left_out } in &self.entries {
            writeln!(f, "{problem}, on {device}")?;
            let mut times: Vec<&Time> = times.iter().collect();
            times.sort_by(|a, b| a.ms.total_cmp(&b.ms));
            for Time { candidate, ms } in times {
                let mark = if candidate == choice { '*' } else { ' ' };
                writeln!(f, "{mark} {ms:>10.4} ms  {candidate}")?;
            }
            let clock = if *clock == Clock::Wall { "the wall clock" } else { "GPU timestamps" };
            writeln!(f, "  by {clock}; no time for {left_out} more")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Capabilities;
    use crate::pipeline::Checks;
    use crate::problem::Problem;
    use crate::shape::Shape;
    use proptest::prelude::*;

    fn info(driver_info: &str) -> wgpu::AdapterInfo {
        let (device, _queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
        wgpu::AdapterInfo { driver_info: driver_info.to_owned(), ..device.adapter_info() }
    }

    fn entry(driver_info: &str, q_len: u32, choice: &str, times: &[(String, f64)]) -> Entry {
        let capabilities = Capabilities::portable();
        let problem = Problem::new(Shape::cross_attention(1, 4, q_len, 100, 64)).softcap(30.0);
        let time = |(candidate, ms): &(String, f64)| Time { candidate: candidate.clone(), ms: *ms };
        Entry {
            device: DeviceKey::of(&info(driver_info), &capabilities, Checks::Off),
            problem: ProblemKey::of(&problem, &capabilities),
            choice: choice.to_owned(),
            clock: Clock::Wall,
            times: times.iter().map(time).collect(),
            left_out: q_len,
        }
    }

    proptest! {
        #[test]
        fn a_record_comes_back_from_json(
            drivers in prop::collection::vec("\\PC*", 0..4),
            q_len in 1..1_000_000_u32,
            choice in ".*",
            times in prop::collection::vec((".*", 0.0..1e9), 0..4),
        ) {
            let entries = drivers.iter().map(|driver| entry(driver, q_len, &choice, &times));
            let record = TuningRecord { entries: entries.collect() };
            prop_assert_eq!(TuningRecord::from_json(&record.to_json()), Ok(record));
        }

        #[test]
        fn any_text_is_a_record_or_an_error(text in ".*") {
            let _ = TuningRecord::from_json(&text);
        }

        #[test]
        fn a_damaged_record_is_a_record_or_an_error(at in 0..400_usize, with in ".") {
            let record = TuningRecord { entries: vec![entry("1.0", 7, "fused", &[])] };
            let json: Vec<char> = record.to_json().chars().collect();
            let cut = at.min(json.len());
            let damaged: String = json[..cut].iter().collect::<String>() + &with;
            prop_assert!(TuningRecord::from_json(&damaged).is_err(), "cut short: {}", damaged);
            let rest: String = json[(cut + 1).min(json.len())..].iter().collect();
            let _ = TuningRecord::from_json(&(damaged + &rest));
        }
    }

    #[test]
    fn only_records_of_this_format_are_read() {
        let record = TuningRecord { entries: vec![entry("1.0", 7, "fused", &[])] };
        let json = record.to_json();
        let newer = json.replace("\"format\": 1", "\"format\": 2");
        assert_ne!(newer, json);
        assert_eq!(TuningRecord::from_json(&newer), Ok(TuningRecord::default()));
        for wrong in [
            String::new(),
            "[]".to_owned(),
            "{}".to_owned(),
            "{\"format\": 1}".to_owned(),
            json.replace("\"choice\"", "\"chosen\""),
            json.replace("\"left_out\": 7", "\"left_out\": -7"),
            json.replace("\"clock\": \"wall\"", "\"clock\": \"sun\""),
        ] {
            assert!(TuningRecord::from_json(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_newer_choice_takes_the_place_of_an_older() {
        let mut record = TuningRecord { entries: vec![entry("1.0", 7, "old", &[])] };
        let newer = [entry("1.0", 7, "new", &[]), entry("2.0", 7, "other", &[])];
        record.merge(TuningRecord { entries: newer.to_vec() });
        assert_eq!(record.entries, newer);
    }
}
