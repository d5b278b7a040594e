//! A plan as settings for engines that people already use.
//!
//! No engine has all of PIPO's knobs, so each text says in comments what it cannot express, and what that
//! engine will do instead. Bytes are what the plan accounts for; an engine's own overheads differ.

use std::fmt::Write;

use pipo_plan::plan::Plan;
use pipo_plan::strategy::LowerError;

mod accelerate;
mod deepspeed;
mod flexgen;
mod llama_cpp;
mod placement;
mod vllm;

use placement::Placement;

/// An engine to write settings for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// llama.cpp's command line.
    LlamaCpp,
    /// Hugging Face Accelerate: a `device_map`.
    Accelerate,
    /// vLLM's command line.
    Vllm,
    /// FlexGen's command line.
    FlexGen,
    /// A DeepSpeed configuration for ZeRO-Inference.
    DeepSpeed,
}

impl Target {
    /// Every target.
    pub const ALL: [Self; 5] =
        [Self::LlamaCpp, Self::Accelerate, Self::Vllm, Self::FlexGen, Self::DeepSpeed];

    /// As typed and printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::LlamaCpp => "llama.cpp",
            Self::Accelerate => "accelerate",
            Self::Vllm => "vllm",
            Self::FlexGen => "flexgen",
            Self::DeepSpeed => "deepspeed",
        }
    }
}

/// Why there are no settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EmitError {
    /// The plan itself is at fault.
    #[error("{path}: {0}", path = .0.path)]
    Lower(LowerError),
    /// The engine cannot run this model at all.
    #[error("{engine} cannot run {model}: {why}; use another engine")]
    Impossible {
        /// The engine.
        engine: &'static str,
        /// The model.
        model: String,
        /// What it lacks.
        why: String,
    },
}

/// Writes a plan's settings for an engine.
pub fn emit(plan: &Plan, target: Target) -> Result<String, EmitError> {
    let placement = Placement::of(plan)?;
    match target {
        Target::LlamaCpp => Ok(llama_cpp::emit(plan, &placement)),
        Target::Accelerate => Ok(accelerate::emit(plan, &placement)),
        Target::Vllm => Ok(vllm::emit(plan, &placement)),
        Target::FlexGen => flexgen::emit(plan, &placement),
        Target::DeepSpeed => Ok(deepspeed::emit(plan, &placement)),
    }
}

/// Comment lines, and then the settings.
fn with_notes(plan: &Plan, notes: &[String], settings: &str) -> String {
    let mut text = format!(
        "# {} by the strategy {} on {}: {} sequences, prompt {}, {} new tokens.\n",
        plan.model.name,
        plan.strategy.name(),
        plan.machine,
        plan.batch.sequences(),
        plan.workload.prompt,
        plan.workload.new_tokens
    );
    for note in notes {
        let _ = writeln!(text, "# {note}");
    }
    text + settings
}

/// A share of a whole in per cent, rounded down so that what is asked for fits.
fn percent(part: u64, whole: u64) -> u64 {
    let exact = u128::from(part) * 100 / u128::from(whole.max(1));
    u64::try_from(exact).unwrap_or(100)
}
