//! The two-stage pipeline, whose makespan has a closed form.

use pipo_plan::schedule::{LaneKind, Slot, Tier};
use pipo_plan::units::{Bytes, Nanos};
use pipo_simulator::Cost;
use proptest::prelude::*;

use crate::script::{Item, RECORD, Script};

/// `items` times: load into the next of `slots` slots in `load` ns, then compute on it in `compute`.
fn pipeline(load: u64, compute: u64, items: u32, slots: u16) -> Script {
    let mut script = Script::with_lanes(&[LaneKind::H2d, LaneKind::Gpu]);
    let ring = script.layout.ring("weights", Tier::Gpu, slots.into(), Bytes(1));
    let loads = script.price(Cost::fixed(Nanos(load)));
    let computes = script.price(Cost::fixed(Nanos(compute)));
    for item in 0..items {
        let index = u16::try_from(item % u32::from(slots)).unwrap_or(0);
        let slot = Some(Slot { ring, index });
        let loaded = script.push(Item { queue: 0, price: loads, takes: slot, ..Item::default() });
        script.push(Item {
            queue: 1,
            price: computes,
            waits: vec![loaded],
            frees: [slot, None],
            ..Item::default()
        });
    }
    script
}

/// One slot serialises everything; from two on, the slower stage alone sets the pace.
fn closed_form(load: u64, compute: u64, items: u64, slots: u16) -> u64 {
    if slots == 1 {
        items * (load + compute)
    } else {
        load + (items - 1) * load.max(compute) + compute
    }
}

proptest! {
    #[test]
    fn makespan_is_the_closed_form_to_the_nanosecond(
        load in 0..2000_u64,
        compute in 0..2000_u64,
        items in 1..60_u32,
        slots in 1..70_u16,
    ) {
        let outcome = pipeline(load, compute, items, slots).simulate(&RECORD).unwrap();
        let expected = closed_form(load, compute, items.into(), slots);
        prop_assert_eq!(outcome.summary.end, Nanos(expected));
        prop_assert_eq!(outcome.summary.lane_busy[0], Nanos(load * u64::from(items)));
        prop_assert_eq!(outcome.summary.lane_busy[1], Nanos(compute * u64::from(items)));
    }
}

#[test]
fn one_slot_two_slots_and_many() {
    let end = |slots| pipeline(300, 200, 10, slots).simulate(&RECORD).unwrap().summary.end;
    assert_eq!(end(1), Nanos(5000), "without the slot rule this would be 3200");
    assert_eq!(end(2), Nanos(3200));
    assert_eq!(end(3), Nanos(3200));
    assert_eq!(end(64), Nanos(3200));
}

#[test]
fn slots_are_used_only_as_far_as_they_help() {
    let used =
        |l, c, slots| pipeline(l, c, 10, slots).simulate(&RECORD).unwrap().summary.slot_high_water;
    assert_eq!(used(300, 200, 8), [2], "a slow link never gets ahead of the computation");
    assert_eq!(used(200, 300, 2), [2]);
    assert_eq!(used(1, 300, 8), [8], "a fast link fills every buffer");
}

#[test]
fn a_lane_starts_the_first_in_program_order_among_ready_heads() {
    let mut script = Script::with_lanes(&[LaneKind::Host, LaneKind::Gpu]);
    let second = script.layout.queue(pipo_plan::schedule::LaneId(1)).0;
    let gate = script.run(0, 100, &[]);
    script.run(1, 10, &[gate]);
    let late = script.run(second, 10, &[gate]);
    script.run(1, 10, &[]);
    let free = script.run(second, 10, &[]);
    let spans = script.simulate(&RECORD).unwrap().timeline.unwrap().spans;
    let order: Vec<u32> = spans.iter().filter(|s| s.lane.0 == 1).map(|s| s.op.0).collect();
    // Both heads become ready at 100, and so run in program order; the others stand behind them.
    assert_eq!(order, [1, late, 3, free]);
    assert_eq!(spans.last().unwrap().end, Nanos(140));
}

#[test]
fn a_ready_queue_overtakes_a_blocked_one_on_the_same_lane() {
    let mut script = Script::with_lanes(&[LaneKind::Host, LaneKind::Gpu]);
    let second = script.layout.queue(pipo_plan::schedule::LaneId(1)).0;
    let gate = script.run(0, 100, &[]);
    script.run(1, 10, &[gate]);
    script.run(second, 30, &[]);
    let outcome = script.simulate(&RECORD).unwrap();
    assert_eq!(outcome.summary.end, Nanos(110));
}

#[test]
fn operations_of_no_duration_take_no_time_but_keep_their_order() {
    let mut script = Script::with_lanes(&[LaneKind::Host, LaneKind::Gpu]);
    let mut last = script.run(0, 0, &[]);
    for i in 0..20 {
        last = script.run(i % 2, 0, &[last]);
    }
    let end = script.run(1, 7, &[last]);
    script.run(0, 0, &[end]);
    let outcome = script.simulate(&RECORD).unwrap();
    assert_eq!(outcome.summary.end, Nanos(7));
    assert_eq!(outcome.summary.ops, 23);
}
