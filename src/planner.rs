//! How a plan is made: step by step, with scratch that grows as steps need it.

use crate::blocks::BindingLimit;
use crate::cost::Cost;
use crate::device::Capabilities;
use crate::error::PlanError;
use crate::kernels::Kernel;
use crate::operand::Operand;
use crate::plan::{Bound, Plan, Step};
use crate::tuning::Tuning;
use crate::work::Work;
use std::sync::Arc;

/// Steps and scratch under construction.
pub(crate) struct Planner<'a> {
    pub(crate) capabilities: &'a Capabilities,
    pub(crate) tuning: Tuning,
    steps: Vec<Step>,
    regions: Vec<u64>,
}

impl<'a> Planner<'a> {
    pub(crate) fn new(capabilities: &'a Capabilities) -> Self {
        let tuning = Tuning::of(capabilities);
        Self { capabilities, tuning, steps: Vec::new(), regions: Vec::new() }
    }

    pub(crate) fn finish(self, cost: Cost, known: Vec<Operand>, buffers: Vec<Arc<str>>) -> Plan {
        let class = self.capabilities.class;
        Plan { steps: self.steps, regions: self.regions, cost, class, known, buffers }
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

    /// Appends a dispatch of the work's workgroups, folded into a grid.
    pub(crate) fn step(
        &mut self,
        kernel: impl Fn(bool) -> Kernel,
        vec4: bool,
        bound: Vec<Bound>,
        work: Work,
        params: impl FnOnce(u32, u32) -> Vec<u8>,
    ) -> Result<(), PlanError> {
        let chosen = kernel(vec4);
        self.capabilities.fit(&chosen)?;
        let is_new = |step: &Step| step.kernel != chosen;
        if !chosen.source.callers().is_empty() && self.steps.iter().all(is_new) {
            chosen.check_callers_text()?;
        }
        let total = work.workgroups;
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
            work,
        });
        Ok(())
    }
}
