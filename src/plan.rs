//! How a problem will run: kernels, constants, workgroups. Pure data, no GPU needed.

use crate::backward::Backward;
use crate::cost::Cost;
use crate::device::{Capabilities, DeviceClass};
use crate::dropout::DropoutMask;
use crate::error::PlanError;
use crate::forward::Views;
use crate::kernels::Kernel;
use crate::mask::Diagonal;
use crate::operand::Operand;
use crate::planner::Planner;
use crate::problem::{Lengths, Problem};
use crate::roofs::{Bottleneck, Roofs};
use crate::tensors::Need;
#[cfg(feature = "tune")]
use crate::tuning::Tuning;
use crate::work::Work;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

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
    /// A fused kernel over ranges of keys at once, then a merge: of few rows, the kernel that reads keys once for all
    /// heads that share them.
    Split,
}

impl Algorithm {
    /// Checks everything about `problem` that no device changes.
    pub(crate) fn check(self, problem: &Problem) -> Result<(), PlanError> {
        problem.validate()?;
        let (algorithm, what) = match self {
            Self::Auto => return Ok(()),
            Self::Staged => ("staged", problem.splits.is_some_and(|n| n > 1).then_some("splits")),
            Self::Flash | Self::Split => {
                let name = if self == Self::Flash { "flash" } else { "split" };
                let lacks = [
                    (problem.weights, "weights"),
                    (problem.scores.is_some(), "scores"),
                    (problem.needs_rows_alone(), "batch_invariant of packed sequences"),
                    (problem.keep_pairs().is_some(), "dropout by a given mask"),
                    (self == Self::Flash && problem.splits.is_some_and(|n| n > 1), "splits"),
                ];
                (name, lacks.iter().find(|(asked, _)| *asked).map(|(_, what)| *what))
            }
        };
        what.map_or(Ok(()), |what| Err(PlanError::AlgorithmLacks { algorithm, what }))
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
    pub(crate) work: Work,
}

/// A problem, the kernels that solve it and their launch sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub(crate) steps: Vec<Step>,
    /// Bytes of every scratch buffer, by index.
    pub(crate) regions: Vec<u64>,
    pub(crate) cost: Cost,
    pub(crate) class: DeviceClass,
    /// What the caller may give, used or empty.
    pub(crate) known: Vec<Operand>,
    /// Names of the buffers of the caller's functions.
    pub(crate) buffers: Vec<Arc<str>>,
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
        Self::planned(problem, Planner::new(capabilities), algorithm)
    }

    /// As [`new`](Self::new), with tiles of the caller's choice.
    #[cfg(feature = "tune")]
    pub(crate) fn with_tuning(
        problem: &Problem,
        capabilities: &Capabilities,
        algorithm: Algorithm,
        tuning: Tuning,
    ) -> Result<Self, PlanError> {
        let mut planner = Planner::new(capabilities);
        planner.tuning = tuning;
        Self::planned(problem, planner, algorithm)
    }

    fn planned(
        problem: &Problem,
        mut planner: Planner<'_>,
        algorithm: Algorithm,
    ) -> Result<Self, PlanError> {
        planner.attention(problem, algorithm, &Views::of(problem))?;
        Ok(planner.finish(Cost::of(problem), operands(problem), buffers(problem)))
    }

    /// The steps that make a block mask.
    pub(crate) fn block_mask(
        problem: &Problem,
        capabilities: &Capabilities,
    ) -> Result<Self, PlanError> {
        let mut planner = Planner::new(capabilities);
        planner.block_mask(problem)?;
        let tensors = [
            Operand::Q,
            Operand::K,
            Operand::V,
            Operand::Out,
            Operand::Lse,
            Operand::Weights,
            Operand::Scores,
        ];
        let mut known = operands(problem);
        known.retain(|operand| !tensors.contains(operand));
        known.push(Operand::BlockMask);
        let cost = Cost { flops: 0, ..Cost::default() };
        Ok(planner.finish(cost, known, buffers(problem)))
    }

    /// Chooses kernels for the gradients of an attention on a device with `capabilities`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn backward(
        backward: &Backward,
        capabilities: &Capabilities,
        algorithm: Algorithm,
    ) -> Result<Self, PlanError> {
        backward.plan(capabilities, algorithm)
    }

    /// Bytes that an operand needs; 0 of one that the plan does not use.
    pub fn operand_bytes(&self, operand: Operand) -> u64 {
        self.operands().iter().find(|need| need.operand == operand).map_or(0, |need| need.bytes)
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

    /// What bounds the time on a device with these roofs: [`Roofs::typical`] ones, or measured ones.
    ///
    /// ```
    /// use wgpu_attention::{Algorithm, Bottleneck, Capabilities, Plan, Problem, Roofs, Shape};
    ///
    /// let plan = |q_len| {
    ///     let problem = Problem::new(Shape::cross_attention(1, 8, q_len, 1024, 64));
    ///     Plan::new(&problem, &Capabilities::portable(), Algorithm::Auto)
    /// };
    /// // 15 TFLOP/s, 270 GB/s.
    /// let roofs = Roofs::new(15e12, 270e9);
    /// assert_eq!(plan(1024)?.bottleneck(&roofs), Bottleneck::Compute);
    /// assert_eq!(plan(1)?.bottleneck(&roofs), Bottleneck::Memory);
    /// # Ok::<(), wgpu_attention::PlanError>(())
    /// ```
    pub fn bottleneck(&self, roofs: &Roofs) -> Bottleneck {
        roofs.bottleneck(self.cost)
    }

    /// Whether the problem has this operand, be it without elements.
    pub(crate) fn knows(&self, operand: Operand) -> bool {
        self.known.contains(&operand)
    }

    /// The name of a buffer of the caller's functions.
    pub(crate) fn buffer_name(&self, index: usize) -> &str {
        &self.buffers[index]
    }

    /// Whether a function of the caller's has this buffer.
    pub(crate) fn knows_buffer(&self, name: &str) -> bool {
        self.buffers.iter().any(|other| &**other == name)
    }

    /// Every operand that is bound, and what of it; scratch left out.
    pub(crate) fn operands(&self) -> Vec<Need> {
        let mut needs: Vec<Need> = Vec::new();
        for step in &self.steps {
            for (bound, binding) in step.bound.iter().zip(&step.kernel.bindings[1..]) {
                if matches!(bound.operand, Operand::Workspace(_)) {
                    continue;
                }
                let written = binding.access == crate::kernels::Access::ReadWrite;
                // A slice of bits or of blocks starts at a word, all others at an element.
                let words = binding.bits < 8 || binding.is_blocks();
                let alignment = if words { 4 } else { u64::from(binding.bits / 8) };
                let bytes = bound.bytes.end;
                match needs.iter_mut().find(|need| need.operand == bound.operand) {
                    Some(need) => {
                        need.bytes = bytes.max(need.bytes);
                        need.written |= written;
                    }
                    None => needs.push(Need { operand: bound.operand, bytes, written, alignment }),
                }
            }
        }
        needs
    }
}

/// What the caller may give for a problem.
pub(crate) fn operands(problem: &Problem) -> Vec<Operand> {
    let (q_lens, kv_lens) = match problem.lengths {
        Lengths::PerSequence { q, kv } => (q, kv),
        _ => (false, false),
    };
    let packed = problem.lengths == Lengths::Packed;
    let dropout = |mask| problem.dropout.is_some_and(|dropout| dropout.mask == mask);
    let mut known = vec![Operand::Q, Operand::K, Operand::V, Operand::Out];
    let optional = [
        (problem.lse, Operand::Lse),
        (problem.weights, Operand::Weights),
        (problem.scores.is_some(), Operand::Scores),
        (problem.boolean_mask.is_some(), Operand::Mask),
        (problem.bias.is_some(), Operand::Bias),
        (problem.alibi.is_some(), Operand::AlibiSlopes),
        (problem.sinks, Operand::Sinks),
        (problem.mask.diagonal == Diagonal::PerSequence, Operand::DiagOffsets),
        (q_lens, Operand::QLens),
        (kv_lens, Operand::KvLens),
        (packed, Operand::CuSeqlensQ),
        (packed, Operand::CuSeqlensK),
        (problem.pages.is_some(), Operand::BlockTable),
        (problem.block_mask, Operand::BlockMask),
        (dropout(DropoutMask::Seeded), Operand::Seed),
        (dropout(DropoutMask::Given), Operand::Keep),
    ];
    known.extend(optional.iter().filter(|(given, _)| *given).map(|(_, operand)| *operand));
    known
}

/// Names of the buffers of a problem's functions.
pub(crate) fn buffers(problem: &Problem) -> Vec<Arc<str>> {
    let buffers = problem.function_buffers().expect("validated");
    buffers.into_iter().map(|(name, _)| name).collect()
}

/// Work and scratch; what bounds the work on a typical device of the class; a line a step.
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
        if bytes > 0 {
            let roofs = Roofs::typical(self.class);
            writeln!(
                f,
                "bound by {}: {:.1} FLOP per byte, the roofs of {:?} devices meet at {:.1}",
                self.bottleneck(&roofs),
                self.cost.intensity(),
                self.class,
                roofs.ridge()
            )?;
        }
        for Step { kernel, workgroups: [x, y], .. } in &self.steps {
            writeln!(f, "  {} {x} x {y} workgroups of {}", kernel.name, kernel.workgroup_size)?;
        }
        Ok(())
    }
}

/// Regions of one workspace start at multiples of this: more than any device asks for.
pub(crate) const REGION_ALIGNMENT: u64 = 256;
