//! A second lower bound: the pipeline of loads and computations, with nothing else in its way.
//!
//! # Proof
//!
//! Let unit `u` of a pass compute for at least `chain(u)` after the unit before it, and let its weights
//! and its cache take the link for at least `load(u)` and `cache(u)`. Then, whatever else happens:
//!
//! - a unit's computation begins no earlier than the end of the unit before it (one queue, and the first
//!   unit of a pass waits for the last token of the pass before);
//! - where micro-batches take turns across units, that is so of the last micro-batch, whose computation alone is
//!   `chain(u)` then: it ends each unit, and frees its slot;
//! - and it ends no earlier than everything that it needs has crossed the link;
//! - where hidden states go by way of the host, the last micro-batch's computation begins no earlier than
//!   one trip after its computation in the unit before;
//! - weights that a router picks set out no earlier than the end of the unit before, which is the router,
//!   but for the first unit of a pass: the pass before tells it nothing, and need not have ended;
//! - a unit's weights set out no earlier than the end of the computation of the streamed unit `slots`
//!   before it, which held the slot that they take; so with its cache and the slots for that.
//!
//! Say that no weights of unit `u` or a later one set out before `w(u)`, and no cache before `c(u)`. The
//! link then carries all that units `u..=v` need after `r(u) = min(w(u), c(u))`, one thing at a time, in
//! whatever order. So unit `v` has what it needs no earlier than
//!
//! `arrived(v) = max over u <= v of r(u) + sum over u..=v = max(arrived(v - 1), r(v)) + load(v) + cache(v)`
//!
//! and, of weights alone, no earlier than the same with `w` for `r` and no caches. These are sums and
//! maxima of solo times, so the earliest times that satisfy them are a lower bound. They tell what sums
//! cannot: that the link stands still while a run of resident units computes and all slots are full.

/// One unit as the pipeline sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Stage {
    /// Index into the chains of the base: how long it computes in each pass.
    pub(crate) chain: usize,
    /// Nanoseconds of its load in the prefill, and at least in any later pass; zero if it is resident.
    pub(crate) load: (f64, f64),
    /// Whether it needs a cache that is not on the GPU.
    pub(crate) cached: bool,
    /// Where its weights are known only once the unit before has been computed: nanoseconds from then
    /// until they are there, in the prefill and at least in any later pass.
    pub(crate) routed: Option<(f64, f64)>,
}

/// What all units of a base share.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pace {
    /// For each kind of unit, nanoseconds that it computes at least in each pass.
    pub(crate) chains: Vec<Vec<f64>>,
    /// Nanoseconds that the link takes for the caches of one layer in each pass.
    pub(crate) caches: Vec<f64>,
    /// Cached units that may run ahead: a unit's first cache waits for a slot that one of the last so
    /// many cached units has held, and hence for the end of the one before these.
    pub(crate) caches_ahead: usize,
    /// Nanoseconds in each pass for the way of one micro-batch's hidden states down to the host and up
    /// again, between any two units; none where they stay on the GPU.
    pub(crate) trips: Vec<f64>,
    /// Micro-batches.
    pub(crate) micros: f64,
}

/// The end of whatever held each of a ring's slots last.
struct Ring {
    freed: Vec<f64>,
    next: usize,
}

impl Ring {
    /// Nobody has held a slot at the beginning.
    fn new(slots: usize) -> Self {
        Self { freed: vec![0.0; slots.max(1)], next: 0 }
    }

    fn next_free(&self) -> f64 {
        self.freed[self.next]
    }

    fn hold_until(&mut self, end: f64) {
        self.freed[self.next] = end;
        self.next = if self.next + 1 == self.freed.len() { 0 } else { self.next + 1 };
    }
}

/// When the last pass ends at least, with so many slots for weights.
pub(crate) fn earliest_end(stages: &[Stage], pace: &Pace, passes: u32, slots: u32) -> f64 {
    let mut weights = Ring::new(slots as usize);
    let mut caches = Ring::new(pace.caches_ahead + 1);
    let streams_caches = pace.caches.iter().any(|&time| time > 0.0);
    let (mut computed, mut loaded, mut arrived) = (0.0_f64, 0.0_f64, 0.0_f64);
    for pass in 0..passes as usize {
        let at = |times: &Vec<f64>| times.get(pass).copied().unwrap_or(0.0);
        let (cache, trip) = (at(&pace.caches), at(&pace.trips));
        for (index, stage) in stages.iter().enumerate() {
            let load = if pass == 0 { stage.load.0 } else { stage.load.1 };
            let cache = if stage.cached { cache } else { 0.0 };
            let chain = pace.chains.get(stage.chain).map_or(0.0, at);
            let mut ready = computed;
            if load > 0.0 {
                loaded = loaded.max(weights.next_free()) + load;
                if let Some((first, later)) = stage.routed.filter(|_| index > 0) {
                    loaded = loaded.max(computed + if pass == 0 { first } else { later });
                }
                ready = ready.max(loaded);
            }
            let before = computed;
            computed = ready + chain;
            if trip > 0.0 && index > 0 {
                // The last micro-batch comes from the unit before by way of the host.
                computed = computed.max(ready.max(before + trip) + chain / pace.micros);
            }
            if streams_caches && load + cache > 0.0 {
                let sets_out = weights.next_free().min(caches.next_free());
                arrived = arrived.max(sets_out) + load + cache;
                // Each micro-batch needs the weights and its own cache.
                computed = computed.max(arrived + chain / pace.micros);
            }
            if load > 0.0 {
                weights.hold_until(computed);
            }
            if stage.cached {
                caches.hold_until(computed);
            }
        }
    }
    computed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stages(loads: &[f64]) -> Vec<Stage> {
        loads
            .iter()
            .map(|&load| Stage { chain: 0, load: (load, load), cached: true, routed: None })
            .collect()
    }

    fn pace(chain: f64, cache: f64) -> Pace {
        Pace {
            chains: vec![vec![chain; 2]],
            caches: vec![0.0, cache],
            caches_ahead: 1,
            trips: Vec::new(),
            micros: 1.0,
        }
    }

    #[test]
    fn two_slots_overlap_and_one_does_not() {
        let chains = pace(3.0, 0.0);
        // Load 5, then three more loads hide the computations, and the last computation remains.
        assert!((earliest_end(&stages(&[5.0; 4]), &chains, 1, 2) - 23.0).abs() < 1e-9);
        assert!((earliest_end(&stages(&[5.0; 4]), &chains, 1, 1) - 32.0).abs() < 1e-9);
    }

    #[test]
    fn the_link_stands_still_while_resident_units_compute() {
        let chains = pace(3.0, 0.0);
        let first = stages(&[0.0, 0.0, 0.0, 0.0, 5.0, 5.0, 5.0]);
        let spread = stages(&[0.0, 5.0, 0.0, 5.0, 0.0, 5.0, 0.0]);
        assert!(earliest_end(&first, &chains, 2, 2) > earliest_end(&spread, &chains, 2, 2));
    }

    #[test]
    fn routed_weights_wait_for_the_router() {
        let mut all = stages(&[0.0, 5.0, 0.0, 5.0]);
        for stage in &mut all[..] {
            stage.routed = (stage.load.0 > 0.0).then_some((7.0, 7.0));
        }
        // Twice: compute 3, wait 7, compute 3.
        assert!((earliest_end(&all, &pace(3.0, 0.0), 1, 2) - 26.0).abs() < 1e-9);
    }

    #[test]
    fn the_first_routed_weights_of_a_pass_may_run_ahead_of_it() {
        let mut all = stages(&[5.0, 0.0]);
        all[0].routed = Some((7.0, 7.0));
        // Load 5, compute 3 and 3; the second load hides behind the second unit, and computes twice more.
        assert!((earliest_end(&all, &pace(3.0, 0.0), 2, 2) - 17.0).abs() < 1e-9);
    }

    #[test]
    fn caches_share_the_link_with_weights() {
        let all = stages(&[5.0; 4]);
        let (without, with) = (pace(0.0, 0.0), pace(0.0, 2.0));
        let more = earliest_end(&all, &with, 2, 2) - earliest_end(&all, &without, 2, 2);
        assert!((more - 8.0).abs() < 1e-9, "four caches of 2 in the second pass, not {more}");
    }
}
