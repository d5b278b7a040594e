//! How long it takes until a lane notices that what it waited for has ended.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use pipo_plan::schedule::{
    Builder, LaneKind, Layout, OpKind, Phase, Program, QueueId, Schedule, Work,
};
use pipo_plan::units::Bytes;

use super::ProfileError;
use super::sampling::{Middle, Sampler};
use crate::executor::{Backend, Fault, Task, execute};

/// Operations of one sample.
const OPERATIONS: u32 = 64;

/// How long each operation takes: an idle core is let fall asleep.
const WORK: Duration = Duration::from_micros(300);

/// Two lanes that wait for each other in turn.
struct PingPong(Vec<QueueId>);

impl Program for PingPong {
    fn passes(&self) -> u32 {
        1
    }

    fn phase(&self, _: u32) -> Phase {
        Phase::Prefill
    }

    fn emit(&self, _: u32, out: &mut Builder) {
        let work = out.work(Work::HostCopy { bytes: Bytes::ZERO });
        let mut last = None;
        for _ in 0..OPERATIONS / 2 {
            for &queue in &self.0 {
                last = Some(out.op(queue, OpKind::StageWeights, work).after(last).emit());
            }
        }
    }
}

/// Keeps its core busy for a while.
struct Busy;

impl Backend for Busy {
    fn perform(&self, _: &Task) -> Result<(), Fault> {
        let start = Instant::now();
        while start.elapsed() < WORK {
            std::hint::spin_loop();
        }
        Ok(())
    }
}

/// From the end of an operation to the start of the one on another lane that waited for it.
pub(super) fn handover(sampler: &mut Sampler) -> Result<Middle, ProfileError> {
    let mut layout = Layout { units: vec!["nothing".into()], window: 1, ..Layout::default() };
    let queues = [LaneKind::HostCopy, LaneKind::H2d].map(|kind| layout.lane_queue(kind));
    let schedule = Schedule { layout, program: Box::new(PingPong(queues.to_vec())) };
    let schedule = Arc::new(schedule);
    sampler.measure("software.handover", "1 operation", || {
        let timeline = execute(&schedule, &Busy, &AtomicBool::new(false))?;
        let gaps = timeline.spans.windows(2).map(|pair| pair[1].start - pair[0].end);
        let mut gaps: Vec<u64> = gaps.map(|gap| gap.0).collect();
        gaps.sort_unstable();
        Ok(Duration::from_nanos(gaps.get(gaps.len() / 2).copied().unwrap_or_default()))
    })
}
