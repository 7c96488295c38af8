//! How a problem will run: kernels, constants, workgroups. Pure data, no GPU needed.

use crate::blocks::BindingLimit;
use crate::cost::Cost;
use crate::device::Capabilities;
use crate::error::PlanError;
use crate::forward::Views;
use crate::kernels::Kernel;
use crate::problem::Problem;
use crate::tensors::Operand;
use crate::tuning::Tuning;
use std::fmt;
use std::ops::Range;

/// Which kernels solve a problem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// The fastest that gives every output asked for.
    #[default]
    Auto,
    /// Three kernels with the score matrix between them, in chunks of rows where it is large.
    Staged,
    /// One fused kernel, no score matrix.
    Flash,
    /// The fused kernel over ranges of keys at once, then a merge. Not supported yet.
    Split,
}

impl Algorithm {
    /// Checks everything about `problem` that no device changes.
    pub(crate) fn check(self, problem: &Problem) -> Result<(), PlanError> {
        problem.validate()?;
        if let Some(what) = problem.unsupported() {
            return Err(PlanError::NotSupported { what });
        }
        match self {
            Self::Flash if problem.weights => {
                Err(PlanError::AlgorithmLacks { algorithm: "flash", what: "weights" })
            }
            Self::Split => Err(PlanError::NotSupported { what: "algorithm split" }),
            Self::Auto | Self::Staged | Self::Flash => Ok(()),
        }
    }
}

/// The bytes of an operand that one binding of a step needs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bound {
    pub(crate) operand: Operand,
    pub(crate) bytes: Range<u64>,
}

/// One dispatch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) kernel: Kernel,
    /// The same kernel for slices that do not start at a multiple of 16 bytes.
    pub(crate) scalar: Option<Kernel>,
    /// Contents of the uniform, without the bases.
    pub(crate) params: Vec<u8>,
    /// For each binding of the kernel after the uniform.
    pub(crate) bound: Vec<Bound>,
    pub(crate) workgroups: [u32; 2],
}

/// A problem, the kernels that solve it and their launch sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub(crate) steps: Vec<Step>,
    /// Bytes of every scratch buffer, by index.
    pub(crate) regions: Vec<u64>,
    cost: Cost,
    /// What the caller may give, used or empty.
    known: Vec<Operand>,
}

impl Plan {
    /// Chooses kernels for `problem` on a device with `capabilities`.
    ///
    /// # Errors
    /// See [`PlanError`]: the problem is ill-formed, an option is not built yet, or a limit is too small.
    pub fn new(
        problem: &Problem,
        capabilities: &Capabilities,
        algorithm: Algorithm,
    ) -> Result<Self, PlanError> {
        let mut planner = Planner::new(capabilities);
        planner.attention(problem, algorithm, &Views::of(problem))?;
        let mut known = vec![Operand::Q, Operand::K, Operand::V, Operand::Out];
        known.extend(problem.lse.then_some(Operand::Lse));
        known.extend(problem.weights.then_some(Operand::Weights));
        Ok(planner.finish(Cost::of(problem), known))
    }

    /// Names of the kernels, in launch order.
    pub fn kernels(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.steps.iter().map(|step| step.kernel.name)
    }

    /// Scratch memory that [`Attention::bind`](crate::Attention::bind) allocates, or that the caller hands in,
    /// in bytes.
    pub fn workspace_bytes(&self) -> u64 {
        self.regions.iter().map(|bytes| bytes.next_multiple_of(REGION_ALIGNMENT)).sum()
    }

    /// The least that any kernel must do for the problem.
    pub fn cost(&self) -> Cost {
        self.cost
    }

    /// Whether the problem has this operand, be it without elements.
    pub(crate) fn knows(&self, operand: Operand) -> bool {
        self.known.contains(&operand)
    }

    /// Every operand that is bound, how many bytes of it, and whether it is written; scratch left out.
    pub(crate) fn operands(&self) -> Vec<(Operand, u64, bool)> {
        let mut operands: Vec<(Operand, u64, bool)> = Vec::new();
        for step in &self.steps {
            for (bound, binding) in step.bound.iter().zip(&step.kernel.bindings[1..]) {
                let written = binding.access == crate::kernels::Access::ReadWrite;
                match operands.iter_mut().find(|(operand, ..)| *operand == bound.operand) {
                    _ if matches!(bound.operand, Operand::Workspace(_)) => {}
                    Some((_, bytes, output)) => {
                        *bytes = bound.bytes.end.max(*bytes);
                        *output |= written;
                    }
                    None => operands.push((bound.operand, bound.bytes.end, written)),
                }
            }
        }
        operands
    }
}

/// Kernels, tiles, workgroups, work and scratch, one line a step.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cost { flops, bytes } = self.cost;
        #[allow(clippy::cast_precision_loss, reason = "printed to three digits")]
        let giga = |n: u64| n as f64 * 1e-9;
        writeln!(
            f,
            "steps: {}, {:.3} GFLOP, {:.6} GB, workspace {} bytes",
            self.steps.len(),
            giga(flops),
            giga(bytes),
            self.workspace_bytes()
        )?;
        for Step { kernel, workgroups: [x, y], .. } in &self.steps {
            writeln!(f, "  {} {x} x {y} workgroups of {}", kernel.name, kernel.workgroup_size)?;
        }
        Ok(())
    }
}

/// Regions of one workspace start at multiples of this: more than any device asks for.
pub(crate) const REGION_ALIGNMENT: u64 = 256;

/// Steps and scratch under construction.
pub(crate) struct Planner<'a> {
    capabilities: &'a Capabilities,
    pub(crate) tuning: Tuning,
    steps: Vec<Step>,
    regions: Vec<u64>,
}

impl<'a> Planner<'a> {
    pub(crate) fn new(capabilities: &'a Capabilities) -> Self {
        let tuning = Tuning::of(capabilities.class);
        Self { capabilities, tuning, steps: Vec::new(), regions: Vec::new() }
    }

    pub(crate) fn finish(self, cost: Cost, known: Vec<Operand>) -> Plan {
        Plan { steps: self.steps, regions: self.regions, cost, known }
    }

    /// Scratch of a size that may still grow.
    pub(crate) fn region(&mut self) -> Operand {
        self.regions.push(0);
        Operand::Workspace(self.regions.len() - 1)
    }

    /// How far planning is.
    pub(crate) fn mark(&self) -> [usize; 2] {
        [self.steps.len(), self.regions.len()]
    }

    /// Forgets what was planned after `mark`.
    pub(crate) fn rewind(&mut self, [steps, regions]: [usize; 2]) {
        self.steps.truncate(steps);
        self.regions.truncate(regions);
    }

    /// What one binding may take.
    pub(crate) fn limit(&self) -> BindingLimit {
        let alignment = self.capabilities.limits.min_storage_buffer_offset_alignment.max(16);
        let available = self.capabilities.binding_bytes();
        BindingLimit { available, reserve: u64::from(alignment).min(available) }
    }

    /// Appends a dispatch of `total` workgroups, folded into a grid.
    pub(crate) fn step(
        &mut self,
        kernel: impl Fn(bool) -> Kernel,
        vec4: bool,
        bound: Vec<Bound>,
        total: u64,
        params: impl FnOnce(u32, u32) -> Vec<u8>,
    ) -> Result<(), PlanError> {
        let chosen = kernel(vec4);
        self.capabilities.fit(&chosen)?;
        let axis = u64::from(self.capabilities.limits.max_compute_workgroups_per_dimension);
        let available = axis.saturating_mul(axis).min(u32::MAX.into());
        let Ok(count) = u32::try_from(total)
            .map_err(|_| ())
            .and_then(|count| if total <= available { Ok(count) } else { Err(()) })
        else {
            let kernel = chosen.name;
            return Err(PlanError::TooManyWorkgroups { kernel, required: total, available });
        };
        let width = count.min(self.capabilities.limits.max_compute_workgroups_per_dimension);
        for Bound { operand, bytes } in &bound {
            if let Operand::Workspace(region) = operand {
                self.regions[*region] = self.regions[*region].max(bytes.end);
            }
        }
        self.steps.push(Step {
            scalar: chosen.is_vec4().then(|| kernel(false)),
            kernel: chosen,
            params: params(count, width),
            bound,
            workgroups: [width, count.div_ceil(width)],
        });
        Ok(())
    }
}
