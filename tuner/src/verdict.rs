//! What the tuner concludes: the ceiling of a plan, and whether to offload at all.

use pipo_plan::machine::Machine;
use pipo_plan::plan::Plan;
use pipo_plan::schedule::{Lane, LaneKind, Layout};
use pipo_plan::units::Nanos;
use pipo_plan::workload::Workload;
use pipo_simulator::{CostModel, Costs, Resource, SimulationError, lower_bound};

use crate::evaluate::{EvaluateError, Evaluation, Fitted, ratio};

/// What the binding resource alone would allow.
#[derive(Debug, Clone, PartialEq)]
pub struct Ceiling {
    /// The resource, for a person.
    pub resource: String,
    /// New tokens a second over the request if nothing but that resource took time.
    pub tokens_per_second: f64,
    /// What the plan reaches of that.
    pub share: f64,
}

/// Whether to offload.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The plan moves weights or cache to the GPU as it runs.
    Offload,
    /// Everything fits on the GPU, and nothing is faster.
    NoOffloadNeeded,
    /// No plan makes a decode step within the goal.
    GoalOutOfReach {
        /// The goal.
        goal: Nanos,
        /// The fastest median step of any candidate, that of the plan given.
        step: Nanos,
        /// What its binding resource alone needs for a step.
        bound: Nanos,
        /// A sentence that says so: "the link alone needs 0.8 s a token".
        reason: String,
    },
}

/// The busiest resource of a plan, and how long it is busy at least.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Binding {
    pub(crate) resource: String,
    pub(crate) time: Nanos,
}

/// The resource that a plan needs longest, the first of equals in the order of lanes and resources.
pub(crate) fn binding(fitted: &Fitted, costs: &dyn Costs) -> Result<Binding, SimulationError> {
    let needs = needs(fitted, costs)?.into_iter();
    Ok(longest(needs.map(|(resource, time)| Binding { resource, time })))
}

fn longest(needs: impl Iterator<Item = Binding>) -> Binding {
    let nothing = Binding { resource: "nothing".into(), time: Nanos::ZERO };
    needs.fold(nothing, |most, one| if one.time > most.time { one } else { most })
}

/// How long each lane and each shared resource is needed at least.
fn needs(fitted: &Fitted, costs: &dyn Costs) -> Result<Vec<(String, Nanos)>, SimulationError> {
    let bound = lower_bound(&fitted.schedule, costs, &fitted.options(false))?;
    let layout = &fitted.schedule.layout;
    let lanes =
        layout.lanes.iter().zip(&bound.lanes).map(|(lane, &time)| (name(layout, *lane), time));
    let resources = Resource::ALL.into_iter().zip(bound.resources);
    let resources =
        resources.map(|(resource, time)| (format!("{} bandwidth", resource.name()), time));
    Ok(lanes.chain(resources).collect())
}

/// How a lane is called in a sentence.
fn name(layout: &Layout, lane: Lane) -> String {
    let plain = match lane.kind {
        LaneKind::DiskRead => "the disk, reading",
        LaneKind::DiskWrite => "the disk, writing",
        LaneKind::DiskToGpu => "the path from disk to GPU",
        LaneKind::HostCopy => "copying in host memory",
        LaneKind::H2d => "the link to the GPU",
        LaneKind::D2h => "the link from the GPU",
        LaneKind::Gpu => "GPU compute",
        LaneKind::Cpu => "CPU compute",
        LaneKind::Host => "the host thread",
    };
    let several = layout.lanes.iter().filter(|other| other.kind == lane.kind).count() > 1;
    if several { format!("{plain} (thread {})", lane.index) } else { plain.into() }
}

/// The ceiling of a plan on a machine.
pub fn ceiling_of(
    plan: &Plan,
    machine: &Machine,
    evaluation: &Evaluation,
) -> Result<Ceiling, EvaluateError> {
    let binding = binding(&Fitted::new(plan, machine)?, &CostModel::new(machine))?;
    Ok(ceiling(plan, evaluation, &binding))
}

/// The same, where the binding resource is known.
pub(crate) fn ceiling(plan: &Plan, evaluation: &Evaluation, binding: &Binding) -> Ceiling {
    let tokens = plan.batch.sequences().saturating_mul(plan.workload.new_tokens) as f64;
    let tokens_per_second = ratio(tokens, binding.time.seconds());
    let share = ratio(evaluation.tokens_per_second, tokens_per_second);
    Ceiling { resource: binding.resource.clone(), tokens_per_second, share }
}

/// Whether to offload, from the best plan there is.
pub(crate) fn verdict(
    plan: &Plan,
    fitted: &Fitted,
    evaluation: &Evaluation,
    machine: &Machine,
    costs: &dyn Costs,
) -> Result<Verdict, SimulationError> {
    if let Some(goal) = plan.workload.token_within.filter(|&goal| evaluation.step > goal) {
        let (resource, bound) = step_binding(plan, machine, costs)?;
        let reason = if bound > goal {
            format!("{resource} alone needs {bound} a token")
        } else {
            format!("{resource} alone needs {bound} a token, waiting for each other the rest")
        };
        return Ok(Verdict::GoalOutOfReach { goal, step: evaluation.step, bound, reason });
    }
    // Buffers are what data passes through: where there are none, nothing is moved.
    let resident = fitted.schedule.layout.rings.iter().all(|ring| ring.slot_bytes.0 == 0);
    Ok(if resident { Verdict::NoOffloadNeeded } else { Verdict::Offload })
}

/// The binding resource of one decode step: what a request with one such step needs beyond a request
/// with none.
fn step_binding(
    plan: &Plan,
    machine: &Machine,
    costs: &dyn Costs,
) -> Result<(String, Nanos), SimulationError> {
    let needs = |new_tokens: u64| -> Result<Vec<(String, Nanos)>, SimulationError> {
        let workload = Workload { new_tokens, ..plan.workload.clone() };
        // A shorter request never needs more memory than the plan's own.
        match Fitted::new(&Plan { workload, ..plan.clone() }, machine) {
            Ok(fitted) => needs(&fitted, costs),
            Err(_) => Ok(Vec::new()),
        }
    };
    let (without, with) = (needs(1)?, needs(2)?);
    let each = with.into_iter().zip(without);
    let steps = each.map(|((resource, two), (_, one))| Binding { resource, time: two - one });
    let most = longest(steps);
    Ok((most.resource, most.time))
}
