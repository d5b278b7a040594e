//! How long it takes until a thread of the host notices what a GPU has done, until the GPU begins what a
//! thread has only then issued, or what waited in another of its queues, and how fast a thread issues one
//! operation behind another.

#![allow(unsafe_code, reason = "copies to a GPU are calls of a C interface")]

use std::sync::atomic::AtomicBool;

use pipo_kernels::cuda::{Kernels, Region};
use pipo_plan::schedule::{LaneKind, OpKind, Schedule};
use pipo_plan::timeline::{Span, Timeline};
use pipo_plan::units::Nanos;

use super::super::ProfileError;
use super::super::probe::{mean, schedule};
use super::super::sampling::{Middle, Sampler};
use crate::cuda::Queues;
use crate::cuda::driver::{Context, Stream};
use crate::executor::{Backend, Fault, Interval, Queue, Task, execute};

/// Rounds of one sample: enough to have some of those that take long.
const ROUNDS: u32 = 128;

/// Copies of one sample that follow each other.
const COPIES: u32 = 256;

/// Bytes of such a copy: the device is done with it before the next one is issued.
const SMALL: usize = 4 << 10;

/// Kernels and copies of one sample that wait for each other in turn.
const TURNS: u32 = 64;

/// Launches of one operation: those of a layer.
pub(super) const LAUNCHES: usize = 10;

/// Bytes of a copy: idle cores are let fall asleep meanwhile.
pub(super) const COPIED: usize = 16 << 20;

/// What happens between a GPU and threads of the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crossings {
    /// From the end of an operation of the GPU to the start of a thread's that waited for it.
    pub(crate) notice: Middle,
    /// From the end of a thread's operation to the start of one of the GPU that waited for it.
    pub(crate) submit: Middle,
    /// From the end of a kernel to the end of a small copy that waited for it on the device.
    pub(crate) followed: Middle,
    /// From the end of a small copy to the end of the next one that was queued behind it.
    pub(crate) issue: Middle,
    /// An operation of a thread that does nothing.
    pub(crate) nothing: Middle,
}

/// What is computed with, and copied.
#[derive(Clone, Copy)]
pub(super) struct Bench<'a> {
    pub(super) context: &'a Context,
    pub(super) kernels: &'a Kernels,
    /// Copied to, and added to.
    pub(super) to: Region,
    pub(super) numbers: Region,
    /// Pinned.
    pub(super) from: &'a [u8],
    /// Kernels of one computation.
    pub(super) launches: usize,
}

/// The GPU as the CUDA backend uses it, with as little to do.
struct Device<'a> {
    bench: &'a Bench<'a>,
    queues: Queues,
}

impl Device<'_> {
    fn work(&self, kind: OpKind, stream: &Stream) -> Result<(), Fault> {
        let Bench { kernels, to, numbers, from, launches, .. } = *self.bench;
        if kind == OpKind::LoadWeights {
            // SAFETY: the memory outlives the run, at whose end the device is waited for.
            return unsafe { stream.upload(from, to) };
        }
        (0..launches).try_for_each(|_| Ok(kernels.add(stream.raw(), numbers, numbers, 8)?))
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
    // Like the barriers of a baseline: a copy and a computation, a thread that waits for both, and again.
    let lanes = [LaneKind::H2d, LaneKind::Gpu, LaneKind::Host];
    let rounds = schedule(lanes, |[copies, kernels, host], out, work| {
        for _ in 0..ROUNDS {
            // The copy lasts: it is what the thread waits for last.
            out.op(kernels, OpKind::Compute, work).emit();
            out.op(copies, OpKind::LoadWeights, work).emit();
            out.barrier(host, 0, 0);
        }
    });
    // A kernel and a small copy in turn, each of which waits for the one before it: on the device, for all of
    // them are issued in time.
    let in_turn = schedule([LaneKind::H2d, LaneKind::Gpu], |[copies, kernels], out, work| {
        let mut last = None;
        for _ in 0..TURNS {
            let kernel = out.op(kernels, OpKind::Compute, work).after(last).emit();
            last = Some(out.op(copies, OpKind::LoadWeights, work).after(kernel).emit());
        }
    });
    // Like the loads of small tensors: copies that wait for nothing but each other.
    let in_a_row = schedule([LaneKind::H2d], |[copies], out, work| {
        for _ in 0..COPIES {
            out.op(copies, OpKind::LoadWeights, work).emit();
        }
    });
    let to = bench.to.slice(0, SMALL as u64).map_err(Fault::from)?;
    let from = &bench.from[..SMALL.min(bench.from.len())];
    let small = Bench { to, from, launches: 1, ..*bench };
    Ok(Crossings {
        notice: once(sampler, "software.notice", bench, &rounds, noticed)?,
        submit: once(sampler, "software.submit", bench, &rounds, submitted)?,
        followed: once(sampler, "software.follow", &small, &in_turn, followed)?,
        issue: once(sampler, "software.issue", &small, &in_a_row, issued)?,
        nothing: once(sampler, "software.barrier", bench, &rounds, nothing)?,
    })
}

/// The mean of the times that `of` reads off each run of a schedule.
fn once(
    sampler: &mut Sampler,
    figure: &str,
    bench: &Bench,
    schedule: &Schedule,
    of: fn(&Timeline) -> Vec<u64>,
) -> Result<Middle, ProfileError> {
    sampler.measure(figure, "1 operation", || {
        let device = Device { bench, queues: Queues::new(&schedule.layout, None)? };
        let ran = execute(schedule, &device, &AtomicBool::new(false));
        bench.context.synchronise()?;
        Ok(mean(&of(&ran?)))
    })
}

/// From the end of each copy to the start of the barrier behind it.
fn noticed(timeline: &Timeline) -> Vec<u64> {
    between(timeline, OpKind::LoadWeights, OpKind::Barrier, |barrier| barrier.start)
}

/// From the end of each barrier to the start of the copy behind it.
fn submitted(timeline: &Timeline) -> Vec<u64> {
    between(timeline, OpKind::Barrier, OpKind::LoadWeights, |copy| copy.start)
}

/// From the end of each kernel to the end of the copy behind it.
fn followed(timeline: &Timeline) -> Vec<u64> {
    between(timeline, OpKind::Compute, OpKind::LoadWeights, |copy| copy.end)
}

/// From the end of each copy to the end of the next.
fn issued(timeline: &Timeline) -> Vec<u64> {
    let copies = timeline.spans.iter().filter(|span| span.kind == OpKind::LoadWeights);
    let mut copies: Vec<_> = copies.collect();
    copies.sort_unstable_by_key(|span| span.op);
    copies.windows(2).map(|pair| pair[1].end.saturating_sub(pair[0].end).0).collect()
}

fn nothing(timeline: &Timeline) -> Vec<u64> {
    let barriers = timeline.spans.iter().filter(|span| span.kind == OpKind::Barrier);
    barriers.map(|span| (span.end - span.start).0).collect()
}

/// From the end of each operation of one kind to a time of the next, where that is of another.
fn between(
    timeline: &Timeline,
    first: OpKind,
    then: OpKind,
    until: fn(&Span) -> Nanos,
) -> Vec<u64> {
    let mut of_both: Vec<_> =
        timeline.spans.iter().filter(|span| span.kind == first || span.kind == then).collect();
    of_both.sort_unstable_by_key(|span| span.op);
    let pairs = of_both.windows(2).filter(|pair| pair[0].kind == first && pair[1].kind == then);
    pairs.map(|pair| until(pair[1]).saturating_sub(pair[0].end).0).collect()
}

#[cfg(test)]
mod tests {
    use pipo_plan::schedule::{LaneId, Layout, OpId};
    use pipo_plan::timeline::Blame;
    use pipo_plan::units::Bytes;

    use super::*;

    fn timeline(spans: &[(u32, OpKind, u64, u64)]) -> Timeline {
        let span = |&(op, kind, start, end): &(u32, OpKind, u64, u64)| Span {
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
        let spans: Vec<Span> = spans.iter().map(span).collect();
        let end = spans.iter().map(|span| span.end).max().unwrap_or_default();
        let (layout, passes) = (Layout::default(), Vec::new());
        Timeline { layout, spans, passes, end, readings: Vec::new() }
    }

    #[test]
    fn times_between_are_taken_from_pairs_in_program_order() {
        let timeline = timeline(&[
            (1, OpKind::LoadWeights, 5, 100),
            (0, OpKind::Compute, 6, 20),
            (2, OpKind::Barrier, 130, 132),
            (3, OpKind::Compute, 150, 160),
            (4, OpKind::LoadWeights, 172, 300),
            (5, OpKind::Barrier, 325, 328),
        ]);
        assert_eq!(noticed(&timeline), [30, 25]);
        assert_eq!(submitted(&timeline), [40]);
        assert_eq!(nothing(&timeline), [2, 3]);
    }

    #[test]
    fn what_follows_is_timed_from_one_end_to_the_other() {
        // A copy counts from the end of what it waited for, and the kernel behind it likewise.
        let timeline = timeline(&[
            (0, OpKind::Compute, 0, 5),
            (1, OpKind::LoadWeights, 5, 21),
            (2, OpKind::Compute, 21, 40),
            (3, OpKind::LoadWeights, 40, 58),
        ]);
        assert_eq!(followed(&timeline), [16, 18]);
    }

    #[test]
    fn copies_in_a_row_are_timed_from_end_to_end() {
        // The second waited for in its queue, the third issued late.
        let timeline = timeline(&[
            (1, OpKind::LoadWeights, 104, 111),
            (0, OpKind::LoadWeights, 100, 104),
            (2, OpKind::LoadWeights, 120, 124),
        ]);
        assert_eq!(issued(&timeline), [7, 13]);
    }
}
