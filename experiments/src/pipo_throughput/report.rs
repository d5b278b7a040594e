//! What the cells add up to: checks, utilisation, notes.

use pipo_simulator::Summary;

use super::cells::{Cell, Definition, System};
use super::policy::Fit;
use crate::{Check, Comparison, UtilisationRow, median_error};

/// A cell, how it compares, and its run where it fits.
pub(super) type Row<'a> = ((&'a Cell<'a>, &'a Comparison), &'a Option<Summary>);

/// What a reader must know about one cell.
pub(super) fn note(cell: &Cell, fit: &Fit, simulated: Option<f64>) -> String {
    let printed = cell.written.printed();
    match (printed, fit, simulated) {
        (None, Err(error), _) => format!("out of memory, as published: {}", error.message),
        (None, Ok(_), _) => "published as out of memory, but it fits".into(),
        (Some(_), Err(error), _) => format!("does not fit: {}", error.message),
        (Some(printed), Ok(_), Some(simulated)) => {
            let (low, high) = printed.rounding;
            let width = (high - low) / 2.0 / printed.value;
            if low <= simulated && simulated < high {
                "rounds to what is printed".into()
            } else if width > 0.05 {
                format!("the printed digits allow {:.0} % either way", width * 100.0)
            } else {
                String::new()
            }
        }
        (Some(_), Ok(_), None) => String::new(),
    }
}

/// How busy a cell keeps the GPU.
pub(super) fn utilisation(cell: &Cell, summary: &Summary) -> UtilisationRow {
    let share = |busy: pipo_plan::units::Nanos| busy.as_f64() / summary.end.as_f64().max(1.0);
    UtilisationRow {
        group: cell.bar.model.clone(),
        label: cell.to_string(),
        nvml: share(summary.nvml_busy),
        kernel: share(summary.kernel_busy),
    }
}

/// The statements that must hold.
pub(super) fn checks(definition: &Definition, rows: &[Row]) -> Vec<Check> {
    let targets = &definition.targets;
    vec![
        median(rows, false, targets.fitted_median_error),
        median(rows, true, targets.held_out_median_error),
        speedups(definition, rows),
        out_of_memory(rows),
    ]
}

fn median(rows: &[Row], held_out: bool, target: f64) -> Check {
    let cells = rows.iter().map(|((_, comparison), _)| *comparison);
    let cells: Vec<&Comparison> = cells.filter(|c| c.held_out == held_out).collect();
    let compared = cells.iter().filter(|c| c.error().is_some()).count();
    let error = median_error(cells);
    let kind = if held_out { "held out" } else { "fitted" };
    Check {
        name: format!("median error of cells {kind} at most {:.0} %", target * 100.0),
        holds: error.is_some_and(|error| error <= target),
        detail: match error {
            Some(error) => format!("{:.1} % over {compared} cells", error * 100.0),
            None => "no cell could be compared".into(),
        },
    }
}

fn speedups(definition: &Definition, rows: &[Row]) -> Check {
    let within = definition.targets.speedup_within;
    let mut close = 0;
    let mut far = Vec::new();
    for pair in rows.chunks_exact(2) {
        let [((cell, flexgen), _), ((_, pipo), _)] = pair else { continue };
        let published = ratio(pipo.paper, flexgen.paper);
        let simulated = ratio(pipo.simulated, flexgen.simulated);
        let (Some(published), Some(simulated)) = (published, simulated) else { continue };
        if (simulated / published - 1.0).abs() <= within {
            close += 1;
        } else {
            far.push(format!("{}: {simulated:.2} for {published:.2}", cell.bar));
        }
    }
    let wanted = definition.targets.speedups;
    let far = if far.is_empty() { "none".into() } else { far.join("; ") };
    Check {
        name: format!(
            "PIPO over FlexGen within {:.0} % of the published ratio in at least {wanted} pairs",
            within * 100.0
        ),
        holds: close >= wanted,
        detail: format!("{close} pairs; further off: {far}"),
    }
}

fn ratio(above: Option<f64>, below: Option<f64>) -> Option<f64> {
    Some(above? / below?)
}

fn out_of_memory(rows: &[Row]) -> Check {
    let wrong: Vec<&str> = rows
        .iter()
        .map(|((_, comparison), _)| *comparison)
        .filter(|c| c.paper.is_some() != c.simulated.is_some())
        .map(|c| c.label.as_str())
        .collect();
    Check {
        name: "out of memory exactly where the paper reports it".into(),
        holds: wrong.is_empty(),
        detail: if wrong.is_empty() { "all cells".into() } else { wrong.join("; ") },
    }
}

/// Assumptions, and how the paper's claim about utilisation reads.
pub(super) fn notes(definition: &Definition, rows: &[Row]) -> Vec<String> {
    let mut notes = definition.assumptions.clone();
    notes.extend(definition.findings.iter().cloned());
    notes.push(claim(rows));
    notes
}

/// The paper: GPU utilisation from below 40 % to over 90 %.
fn claim(rows: &[Row]) -> String {
    let range = |system: System, disk_only: bool, kernel: bool| {
        let shares = rows.iter().filter_map(|((cell, _), summary)| {
            let row = utilisation(cell, summary.as_ref()?);
            let wanted = cell.system == system && (!disk_only || cell.on_disk());
            wanted.then_some(if kernel { row.kernel } else { row.nvml })
        });
        let (low, high) = shares.fold((1.0_f64, 0.0_f64), |(l, h), s| (l.min(s), h.max(s)));
        format!("{:.0} to {:.0} %", low * 100.0, high * 100.0)
    };
    format!(
        "The paper says that GPU utilisation rises from below 40 % to over 90 %, without the cells. With \
         weights on disk the simulation has FlexGen at {} and PIPO at {} if copies count, as NVML counts \
         them, and at {} and {} if kernels alone count; with CPU cells included PIPO reaches {} and {}. \
         A link-bound pipeline can read over 90 % only where copies count: the claim fits NVML's reading \
         of PIPO's best cells, and no cell's kernels.",
        range(System::FlexGen, true, false),
        range(System::Pipo, true, false),
        range(System::FlexGen, true, true),
        range(System::Pipo, true, true),
        range(System::Pipo, false, false),
        range(System::Pipo, false, true),
    )
}
