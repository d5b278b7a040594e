//! `pipo emit`: a plan's equivalent settings for an engine that people already use.

use pipo_plan::plan::Plan;
use pipo_tuner::Target;
use serde_json::json;

use crate::cli::{Emit, Engine};
use crate::input;
use crate::output::Printer;

/// Runs the command.
pub fn run(args: &Emit, printer: &Printer) -> anyhow::Result<()> {
    let plan = Plan::from_toml(&input::document(&args.plan)?)?;
    let settings = settings(&plan, args.engine)?;
    printer.line(&settings);
    printer.document(&json!({ "engine": format!("{:?}", args.engine), "settings": settings }))
}

/// The settings as text.
pub fn settings(plan: &Plan, engine: Engine) -> anyhow::Result<String> {
    let target = match engine {
        Engine::LlamaCpp => Target::LlamaCpp,
        Engine::Accelerate => Target::Accelerate,
        Engine::Vllm => Target::Vllm,
        Engine::FlexGen => Target::FlexGen,
        Engine::DeepSpeed => Target::DeepSpeed,
    };
    Ok(pipo_tuner::emit(plan, target)?)
}
