//! How long it takes until a thread of the host notices what a GPU has done, and until the GPU begins what a
//! thread has only then issued.

#![allow(unsafe_code, reason = "copies to a GPU are calls of a C interface")]

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use pipo_kernels::cuda::{Kernels, Region};
use pipo_plan::schedule::{
    Builder, LaneKind, Layout, OpKind, Phase, Program, QueueId, Schedule, Work,
};
use pipo_plan::timeline::Timeline;
use pipo_plan::units::Bytes;

use super::super::ProfileError;
use super::super::sampling::{Middle, Sampler};
use crate::cuda::Queues;
use crate::cuda::driver::{Context, Stream};
use crate::executor::{Backend, Fault, Interval, Queue, Task, execute};

/// Rounds of one sample.
const ROUNDS: u32 = 32;

/// Launches of one operation: those of a layer.
const LAUNCHES: usize = 10;

/// Bytes of a copy: idle cores are let fall asleep meanwhile.
pub(super) const COPIED: usize = 16 << 20;

/// What happens between a GPU and threads of the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crossings {
    /// From the end of an operation of the GPU to the start of a thread's that waited for it.
    pub(crate) notice: Middle,
    /// From the end of a thread's operation to the start of one of the GPU that waited for it.
    pub(crate) submit: Middle,
    /// An operation of a thread that does nothing.
    pub(crate) nothing: Middle,
}

/// What is computed with, and copied.
pub(super) struct Bench<'a> {
    pub(super) context: &'a Context,
    pub(super) kernels: &'a Kernels,
    /// Copied to, and added to.
    pub(super) to: Region,
    pub(super) numbers: Region,
    /// Pinned.
    pub(super) from: &'a [u8],
}

/// Like the barriers of a baseline: a copy and a computation, a thread that waits for both, and again.
struct Rounds {
    copies: QueueId,
    kernels: QueueId,
    host: QueueId,
}

impl Program for Rounds {
    fn passes(&self) -> u32 {
        1
    }

    fn phase(&self, _: u32) -> Phase {
        Phase::Prefill
    }

    fn emit(&self, _: u32, out: &mut Builder) {
        let work = out.work(Work::HostCopy { bytes: Bytes::ZERO });
        for _ in 0..ROUNDS {
            // The copy lasts: it is what the thread waits for last.
            out.op(self.kernels, OpKind::Compute, work).emit();
            out.op(self.copies, OpKind::LoadWeights, work).emit();
            out.barrier(self.host, 0, 0);
        }
    }
}

/// The GPU as the CUDA backend uses it, with as little to do.
struct Device<'a> {
    bench: &'a Bench<'a>,
    queues: Queues,
}

impl Device<'_> {
    fn work(&self, kind: OpKind, stream: &Stream) -> Result<(), Fault> {
        let Bench { kernels, to, numbers, from, .. } = *self.bench;
        if kind == OpKind::LoadWeights {
            // SAFETY: the memory outlives the run, at whose end the device is waited for.
            return unsafe { stream.upload(from, to) };
        }
        (0..LAUNCHES).try_for_each(|_| Ok(kernels.add(stream.raw(), numbers, numbers, 8)?))
    }
}

impl Backend for Device<'_> {
    fn perform(&self, task: &Task) -> Result<(), Fault> {
        self.bench.context.enter()?;
        if self.queues.stream(task).is_none() {
            return Ok(());
        }
        self.queues.issue(task, |stream| self.work(task.op.kind, stream))
    }

    fn queue(&self, lane: LaneKind) -> Option<&dyn Queue> {
        lane.is_of_gpu().then_some(self)
    }
}

impl Queue for Device<'_> {
    fn wait(&self, task: &Task) -> Result<Interval, Fault> {
        self.bench.context.enter()?;
        self.queues.wait(task)
    }
}

/// Measures through the executor: its threads are part of what is measured.
pub(super) fn crossings(sampler: &mut Sampler, bench: &Bench) -> Result<Crossings, ProfileError> {
    let mut layout = Layout { units: vec!["nothing".into()], window: 1, ..Layout::default() };
    let [copies, kernels, host] =
        [LaneKind::H2d, LaneKind::Gpu, LaneKind::Host].map(|kind| layout.lane_queue(kind));
    let schedule = Schedule { layout, program: Box::new(Rounds { copies, kernels, host }) };
    let mut once = |figure: &str, of: fn(&Timeline) -> Vec<u64>| {
        sampler.measure(figure, "1 operation", || {
            let device = Device { bench, queues: Queues::new(&schedule.layout, None)? };
            let ran = execute(&schedule, &device, &AtomicBool::new(false));
            bench.context.synchronise()?;
            let mut times = of(&ran?);
            times.sort_unstable();
            let middle = times.get(times.len() / 2).copied().unwrap_or_default();
            Ok::<_, ProfileError>(Duration::from_nanos(middle))
        })
    };
    Ok(Crossings {
        notice: once("software.notice", noticed)?,
        submit: once("software.submit", submitted)?,
        nothing: once("software.barrier", nothing)?,
    })
}

/// From the end of each copy to the start of the barrier behind it.
fn noticed(timeline: &Timeline) -> Vec<u64> {
    between(timeline, OpKind::LoadWeights, OpKind::Barrier)
}

/// From the end of each barrier to the start of the copy behind it.
fn submitted(timeline: &Timeline) -> Vec<u64> {
    between(timeline, OpKind::Barrier, OpKind::LoadWeights)
}

fn nothing(timeline: &Timeline) -> Vec<u64> {
    let barriers = timeline.spans.iter().filter(|span| span.kind == OpKind::Barrier);
    barriers.map(|span| (span.end - span.start).0).collect()
}

/// From the end of each operation of one kind to the start of the next of another.
fn between(timeline: &Timeline, first: OpKind, then: OpKind) -> Vec<u64> {
    let mut of_both: Vec<_> =
        timeline.spans.iter().filter(|span| span.kind == first || span.kind == then).collect();
    of_both.sort_unstable_by_key(|span| span.op);
    let pairs = of_both.windows(2).filter(|pair| pair[0].kind == first && pair[1].kind == then);
    pairs.map(|pair| pair[1].start.saturating_sub(pair[0].end).0).collect()
}

#[cfg(test)]
mod tests {
    use pipo_plan::schedule::{LaneId, OpId};
    use pipo_plan::timeline::{Blame, Span};
    use pipo_plan::units::Nanos;

    use super::*;

    #[test]
    fn times_between_are_taken_from_pairs_in_program_order() {
        let span = |op: u32, kind, start, end| Span {
            op: OpId(op),
            lane: LaneId(0),
            kind,
            pass: 0,
            unit: 0,
            micro: 0,
            block: 0,
            start: Nanos(start),
            end: Nanos(end),
            bytes: Bytes::ZERO,
            gpu_permille: 0,
            blame: Blame::Start,
        };
        let spans = vec![
            span(1, OpKind::LoadWeights, 5, 100),
            span(0, OpKind::Compute, 6, 20),
            span(2, OpKind::Barrier, 130, 132),
            span(3, OpKind::Compute, 150, 160),
            span(4, OpKind::LoadWeights, 172, 300),
            span(5, OpKind::Barrier, 325, 328),
        ];
        let end = Nanos(328);
        let timeline = Timeline { layout: Layout::default(), spans, passes: Vec::new(), end };
        assert_eq!(noticed(&timeline), [30, 25]);
        assert_eq!(submitted(&timeline), [40]);
        assert_eq!(nothing(&timeline), [2, 3]);
    }
}
