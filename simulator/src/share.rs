//! Max-min fair division of the bandwidths that operations share, by progressive filling, once it is known what part
//! of its speed each has host cores for.

use crate::cost::{Capacities, Cost, Resource};

/// What one running operation asks for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Flow {
    /// Bytes per nanosecond at full speed; zero for an idle lane.
    payload: f64,
    /// Bytes of each resource for each byte of payload.
    draw: [f64; Resource::COUNT],
    /// `draw` times `payload`: what it takes at full speed.
    demand: [f64; Resource::COUNT],
    /// Host cores at full speed.
    cores: f64,
}

impl Flow {
    /// An idle lane.
    pub(crate) const NONE: Self = Self {
        payload: 0.0,
        draw: [0.0; Resource::COUNT],
        demand: [0.0; Resource::COUNT],
        cores: 0.0,
    };

    /// What an operation of this cost asks for; one that draws on nothing is not a flow.
    pub(crate) fn of(cost: &Cost) -> Self {
        let Cost { payload, draw, cores, .. } = *cost;
        if draw.iter().all(|&d| d <= 0.0) {
            return Self { cores, ..Self::NONE };
        }
        Self { payload, draw, demand: draw.map(|d| d * payload), cores }
    }

    /// Whether it draws on anything.
    pub(crate) fn is_some(&self) -> bool {
        self.payload > 0.0 || self.cores > 0.0
    }

    /// Threads that want to run: each gets an equal part of the cores in the long run.
    pub(crate) fn threads(&self) -> f64 {
        self.cores.ceil()
    }

    /// Host cores that they keep busy at full speed.
    pub(crate) fn cores(&self) -> f64 {
        self.cores
    }
}

/// Rounding of the filling itself; far below a nanosecond in any run.
const TOLERANCE: f64 = 1e-9;

/// Whether all flows fit at full speed: the common case, answered without filling.
pub(crate) fn fits(flows: &[Flow], capacity: &Capacities) -> bool {
    let mut total = [0.0; Resource::COUNT];
    let mut cores = 0.0;
    for flow in flows {
        for (sum, demand) in total.iter_mut().zip(flow.demand) {
            *sum += demand;
        }
        cores += flow.cores;
    }
    let within = |sum: f64, limit: f64| sum <= limit * (1.0 + TOLERANCE);
    within(cores, capacity.cores())
        && total.iter().zip(capacity.rates()).all(|(&sum, &limit)| within(sum, limit))
}

/// Writes each flow's share of its own full speed, at most 1, into `rates`.
///
/// `limits` are the shares that host cores allow, because a thread that does not run moves nothing. All payload rates
/// rise together from zero. A flow stops at the speed that its cores allow, or when a resource that it
/// draws on is used up. No flow could then go faster without slowing one that is not faster than
/// itself: the max-min fair division, and the only one. Each round stops at least one flow. Cores that
/// a flow leaves idle because a bandwidth stops it are not given to others.
pub(crate) fn fill(flows: &[Flow], limits: &[f64], capacity: &Capacities, rates: &mut [f64]) {
    const RISING: f64 = -1.0;
    for ((rate, flow), limit) in rates.iter_mut().zip(flows).zip(limits) {
        *rate = if flow.payload > 0.0 { RISING } else { *limit };
    }
    let mut slack = *capacity.rates();
    let mut level = 0.0;
    while rates.iter().any(|&r| r < 0.0) {
        let mut pull = [0.0; Resource::COUNT];
        let mut step = f64::MAX;
        for ((flow, limit), _) in flows.iter().zip(limits).zip(&*rates).filter(|(_, r)| **r < 0.0) {
            step = step.min(flow.payload * limit - level);
            for (sum, draw) in pull.iter_mut().zip(flow.draw) {
                *sum += draw;
            }
        }
        for (slack, pull) in slack.iter().zip(pull).filter(|(_, pull)| *pull > 0.0) {
            step = step.min(slack / pull);
        }
        level += step.max(0.0);
        for (slack, pull) in slack.iter_mut().zip(pull) {
            *slack -= pull * step.max(0.0);
        }
        let used_up: [bool; Resource::COUNT] =
            std::array::from_fn(|r| slack[r] <= capacity.rates()[r] * TOLERANCE);
        let rising = flows.iter().zip(limits).zip(&mut *rates).filter(|(_, r)| **r < 0.0);
        for ((flow, limit), rate) in rising {
            if level >= flow.payload * limit * (1.0 - TOLERANCE) {
                *rate = *limit;
            } else if flow.draw.iter().zip(used_up).any(|(&draw, gone)| draw > 0.0 && gone) {
                *rate = level / flow.payload;
            }
        }
    }
}

/// The part of a core that each thread gets which wants at least so much: those that want less leave the
/// rest to the others, as the scheduler of an operating system does.
pub(crate) fn core_share(flows: &[Flow], cores: f64) -> f64 {
    let mut share = 0.0;
    loop {
        let wants_less = |flow: &&Flow| flow.cores <= share * flow.threads();
        let modest: f64 = flows.iter().filter(wants_less).map(|flow| flow.cores).sum();
        let greedy = flows.iter().filter(|flow| !wants_less(flow));
        let threads: f64 = greedy.map(Flow::threads).sum();
        if threads <= 0.0 {
            return f64::MAX;
        }
        let next = (cores - modest) / threads;
        // The share only grows, each time past at least one flow, until it stays.
        if next <= share {
            return share;
        }
        share = next;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flow(payload: f64, draw: [f64; Resource::COUNT]) -> Flow {
        Flow::of(&Cost { payload, draw, ..Cost::default() })
    }

    fn capacities(rates: [f64; Resource::COUNT]) -> Capacities {
        Resource::ALL.iter().zip(rates).fold(Capacities::UNLIMITED, |c, (&r, rate)| c.with(r, rate))
    }

    fn rates(flows: &[Flow], capacity: [f64; Resource::COUNT]) -> Vec<f64> {
        shares(flows, &capacities(capacity))
    }

    fn shares(flows: &[Flow], capacity: &Capacities) -> Vec<f64> {
        let mut rates = vec![0.0; flows.len()];
        fill(flows, &vec![1.0; flows.len()], capacity, &mut rates);
        rates
    }

    fn assert_close(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < 1e-12, "{got:?} is not {want:?}");
        }
    }

    #[test]
    fn equal_flows_share_equally() {
        let f = flow(10.0, [1.0, 0.0, 0.0, 0.0]);
        assert_close(&rates(&[f, f], [15.0, 1.0, 1.0, 1.0]), &[0.75, 0.75]);
        assert!(!fits(&[f, f], &capacities([15.0, 1.0, 1.0, 1.0])));
        assert!(fits(&[f, f], &capacities([20.0, 1.0, 1.0, 1.0])));
    }

    #[test]
    fn a_slow_flow_leaves_its_share_to_the_others() {
        let flows = [2.0, 8.0, 20.0].map(|p| flow(p, [0.0, 1.0, 0.0, 0.0]));
        // 2 at full speed, the remaining 12 split as 6 and 6.
        let got = rates(&flows, [1.0, 14.0, 1.0, 1.0]);
        assert_close(&got, &[1.0, 0.75, 0.3]);
    }

    #[test]
    fn a_flow_that_draws_twice_rises_at_the_same_payload_rate() {
        let copy = flow(10.0, [0.0, 0.0, 2.0, 0.0]);
        let dma = flow(10.0, [1.0, 0.0, 1.0, 0.0]);
        assert_close(&rates(&[copy, dma], [100.0, 1.0, 15.0, 1.0]), &[0.5, 0.5]);
        // The link stops the DMA at 3; the copy takes the rest of DRAM, (15 - 3) / 2.
        assert_close(&rates(&[copy, dma], [3.0, 1.0, 15.0, 1.0]), &[0.6, 0.3]);
    }

    #[test]
    fn what_draws_on_nothing_is_never_slowed() {
        let compute = Flow::of(&Cost { payload: 1e9, ..Cost::default() });
        let f = flow(10.0, [1.0, 0.0, 0.0, 0.0]);
        assert_close(&rates(&[compute, f, Flow::NONE], [5.0, 1.0, 1.0, 1.0]), &[1.0, 0.5, 1.0]);
    }

    #[test]
    fn parts_of_cores_are_equal_but_for_those_who_want_less() {
        let busy = |cores| Flow::of(&Cost { cores, ..Cost::default() });
        let part = |flows: &[Flow]| core_share(flows, 2.0);
        assert!(part(&[busy(1.0), busy(0.5), Flow::NONE]) >= 1.0);
        // Two threads of one computation beside a third one.
        assert_close(&[part(&[busy(2.0), busy(1.0)])], &[2.0 / 3.0]);
        // A reader that needs a fifth of a core gets it; the other three share the rest.
        let flows = [busy(0.2), busy(2.0), busy(1.0)];
        assert!(!fits(&flows, &Capacities::UNLIMITED.with_cores(2.0)));
        assert_close(&[part(&flows)], &[0.6]);
    }

    #[test]
    fn what_is_short_of_cores_and_of_bandwidth_is_stopped_by_the_scarcer() {
        let copies = [flow(10.0, [0.0, 0.0, 2.0, 0.0]); 2];
        let limited = |limits: [f64; 2], memory| {
            let mut rates = [0.0; 2];
            fill(&copies, &limits, &capacities([1.0, 1.0, memory, 1.0]), &mut rates);
            rates
        };
        // Half a core each allows 5, 10 each of the memory's 30.
        assert_close(&limited([0.5, 0.5], 30.0), &[0.5, 0.5]);
        assert_close(&limited([0.5, 0.5], 12.0), &[0.3, 0.3]);
        // Who has no core leaves the memory to the other.
        assert_close(&limited([1.0, 0.0], 12.0), &[0.6, 0.0]);
    }

    proptest! {
        #[test]
        fn the_division_is_feasible_and_every_slowed_flow_has_a_bottleneck(
            flows in prop::collection::vec((0.0..50.0_f64, [0..3_u8, 0..3, 0..3, 0..3]), 0..12),
            capacity in [1.0..100.0_f64, 1.0..100.0, 1.0..100.0, 1.0..100.0],
        ) {
            let flows: Vec<Flow> =
                flows.into_iter().map(|(payload, draw)| flow(payload, draw.map(f64::from))).collect();
            let rates = rates(&flows, capacity);
            let speed: Vec<f64> = flows.iter().zip(&rates).map(|(f, r)| f.payload * r).collect();
            let used = |r: usize| -> f64 { flows.iter().zip(&speed).map(|(f, s)| f.draw[r] * s).sum() };
            for (r, limit) in capacity.iter().enumerate() {
                prop_assert!(used(r) <= limit * (1.0 + 1e-6), "resource {r} is overdrawn");
            }
            for (i, rate) in rates.iter().enumerate() {
                prop_assert!((0.0..=1.0).contains(rate));
                // Max-min: a flow below its full speed draws on a used-up resource on which nobody
                // is faster.
                let bottleneck = |r: usize| {
                    let users = flows.iter().zip(&speed).filter(|(f, _)| f.draw[r] > 0.0);
                    let fastest = users.map(|(_, s)| *s).fold(0.0, f64::max);
                    let used_up = used(r) >= capacity[r] * (1.0 - 1e-6);
                    used_up && flows[i].draw[r] > 0.0 && speed[i] >= fastest * (1.0 - 1e-6)
                };
                prop_assert!(*rate >= 1.0 || (0..Resource::COUNT).any(bottleneck));
            }
        }
    }
}
