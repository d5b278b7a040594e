//! The whole search, from a request to a plan.

use pipo_plan::plan::{Plan, Prediction, RunnerUp};
use pipo_plan::strategy::Strategy;
use pipo_plan::strategy::resident::Resident;
use pipo_simulator::CostModel;
use rayon::prelude::*;

use crate::baselines;
use crate::difference::difference;
use crate::error::TuneError;
use crate::evaluate::{EvaluateError, Evaluation, Fitted};
use crate::problem::{Problem, Request};
use crate::progress::Progress;
use crate::score::Score;
use crate::search::{Best, Counts, Found, search};
use crate::tree::Tree;
use crate::verdict::{Ceiling, Verdict, binding, ceiling, verdict};

/// A plan with what it does.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The plan.
    pub plan: Plan,
    /// What it does on the machine.
    pub evaluation: Evaluation,
    /// How its knobs differ from the chosen plan's; empty for the chosen plan itself.
    pub difference: String,
}

/// The best plan of another system.
#[derive(Debug, Clone, PartialEq)]
pub struct Baseline {
    /// The system.
    pub name: &'static str,
    /// What it does, or why it does nothing.
    pub outcome: Result<Evaluation, String>,
    /// Its plan, if it has one.
    pub plan: Option<Plan>,
}

/// What a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuning {
    /// The best plan, prediction included.
    pub best: Candidate,
    /// The next best, best first.
    pub runners_up: Vec<Candidate>,
    /// Every other system at its best.
    pub baselines: Vec<Baseline>,
    /// What the binding resource alone would allow the best plan.
    pub ceiling: Ceiling,
    /// Candidates in the space.
    pub considered: u64,
    /// Candidates simulated.
    pub simulated: u64,
    /// Candidates that a proved bound excluded.
    pub excluded_by_bound: u64,
    /// Settings of the knobs that do not fit.
    pub excluded_by_memory: u64,
    /// Candidates that the request refused.
    pub refused: u64,
    /// Candidates that were left when the effort was spent; none if the search went to its end, and the
    /// best is then the best there is.
    pub left: u64,
    /// No candidate that was left is better by more than this share; zero if none was.
    pub gap: f64,
    /// Whether to offload.
    pub verdict: Verdict,
}

/// Searches for the best plan.
pub fn tune(request: &Request, progress: &(dyn Fn(Progress) + Sync)) -> Result<Tuning, TuneError> {
    check(request)?;
    let costs = CostModel::new(&request.machine);
    let problem = Problem::new(request, &costs);
    check_counts(&problem)?;
    let mut best = Best::new(request.top + 1);
    let mut counts = Counts::default();

    let rivals = baselines::try_all(&problem);
    for found in rivals.iter().flat_map(|rival| &rival.found) {
        best.add(found.clone());
    }
    let tried: u64 = rivals.iter().map(|r| r.found.len() as u64).sum();
    counts.considered += tried;
    counts.simulated += tried;
    counts.by_memory += rivals.iter().map(|r| r.too_large).sum::<u64>();

    let searched = if request.wants("pipo") {
        search_pipo(&problem, &mut best, &mut counts, progress)?
    } else {
        Searched::ToTheEnd
    };
    let Some(first) = best.first() else {
        let why = rivals.into_iter().find_map(|rival| rival.why);
        return Err(match (searched, why) {
            (Searched::NothingThere(error), _) => error,
            (_, Some(why @ EvaluateError::Memory(_))) => TuneError::NoStrategyFits(why),
            (_, Some(why)) => TuneError::NoStrategy(why.to_string()),
            (_, None) => TuneError::NoStrategy("nothing was tried".into()),
        });
    };
    let gap = match &searched {
        Searched::Until(bound) => first.score.gain(bound),
        Searched::ToTheEnd | Searched::NothingThere(_) => 0.0,
    };
    conclude(&problem, best, &rivals, counts, gap)
}

fn check(request: &Request) -> Result<(), TuneError> {
    let known = Strategy::NAMES.to_vec();
    if let Some(name) = request.strategies.iter().find(|s| !known.contains(&s.as_str())) {
        return Err(TuneError::UnknownStrategy { name: name.clone(), known });
    }
    match request.space.empty_knob() {
        Some(knob) => Err(TuneError::EmptySpace(knob)),
        None => Ok(()),
    }
}

/// Refuses a request that no batching makes possible, before anything is reckoned for it.
fn check_counts(problem: &Problem) -> Result<(), TuneError> {
    let Request { workload, space, .. } = problem.request;
    let plan = |batch| problem.plan(batch, Strategy::Resident(Resident::default()));
    let mut checks = space.batchings(workload).into_iter().map(|batch| plan(batch).check_counts());
    match checks.next() {
        Some(Err(error)) if checks.all(|check| check.is_err()) => Err(TuneError::Request(error)),
        _ => Ok(()),
    }
}

/// How a search ended.
enum Searched {
    /// All candidates were simulated or excluded.
    ToTheEnd,
    /// The effort was spent; the best bound of what was left.
    Until(Score),
    /// There was no candidate.
    NothingThere(TuneError),
}

/// Searches PIPO's space.
fn search_pipo(
    problem: &Problem,
    best: &mut Best,
    counts: &mut Counts,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Searched, TuneError> {
    let tree = Tree::new(problem)?;
    let stands = tree.stands(problem);
    let (nodes, too_large) = tree.nodes(&stands);
    counts.by_memory += too_large;
    if nodes.is_empty() {
        let why = tree.why_empty(problem, &stands);
        return Ok(why.map_or(Searched::ToTheEnd, Searched::NothingThere));
    }
    let left = search(problem, &stands, nodes, best, counts, progress)?;
    Ok(left.map_or(Searched::ToTheEnd, Searched::Until))
}

/// Fills in what a reader wants to know about the best.
fn conclude(
    problem: &Problem,
    best: Best,
    rivals: &[baselines::Tried],
    counts: Counts,
    gap: f64,
) -> Result<Tuning, TuneError> {
    let found = best.into_vec();
    let evaluated: Vec<(Plan, Evaluation)> =
        found.into_par_iter().map(|found| evaluate(problem, found)).collect::<Result<_, _>>()?;
    let baselines =
        rivals.par_iter().map(|rival| baseline(problem, rival)).collect::<Result<_, _>>()?;
    let mut evaluated = evaluated.into_iter();
    let Some((mut plan, evaluation)) = evaluated.next() else {
        return Err(TuneError::NoStrategy("nothing was found".into()));
    };
    let runners_up: Vec<Candidate> = evaluated
        .map(|(other, evaluation)| {
            let difference = difference(&plan, &other);
            Candidate { plan: other, evaluation, difference }
        })
        .collect();
    let fitted = Fitted::new(&plan, &problem.request.machine).map_err(TuneError::Candidate)?;
    let binding = binding(&fitted, problem.costs)?;
    let ceiling = ceiling(&plan, &evaluation, &binding);
    let verdict = verdict(&plan, &fitted, &evaluation, &problem.request.machine, problem.costs)?;
    plan.prediction = Some(prediction(&evaluation, &ceiling, counts));
    let line = |candidate: &Candidate| RunnerUp {
        strategy: candidate.plan.strategy.name().into(),
        difference: candidate.difference.clone(),
        tokens_per_second: rounded(candidate.evaluation.tokens_per_second),
    };
    plan.runners_up = runners_up.iter().map(line).collect();
    Ok(Tuning {
        best: Candidate { plan, evaluation, difference: String::new() },
        runners_up,
        baselines,
        ceiling,
        considered: counts.considered,
        simulated: counts.simulated,
        excluded_by_bound: counts.by_bound,
        excluded_by_memory: counts.by_memory,
        refused: counts.refused,
        left: counts.left,
        gap,
        verdict,
    })
}

fn evaluate(problem: &Problem, found: Found) -> Result<(Plan, Evaluation), TuneError> {
    let fitted =
        Fitted::new(&found.plan, &problem.request.machine).map_err(TuneError::Candidate)?;
    let evaluation = fitted.evaluation(&found.plan, problem.costs, &found.summary);
    Ok((found.plan, evaluation.map_err(TuneError::Candidate)?))
}

fn baseline(problem: &Problem, rival: &baselines::Tried) -> Result<Baseline, TuneError> {
    let Some(best) = rival.found.iter().min_by(|a, b| a.compare(b)) else {
        let why = rival.why.as_ref().map_or("nothing was tried".into(), ToString::to_string);
        return Ok(Baseline { name: rival.name, outcome: Err(why), plan: None });
    };
    let (plan, evaluation) = evaluate(problem, best.clone())?;
    Ok(Baseline { name: rival.name, outcome: Ok(evaluation), plan: Some(plan) })
}

fn prediction(evaluation: &Evaluation, ceiling: &Ceiling, counts: Counts) -> Prediction {
    Prediction {
        request: evaluation.request,
        prefill: evaluation.prefill,
        step: evaluation.step,
        tokens_per_second: rounded(evaluation.tokens_per_second),
        decode_tokens_per_second: rounded(evaluation.decode_tokens_per_second),
        prefill_tokens_per_second: rounded(evaluation.prefill_tokens_per_second),
        ceiling_tokens_per_second: rounded(ceiling.tokens_per_second),
        ceiling_resource: ceiling.resource.clone(),
        nvml: rounded(evaluation.nvml),
        kernel: rounded(evaluation.kernel),
        link_bytes_per_step: evaluation.link_bytes_per_step,
        disk_bytes_per_step: evaluation.disk_bytes_per_step,
        gpu_bytes: evaluation.memory.gpu(),
        host_bytes: evaluation.memory.host(),
        candidates: counts.considered,
        simulated: counts.simulated,
    }
}

/// Four significant digits, through text, so that the file is the same on every machine.
fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}
