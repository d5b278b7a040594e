//! Schedules that move and compute nothing that matters: how the executor's lanes pass it on is what is
//! measured.

use std::time::Duration;

use pipo_plan::schedule::{
    Builder, LaneKind, Layout, Phase, Program, QueueId, Schedule, Work, WorkId,
};
use pipo_plan::units::Bytes;

/// A program of one pass: what emits it, given a piece of work without bytes.
struct Probe<F>(F);

impl<F: Fn(&mut Builder, WorkId) + Send + Sync> Program for Probe<F> {
    fn passes(&self) -> u32 {
        1
    }

    fn phase(&self, _: u32) -> Phase {
        Phase::Prefill
    }

    fn emit(&self, _: u32, out: &mut Builder) {
        let work = out.work(Work::HostCopy { bytes: Bytes::ZERO });
        self.0(out, work);
    }
}

/// A schedule of one pass with a lane of each kind, whose queues `emit` is given.
pub(super) fn schedule<const N: usize>(
    lanes: [LaneKind; N],
    emit: impl Fn([QueueId; N], &mut Builder, WorkId) + Send + Sync + 'static,
) -> Schedule {
    let mut layout = Layout { units: vec!["nothing".into()], window: 1, ..Layout::default() };
    let queues = lanes.map(|kind| layout.lane_queue(kind));
    let program = Probe(move |out: &mut Builder, work| emit(queues, out, work));
    Schedule { layout, program: Box::new(program) }
}

/// The mean of so many nanoseconds. A run has one after another of them, so that what counts is their sum, rare
/// long ones included: on a virtual machine one in twenty takes ten times as long as most.
pub(super) fn mean(nanos: &[u64]) -> Duration {
    Duration::from_nanos(nanos.iter().sum::<u64>() / (nanos.len() as u64).max(1))
}
