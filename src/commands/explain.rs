//! `pipo explain`: where a plan's time goes and what would make it faster.

use pipo_tuner::{evaluate, explain};
use serde_json::json;

use crate::cli::OnPlan;
use crate::commands::{report, simulate};
use crate::output::Printer;

/// Runs the command.
pub fn run(args: &OnPlan, printer: &Printer) -> anyhow::Result<()> {
    let (plan, machine) = simulate::read(args)?;
    let in_file = |error| simulate::in_file(args, error);
    let (evaluation, _) = evaluate(&plan, &machine, false).map_err(in_file)?;
    let explanation = explain(&plan, &machine).map_err(in_file)?;
    printer.line(format!(
        "{} on {}: {}",
        plan.model.name,
        machine.name,
        report::subtitle(&plan, &evaluation)
    ));
    report::plan(printer, &plan);
    report::memory(printer, &evaluation.memory, &plan.budget);
    report::figures(printer, &evaluation);
    report::ceiling(printer, &evaluation, &explanation.ceiling);
    report::explanation(printer, &explanation);
    let shares = |list: &[pipo_tuner::Share]| -> Vec<serde_json::Value> {
        let entry =
            |s: &pipo_tuner::Share| json!({ "name": s.name, "ns": s.time.0, "share": s.share });
        list.iter().map(entry).collect()
    };
    let what_ifs: Vec<serde_json::Value> = explanation
        .what_ifs
        .iter()
        .map(|w| json!({ "change": w.change, "tokens_per_second": w.tokens_per_second, "gain": w.gain }))
        .collect();
    printer.document(&json!({
        "tokens_per_second": evaluation.tokens_per_second,
        "critical_path_by_lane": shares(&explanation.by_lane),
        "critical_path_by_operation": shares(&explanation.by_operation),
        "what_ifs": what_ifs,
    }))
}
