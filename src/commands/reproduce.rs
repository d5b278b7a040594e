//! `pipo reproduce`: a paper's figure beside the simulation, value by value, with everything that was fitted.

use std::path::Path;

use anyhow::anyhow;
use pipo_experiments::{Comparison, Experiment, Failure, Fitted, Outcome, Refit, all, find};
use serde_json::json;

use crate::cli::Reproduce;
use crate::commands::published;
use crate::commands::report::{interval, percent, rate};
use crate::output::Printer;

/// Runs the command.
pub fn run(args: &Reproduce, printer: &Printer) -> anyhow::Result<()> {
    let experiments = match (&args.id, args.all) {
        (None, false) => return list(printer),
        (None, true) => all(),
        (Some(id), _) => vec![find(id).ok_or_else(|| unknown(id))?],
    };
    let mut documents = Vec::new();
    for experiment in experiments {
        documents.push(if args.refit {
            refit(&experiment, args, printer)?
        } else {
            one(&experiment, args.output.as_deref(), printer)?
        });
    }
    printer.document(&documents)
}

fn unknown(id: &str) -> anyhow::Error {
    let ids: Vec<&str> = all().iter().map(|e| e.id).collect();
    anyhow!("`{id}` is not an experiment; there are {}", ids.join(", "))
}

fn failed(error: &Failure) -> anyhow::Error {
    anyhow!("{error}")
}

fn list(printer: &Printer) -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> =
        all().iter().map(|e| vec![e.id.to_owned(), e.title.to_owned()]).collect();
    printer.table(&["experiment", "what"], &rows);
    let entries: Vec<_> = all().iter().map(|e| json!({ "id": e.id, "title": e.title })).collect();
    printer.document(&entries)
}

fn one(
    experiment: &Experiment,
    output: Option<&Path>,
    printer: &Printer,
) -> anyhow::Result<serde_json::Value> {
    let outcome = (experiment.run)().map_err(|e| failed(&e))?;
    print(&outcome, printer);
    let mut wrote = Vec::new();
    if let Some(folder) = output {
        wrote = published::write(&outcome, &folder.join(experiment.id))?;
        for path in &wrote {
            printer.line(format!("wrote    {}", path.display()));
        }
    }
    Ok(document(&outcome, &wrote))
}

fn print(outcome: &Outcome, printer: &Printer) {
    printer.line(format!("\n{}: {}", outcome.id, outcome.title));
    printer.line(format!("source   {}", outcome.source));
    printer.line(format!("machine  {}", outcome.machine));
    printer.line("");
    let (rows, remarks) = numbered(&outcome.comparisons);
    printer.table(&COLUMNS, &rows);
    for remark in remarks {
        printer.line(remark);
    }
    if !outcome.utilisation.is_empty() {
        printer.section("Utilisation (simulated)");
        let rows: Vec<Vec<String>> = outcome
            .utilisation
            .iter()
            .map(|u| vec![u.group.clone(), u.label.clone(), percent(u.nvml), percent(u.kernel)])
            .collect();
        printer.table(&["group", "cell", "nvml", "kernel"], &rows);
    }
    constants(&outcome.fitted, printer);
    printer.section("Checks");
    for check in &outcome.checks {
        let mark = if check.holds { "holds" } else { "FAILS" };
        printer.line(format!("  {mark}  {}: {}", check.name, check.detail));
    }
    if !outcome.notes.is_empty() {
        printer.section("Notes");
        for note in &outcome.notes {
            printer.line(format!("  - {note}"));
        }
    }
}

/// The columns of [`row`].
pub const COLUMNS: [&str; 8] =
    ["group", "cell", "unit", "paper", "printed digits allow", "simulated", "error", "use"];

/// The cells as they are printed, remarks numbered and apart so that the table stays narrow.
fn numbered(cells: &[Comparison]) -> (Vec<Vec<String>>, Vec<String>) {
    let mut remarks: Vec<String> = Vec::new();
    let mut rows = Vec::new();
    for cell in cells {
        let mut row = row(cell);
        if !cell.note.is_empty() {
            remarks.push(format!("  [{}] {}", remarks.len() + 1, cell.note));
            row[1] = format!("{} [{}]", row[1], remarks.len());
        }
        rows.push(row);
    }
    (rows, remarks)
}

/// One cell without its remark.
pub fn row(c: &Comparison) -> Vec<String> {
    vec![
        c.group.clone(),
        c.label.clone(),
        c.unit.to_owned(),
        // As the paper prints it, every digit.
        c.paper.map_or("OOM".to_owned(), |v| v.to_string()),
        c.rounding.map_or(String::new(), interval),
        c.simulated.map_or("OOM".to_owned(), rate),
        c.error().map_or(String::new(), |e| format!("{:+.1} %", 100.0 * e)),
        if c.held_out { "held out" } else { "fitted" }.to_owned(),
    ]
}

fn constants(fitted: &[Fitted], printer: &Printer) {
    if fitted.is_empty() {
        return;
    }
    printer.section("Fitted constants");
    let rows: Vec<Vec<String>> = fitted
        .iter()
        .map(|f| vec![f.name.clone(), f.value.clone(), f.cells.clone(), f.meaning.clone()])
        .collect();
    printer.table(&["constant", "value", "fitted to", "meaning"], &rows);
}

fn refit(
    experiment: &Experiment,
    args: &Reproduce,
    printer: &Printer,
) -> anyhow::Result<serde_json::Value> {
    let Some(refit) = experiment.refit else {
        printer.line(format!("{}: nothing to refit", experiment.id));
        return Ok(json!({ "id": experiment.id, "fitted": [] }));
    };
    let options = Refit { seed: args.seed, hold_out: args.hold_out.clone() };
    let bar = printer.progress("fitting, a few minutes at most");
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    let fitted = refit(&options);
    bar.finish_and_clear();
    let fitted = fitted.map_err(|e| failed(&e))?;
    printer.line(format!("{}: constants fitted anew", experiment.id));
    constants(&fitted, printer);
    let entry = |f: &Fitted| json!({ "name": f.name, "value": f.value, "fitted_to": f.cells });
    Ok(json!({
        "id": experiment.id,
        "fitted": fitted.iter().map(entry).collect::<Vec<_>>(),
    }))
}

fn document(outcome: &Outcome, wrote: &[std::path::PathBuf]) -> serde_json::Value {
    let cell = |c: &Comparison| {
        json!({
            "group": c.group, "cell": c.label, "unit": c.unit, "paper": c.paper,
            "rounding": c.rounding, "simulated": c.simulated, "error": c.error(),
            "held_out": c.held_out, "note": c.note,
        })
    };
    let checks: Vec<_> = outcome
        .checks
        .iter()
        .map(|c| json!({ "name": c.name, "holds": c.holds, "detail": c.detail }))
        .collect();
    json!({
        "id": outcome.id,
        "source": outcome.source,
        "machine": outcome.machine,
        "cells": outcome.comparisons.iter().map(cell).collect::<Vec<_>>(),
        "checks": checks,
        "wrote": wrote,
    })
}
