//! Plans for other prompts than they were made for, and for who has none.

use pipo_plan::memory::{MemoryTable, Overheads};
use pipo_plan::model::Precision;
use pipo_plan::plan::{Batching, Plan, Precisions};
use pipo_plan::strategy::resident::Resident;
use pipo_plan::strategy::{LowerError, Strategy, lower};
use pipo_plan::units::{Bytes, LIMIT};
use pipo_plan::workload::{Budget, Objective, Workload};

use crate::store::Store;

/// What a plan is to be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Prompt tokens of each sequence.
    pub prompt: u64,
    /// Sequences.
    pub sequences: u64,
    /// New tokens of each.
    pub new_tokens: u64,
}

/// The plan for other prompts: the same strategy and knobs, in no more than the plan's budget.
///
/// Micro-batches keep their size where there are enough sequences. Where they cannot be shared out
/// evenly the plan has a few more sequences than are wanted: see [`Batching::sequences`].
///
/// # Errors
///
/// What does not fit the model's context or the plan's budget.
pub fn adapt(plan: &Plan, wanted: Wanted) -> Result<Plan, LowerError> {
    let mut adapted = plan.clone();
    adapted.workload.prompt = wanted.prompt;
    adapted.workload.new_tokens = wanted.new_tokens;
    if wanted.sequences != plan.batch.sequences() {
        let count = wanted.sequences.div_ceil(plan.batch.micro.max(1)).max(1);
        let micro = wanted.sequences.div_ceil(count);
        adapted.batch = Batching { micro, count, ..plan.batch };
        adapted.workload.batch = plan.workload.batch.map(|_| adapted.batch.sequences());
    }
    if adapted != *plan {
        // They were made for another request.
        adapted.prediction = None;
        adapted.runners_up.clear();
    }
    let layout = lower(&adapted)?.layout;
    // This backend has no context of its own on a device.
    let none = Overheads::default();
    MemoryTable::new(&layout, none).check(&adapted)?;
    Ok(adapted)
}

/// The plan that keeps everything on the device, whatever that takes.
pub fn resident(store: &Store, wanted: Wanted) -> Plan {
    let all = Bytes(LIMIT);
    Plan {
        machine: "this one".into(),
        profile: String::new(),
        seed: 0,
        workload: Workload {
            prompt: wanted.prompt,
            new_tokens: wanted.new_tokens,
            batch: Some(wanted.sequences),
            objective: Objective::Throughput,
            token_within: None,
        },
        budget: Budget { gpu: all, host: all, disk: all },
        precision: Precisions { weights: store.precision(), kv: Precision::Fp16 },
        batch: Batching::single(wanted.sequences),
        strategy: Strategy::Resident(Resident::default()),
        model: store.model().clone(),
        prediction: None,
        runners_up: Vec::new(),
    }
}
