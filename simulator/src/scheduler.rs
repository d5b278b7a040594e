//! Which threads have a host core, where there are more of them than cores.
//!
//! Threads that want a whole core take turns of [`SLICE`], as an operating system has them: who comes when all cores
//! are taken waits until one is free or a turn is over, and then runs at full speed. What they have together is what
//! equal parts would give them, but copies that are shorter than a turn start late instead of running slowly, and
//! fewer threads compete for memory at a time. Threads that want less than a core mostly wait for something else,
//! and an operating system gives them one when they wake; they are not in line here.

use std::collections::VecDeque;

use pipo_plan::units::Nanos;

use crate::share::{Flow, core_share};

/// A turn. Linux gives 0.7 ms times one and the logarithm of the number of CPUs, up to four times that, and ends
/// turns at ticks of up to 4 ms; threads of the engine were seen to wait for 2 to 4 ms on a machine of two cores.
const SLICE: Nanos = Nanos(3_000_000);

/// Rounding of core shares.
const TOLERANCE: f64 = 1e-9;

/// One of the threads of an operation.
#[derive(Debug, Clone, Copy)]
struct Thread {
    lane: usize,
    index: usize,
    /// For how long it has had its core.
    ran: Nanos,
}

/// The cores of a host and who is in line for them.
#[derive(Debug)]
pub(crate) struct Scheduler {
    cores: f64,
    /// Those who run, and then those who wait, in their order.
    line: VecDeque<Thread>,
    /// How many of them run.
    running: usize,
    /// Until when that has been counted.
    since: Nanos,
}

impl Scheduler {
    /// With so many cores.
    pub(crate) fn new(cores: f64) -> Self {
        Self { cores, line: VecDeque::new(), running: 0, since: Nanos::ZERO }
    }

    /// Writes the share of full speed that cores allow each flow from `now` on. A thread of a lane that goes on with
    /// another operation at once keeps its core.
    pub(crate) fn assign(&mut self, flows: &[Flow], now: Nanos, shares: &mut [f64]) {
        if self.cores >= f64::MAX {
            return shares.fill(1.0);
        }
        self.pass(now);
        let part = core_share(flows, self.cores);
        for (share, flow) in shares.iter_mut().zip(flows) {
            let granted = part * flow.threads();
            *share = if granted < flow.cores() { granted / flow.cores() } else { 1.0 };
        }
        self.line.retain(|thread| thread.index < in_line(&flows[thread.lane]));
        for (lane, flow) in flows.iter().enumerate() {
            let present = self.line.iter().filter(|thread| thread.lane == lane).count();
            let new = |index| Thread { lane, index, ran: Nanos::ZERO };
            self.line.extend((present..in_line(flow)).map(new));
        }
        let threads = self.line.len();
        let speed = (part * threads as f64).min(threads as f64);
        // A rest of a core is shared by all who run.
        self.running = (0..=threads).find(|&n| n as f64 >= speed - TOLERANCE).unwrap_or(threads);
        self.end_turns();
        let each = speed / self.running.max(1) as f64;
        for (lane, flow) in flows.iter().enumerate().filter(|(_, flow)| in_line(flow) > 0) {
            let run = self.line.iter().take(self.running).filter(|thread| thread.lane == lane);
            shares[lane] = (each * run.count() as f64 / flow.threads()).min(1.0);
        }
    }

    /// When a turn is over for which somebody waits.
    pub(crate) fn next_turn(&self) -> Option<Nanos> {
        let ends = self.line.iter().take(self.running);
        let ends = ends.map(|thread| self.since + SLICE.saturating_sub(thread.ran).max(Nanos(1)));
        if self.line.len() > self.running { ends.min() } else { None }
    }

    fn pass(&mut self, now: Nanos) {
        let passed = now.saturating_sub(self.since);
        self.since = now;
        self.line.iter_mut().take(self.running).for_each(|thread| thread.ran += passed);
    }

    /// Those who have had their turn go to the end of the line, as far as others wait.
    fn end_turns(&mut self) {
        for _ in 0..self.line.len().saturating_sub(self.running).min(self.running) {
            let over = (0..self.running).find(|&place| self.line[place].ran >= SLICE);
            if let Some(thread) = over.and_then(|place| self.line.remove(place)) {
                self.line.push_back(Thread { ran: Nanos::ZERO, ..thread });
            }
        }
    }
}

/// Threads of a flow that want a whole core each.
fn in_line(flow: &Flow) -> usize {
    let threads = flow.threads();
    // There are as many at most as a machine has cores.
    (0..=4096).find(|&n| n as f64 >= threads).filter(|_| flow.cores() >= threads).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::Cost;

    fn busy(cores: f64) -> Flow {
        Flow::of(&Cost { cores, ..Cost::default() })
    }

    fn shares(scheduler: &mut Scheduler, flows: &[Flow], now: Nanos) -> Vec<f64> {
        let mut shares = vec![0.5; flows.len()];
        scheduler.assign(flows, now, &mut shares);
        shares
    }

    fn assert_close(got: &[f64], want: &[f64]) {
        let near = got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-9);
        assert!(near && got.len() == want.len(), "{got:?} is not {want:?}");
    }

    #[test]
    fn whoever_finds_a_core_has_it() {
        let mut two = Scheduler::new(2.0);
        let flows = [busy(1.0), busy(1.0), Flow::NONE];
        assert_close(&shares(&mut two, &flows, Nanos::ZERO), &[1.0, 1.0, 1.0]);
        assert_eq!(two.next_turn(), None);
        let mut any = Scheduler::new(f64::MAX);
        assert_close(&shares(&mut any, &[busy(64.0), busy(1.0)], Nanos::ZERO), &[1.0, 1.0]);
    }

    #[test]
    fn who_comes_late_waits_for_a_core_or_the_end_of_a_turn() {
        let mut two = Scheduler::new(2.0);
        let (first, both) = ([busy(2.0), Flow::NONE], [busy(2.0), busy(1.0)]);
        assert_close(&shares(&mut two, &first, Nanos(0)), &[1.0, 1.0]);
        assert_close(&shares(&mut two, &both, Nanos(1_000_000)), &[1.0, 0.0]);
        // Both threads' turns end at once; one of them has nobody to give way to.
        assert_eq!(two.next_turn(), Some(SLICE));
        assert_close(&shares(&mut two, &both, SLICE), &[0.5, 1.0]);
        // A core that becomes free is taken at once.
        let mut two = Scheduler::new(2.0);
        assert_close(&shares(&mut two, &[busy(2.0), busy(1.0)], Nanos(0)), &[1.0, 0.0]);
        assert_close(&shares(&mut two, &[Flow::NONE, busy(1.0)], Nanos(1000)), &[1.0, 1.0]);
    }

    #[test]
    fn a_lane_that_goes_on_keeps_its_core() {
        let mut one = Scheduler::new(1.0);
        let flows = [busy(1.0), busy(1.0)];
        for now in 0..3 {
            // Each time another operation; nothing tells them apart here.
            assert_close(&shares(&mut one, &flows, Nanos(now * 1_000_000)), &[1.0, 0.0]);
        }
        assert_close(&shares(&mut one, &flows, SLICE), &[0.0, 1.0]);
    }

    #[test]
    fn what_wants_less_than_a_core_gets_it_and_the_others_share_the_rest() {
        let mut two = Scheduler::new(2.0);
        let flows = [busy(0.2), busy(2.0), busy(1.0)];
        // 1.8 cores for three threads: two run, at nine tenths each.
        assert_close(&shares(&mut two, &flows, Nanos(0)), &[1.0, 0.9, 0.0]);
        assert_close(&shares(&mut two, &flows, SLICE), &[1.0, 0.45, 0.9]);
    }

    /// Over many turns each thread has had an equal part of the cores, however many there are of both.
    #[test]
    fn in_the_long_run_parts_are_equal() {
        for cores in 1..5_u32 {
            for threads in 1..9_usize {
                let mut scheduler = Scheduler::new(f64::from(cores));
                let flows = vec![busy(1.0); threads];
                let mut had = vec![0.0; threads];
                let mut now = Nanos::ZERO;
                for _ in 0..threads * 20 {
                    let shares = shares(&mut scheduler, &flows, now);
                    assert!(shares.iter().sum::<f64>() <= f64::from(cores) + 1e-9);
                    had.iter_mut().zip(&shares).for_each(|(had, share)| *had += share);
                    now += SLICE;
                }
                let (least, most) = (
                    had.iter().copied().fold(f64::MAX, f64::min),
                    had.iter().copied().fold(0.0, f64::max),
                );
                assert!(most - least <= 1.0 + 1e-9, "{cores} cores, {threads} threads: {had:?}");
            }
        }
    }
}
