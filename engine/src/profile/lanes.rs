//! How long it takes until a lane notices that what it waited for has ended.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use pipo_plan::schedule::{LaneKind, OpKind};

use super::ProfileError;
use super::probe::{mean, schedule};
use super::sampling::{Middle, Sampler};
use crate::executor::{Backend, Fault, Task, execute};

/// Operations of one sample.
const OPERATIONS: u32 = 64;

/// How long each operation takes: an idle core is let fall asleep.
const WORK: Duration = Duration::from_micros(300);

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
    // Two lanes that wait for each other in turn.
    let schedule = schedule([LaneKind::HostCopy, LaneKind::H2d], |queues, out, work| {
        let mut last = None;
        for _ in 0..OPERATIONS / 2 {
            for queue in queues {
                last = Some(out.op(queue, OpKind::StageWeights, work).after(last).emit());
            }
        }
    });
    sampler.measure("software.handover", "1 operation", || {
        let timeline = execute(&schedule, &Busy, &AtomicBool::new(false))?;
        let gaps = timeline.spans.windows(2).map(|pair| (pair[1].start - pair[0].end).0);
        Ok(mean(&gaps.collect::<Vec<_>>()))
    })
}
