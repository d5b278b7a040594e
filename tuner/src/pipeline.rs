//! A second lower bound: the pipeline of loads and computations, with nothing else in its way.
//!
//! # Proof
//!
//! Let unit `u` of a pass compute for at least `chain(u)` after the unit before it, and let the `j`-th
//! streamed unit of the run take the link for at least `load(j)`. Then, whatever else happens:
//!
//! - a unit's computation begins no earlier than the end of the unit before it (one queue, and the first
//!   unit of a pass waits for the last token of the pass before);
//! - nor earlier than the end of its load, if it is streamed;
//! - the `j`-th load begins no earlier than the end of the load before it (one queue),
//! - nor earlier than the end of the computation of the streamed unit `slots` before it, which held the
//!   slot that it takes.
//!
//! These are sums and maxima of solo times, so the earliest times that satisfy them are a lower bound.
//! They tell what sums cannot: that the link stands still while a run of resident units computes and all
//! slots are full.

/// One unit as the pipeline sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Stage {
    /// Index into the chains of the shape: how long it computes in each pass.
    pub(crate) chain: usize,
    /// Nanoseconds of its load in the prefill, and at least in any later pass; zero if it is resident.
    pub(crate) load: (f64, f64),
}

/// When the last pass ends at least. `chains` holds, for each kind of unit, a time for each pass.
pub(crate) fn earliest_end(stages: &[Stage], chains: &[Vec<f64>], passes: u32, slots: u32) -> f64 {
    // When each slot was last freed; nobody has held one at the beginning.
    let mut freed = vec![0.0_f64; slots.max(1) as usize];
    let mut slot = 0;
    let (mut computed, mut loaded) = (0.0_f64, 0.0_f64);
    for pass in 0..passes as usize {
        for stage in stages {
            let load = if pass == 0 { stage.load.0 } else { stage.load.1 };
            let chain = chains.get(stage.chain).and_then(|chain| chain.get(pass));
            let chain = chain.copied().unwrap_or(0.0);
            if load > 0.0 {
                loaded = loaded.max(freed[slot]) + load;
                computed = computed.max(loaded) + chain;
                freed[slot] = computed;
                slot = if slot + 1 == freed.len() { 0 } else { slot + 1 };
            } else {
                computed += chain;
            }
        }
    }
    computed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stages(loads: &[f64]) -> Vec<Stage> {
        loads.iter().map(|&load| Stage { chain: 0, load: (load, load) }).collect()
    }

    #[test]
    fn two_slots_overlap_and_one_does_not() {
        let chains = [vec![3.0]];
        // Load 5, then three more loads hide the computations, and the last computation remains.
        assert!((earliest_end(&stages(&[5.0; 4]), &chains, 1, 2) - 23.0).abs() < 1e-9);
        assert!((earliest_end(&stages(&[5.0; 4]), &chains, 1, 1) - 32.0).abs() < 1e-9);
    }

    #[test]
    fn the_link_stands_still_while_resident_units_compute() {
        let chains = [vec![3.0, 3.0]];
        let first = stages(&[0.0, 0.0, 0.0, 0.0, 5.0, 5.0, 5.0]);
        let spread = stages(&[0.0, 5.0, 0.0, 5.0, 0.0, 5.0, 0.0]);
        assert!(earliest_end(&first, &chains, 2, 2) > earliest_end(&spread, &chains, 2, 2));
    }
}
