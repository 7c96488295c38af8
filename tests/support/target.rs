//! What computes: kernels of either device class on the adapter that there is, or the CPU path.

use super::case::Tensors;
use super::emulation::Got;
use super::gradients::Given;
use std::sync::{Mutex, OnceLock};
use wgpu_attention::{
    Algorithm, Backward, Checks, DeviceClass, DropoutMask, Error, Gradients, Problem, Runner,
    RunnerOptions, wgpu,
};

/// An algorithm on a device.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// Three kernels, tiles of a class.
    Staged(DeviceClass),
    /// The fused kernel, tiles of a class.
    Flash(DeviceClass),
    /// What the planner takes, tiles of a class.
    Auto(DeviceClass),
    /// A fused kernel over three ranges of keys, tiles of a class.
    Split(DeviceClass),
    /// One or the other on a device that binds little at once, so that problems are cut into parts, and whose grids are
    /// narrow, so that they are folded.
    Tight(DeviceClass, Algorithm),
    /// Kernels on matrix units, where the device has them and they agree with the plain ones.
    Matrices(Algorithm),
    /// Without a GPU.
    Cpu,
}

/// What the tight device binds at once.
pub(crate) const TIGHT_BYTES: u64 = 1 << 15;
/// Workgroups along an axis of the tight device's grids: so few that most grids are folded.
pub(crate) const TIGHT_WORKGROUPS: u32 = 61;

impl Target {
    pub(crate) const ALL: [Self; 7] = [
        Self::Staged(DeviceClass::Hardware),
        Self::Staged(DeviceClass::Software),
        Self::Flash(DeviceClass::Hardware),
        Self::Flash(DeviceClass::Software),
        Self::Split(DeviceClass::Hardware),
        Self::Split(DeviceClass::Software),
        Self::Cpu,
    ];

    /// Whether its tiles are those of hardware.
    pub(crate) fn is_large(self) -> bool {
        matches!(
            self,
            Self::Staged(DeviceClass::Hardware)
                | Self::Flash(DeviceClass::Hardware)
                | Self::Auto(DeviceClass::Hardware)
                | Self::Split(DeviceClass::Hardware)
                | Self::Tight(DeviceClass::Hardware, _)
                | Self::Matrices(_)
        )
    }

    /// Whether it has the outputs that the problem asks for, and reads what it gives.
    pub(crate) fn gives(self, problem: &Problem) -> bool {
        let fused = matches!(
            self,
            Self::Flash(_)
                | Self::Split(_)
                | Self::Tight(_, Algorithm::Flash | Algorithm::Split)
                | Self::Matrices(Algorithm::Flash)
        );
        let given = problem.dropout.is_some_and(|dropout| dropout.mask == DropoutMask::Given);
        !((problem.weights || problem.scores.is_some() || given) && fused)
    }

    /// # Panics
    /// If there is no adapter, or the run fails.
    pub(crate) fn run(self, what: &str, problem: &Problem, tensors: &Tensors) -> Got {
        self.try_run(problem, tensors).unwrap_or_else(|error| panic!("{self:?}: {error}: {what}"))
    }

    /// # Errors
    /// If the run fails.
    ///
    /// # Panics
    /// If there is no adapter.
    pub(crate) fn try_run(self, problem: &Problem, tensors: &Tensors) -> Result<Got, Error> {
        let (runner, algorithm) = match self {
            Self::Staged(class) => (runner(class), Algorithm::Staged),
            Self::Flash(class) => (runner(class), Algorithm::Flash),
            Self::Auto(class) => (runner(class), Algorithm::Auto),
            Self::Split(class) => {
                let problem = problem.clone().with_splits(3);
                let outputs =
                    runner(class).forward_with(&problem, Algorithm::Split, &tensors.inputs());
                return outputs.map(Got::from);
            }
            Self::Tight(class, algorithm) => (tight(class), algorithm),
            Self::Matrices(algorithm) => (matrices(), algorithm),
            Self::Cpu => (cpu(), Algorithm::Auto),
        };
        runner.forward_with(problem, algorithm, &tensors.inputs()).map(Got::from)
    }

    /// Gradients.
    ///
    /// # Errors
    /// If the run fails.
    ///
    /// # Panics
    /// If there is no adapter.
    pub(crate) fn try_backward(
        self,
        backward: &Backward,
        tensors: &Tensors,
        given: &Given,
    ) -> Result<Gradients, Error> {
        let (runner, algorithm) = match self {
            Self::Staged(class) => (runner(class), Algorithm::Staged),
            // Where the fused kernels give it.
            Self::Flash(class) | Self::Auto(class) | Self::Split(class) => {
                (runner(class), Algorithm::Auto)
            }
            Self::Tight(class, algorithm) => (tight(class), algorithm),
            Self::Matrices(algorithm) => (matrices(), algorithm),
            Self::Cpu => (cpu(), Algorithm::Auto),
        };
        runner.backward_with(backward, algorithm, &tensors.inputs(), &given.inputs())
    }
}

/// Devices that tests which run at once share: a software driver compiles one kernel at a time for each.
const DEVICES: usize = 2;

/// For each class, and for each of its devices.
type Runners = [[OnceLock<Runner>; DEVICES]; DeviceClass::ALL.len()];

#[allow(clippy::declare_interior_mutable_const, reason = "what statics start from")]
const NONE: Runners = [const { [const { OnceLock::new() }; DEVICES] }; DeviceClass::ALL.len()];

/// How many threads use each device.
static USERS: Mutex<[u32; DEVICES]> = Mutex::new([0; DEVICES]);

/// The device that a thread uses until it ends: the one with the fewest users.
struct Seat(usize);

thread_local! {
    static SEAT: Seat = {
        let mut users = USERS.lock().expect("alive");
        let seat = (0..DEVICES).min_by_key(|index| users[*index]).expect("some");
        users[seat] += 1;
        Seat(seat)
    };
}

impl Drop for Seat {
    fn drop(&mut self) {
        USERS.lock().expect("alive")[self.0] -= 1;
    }
}

/// This thread's runner of a class.
fn seated(
    runners: &'static Runners,
    class: DeviceClass,
    make: impl FnOnce() -> Runner,
) -> &'static Runner {
    let at = DeviceClass::ALL.iter().position(|other| *other == class).expect("a class");
    runners[at][SEAT.with(|seat| seat.0)].get_or_init(make)
}

/// A GPU, or a software GPU, with tiles of this class: never the CPU path.
///
/// # Panics
/// If there is none: a test that needs a GPU fails without one, it is not skipped.
pub(crate) fn runner(class: DeviceClass) -> &'static Runner {
    static RUNNERS: Runners = NONE;
    seated(&RUNNERS, class, || {
        let runner = Runner::with_options(options(class)).expect("a GPU or a software GPU");
        // Shown with a failure: machines have drivers that nobody thinks of.
        let info = runner.adapter_info().expect("a GPU");
        eprintln!("{class:?} tiles on {} ({}, {})", info.name, info.backend, info.driver_info);
        runner
    })
}

fn tight(class: DeviceClass) -> &'static Runner {
    static RUNNERS: Runners = NONE;
    seated(&RUNNERS, class, || {
        let mut options = options(class);
        options.limits = Some(wgpu::Limits {
            max_storage_buffer_binding_size: TIGHT_BYTES,
            max_compute_workgroups_per_dimension: TIGHT_WORKGROUPS,
            ..wgpu::Limits::default()
        });
        let runner = Runner::with_options(options).expect("a GPU or a software GPU");
        let (device, _, _) = runner.device().expect("a GPU");
        // Otherwise nothing would be cut or folded, and no test would notice.
        let limits = device.limits();
        assert_eq!(limits.max_storage_buffer_binding_size, TIGHT_BYTES);
        assert_eq!(limits.max_compute_workgroups_per_dimension, TIGHT_WORKGROUPS);
        runner
    })
}

/// A device with cooperative matrices, where the adapter has them.
///
/// # Panics
/// If there is no adapter.
pub(crate) fn matrices() -> &'static Runner {
    static RUNNER: OnceLock<Runner> = OnceLock::new();
    RUNNER.get_or_init(|| {
        // SAFETY: shaders that wgpu checks, and this crate's own.
        #[allow(unsafe_code, reason = "cooperative matrices are experimental")]
        let options = unsafe { options(DeviceClass::Hardware).with_cooperative_matrices() };
        Runner::with_options(options).expect("a GPU or a software GPU")
    })
}

fn options(class: DeviceClass) -> RunnerOptions {
    let mut options = RunnerOptions::default();
    options.software = true;
    options.gpu_only = true;
    options.class = Some(class);
    if std::env::var("WGPU_ATTENTION_LIMITS").is_ok_and(|value| value == "default") {
        options.default_limits = true;
        options.checks = Checks::On;
    }
    options
}

fn cpu() -> &'static Runner {
    static CPU: OnceLock<Runner> = OnceLock::new();
    CPU.get_or_init(Runner::cpu)
}
