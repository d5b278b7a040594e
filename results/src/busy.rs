//! Unions of weighted intervals in exact integer arithmetic.

use std::collections::BTreeMap;

use pipo_plan::units::Nanos;

/// A stretch of time, from its start up to but not including its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    /// First nanosecond.
    pub start: Nanos,
    /// First nanosecond after it.
    pub end: Nanos,
}

impl Window {
    /// From `start` to `end`; empty where the end comes first.
    pub fn new(start: Nanos, end: Nanos) -> Self {
        Self { start, end: end.max(start) }
    }

    /// How long it lasts.
    pub fn length(self) -> Nanos {
        self.end - self.start
    }

    /// The part it shares with another, which may be empty.
    #[must_use]
    pub fn overlap(self, other: Self) -> Self {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// Cuts it into `bins` parts whose lengths differ by at most one nanosecond.
    pub fn bins(self, bins: usize) -> impl Iterator<Item = Self> {
        let length = u128::from(self.length().0);
        let edge = move |i: usize| {
            let offset = length * i as u128 / bins.max(1) as u128;
            self.start + Nanos(u64::try_from(offset).unwrap_or(u64::MAX))
        };
        (0..bins).map(move |i| Self::new(edge(i), edge(i + 1)))
    }
}

/// Busy time as a sum: nanoseconds times thousandths, so that no rounding ever happens.
pub type BusyTime = u128;

/// When something was busy, and how much of it: disjoint stretches in rising order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Busy {
    stretches: Vec<(Window, u16)>,
}

impl Busy {
    /// The union of intervals that each carry a weight in thousandths.
    ///
    /// Where several overlap the heaviest counts: a kernel (1000) hides the pageable copy (250) beside
    /// it. Two partial weights could in truth add up; the union is then a lower bound.
    pub fn union(intervals: impl IntoIterator<Item = (Window, u16)>) -> Self {
        // At each instant: weights that begin (+1) and end (-1).
        let mut edges: Vec<(Nanos, u16, i32)> = Vec::new();
        for (window, weight) in intervals {
            if weight > 0 && window.start < window.end {
                edges.push((window.start, weight, 1));
                edges.push((window.end, weight, -1));
            }
        }
        edges.sort_unstable();
        let mut busy = Self::default();
        let mut open: BTreeMap<u16, i32> = BTreeMap::new();
        let mut since = Nanos::ZERO;
        for (at, weight, change) in edges {
            if let Some((&heaviest, _)) = open.last_key_value() {
                busy.push(Window::new(since, at), heaviest.min(1000));
            }
            since = at;
            let count = open.entry(weight).or_insert(0);
            *count += change;
            if *count == 0 {
                open.remove(&weight);
            }
        }
        busy
    }

    fn push(&mut self, window: Window, weight: u16) {
        if window.start == window.end {
            return;
        }
        match self.stretches.last_mut() {
            Some((last, w)) if last.end == window.start && *w == weight => last.end = window.end,
            _ => self.stretches.push((window, weight)),
        }
    }

    /// Busy time within a window.
    pub fn within(&self, window: Window) -> BusyTime {
        let first = self.stretches.partition_point(|(s, _)| s.end <= window.start);
        self.stretches[first..]
            .iter()
            .take_while(|(s, _)| s.start < window.end)
            .map(|&(s, w)| u128::from(s.overlap(window).length().0) * u128::from(w))
            .sum()
    }

    /// Busy share of a window, 0 to 1; nothing is busy in an empty window.
    pub fn share(&self, window: Window) -> f64 {
        share_of(self.within(window), window)
    }

    /// Busy shares of the window's equal parts.
    pub fn curve(&self, window: Window, bins: usize) -> Vec<f64> {
        window.bins(bins).map(|bin| self.share(bin)).collect()
    }
}

/// Busy time as a share of a window.
pub fn share_of(time: BusyTime, window: Window) -> f64 {
    let whole = u128::from(window.length().0) * 1000;
    if whole == 0 { 0.0 } else { time as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn window(start: u64, end: u64) -> Window {
        Window::new(Nanos(start), Nanos(end))
    }

    #[test]
    fn overlap_counts_once_and_the_heavier_wins() {
        let busy =
            Busy::union([(window(0, 10), 250), (window(5, 20), 1000), (window(30, 40), 500)]);
        assert_eq!(busy.within(window(0, 100)), 5 * 250 + 15 * 1000 + 10 * 500);
        assert_eq!(busy.within(window(8, 9)), 1000);
        assert!((busy.share(window(30, 50)) - 0.25).abs() < 1e-12);
        assert_eq!(busy.within(window(50, 50)), 0);
    }

    proptest! {
        #[test]
        fn union_equals_a_count_by_the_nanosecond(
            spans in proptest::collection::vec((0_u64..60, 0_u64..20, 0_u16..=1000), 0..12),
        ) {
            let spans: Vec<_> =
                spans.iter().map(|&(s, l, w)| (window(s, s + l), w)).collect();
            let slow: u128 = (0..80)
                .map(|t| {
                    let covers = |w: &Window| w.start.0 <= t && t < w.end.0;
                    u128::from(spans.iter().filter(|(w, _)| covers(w)).map(|s| s.1).max().unwrap_or(0))
                })
                .sum();
            prop_assert_eq!(Busy::union(spans).within(window(0, 80)), slow);
        }

        #[test]
        fn the_bins_of_a_window_add_up_to_it(
            spans in proptest::collection::vec((0_u64..1000, 0_u64..200, 0_u16..=1000), 0..20),
            start in 0_u64..500, length in 0_u64..900, bins in 1_usize..40,
        ) {
            let busy = Busy::union(spans.iter().map(|&(s, l, w)| (window(s, s + l), w)));
            let whole = window(start, start + length);
            let parts: u128 = whole.bins(bins).map(|b| busy.within(b)).sum();
            prop_assert_eq!(parts, busy.within(whole));
            prop_assert!(busy.curve(whole, bins).iter().all(|s| (0.0..=1.0).contains(s)));
        }
    }
}
