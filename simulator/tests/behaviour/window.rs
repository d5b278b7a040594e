//! Passes: released by the window, ended for the user, and gone from memory.

use pipo_plan::schedule::{LaneKind, OpId, Phase};
use pipo_plan::timeline::{Blame, PassEnd};
use pipo_plan::units::Nanos;

use crate::script::{RECORD, Script};

/// Passes of one 100 ns operation on the GPU and one 10 ns operation on the host, unconnected.
fn loose(passes: usize, window: u32) -> Script {
    let mut script = Script::with_lanes(&[LaneKind::Gpu, LaneKind::Host]);
    script.layout.window = window;
    script.passes.clear();
    for _ in 0..passes {
        script.passes.push(Vec::new());
        script.run(0, 100, &[]);
        script.run(1, 10, &[]);
    }
    script
}

#[test]
fn a_pass_is_released_when_the_one_before_its_window_has_ended_entirely() {
    let starts = |window| -> Vec<u64> {
        let timeline = loose(4, window).simulate(&RECORD).unwrap().timeline.unwrap();
        let host = timeline.spans.iter().filter(|s| s.lane.0 == 1);
        host.map(|s| s.start.0).collect()
    };
    assert_eq!(starts(1), [0, 100, 200, 300]);
    assert_eq!(starts(2), [0, 10, 100, 200]);
    assert_eq!(starts(9), [0, 10, 20, 30]);
}

#[test]
fn the_window_is_blamed_on_the_operation_that_ended_last() {
    let timeline = loose(2, 1).simulate(&RECORD).unwrap().timeline.unwrap();
    let blame = |op: u32| timeline.spans.iter().find(|s| s.op.0 == op).unwrap().blame;
    assert_eq!(blame(3), Blame::Window(OpId(0)));
    assert_eq!(blame(2), Blame::Lane(OpId(0)), "the lane comes first");
}

#[test]
fn the_end_of_a_retired_pass_is_remembered_while_it_can_be_blamed() {
    let mut script = loose(3, 2);
    // Released at 0, with pass 0 still running; pass 0 retires at the very end that it waits for.
    script.passes[1][1].waits = vec![0];
    let timeline = script.simulate(&RECORD).unwrap().timeline.unwrap();
    let span = timeline.spans.iter().find(|s| s.op.0 == 3).unwrap();
    assert_eq!((span.start, span.blame), (Nanos(100), Blame::Wait(OpId(0))));
}

#[test]
fn memory_is_bounded_by_the_window_and_not_by_the_run() {
    for window in [1, 3] {
        let summary = loose(1000, window).simulate(&RECORD).unwrap().summary;
        assert_eq!(summary.live_high_water, 2 * window);
        assert_eq!(summary.ops, 2000);
    }
}

#[test]
fn a_pass_ends_for_the_user_at_its_last_token() {
    let mut script = loose(2, 2);
    script.passes[1][1].ends_pass = true;
    let summary = script.simulate(&RECORD).unwrap().summary;
    let prefill = PassEnd { phase: Phase::Prefill, end: Nanos(100) };
    // The token of the second pass is ready at 20, long before the pass has ended at 200.
    assert_eq!(summary.passes, [prefill, PassEnd { phase: Phase::Decode, end: Nanos(20) }]);
    assert_eq!(summary.prefill(), Nanos(100));
    script.passes[1].swap(0, 1);
    assert_eq!(loose(2, 1).simulate(&RECORD).unwrap().summary.decode(), Nanos(100));
}

#[test]
fn empty_passes_end_at_once() {
    let mut script = loose(3, 1);
    script.passes.insert(1, Vec::new());
    let summary = script.simulate(&RECORD).unwrap().summary;
    let ends: Vec<u64> = summary.passes.iter().map(|p| p.end.0).collect();
    assert_eq!(ends, [100, 100, 200, 300]);
    let nothing = Script::with_lanes(&[]).simulate(&RECORD).unwrap();
    assert_eq!(nothing.summary.end, Nanos(0));
}
