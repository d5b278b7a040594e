//! The defaults that a plan must never be worse than: each other system at its best setting that fits.
//!
//! These are few, so all of them are simulated; no bound excludes one. Their knobs are filled by the
//! same rule as PIPO's: what the budget leaves goes to resident weights.

use pipo_plan::machine::Machine;
use pipo_plan::memory::Overheads;
use pipo_plan::model::Part;
use pipo_plan::plan::{Batching, Plan};
use pipo_plan::strategy::accelerate::Accelerate;
use pipo_plan::strategy::cpu_split::CpuSplit;
use pipo_plan::strategy::endor::Endor;
use pipo_plan::strategy::flexgen::FlexGen;
use pipo_plan::strategy::headinfer::HeadInfer;
use pipo_plan::strategy::resident::Resident;
use pipo_plan::strategy::{Processor, Strategy};
use pipo_plan::units::Bytes;
use pipo_plan::workload::Budget;
use rayon::prelude::*;

use crate::evaluate::{EvaluateError, Fitted};
use crate::problem::Problem;
use crate::search::{Found, simulate};

/// What became of one system.
#[derive(Debug)]
pub(crate) struct Tried {
    pub(crate) name: &'static str,
    /// Its plans that fit.
    pub(crate) found: Vec<Found>,
    /// Its plans that do not.
    pub(crate) too_large: u64,
    /// Why the first plan that does not fit, or cannot be, is none.
    pub(crate) why: Option<EvaluateError>,
}

/// Tries every system that competes, in the order of their names' list.
pub(crate) fn try_all(problem: &Problem) -> Vec<Tried> {
    let rivals = Strategy::NAMES.into_iter().filter(|&name| name != "pipo");
    let wanted: Vec<&str> = rivals.filter(|name| problem.request.wants(name)).collect();
    let plans: Vec<(&str, Vec<Plan>)> =
        wanted.into_iter().map(|name| (name, settings(problem, name))).collect();
    let one = |(name, plans): &(&'static str, Vec<Plan>)| try_one(problem, name, plans);
    plans.iter().filter(|(_, plans)| !plans.is_empty()).map(one).collect()
}

fn try_one(problem: &Problem, name: &'static str, plans: &[Plan]) -> Tried {
    let attempt = |plan: &Plan| {
        let filled = fill(plan, &problem.request.machine)?;
        match filled {
            Some(plan) => match problem.refusal(&plan) {
                Some(why) => Err(EvaluateError::Refused(why)),
                None => simulate(problem, plan),
            },
            None => Ok(None),
        }
    };
    let results: Vec<_> = plans.par_iter().map(attempt).collect();
    let mut tried = Tried { name, found: Vec::new(), too_large: 0, why: None };
    for (plan, result) in plans.iter().zip(results) {
        match result {
            Ok(Some(found)) => tried.found.push(found),
            Ok(None) => {
                tried.too_large += 1;
                let why = Fitted::new(plan, &problem.request.machine).err();
                tried.why = tried.why.or(why);
            }
            Err(error) => tried.why = tried.why.or(Some(error)),
        }
    }
    tried
}

/// The settings of a system that are tried, with nothing resident yet.
fn settings(problem: &Problem, name: &str) -> Vec<Plan> {
    // Micro-batches that share a load of the weights are FlexGen's; the others have one batch.
    let all = problem.request.space.batchings(&problem.request.workload);
    let most = if name == "flexgen" { 4 } else { 1 };
    let of_its_own = |b: &Batching| b.count == 1 || b.count == most;
    let batchings: Vec<Batching> =
        if all.iter().any(of_its_own) { all.into_iter().filter(of_its_own).collect() } else { all };
    let with = |strategy: fn(&Batching) -> Vec<Strategy>| -> Vec<Plan> {
        let plans = |batch: &Batching| {
            let strategies = strategy(batch).into_iter();
            strategies.map(|s| problem.plan(*batch, s)).collect::<Vec<_>>()
        };
        batchings.iter().flat_map(plans).collect()
    };
    match name {
        "resident" => with(|_| vec![Strategy::Resident(Resident::default())]),
        "flexgen" => with(flexgen),
        "accelerate" => with(accelerate),
        "cpu-split" => with(cpu_split),
        "headinfer" => with(headinfer),
        // Pruned weights are another model. Whoever asks for them by name shall have them.
        "endor" if !problem.request.strategies.is_empty() => {
            with(|_| vec![Strategy::Endor(Endor::default())])
        }
        _ => Vec::new(),
    }
}

/// FlexGen with overlap, its cache on the GPU or in host memory, attention where it can be.
fn flexgen(batch: &Batching) -> Vec<Strategy> {
    if batch.prefill_chunk.is_some() {
        return Vec::new();
    }
    let on_gpu = FlexGen { weights_gpu: 0, weights_host: 0, ..FlexGen::default() };
    let on_host =
        FlexGen { cache_gpu: 0, cache_host: 100, hidden: Processor::Cpu, ..on_gpu.clone() };
    let on_cpu = FlexGen { cpu_attention: true, ..on_host.clone() };
    [on_gpu, on_host, on_cpu].map(Strategy::FlexGen).to_vec()
}

/// Accelerate works on the whole batch and the whole prompt at once.
fn accelerate(batch: &Batching) -> Vec<Strategy> {
    let whole = batch.prefill_chunk.is_none() && batch.count == 1;
    let empty = Accelerate { gpu_weights: Bytes::ZERO, host_weights: Bytes::ZERO };
    whole.then_some(Strategy::Accelerate(empty)).into_iter().collect()
}

/// Layers on the CPU, the whole batch at once.
fn cpu_split(batch: &Batching) -> Vec<Strategy> {
    let whole = batch.count == 1;
    whole.then(|| Strategy::CpuSplit(CpuSplit::default())).into_iter().collect()
}

/// HeadInfer with one group of heads, and with more where the cache of one is too large.
fn headinfer(_: &Batching) -> Vec<Strategy> {
    let with = |head_groups| Strategy::HeadInfer(HeadInfer { head_groups, ..HeadInfer::default() });
    vec![with(1), with(4)]
}

/// Fills what the budget leaves with resident weights, the GPU first; none if nothing fits.
pub(crate) fn fill(plan: &Plan, machine: &Machine) -> Result<Option<Plan>, EvaluateError> {
    let strategy = plan.strategy.clone();
    let (on_gpu, on_host) = limits(plan);
    let with = |gpu: u64, host: u64| {
        let strategy = match &strategy {
            Strategy::FlexGen(knobs) => Strategy::FlexGen(FlexGen {
                weights_gpu: small(gpu),
                weights_host: small(host),
                ..knobs.clone()
            }),
            Strategy::Accelerate(_) => Strategy::Accelerate(Accelerate {
                gpu_weights: Bytes(gpu << 20),
                host_weights: Bytes(host << 20),
            }),
            Strategy::CpuSplit(knobs) => {
                Strategy::CpuSplit(CpuSplit { gpu_layers: small(gpu), ..knobs.clone() })
            }
            Strategy::Endor(knobs) => Strategy::Endor(Endor {
                gpu_layers: small(gpu),
                host_layers: small(host),
                ..knobs.clone()
            }),
            other => other.clone(),
        };
        Plan { strategy, ..plan.clone() }
    };
    // What is filled into host memory afterwards needs tables on the GPU for its pages.
    let weights = plan.model.total_bytes(plan.precision.weights);
    let tables = Overheads::of(machine).tables_of(if on_host > 0 { weights } else { Bytes::ZERO });
    // What is on one tier need not be on the next, which is therefore asked for room only once the tiers before it
    // hold what they can: layers that a GPU keeps are none that the host has to.
    let of_gpu = Budget { gpu: plan.budget.gpu - tables, host: ENDLESS, disk: ENDLESS };
    let tight = |gpu| Plan { budget: of_gpu.clone(), ..with(gpu, 0) };
    let Some(gpu) = most(machine, on_gpu, tight)? else { return Ok(None) };
    let left = if on_host > 0 { on_host - gpu.min(on_host) } else { 0 };
    let without_disk = Budget { disk: ENDLESS, ..plan.budget };
    let on_both = |host| Plan { budget: without_disk.clone(), ..with(gpu, host) };
    let Some(host) = most(machine, left, on_both)? else { return Ok(None) };
    let filled = with(gpu, host);
    Ok(fits(&filled, machine)?.then_some(filled))
}

/// Of a tier that nothing can be too large for.
const ENDLESS: Bytes = Bytes(u64::MAX);

/// The largest settings of a strategy's knobs for weights on the GPU and in host memory: per cent,
/// mebibytes or layers. What is on the GPU need not be in host memory.
fn limits(plan: &Plan) -> (u64, u64) {
    let layers = u64::from(plan.model.layers);
    match plan.strategy {
        Strategy::FlexGen(_) => (100, 100),
        Strategy::Accelerate(_) => {
            // A tied head counts twice here, which is no more than an upper limit.
            let parts =
                [Part::Embedding, Part::Head].map(|p| plan.model.bytes(p, plan.precision.weights));
            let all = plan.model.total_bytes(plan.precision.weights) + parts[0] + parts[1];
            (all.0.div_ceil(1 << 20), all.0.div_ceil(1 << 20))
        }
        Strategy::CpuSplit(_) => (layers, 0),
        Strategy::Endor(_) => (layers, layers),
        Strategy::Pipo(_) | Strategy::Resident(_) | Strategy::HeadInfer(_) => (0, 0),
    }
}

fn small(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn fits(plan: &Plan, machine: &Machine) -> Result<bool, EvaluateError> {
    match Fitted::new(plan, machine) {
        Ok(_) => Ok(true),
        Err(EvaluateError::Memory(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The largest setting from 0 to `limit` whose plan fits, if memory grows with the setting.
fn most(
    machine: &Machine,
    limit: u64,
    plan: impl Fn(u64) -> Plan,
) -> Result<Option<u64>, EvaluateError> {
    let fits = |setting: u64| fits(&plan(setting), machine);
    if !fits(0)? {
        return Ok(None);
    }
    if fits(limit)? {
        return Ok(Some(limit));
    }
    let (mut fitting, mut too_large) = (0, limit);
    while too_large - fitting > 1 {
        let middle = fitting.midpoint(too_large);
        if fits(middle)? { fitting = middle } else { too_large = middle }
    }
    Ok(Some(fitting))
}
