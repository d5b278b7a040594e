//! Schedules that have no outcome, and what is said about them.

use pipo_plan::schedule::{LaneId, LaneKind, RingId, Slot, Tier};
use pipo_plan::units::{Bytes, LIMIT, Nanos};
use pipo_simulator::{Cost, Invalid, SimulationError, lower_bound, phase_bounds};

use crate::script::{Item, RECORD, Script};

fn message(script: &Script) -> String {
    script.simulate(&RECORD).unwrap_err().to_string()
}

/// A ring of one slot, which a load takes and a computation after it frees.
fn one_slot() -> (Script, Option<Slot>) {
    let mut script = Script::with_lanes(&[LaneKind::H2d, LaneKind::Gpu]);
    script.layout.units = vec!["layer 0 MLP".into()];
    let ring = script.layout.ring("GPU weights", Tier::Gpu, 1, Bytes(1));
    script.price(Cost::fixed(Nanos(1000)));
    (script, Some(Slot { ring, index: 0 }))
}

#[test]
fn a_stuck_schedule_names_who_waits_for_what() {
    let (mut script, slot) = one_slot();
    let first = script.push(Item { takes: slot, ..Item::default() });
    let second = script.push(Item { takes: slot, ..Item::default() });
    let frees = [slot, None];
    script.push(Item { queue: 1, waits: vec![first, second], frees, ..Item::default() });
    let error = script.simulate(&RECORD).unwrap_err();
    assert!(
        matches!(&error, SimulationError::Stuck { at: Nanos(1000), waiting } if waiting.len() == 2)
    );
    insta::assert_snapshot!(error, @"
    the schedule is stuck at 1.00 us: nothing runs and nothing can start
      operation 1 (compute on H2D 0, layer 0 MLP, block 0, micro-batch 0, pass 0) waits for slot 0 of GPU weights, held by operation 0 (compute on H2D 0, layer 0 MLP, block 0, micro-batch 0, pass 0)
      operation 2 (compute on GPU 0, layer 0 MLP, block 0, micro-batch 0, pass 0) waits for operation 1 (compute on H2D 0, layer 0 MLP, block 0, micro-batch 0, pass 0)
    A slot must be freed by an operation that comes before the next one to take it; otherwise the ring needs more slots.
    ");
}

#[test]
fn a_later_operation_does_not_overtake_at_a_slot() {
    let (mut script, slot) = one_slot();
    script.layout.lane_queue(LaneKind::Cpu);
    let slow = script.run(1, 5000, &[]);
    let first = script.push(Item { takes: slot, waits: vec![slow], ..Item::default() });
    script.push(Item { queue: 2, takes: slot, ..Item::default() });
    let frees = [slot, None];
    script.push(Item { queue: 1, waits: vec![first], frees, ..Item::default() });
    let spans = script.simulate(&RECORD).unwrap().timeline.unwrap().spans;
    let starts: Vec<(u32, u64)> = spans.iter().map(|s| (s.op.0, s.start.0)).collect();
    assert_eq!(starts, [(0, 0), (1, 5000), (3, 6000), (2, 7000)]);
}

#[test]
fn a_schedule_that_contradicts_itself_is_refused() {
    let invalid = |change: fn(&mut Script)| {
        let (mut script, _) = one_slot();
        script.push(Item::default());
        change(&mut script);
        message(&script)
    };
    insta::assert_snapshot!(invalid(|s| s.passes[0][0].queue = 9), @"the schedule is invalid: operation 0 names queue 9, but there are 2, numbered from 0");
    insta::assert_snapshot!(invalid(|s| s.passes[0][0].waits = vec![0]), @"the schedule is invalid: operation 0 waits for operation 0, which is not before it");
    insta::assert_snapshot!(invalid(|s| s.passes[0][0].extent = Some(3)), @"the schedule is invalid: operation 0 names extent 3, but there are 0, numbered from 0");
    insta::assert_snapshot!(invalid(|s| {
        s.passes[0][0].takes = Some(Slot { ring: RingId(0), index: 1 });
    }), @"the schedule is invalid: operation 0 names slot 1, but there are 1, numbered from 0");
    insta::assert_snapshot!(invalid(|s| {
        s.passes[0][0].takes = Some(Slot { ring: RingId(4), index: 0 });
    }), @"the schedule is invalid: operation 0 names ring 4, but there are 1, numbered from 0");
    insta::assert_snapshot!(invalid(|s| {
        s.passes[0][0].frees[0] = Some(Slot { ring: RingId(0), index: 0 });
    }), @"the schedule is invalid: operation 0 frees slot 0 of ring 0, which nothing holds");
    insta::assert_snapshot!(invalid(|s| s.layout.window = 0), @"the schedule is invalid: the window is 0 passes; it must be at least 1");
    insta::assert_snapshot!(invalid(|s| s.layout.rings[0].slots = 0), @"the schedule is invalid: ring 0 has no slots; it must have at least 1");
    insta::assert_snapshot!(invalid(|s| s.layout.queues[1] = LaneId(7)), @"the schedule is invalid: queue 1 belongs to lane 7, but there are 2 lanes");
    insta::assert_snapshot!(invalid(|s| s.prices.clear()), @"a price that is not in the table; add it");
}

#[test]
fn absurd_durations_are_an_error_and_not_an_overflow() {
    let mut script = Script::with_lanes(&[LaneKind::Gpu]);
    script.prices.push(pipo_simulator::Price {
        cost: Cost::fixed(Nanos(LIMIT)),
        ..pipo_simulator::Price::default()
    });
    for _ in 0..40 {
        script.push(Item::default());
    }
    insta::assert_snapshot!(message(&script), @"operation 4 would end after 146 years: check the machine's bandwidths for a wrong unit");
}

#[test]
fn the_bound_refuses_what_the_simulation_refuses() {
    let mut script = Script::with_lanes(&[LaneKind::Gpu]);
    script.run(3, 10, &[]);
    let error = lower_bound(&script.schedule(), &script, &RECORD).unwrap_err();
    assert!(matches!(error, SimulationError::Invalid(Invalid::Unknown { what: "queue", .. })));
    assert_eq!(phase_bounds(&script.schedule(), &script, &RECORD).unwrap_err(), error);
}
