//! Bandwidth by transfer size: closed forms, order, and the lower bound that the tuner relies on.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use pipo_plan::machine::{Curve, CurveError};
use pipo_plan::units::{Bandwidth, Bytes, LIMIT, Nanos};
use proptest::prelude::*;

const KIB: u64 = 1 << 10;

fn curve(points: &[(u64, u64)]) -> Curve {
    Curve::new(points.iter().map(|&(s, r)| (Bytes(s), Bandwidth(r))).collect()).unwrap()
}

#[test]
fn a_flat_curve_is_size_over_bandwidth() {
    let flat = Curve::flat(Bandwidth(12_000_000_000));
    assert_eq!(flat.time(Bytes(12_000)), Nanos(1000));
    assert_eq!(flat.time(Bytes(0)), Nanos(0));
    assert_eq!(flat.bandwidth(Bytes(1 << 30)), Bandwidth(12_000_000_000));
    assert_eq!(flat.flat_rate(), Some(flat.best()));
}

#[test]
fn a_fixed_cost_plus_a_rate_is_met_exactly_between_the_points() {
    // 8 us and 1 byte per nanosecond: t(s) = 8000 + s, given at two sizes only.
    let at = |s: u64| (s, s * 1_000_000_000 / (8000 + s));
    let two = curve(&[at(8000), at(72_000)]);
    assert_eq!(two.time(Bytes(8000)), Nanos(16_000));
    assert_eq!(two.time(Bytes(40_000)), Nanos(48_000));
    assert_eq!(two.time(Bytes(72_000)), Nanos(80_000));
    assert_eq!(two.time(Bytes(1)), Nanos(16_000), "the latency of the smallest point");
    assert_eq!(two.time(Bytes(720_000)), Nanos(800_000), "the bandwidth of the largest point");
    assert_eq!(two.bandwidth(Bytes(4000)), Bandwidth(250_000_000));
    assert_eq!(two.best(), Bandwidth(900_000_000));
}

#[test]
fn another_rate_keeps_the_fixed_cost() {
    let at = |s: u64| (s, s * 1_000_000_000 / (8000 + s));
    let last = (1_u64 << 30, 1_000_000_000);
    let faster = curve(&[at(8000), at(72_000), last]).with_rate(Bandwidth(2_000_000_000));
    // A rate is whole bytes per second, so a time read back may be a nanosecond late.
    assert!(faster.time(Bytes(8000)).0.abs_diff(12_000) <= 1);
    assert!(faster.time(Bytes(72_000)).0.abs_diff(44_000) <= 1);
    assert_eq!(faster.best(), Bandwidth(2_000_000_000));
    assert_eq!(Curve::flat(Bandwidth(5)).with_rate(Bandwidth(7)), Curve::flat(Bandwidth(7)));
}

#[test]
fn points_that_no_link_has_are_refused() {
    let refused = |points: &[(u64, u64)]| {
        let points = points.iter().map(|&(s, r)| (Bytes(s), Bandwidth(r))).collect();
        Curve::new(points).unwrap_err()
    };
    assert_eq!(refused(&[]), CurveError::Empty);
    assert!(matches!(refused(&[(KIB, 0)]), CurveError::Zero { .. }));
    assert!(matches!(refused(&[(0, 1)]), CurveError::Zero { .. }));
    assert!(matches!(refused(&[(KIB, 5), (KIB, 5)]), CurveError::Unsorted { .. }));
    assert!(matches!(refused(&[(KIB, 1), (2 * KIB, 3)]), CurveError::Decreasing { .. }));
    let many: Vec<_> = (1..=1025).map(|s| (s, 1)).collect();
    assert!(matches!(refused(&many), CurveError::TooMany { .. }));
}

/// Points as a fixed cost and a rate give them, with noise; some sets are refused.
fn any_curve() -> impl Strategy<Value = Curve> {
    prop::collection::btree_map(1..=LIMIT, 1..=LIMIT, 1..6).prop_filter_map("refused", |points| {
        Curve::new(points.into_iter().map(|(s, r)| (Bytes(s), Bandwidth(r))).collect()).ok()
    })
}

fn likely_curve() -> impl Strategy<Value = Curve> {
    (0..1_000_000_u64, 1..100_u64, 1..12_usize).prop_map(|(cost, rate, count)| {
        let points = (0..count).map(|i| {
            let size = 4096_u64 << (2 * i);
            (Bytes(size), Bandwidth((size * 1_000_000_000 / (cost + size / rate).max(1)).max(1)))
        });
        Curve::new(points.collect()).unwrap()
    })
}

proptest! {
    #[test]
    fn more_bytes_never_take_less_time(
        curve in prop_oneof![any_curve(), likely_curve()],
        a in 0..=LIMIT,
        b in prop_oneof![0..=LIMIT, 0..=1_u64 << 30],
    ) {
        let (small, large) = (Bytes(a.min(b)), Bytes(a.max(b)));
        prop_assert!(curve.time(small) <= curve.time(large));
    }

    #[test]
    fn the_best_rate_bounds_every_time_from_below(
        curve in prop_oneof![any_curve(), likely_curve()],
        bytes in prop_oneof![0..=LIMIT, 0..=1_u64 << 30],
    ) {
        prop_assert!(curve.best().time(Bytes(bytes)) <= curve.time(Bytes(bytes)));
        prop_assert!(curve.bandwidth(Bytes(bytes)) <= curve.best());
    }

    #[test]
    fn the_points_themselves_are_met(curve in prop_oneof![any_curve(), likely_curve()]) {
        for &(size, rate) in curve.points() {
            prop_assert_eq!(curve.time(size), rate.time(size));
        }
    }

    #[test]
    fn a_curve_of_another_rate_is_a_curve(
        curve in prop_oneof![any_curve(), likely_curve()],
        rate in 0..=LIMIT,
    ) {
        let points = curve.with_rate(Bandwidth(rate)).points().to_vec();
        prop_assert!(Curve::new(points).is_ok());
    }

    #[test]
    fn json_and_back_is_the_same_curve(curve in any_curve()) {
        let text = serde_json::to_string(&curve).unwrap();
        prop_assert_eq!(serde_json::from_str::<Curve>(&text).unwrap(), curve);
    }
}
