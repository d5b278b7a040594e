//! What the tuner concludes: the ceiling of a plan, and whether to offload at all.

use pipo_plan::machine::Machine;
use pipo_plan::plan::Plan;
use pipo_plan::schedule::{Lane, LaneKind, Layout, Tier};
use pipo_plan::strategy::Strategy;
use pipo_plan::strategy::resident::Resident;
use pipo_plan::units::Nanos;
use pipo_plan::workload::Workload;
use pipo_simulator::{
    Bound, CostModel, Costs, Resource, SimulationError, lower_bound, phase_bounds,
};

use crate::evaluate::{EvaluateError, Evaluation, Fitted, ratio};

/// What the binding resource alone would allow, or one in the prefill and another in decode.
#[derive(Debug, Clone, PartialEq)]
pub struct Ceiling {
    /// The resource, for a person: "the link to the GPU", or "GPU compute in the prefill and the link
    /// to the GPU in decode".
    pub resource: String,
    /// New tokens a second over the request if nothing but that took time.
    pub tokens_per_second: f64,
    /// What the plan reaches of that.
    pub share: f64,
}

/// Whether to offload.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The plan keeps weights or cache elsewhere than on the GPU, where not all of them fit.
    Offload,
    /// It does so although all of them would fit.
    OffloadIsFaster,
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

/// What binds, and for how long at least.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Binding {
    pub(crate) resource: String,
    pub(crate) time: Nanos,
}

/// What keeps a plan's request from being shorter: the resource that it needs longest, or, where that
/// is more, the one that the prefill needs longest and then the one that decode does. Of equals the
/// first in the order of lanes and resources.
pub(crate) fn binding(fitted: &Fitted, costs: &dyn Costs) -> Result<Binding, SimulationError> {
    let bounds = phase_bounds(&fitted.schedule, costs, &fitted.options(false))?;
    let most = |bound: &Bound| longest(named(&fitted.schedule.layout, bound));
    let [request, prefill, decode] = [&bounds.request, &bounds.prefill, &bounds.decode].map(most);
    let time = prefill.time + decode.time;
    // The two needs of one resource are part of its need over the request.
    if time <= request.time || prefill.resource == decode.resource {
        return Ok(request);
    }
    let resource = format!("{} in the prefill and {} in decode", prefill.resource, decode.resource);
    Ok(Binding { resource, time })
}

fn longest(needs: impl Iterator<Item = Binding>) -> Binding {
    let nothing = Binding { resource: "nothing".into(), time: Nanos::ZERO };
    needs.fold(nothing, |most, one| if one.time > most.time { one } else { most })
}

/// What each lane and each shared resource is needed for, by name.
fn named<'a>(layout: &'a Layout, bound: &'a Bound) -> impl Iterator<Item = Binding> + 'a {
    let lanes = layout.lanes.iter().zip(&bound.lanes);
    let lanes = lanes.map(|(lane, &time)| Binding { resource: name(layout, *lane), time });
    let resources = Resource::ALL.into_iter().zip(bound.resources);
    let named = |(resource, time): (Resource, Nanos)| Binding {
        resource: format!("{} bandwidth", resource.name()),
        time,
    };
    lanes.chain(resources.map(named))
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

/// The same, where what binds is known.
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
    let rows = &fitted.memory.rows;
    if rows.iter().all(|row| row.tier == Tier::Gpu || row.overhead) {
        return Ok(Verdict::NoOffloadNeeded);
    }
    let resident = Plan { strategy: Strategy::Resident(Resident::default()), ..plan.clone() };
    let fits = Fitted::new(&resident, machine).is_ok();
    Ok(if fits { Verdict::OffloadIsFaster } else { Verdict::Offload })
}

/// The binding resource of one decode step: what a request with one such step needs beyond a request
/// with none.
fn step_binding(
    plan: &Plan,
    machine: &Machine,
    costs: &dyn Costs,
) -> Result<(String, Nanos), SimulationError> {
    let needs = |new_tokens: u64| -> Result<Vec<Binding>, SimulationError> {
        let workload = Workload { new_tokens, ..plan.workload.clone() };
        // A shorter request never needs more memory than the plan's own.
        let Ok(fitted) = Fitted::new(&Plan { workload, ..plan.clone() }, machine) else {
            return Ok(Vec::new());
        };
        let bound = lower_bound(&fitted.schedule, costs, &fitted.options(false))?;
        Ok(named(&fitted.schedule.layout, &bound).collect())
    };
    let (without, with) = (needs(1)?, needs(2)?);
    let each = with.into_iter().zip(without);
    let steps = each.map(|(two, one)| Binding { time: two.time - one.time, ..two });
    let most = longest(steps);
    Ok((most.resource, most.time))
}
