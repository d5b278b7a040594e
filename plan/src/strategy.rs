//! Strategies: each a way of turning a plan into a schedule.
//!
//! A strategy is one file with two things in it: the knobs a plan may turn, and a function that lowers
//! them through the shared pieces here. A new system adds a file, a variant of [`Strategy`] and nothing
//! else.
//!
//! | piece | what it does |
//! |---|---|
//! | [`units`] | cuts the model into what is loaded and computed as one |
//! | [`residency`] | decides which units stay on the GPU and in host memory |
//! | [`shapes`] | the arithmetic of a unit for a number of rows |
//! | [`routing`] | which experts a pass needs |
//! | [`stream`] | reads and loads a unit's weights block by block through bounded slots |
//! | [`frame`] | what all of these share for one plan |

use serde::{Deserialize, Serialize};

use crate::plan::Plan;
use crate::schedule::Schedule;

pub mod accelerate;
pub mod cpu_split;
pub mod endor;
pub mod flexgen;
pub mod frame;
pub mod headinfer;
mod launches;
mod passes;
pub mod pipo;
pub mod residency;
pub mod resident;
pub mod routing;
pub mod shapes;
pub mod stream;
pub mod units;

pub use residency::Order;
pub use units::Granularity;

/// Where the KV cache, or the part of it that is not on the GPU, lives.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum KvTier {
    /// On the GPU.
    #[default]
    Gpu,
    /// In pinned host memory.
    Host,
    /// On disk.
    Disk,
}

/// Which processor does something.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Processor {
    /// The GPU.
    #[default]
    Gpu,
    /// The CPU.
    Cpu,
}

/// A strategy with its knobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Strategy {
    /// Pipelined offloading after PIPO.
    Pipo(pipo::Pipo),
    /// FlexGen's zig-zag schedule.
    FlexGen(flexgen::FlexGen),
    /// Hugging Face Accelerate's hooks.
    Accelerate(accelerate::Accelerate),
    /// Everything on the GPU.
    Resident(resident::Resident),
    /// The first layers on the GPU, the rest computed by the CPU.
    CpuSplit(cpu_split::CpuSplit),
    /// Head-wise KV offloading.
    HeadInfer(headinfer::HeadInfer),
    /// Compressed weights expanded on the GPU.
    Endor(endor::Endor),
}

/// A plan that says something a strategy cannot do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}; {help}")]
pub struct LowerError {
    /// Path of the field in the plan file, such as `pipo.gpu_slots`.
    pub path: &'static str,
    /// What is wrong, with both values.
    pub message: String,
    /// What to do next.
    pub help: &'static str,
}

impl LowerError {
    /// An error about a field.
    pub fn new(path: &'static str, message: impl Into<String>, help: &'static str) -> Self {
        Self { path, message: message.into(), help }
    }
}

impl Strategy {
    /// Every name, in the order in which baselines are listed.
    pub const NAMES: [&'static str; 7] =
        ["pipo", "flexgen", "accelerate", "resident", "cpu-split", "headinfer", "endor"];

    /// As typed and printed.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pipo(_) => "pipo",
            Self::FlexGen(_) => "flexgen",
            Self::Accelerate(_) => "accelerate",
            Self::Resident(_) => "resident",
            Self::CpuSplit(_) => "cpu-split",
            Self::HeadInfer(_) => "headinfer",
            Self::Endor(_) => "endor",
        }
    }
}

/// Lowers a plan to the schedule that both executors read. Pure and deterministic.
pub fn lower(plan: &Plan) -> Result<Schedule, LowerError> {
    plan.check_counts()?;
    let schedule = match &plan.strategy {
        Strategy::Pipo(knobs) => pipo::lower(plan, knobs),
        Strategy::FlexGen(knobs) => flexgen::lower(plan, knobs),
        Strategy::Accelerate(knobs) => accelerate::lower(plan, knobs),
        Strategy::Resident(knobs) => resident::lower(plan, knobs),
        Strategy::CpuSplit(knobs) => cpu_split::lower(plan, knobs),
        Strategy::HeadInfer(knobs) => headinfer::lower(plan, knobs),
        Strategy::Endor(knobs) => endor::lower(plan, knobs),
    }?;
    let units = schedule.layout.units.len();
    if units > usize::from(u16::MAX) {
        let message = format!("the model would be cut into {units} units, 65535 are possible");
        return Err(LowerError::new("model.layers", message, "cut it into larger units"));
    }
    Ok(schedule)
}
