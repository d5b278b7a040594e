//! A request, and what is derived from it once.

use pipo_plan::machine::Machine;
use pipo_plan::memory::Overheads;
use pipo_plan::model::{Model, Precision};
use pipo_plan::plan::{Batching, Plan, Precisions};
use pipo_plan::strategy::Strategy;
use pipo_plan::workload::{Budget, Workload};
use pipo_simulator::CostModel;

use crate::demand::Pricer;
use crate::space::Space;

/// What is asked of the tuner.
#[derive(Debug, Clone)]
pub struct Request {
    /// The model.
    pub model: Model,
    /// The machine to plan for.
    pub machine: Machine,
    /// What is to be done; where it names no batch, the tuner chooses one.
    pub workload: Workload,
    /// What may be spent.
    pub budget: Budget,
    /// How weights and cache are stored.
    pub precision: Precisions,
    /// Decides every draw.
    pub seed: u64,
    /// Names of the strategies that compete; all of them where the list is empty.
    pub strategies: Vec<String>,
    /// Values that PIPO's knobs may take.
    pub space: Space,
    /// Simulate every candidate, also those that a bound excludes, whatever the effort.
    pub exhaustive: bool,
    /// Operations to simulate at most, over all candidates; bounds may take as long again. What is left then is reported as a gap: no
    /// candidate is better by more. A count, not a time, so that the result is the same everywhere.
    pub effort: u64,
    /// Runners-up to keep.
    pub top: usize,
    /// Says why a plan is not to be chosen, whatever it promises: what an engine does not run. Everything
    /// that can be simulated competes where nobody says.
    pub refuses: Option<fn(&Plan) -> Option<String>>,
}

/// Two to four seconds on two cores.
pub const DEFAULT_EFFORT: u64 = 8_000_000;

impl Request {
    /// A request with the usual choices: 4-bit weights and a 16-bit cache, all strategies, the usual space, five
    /// runners-up.
    pub fn new(model: Model, machine: Machine, workload: Workload, budget: Budget) -> Self {
        let space = Space::of(&machine);
        Self {
            model,
            machine,
            workload,
            budget,
            precision: Precisions { weights: Precision::Int4, kv: Precision::Fp16 },
            seed: 0,
            strategies: Vec::new(),
            space,
            exhaustive: false,
            effort: DEFAULT_EFFORT,
            top: 5,
            refuses: None,
        }
    }

    /// Whether a strategy competes.
    pub(crate) fn wants(&self, strategy: &str) -> bool {
        self.strategies.is_empty() || self.strategies.iter().any(|s| s == strategy)
    }
}

/// What a whole search shares.
pub(crate) struct Problem<'a> {
    pub(crate) request: &'a Request,
    pub(crate) costs: &'a CostModel<'a>,
    pub(crate) pricer: Pricer<'a>,
    pub(crate) overheads: Overheads,
    profile: String,
}

impl<'a> Problem<'a> {
    pub(crate) fn new(request: &'a Request, costs: &'a CostModel<'a>) -> Self {
        Self {
            request,
            costs,
            pricer: Pricer::new(costs),
            overheads: Overheads::of(&request.machine),
            profile: request.machine.hash(),
        }
    }

    /// A plan for this request.
    pub(crate) fn plan(&self, batch: Batching, strategy: Strategy) -> Plan {
        Plan {
            machine: self.request.machine.name.clone(),
            profile: self.profile.clone(),
            seed: self.request.seed,
            workload: self.request.workload.clone(),
            budget: self.request.budget.clone(),
            precision: self.request.precision,
            batch,
            strategy,
            model: self.request.model.clone(),
            prediction: None,
            runners_up: Vec::new(),
        }
    }

    /// Why a plan is not to be chosen.
    pub(crate) fn refusal(&self, plan: &Plan) -> Option<String> {
        self.request.refuses.and_then(|refuses| refuses(plan))
    }

    /// Whether the time of a single step matters, and so each must be bounded apart.
    pub(crate) fn keeps_steps(&self) -> bool {
        self.request.workload.token_within.is_some()
    }
}
