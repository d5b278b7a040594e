//! PIPO's throughput figure: 35 bars and one failure, two systems, six models, one laptop.
//!
//! All cells run on one machine profile with one set of constants. Constants were fitted to three of
//! the models; the other three only test them.

use pipo_plan::machine::{Machine, catalog};
use pipo_plan::schedule::Schedule;
use pipo_plan::strategy::lower;
use pipo_plan::timeline::Timeline;
use pipo_simulator::{Options, PageCache, Summary, simulate};
use rayon::prelude::*;

use crate::{Comparison, Failure, Fitted, Outcome, Refit};

mod cells;
mod fit;
mod policy;
mod report;

use cells::{Bar, Cell, Definition};
use policy::Fit;

pub(crate) const ID: &str = "pipo-throughput";

/// Runs every cell with the published constants.
///
/// # Errors
///
/// A definition that does not parse, a plan that cannot be lowered, a simulation without an outcome. A
/// cell that is out of memory is a result, not an error.
pub fn run() -> Result<Outcome, Failure> {
    let definition = cells::definition()?;
    let machine = machine(&definition)?;
    let cells = definition.cells(&[]);
    let fits = prepare(&definition, &cells, &machine)?;
    let run = |fit: &Fit| match fit {
        Ok(prepared) => summary(&prepared.schedule, &machine).map(Some),
        Err(_) => Ok(None),
    };
    let summaries: Vec<Option<Summary>> = fits.par_iter().map(run).collect::<Result<_, _>>()?;
    let comparisons: Vec<Comparison> = (cells.iter().zip(&fits).zip(&summaries))
        .map(|((cell, fit), summary)| compare(&definition, cell, fit, summary.as_ref()))
        .collect();
    let utilisation = (cells.iter().zip(&summaries))
        .filter_map(|(cell, summary)| Some(report::utilisation(cell, summary.as_ref()?)))
        .collect();
    let rows: Vec<report::Row> = cells.iter().zip(&comparisons).zip(&summaries).collect();
    Ok(Outcome {
        id: ID,
        title: definition.title.clone(),
        source: definition.source.clone(),
        machine: machine.name.clone(),
        fitted: fit::fitted(&machine, &definition.constants, &fitted_to(&definition, &[]))?,
        checks: report::checks(&definition, &rows),
        notes: report::notes(&definition, &rows),
        utilisation,
        timelines: timelines(&cells, &fits, &machine)?,
        comparisons,
    })
}

/// Fits the constants anew; without further models held out, these are the published ones.
///
/// # Errors
///
/// As [`run`].
pub fn refit(options: &Refit) -> Result<Vec<Fitted>, Failure> {
    refit_with(options, fit::PUBLISHED)
}

fn refit_with(options: &Refit, effort: fit::Effort) -> Result<Vec<Fitted>, Failure> {
    let definition = cells::definition()?;
    let mut machine = machine(&definition)?;
    let mut cells = definition.cells(&options.hold_out);
    cells.retain(|cell| !cell.held_out);
    // The constants are rates, and a plan depends on sizes alone: it is made once.
    let fits = prepare(&definition, &cells, &machine)?;
    let loss = |machine: &Machine, cell: &Cell, fit: &Fit| {
        let (Some(paper), Ok(prepared)) = (cell.written.printed(), fit) else { return Ok(0.0) };
        let summary = summary(&prepared.schedule, machine)?;
        Ok(fit::loss(throughput(&definition, cell.bar, &summary), paper.value))
    };
    let total = |point: &[f64]| {
        let mut machine = machine.clone();
        fit::apply(&mut machine, &definition.constants, point)?;
        let each = cells.par_iter().zip(&fits).map(|(cell, fit)| loss(&machine, cell, fit));
        // Summed in the order of the cells, whichever thread was done first.
        let losses: Vec<f64> = each.collect::<Result<_, Failure>>()?;
        Ok(losses.iter().sum())
    };
    let point = fit::search(&definition.constants, options.seed, effort, total)?;
    fit::apply(&mut machine, &definition.constants, &point)?;
    fit::fitted(&machine, &definition.constants, &fitted_to(&definition, &options.hold_out))
}

fn machine(definition: &Definition) -> Result<Machine, Failure> {
    let name = &definition.machine;
    Ok(catalog::find(name).ok_or_else(|| format!("the catalogue has no machine `{name}`"))?)
}

fn prepare(
    definition: &Definition,
    cells: &[Cell],
    machine: &Machine,
) -> Result<Vec<Fit>, Failure> {
    cells.par_iter().map(|cell| policy::prepare(definition, cell, machine)).collect()
}

fn fitted_to(definition: &Definition, hold_out: &[String]) -> String {
    let models = definition.split.fitted.iter().filter(|model| !hold_out.contains(model));
    let models: Vec<&str> = models.map(String::as_str).collect();
    format!("throughput figure of PIPO: both systems' bars of {}", models.join(", "))
}

fn options(schedule: &Schedule, machine: &Machine, record: bool) -> Options {
    // Cold: nothing says what was read before, and a warm-up run would not change 31 of 32 passes.
    Options { record, page_cache: PageCache::beside(&schedule.layout, machine, false) }
}

fn summary(schedule: &Schedule, machine: &Machine) -> Result<Summary, Failure> {
    Ok(simulate(schedule, machine, &options(schedule, machine, false))?.summary)
}

/// New tokens of all sequences over prefill and decode.
fn throughput(definition: &Definition, bar: &Bar, summary: &Summary) -> f64 {
    (bar.batch * definition.new_tokens) as f64 / summary.end.seconds()
}

fn compare(
    definition: &Definition,
    cell: &Cell,
    fit: &Fit,
    summary: Option<&Summary>,
) -> Comparison {
    let simulated = summary.map(|summary| throughput(definition, cell.bar, summary));
    let printed = cell.written.printed();
    Comparison {
        group: cell.bar.model.clone(),
        label: cell.to_string(),
        unit: "tokens/s",
        paper: printed.map(|printed| printed.value),
        rounding: printed.map(|printed| printed.rounding),
        simulated,
        held_out: cell.held_out,
        note: report::note(cell, fit, simulated),
    }
}

/// Passes of a timeline worth drawing: the prefill, then decode steps with a page cache in steady state.
const DRAWN_PASSES: u64 = 4;

/// OPT-13B at batch 4, the pair with the greatest published speed-up.
fn timelines(
    cells: &[Cell],
    fits: &[Fit],
    machine: &Machine,
) -> Result<Vec<(String, Timeline)>, Failure> {
    let mut timelines = Vec::new();
    for (cell, fit) in cells.iter().zip(fits) {
        let Ok(prepared) = fit else { continue };
        if cell.bar.model != "opt-13b" || cell.bar.batch != 4 {
            continue;
        }
        let mut plan = prepared.plan.clone();
        plan.workload.new_tokens = DRAWN_PASSES;
        let schedule = lower(&plan)?;
        let outcome = simulate(&schedule, machine, &options(&schedule, machine, true))?;
        let name = format!("{} on {}", cell.system, cell.bar);
        timelines.extend(outcome.timeline.map(|timeline| (name, timeline)));
    }
    Ok(timelines)
}

#[cfg(test)]
mod tests;
