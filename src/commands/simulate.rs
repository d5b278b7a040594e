//! `pipo simulate`: predicts a plan's timeline on a machine and writes it in the formats asked for.

use anyhow::Context;
use pipo_plan::machine::Machine;
use pipo_plan::plan::Plan;
use pipo_tuner::{EvaluateError, evaluate};
use serde_json::json;

use crate::cli::{OnPlan, Simulate};
use crate::commands::report;
use crate::commands::timeline::{self, Named};
use crate::input;
use crate::output::Printer;

/// Runs the command.
pub fn run(args: &Simulate, printer: &Printer) -> anyhow::Result<()> {
    let (plan, machine) = read(&args.on)?;
    let (evaluation, timeline) =
        evaluate(&plan, &machine, true).map_err(|e| in_file(&args.on, e))?;
    let timeline = timeline.context("no timeline was recorded; please report it")?;
    let title = format!("{} on {}", plan.model.name, machine.name);
    let subtitle = report::subtitle(&plan, &evaluation);
    let named =
        Named { process: "predicted", title: &title, subtitle: &subtitle, timeline: &timeline };
    let wrote = timeline::write(&args.files, &named)?;
    printer.line(format!("{title}: {subtitle}"));
    report::memory(printer, &evaluation.memory, &plan.budget);
    report::figures(printer, &evaluation);
    for path in &wrote {
        printer.line(format!("wrote    {}", path.display()));
    }
    printer.document(&json!({
        "model": plan.model.name,
        "machine": machine.name,
        "profile": machine.hash(),
        "operations": timeline.spans.len(),
        "request_ns": evaluation.request.0,
        "prefill_ns": evaluation.prefill.0,
        "step_ns": evaluation.step.0,
        "tokens_per_second": evaluation.tokens_per_second,
        "decode_tokens_per_second": evaluation.decode_tokens_per_second,
        "prefill_tokens_per_second": evaluation.prefill_tokens_per_second,
        "nvml": evaluation.nvml,
        "kernel": evaluation.kernel,
        "gpu_bytes": evaluation.memory.gpu().0,
        "host_bytes": evaluation.memory.host().0,
        "wrote": wrote,
    }))
}

/// The plan and the machine it names, or the other one that was asked for.
pub fn read(args: &OnPlan) -> anyhow::Result<(Plan, Machine)> {
    let plan = Plan::from_toml(&input::document(&args.plan)?)?;
    let name = args.machine.as_deref().unwrap_or(&plan.machine);
    let machine = input::machine(name).with_context(|| {
        format!(
            "{} was made for the machine `{name}`; name a profile with --machine",
            args.plan.display()
        )
    })?;
    Ok((plan, machine))
}

/// An error about a field of the plan, at its place in the file.
pub fn in_file(args: &OnPlan, error: EvaluateError) -> anyhow::Error {
    match error {
        EvaluateError::Lower(error) | EvaluateError::Memory(error) => {
            match input::document(&args.plan) {
                Ok(document) => anyhow::Error::new(error.in_document(&document)),
                Err(unreadable) => unreadable,
            }
        }
        EvaluateError::Refused(_) | EvaluateError::Simulation(_) => error.into(),
    }
}
