//! Why an operation did not start earlier.

use pipo_plan::schedule::{LaneKind, OpId, Slot, Tier};
use pipo_plan::timeline::Blame;
use pipo_plan::units::{Bytes, Nanos};
use pipo_simulator::{Cost, critical_path};

use crate::script::{Item, RECORD, Script};

fn blames(script: &Script) -> Vec<Blame> {
    let mut spans = script.simulate(&RECORD).unwrap().timeline.unwrap().spans;
    spans.sort_by_key(|s| s.op);
    spans.iter().map(|s| s.blame).collect()
}

#[test]
fn the_last_condition_is_blamed() {
    let mut script = Script::with_lanes(&[LaneKind::H2d, LaneKind::Gpu]);
    let load = script.run(0, 100, &[]);
    script.run(0, 50, &[]);
    script.run(1, 30, &[load]);
    script.run(1, 30, &[load]);
    let (start, lane, wait) = (Blame::Start, Blame::Lane, Blame::Wait(OpId(0)));
    assert_eq!(blames(&script), [start, lane(OpId(0)), wait, lane(OpId(2))]);
}

#[test]
fn ties_go_to_the_wait_then_the_slot_then_the_lane() {
    let mut script = Script::with_lanes(&[LaneKind::H2d, LaneKind::Gpu]);
    let ring = script.layout.ring("ring", Tier::Gpu, 1, Bytes(1));
    let slot = Some(Slot { ring, index: 0 });
    let price = script.price(Cost::fixed(Nanos(100)));
    // Both end at 100: the copy, and the computation that frees the slot of nobody but itself.
    let copy = script.push(Item { queue: 0, price, ..Item::default() });
    let frees = [slot, None];
    let hold = script.push(Item { queue: 1, price, takes: slot, frees, ..Item::default() });
    let next = Item { queue: 0, price, takes: slot, ..Item::default() };
    let mut waits = script.clone();
    script.push(next.clone());
    assert_eq!(blames(&script)[2], Blame::Slot(OpId(hold)), "the slot before the lane");
    waits.push(Item { waits: vec![copy], ..next });
    assert_eq!(blames(&waits)[2], Blame::Wait(OpId(copy)), "the wait before the slot");
}

#[test]
fn a_measured_timeline_may_have_gaps_and_overlaps() {
    let mut script = Script::with_lanes(&[LaneKind::H2d, LaneKind::Gpu]);
    let load = script.run(0, 100, &[]);
    script.run(1, 30, &[load]);
    let mut timeline = script.simulate(&RECORD).unwrap().timeline.unwrap();
    timeline.spans[1].start = Nanos(110);
    timeline.spans[1].end = Nanos(140);
    timeline.end = Nanos(150);
    let path = critical_path(&timeline);
    assert_eq!(path.idle, Nanos(20));
    assert_eq!((path.on_lane(LaneKind::H2d), path.on_lane(LaneKind::Gpu)), (Nanos(100), Nanos(30)));
    timeline.spans[1].start = Nanos(90);
    let path = critical_path(&timeline);
    assert_eq!((path.on_lane(LaneKind::H2d), path.on_lane(LaneKind::Gpu)), (Nanos(90), Nanos(50)));
    // A blame that points at itself or nowhere ends the walk, and the rest is idle.
    timeline.spans[1].blame = Blame::Lane(OpId(1));
    assert_eq!(critical_path(&timeline).idle, Nanos(100));
    timeline.spans[1].blame = Blame::Lane(OpId(u32::MAX));
    assert_eq!(critical_path(&timeline).idle, Nanos(100));
}
