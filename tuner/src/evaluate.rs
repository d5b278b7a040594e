//! One plan on one machine: does it fit, and how long does it take.

use pipo_plan::machine::Machine;
use pipo_plan::memory::{MemoryTable, Overheads};
use pipo_plan::plan::Plan;
use pipo_plan::schedule::{Builder, LaneKind, Pass, Phase, Schedule};
use pipo_plan::strategy::{LowerError, lower};
use pipo_plan::timeline::{PassEnd, Timeline, Times};
use pipo_plan::units::{Bytes, Nanos};
use pipo_simulator::{
    CostModel, Costs, Options, PageCache, SimulationError, Summary, simulate_with,
};

/// What a plan does on a machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Until the last token of every sequence.
    pub request: Nanos,
    /// Until the first new token of every sequence.
    pub prefill: Nanos,
    /// The median decode step; zero where there is none.
    pub step: Nanos,
    /// New tokens a second over the whole request.
    pub tokens_per_second: f64,
    /// New tokens a second in decode alone; zero where there is none.
    pub decode_tokens_per_second: f64,
    /// Prompt tokens a second in prefill.
    pub prefill_tokens_per_second: f64,
    /// Share of the time in which kernels or copies run, as NVML counts.
    pub nvml: f64,
    /// Share of the time in which kernels run.
    pub kernel: f64,
    /// Share of the time in which the copy engine towards the GPU is busy.
    pub link: f64,
    /// Share of the time in which the busiest disk reader is busy.
    pub disk: f64,
    /// Bytes that cross the link to the GPU in one decode step, on average.
    pub link_bytes_per_step: Bytes,
    /// Bytes really read from disk in one decode step, on average.
    pub disk_bytes_per_step: Bytes,
    /// What is held at every tier.
    pub memory: MemoryTable,
}

/// Why a plan has no evaluation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvaluateError {
    /// The plan says something that its strategy cannot do.
    #[error("{path}: {0}", path = .0.path)]
    Lower(LowerError),
    /// It does not fit its budget.
    #[error("{path}: {0}", path = .0.path)]
    Memory(LowerError),
    /// Whoever asked does not want it.
    #[error("{0}")]
    Refused(String),
    /// The machine cannot run it, or the schedule is stuck.
    #[error(transparent)]
    Simulation(#[from] SimulationError),
}

/// Lowers a plan, checks its memory against its budget, and simulates it.
///
/// The page cache begins cold and has what host memory the plan leaves of its budget.
pub fn evaluate(
    plan: &Plan,
    machine: &Machine,
    record: bool,
) -> Result<(Evaluation, Option<Timeline>), EvaluateError> {
    let costs = CostModel::new(machine);
    let fitted = Fitted::new(plan, machine)?;
    let (summary, timeline) = fitted.run(&costs, record)?;
    Ok((fitted.evaluation(plan, &costs, &summary)?, timeline))
}

/// A lowered plan that fits its budget.
pub(crate) struct Fitted {
    pub(crate) schedule: Schedule,
    pub(crate) memory: MemoryTable,
    pub(crate) page_cache: PageCache,
}

impl Fitted {
    pub(crate) fn new(plan: &Plan, machine: &Machine) -> Result<Self, EvaluateError> {
        let schedule = lower(plan).map_err(EvaluateError::Lower)?;
        let memory = MemoryTable::new(&schedule.layout, Overheads::of(machine));
        memory.check(plan).map_err(EvaluateError::Memory)?;
        let page_cache = PageCache::within(plan.budget.host - memory.host(), machine);
        Ok(Self { schedule, memory, page_cache })
    }

    pub(crate) fn options(&self, record: bool) -> Options {
        Options { record, page_cache: self.page_cache }
    }

    pub(crate) fn run(
        &self,
        costs: &dyn Costs,
        record: bool,
    ) -> Result<(Summary, Option<Timeline>), SimulationError> {
        let outcome = simulate_with(&self.schedule, costs, &self.options(record))?;
        Ok((outcome.summary, outcome.timeline))
    }

    /// Turns the sums of a run into what a person asks for.
    pub(crate) fn evaluation(
        &self,
        plan: &Plan,
        costs: &dyn Costs,
        summary: &Summary,
    ) -> Result<Evaluation, EvaluateError> {
        let times = Times::of(&summary.passes);
        let sequences = plan.batch.sequences();
        let share = |busy: Nanos| ratio(busy.as_f64(), summary.end.as_f64());
        let busiest = |kind: LaneKind| {
            let lanes = self.schedule.layout.lanes.iter().zip(&summary.lane_busy);
            let busy = lanes.filter(|(lane, _)| lane.kind == kind).map(|(_, &busy)| busy);
            share(busy.max().unwrap_or(Nanos::ZERO))
        };
        let decodes = |pass: &&PassEnd| pass.phase == Phase::Decode;
        let steps = summary.passes.iter().filter(decodes).count() as u64;
        let (link_first, disk_first) = self.prefill_bytes(costs)?;
        let link = summary.moved(LaneKind::H2d) + summary.moved(LaneKind::DiskToGpu);
        let per_step =
            |all: Bytes, first: Bytes| Bytes((all - first).0.checked_div(steps).unwrap_or(0));
        let per_second = |tokens: u64, time: Nanos| ratio(tokens as f64, time.seconds());
        Ok(Evaluation {
            request: times.request,
            prefill: times.prefill,
            step: times.step,
            tokens_per_second: per_second(sequences * plan.workload.new_tokens, times.request),
            decode_tokens_per_second: per_second(sequences * steps, times.request - times.prefill),
            prefill_tokens_per_second: per_second(sequences * plan.workload.prompt, times.prefill),
            nvml: share(summary.nvml_busy),
            kernel: share(summary.kernel_busy),
            link: busiest(LaneKind::H2d),
            disk: busiest(LaneKind::DiskRead),
            link_bytes_per_step: per_step(link, link_first),
            disk_bytes_per_step: per_step(summary.disk_read, disk_first),
            memory: self.memory.clone(),
        })
    }

    /// Bytes that the prefill moves to the GPU, and reads from disk; with a cold page cache each extent
    /// is missed when it is first read, so these are known without running.
    fn prefill_bytes(&self, costs: &dyn Costs) -> Result<(Bytes, Bytes), SimulationError> {
        let Schedule { layout, program } = &self.schedule;
        let mut builder = Builder::new(layout);
        let mut pass = Pass::default();
        let (mut link, mut disk) = (Bytes::ZERO, Bytes::ZERO);
        let prefill = (0..program.passes()).take_while(|&p| program.phase(p) == Phase::Prefill);
        for number in prefill {
            program.emit(number, &mut builder);
            pass = builder.finish(pass);
            for op in &pass.ops {
                let price = costs.price(&builder.works[op.work])?;
                let lane = layout.queues.get(usize::from(op.queue.0));
                let lane = lane.and_then(|lane| layout.lanes.get(usize::from(lane.0)));
                if lane.is_some_and(|l| matches!(l.kind, LaneKind::H2d | LaneKind::DiskToGpu)) {
                    link += price.bytes;
                }
                disk += price.disk_read;
            }
        }
        Ok((link, disk))
    }
}

/// A quotient, or zero where there is nothing to divide by.
pub(crate) fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}
