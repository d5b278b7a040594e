//! The defaults that a plan must never be worse than: each other system at its best setting that fits.
//!
//! These are few, so all of them are simulated; no bound excludes one. Their knobs are filled by the
//! same rule as PIPO's: what the budget leaves goes to resident weights.

use pipo_plan::machine::Machine;
use pipo_plan::plan::{Batching, Plan};
use pipo_plan::strategy::flexgen::FlexGen;
use pipo_plan::strategy::resident::Resident;
use pipo_plan::strategy::{Processor, Strategy};
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
        let filled = fill(plan.clone(), &problem.request.machine)?;
        match filled {
            Some(plan) => simulate(problem, plan),
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
    let batchings = problem.request.space.batchings(&problem.request.workload);
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

/// Fills what the budget leaves with resident weights; none if nothing fits.
pub(crate) fn fill(plan: Plan, machine: &Machine) -> Result<Option<Plan>, EvaluateError> {
    match plan.strategy.clone() {
        Strategy::FlexGen(knobs) => {
            let with = |gpu: u64, host: u64| {
                let (weights_gpu, weights_host) = (percent(gpu), percent(host));
                let knobs = FlexGen { weights_gpu, weights_host, ..knobs.clone() };
                Plan { strategy: Strategy::FlexGen(knobs), ..plan.clone() }
            };
            let Some(gpu) = most(machine, 100, |gpu| with(gpu, 0))? else { return Ok(None) };
            let Some(host) = most(machine, 100 - gpu, |host| with(gpu, host))? else {
                return Ok(None);
            };
            Ok(Some(with(gpu, host)))
        }
        _ => Ok(Some(plan)),
    }
}

fn percent(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(100)
}

/// The largest setting from 0 to `limit` whose plan fits, if memory grows with the setting.
fn most(
    machine: &Machine,
    limit: u64,
    plan: impl Fn(u64) -> Plan,
) -> Result<Option<u64>, EvaluateError> {
    let fits = |setting: u64| match Fitted::new(&plan(setting), machine) {
        Ok(_) => Ok(true),
        Err(EvaluateError::Memory(_)) => Ok(false),
        Err(error) => Err(error),
    };
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
