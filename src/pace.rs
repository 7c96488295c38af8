//! How much work to submit at a time.

use crate::device::DeviceClass;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The work of one submission, by how fast the device turned out to be.
#[derive(Debug)]
pub(crate) struct Pace {
    limit: AtomicU64,
    /// What is never gone below: a thousandth of the start.
    least: u64,
}

/// What a submission should take: a twentieth of what watchdogs of Windows and Linux let one take.
const TARGET: Duration = Duration::from_millis(100);
/// What says that a device is slow, however little it was given to do.
const SLOW: Duration = Duration::from_secs(1);

impl Pace {
    /// A start that a slow device of its class does in time.
    pub(crate) fn new(class: DeviceClass) -> Self {
        let limit = match class {
            // 10 GFLOP/s: two cores do it, one with narrow vectors takes a second.
            DeviceClass::Software => 1_000_000_000,
            // 100 GFLOP/s in 100 ms, and 10 still within the second.
            _ => 10_000_000_000,
        };
        Self { limit: AtomicU64::new(limit), least: limit / 1000 }
    }

    /// Work to submit at once.
    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Learns how long a submission took.
    pub(crate) fn measured(&self, work: u64, took: Duration) {
        let limit = self.limit();
        // A short one says how long any submission takes, not how fast the device is.
        if work < limit / 2 && took < SLOW {
            return;
        }
        let wanted = u128::from(work) * TARGET.as_nanos() / took.as_nanos().max(1);
        let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
        // Step by step: one measurement may be off, as the first is where the driver compiles then.
        let (least, most) = ((limit / 8).max(self.least), limit.saturating_mul(4));
        self.limit.store(wanted.clamp(least, most), Ordering::Relaxed);
    }
}

/// Measures time, except on the web, where a clock would take one dependency more.
pub(crate) struct Stopwatch {
    #[cfg(not(target_arch = "wasm32"))]
    started: std::time::Instant,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self {
            #[cfg(not(target_arch = "wasm32"))]
            started: std::time::Instant::now(),
        }
    }

    pub(crate) fn elapsed(&self) -> Option<Duration> {
        #[cfg(not(target_arch = "wasm32"))]
        return Some(self.started.elapsed());
        #[cfg(target_arch = "wasm32")]
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limit after submitting as much as may be, again and again, to a device with this rate.
    fn settled(class: DeviceClass, rate: f64) -> f64 {
        let pace = Pace::new(class);
        for _ in 0..12 {
            let work = pace.limit();
            pace.measured(work, Duration::from_secs_f64(work as f64 / rate));
        }
        pace.limit() as f64
    }

    #[test]
    fn submissions_come_to_take_a_tenth_of_a_second() {
        for class in [DeviceClass::Hardware, DeviceClass::Apple, DeviceClass::Software] {
            for rate in [1e8, 1e9, 3e10, 1e13] {
                let limit = settled(class, rate);
                assert!((limit / rate - 0.1).abs() < 1e-3, "{class:?} at {rate}: {limit}");
            }
        }
    }

    #[test]
    fn little_work_says_nothing_unless_it_took_long() {
        let pace = Pace::new(DeviceClass::Hardware);
        let limit = pace.limit();
        pace.measured(limit / 3, Duration::from_millis(900));
        assert_eq!(pace.limit(), limit);
        pace.measured(limit / 3, Duration::from_millis(1100));
        assert!(pace.limit() < limit / 2);
    }

    #[test]
    fn no_time_however_long_or_short_is_too_much() {
        let pace = Pace::new(DeviceClass::Software);
        for _ in 0..99 {
            pace.measured(0, Duration::from_secs(100));
        }
        assert_eq!(pace.limit(), pace.least);
        for _ in 0..99 {
            pace.measured(u64::MAX, Duration::ZERO);
        }
        assert_eq!(pace.limit(), u64::MAX);
    }
}
