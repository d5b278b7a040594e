//! A plan's resident weights, filled anew for another budget.

use pipo_plan::machine::Machine;
use pipo_plan::memory::{MemoryTable, Overheads};
use pipo_plan::plan::Plan;
use pipo_plan::strategy::pipo::{Embedding, Pipo};
use pipo_plan::strategy::units::cut;
use pipo_plan::strategy::{Strategy, lower};
use pipo_plan::units::Bytes;

use crate::baselines::fill;
use crate::evaluate::{EvaluateError, Fitted};
use crate::fill::Units;
use crate::shape::Cut;

/// The plan with as much resident as its budget holds, all other knobs as they are.
///
/// If nothing can be filled, the plan comes back as it was.
pub(crate) fn refill(plan: &Plan, machine: &Machine) -> Result<Plan, EvaluateError> {
    match &plan.strategy {
        Strategy::Pipo(knobs) => refill_pipo(plan, knobs, machine),
        _ => Ok(fill(plan, machine)?.unwrap_or_else(|| plan.clone())),
    }
}

fn refill_pipo(plan: &Plan, knobs: &Pipo, machine: &Machine) -> Result<Plan, EvaluateError> {
    let with = |knobs: Pipo| Plan { strategy: Strategy::Pipo(knobs), ..plan.clone() };
    let bare = Pipo { gpu_weights: Bytes::ZERO, host_weights: Bytes::ZERO, ..knobs.clone() };
    let memory = |knobs: &Pipo| -> Result<MemoryTable, EvaluateError> {
        let schedule = lower(&with(knobs.clone())).map_err(EvaluateError::Lower)?;
        Ok(MemoryTable::new(&schedule.layout, Overheads::of(machine)))
    };
    let needed = memory(&bare)?;
    let cut_model = Cut::new(plan, knobs.granularity);
    let units = Units {
        all: cut_model.placed_units(knobs.embedding),
        tied_table: cut_model.tied_table(knobs.embedding),
        order: knobs.order,
    };
    let largest = units.all.iter().map(|u| u.bytes).max().unwrap_or(Bytes::ZERO);
    // Without resident weights every slot is as large as the largest unit.
    let slots = largest * u64::from(knobs.gpu_slots);
    // Weights that are filled into host memory later need tables for their pages.
    let total: Bytes = units.all.iter().map(|u| u.bytes).sum();
    let tables = Overheads::of(machine).tables_of(total);
    let room = plan.budget.gpu + slots - needed.gpu() - tables;
    let Some(gpu_weights) = units.fill_gpu(room, knobs.gpu_slots) else { return Ok(plan.clone()) };
    let placed = Pipo { gpu_weights, ..bare };
    let table = match knobs.embedding {
        Embedding::Host | Embedding::Mapped => table_bytes(plan),
        Embedding::Unit => Bytes::ZERO,
    };
    let host_weights = if knobs.host_weights == Bytes::ZERO {
        Bytes::ZERO // all on disk, as it was
    } else {
        let ring = knobs.block.min(largest) * u64::from(knobs.host_slots);
        let staged = knobs.host_memory == pipo_plan::strategy::pipo::HostWeights::Pageable;
        let free = plan.budget.host - memory(&placed)?.host() + ring;
        units.fill_host(gpu_weights, free, ring, staged) + table
    };
    let filled = with(Pipo { host_weights, ..placed });
    Ok(if Fitted::new(&filled, machine).is_ok() { filled } else { plan.clone() })
}

fn table_bytes(plan: &Plan) -> Bytes {
    let units = cut(&plan.model, plan.precision.weights, pipo_plan::strategy::Granularity::Layer);
    units.first().map_or(Bytes::ZERO, |u| u.bytes)
}
