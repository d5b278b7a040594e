//! Everything on the GPU: what a plan looks like when no offload is needed, and what it costs not to have one.

use serde::{Deserialize, Serialize};

use super::LowerError;
use super::frame::Frame;
use super::residency::{Home, Placed};
use super::units::Granularity;
use crate::plan::Plan;
use crate::schedule::{
    Builder, LaneKind, OpKind, Phase, Piece, Program, QueueId, Schedule, Tier, Work,
};

/// The knobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resident {
    /// Whether dequantisation is fused into the products.
    pub fused: bool,
}

impl Default for Resident {
    fn default() -> Self {
        Self { fused: true }
    }
}

struct Computes {
    frame: Frame,
    gpu: QueueId,
}

/// Lowers a plan.
pub fn lower(plan: &Plan, knobs: &Resident) -> Result<Schedule, LowerError> {
    let frame = Frame::new(plan, Granularity::Part, knobs.fused);
    let mut layout = frame.layout();
    let on_gpu = |bytes| Placed::whole(Home { gpu: bytes, ..Home::default() });
    let placed: Vec<Placed> = frame.units.iter().map(|u| on_gpu(u.bytes)).collect();
    frame.allocate_weights(&mut layout, &placed, Tier::Pinned);
    let cache = frame.cache_room() * (plan.batch.count * u64::from(plan.model.layers));
    layout.allocate("KV cache", Tier::Gpu, cache);
    layout.allocate("hidden states", Tier::Gpu, frame.activations());
    layout.allocate("workspace", Tier::Gpu, frame.workspace());
    let gpu = layout.lane_queue(LaneKind::Gpu);
    Ok(Schedule { layout, program: Box::new(Computes { frame, gpu }) })
}

impl Program for Computes {
    fn passes(&self) -> u32 {
        self.frame.passes()
    }

    fn phase(&self, pass: u32) -> Phase {
        self.frame.phase(pass)
    }

    fn emit(&self, pass: u32, out: &mut Builder) {
        for (index, unit) in self.frame.units.iter().enumerate() {
            let number = u16::try_from(index).unwrap_or(u16::MAX);
            for micro in 0..self.frame.micros() {
                for chunk in 0..self.frame.chunks(pass) {
                    let last =
                        index + 1 == self.frame.units.len() && chunk + 1 == self.frame.chunks(pass);
                    let compute = self.frame.compute(unit, pass, chunk, Piece::Whole);
                    let work = out.work(Work::Gpu(compute));
                    let op = out.op(self.gpu, OpKind::Compute, work).unit(number, micro);
                    op.block(chunk).ends_pass(last).emit();
                }
            }
        }
    }
}
