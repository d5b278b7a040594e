//! Sharing, against divisions worked out by hand.

use pipo_plan::schedule::LaneKind;
use pipo_plan::units::{Bytes, Nanos};
use pipo_simulator::{Capacities, Cost, Resource};

use crate::script::{Item, RECORD, Script};

const LANES: [LaneKind; 3] = [LaneKind::H2d, LaneKind::D2h, LaneKind::HostCopy];

/// Runs flows, each on its own lane from the start, and returns when each ends.
fn ends(capacity: (Resource, f64), flows: &[Cost]) -> Vec<u64> {
    let mut script = Script::with_lanes(&LANES[..flows.len()]);
    script.capacities = Some(Capacities::UNLIMITED.with(capacity.0, capacity.1));
    for (queue, flow) in (0..).zip(flows) {
        let price = script.price(*flow);
        script.push(Item { queue, price, ..Item::default() });
    }
    let spans = script.simulate(&RECORD).unwrap().timeline.unwrap().spans;
    spans.iter().map(|s| s.end.0).collect()
}

/// Moves `bytes` in `nanos` when alone, drawing `each` from a resource.
fn flow(bytes: u64, nanos: u64, resource: Resource, each: f64) -> Cost {
    Cost::moving(Bytes(bytes), Nanos(nanos)).drawing(resource, each)
}

#[test]
fn alone_each_ends_at_its_solo_time() {
    let copy = flow(10_000, 1000, Resource::LinkDuplex, 1.0);
    assert_eq!(ends((Resource::LinkDuplex, 10.0), &[copy]), [1000]);
}

#[test]
fn two_equal_copies_share_the_duplex_total() {
    // 10 B/ns each, 15 in both directions: 7.5 each, 10 000 bytes in 1333.3 ns.
    let copy = flow(10_000, 1000, Resource::LinkDuplex, 1.0);
    assert_eq!(ends((Resource::LinkDuplex, 15.0), &[copy, copy]), [1334, 1334]);
    assert_eq!(ends((Resource::LinkDuplex, 20.0), &[copy, copy]), [1000, 1000]);
}

#[test]
fn when_one_ends_the_other_speeds_up() {
    // Shared at 7.5 until the shorter has moved its 3000 bytes at 400 ns. The longer then has 7000
    // left and moves them at 10.
    let short = flow(3000, 300, Resource::LinkDuplex, 1.0);
    let long = flow(10_000, 1000, Resource::LinkDuplex, 1.0);
    assert_eq!(ends((Resource::LinkDuplex, 15.0), &[short, long]), [400, 1100]);
}

#[test]
fn three_copies_with_different_limits() {
    // 14 B/ns among 2, 8 and 20: the first keeps 2, the others get 6 each. At 1000 the second is done;
    // the third has 18 000 bytes left and gets 12, until the first is done at 2000. The last 6000 run
    // at the whole 14, for 428.6 ns.
    let flows = [
        flow(4000, 2000, Resource::Disk, 1.0),
        flow(6000, 750, Resource::Disk, 1.0),
        flow(24_000, 1200, Resource::Disk, 1.0),
    ];
    assert_eq!(ends((Resource::Disk, 14.0), &flows), [2000, 1000, 2429]);
}

#[test]
fn a_memory_copy_draws_twice() {
    // Payloads rise together: x + 2x = 15, so both run at 5.
    let dma = flow(10_000, 1000, Resource::Dram, 1.0);
    let copy = flow(10_000, 1000, Resource::Dram, 2.0);
    assert_eq!(ends((Resource::Dram, 15.0), &[dma, copy]), [2000, 2000]);
}

#[test]
fn an_operation_that_joins_slows_one_under_way() {
    let mut script = Script::with_lanes(&LANES);
    script.capacities = Some(Capacities::UNLIMITED.with(Resource::Dram, 10.0));
    let cost = script.price(flow(10_000, 1000, Resource::Dram, 1.0));
    script.push(Item { queue: 0, price: cost, ..Item::default() });
    let delay = script.run(2, 500, &[]);
    script.push(Item { queue: 1, price: cost, waits: vec![delay], ..Item::default() });
    let spans = script.simulate(&RECORD).unwrap().timeline.unwrap().spans;
    // Half at full speed by 500; the other half at half speed until 1500. Then 5000 bytes are left.
    assert_eq!(spans[0].end, Nanos(1500));
    assert_eq!(spans[2].end, Nanos(2000));
}

#[test]
fn arithmetic_that_draws_on_nothing_is_not_slowed() {
    let copy = flow(10_000, 1000, Resource::LinkDuplex, 1.0);
    let compute = Cost::fixed(Nanos(1000));
    assert_eq!(ends((Resource::LinkDuplex, 5.0), &[copy, compute]), [2000, 1000]);
}

#[test]
fn one_operation_may_draw_more_than_there_is() {
    let copy = flow(10_000, 1000, Resource::Dram, 3.0);
    assert_eq!(ends((Resource::Dram, 15.0), &[copy]), [2000]);
}

#[test]
fn utilisation_is_a_union() {
    let mut script = Script::with_lanes(&[LaneKind::H2d, LaneKind::Gpu, LaneKind::D2h]);
    let busy = |nanos, permille| Cost::fixed(Nanos(nanos)).busy(permille);
    let prices = [busy(1000, 1000), busy(400, 1000), busy(2000, 250)].map(|c| script.price(c));
    for (queue, price) in (0..).zip(prices) {
        script.push(Item { queue, price, ..Item::default() });
    }
    let summary = script.simulate(&RECORD).unwrap().summary;
    assert_eq!(summary.kernel_busy, Nanos(400));
    assert_eq!(summary.nvml_busy, Nanos(1250), "1000 fully, then a quarter of the other 1000");
}

/// Starts and ends of one operation on each of three lanes, each of which wants one of two cores.
fn on_two_cores(nanos: [u64; 3]) -> (Vec<(u64, u64)>, Vec<Nanos>) {
    let mut script = Script::with_lanes(&[LaneKind::Gpu, LaneKind::H2d, LaneKind::HostCopy]);
    script.capacities = Some(Capacities::UNLIMITED.with_cores(2.0));
    for (queue, nanos) in (0..).zip(nanos) {
        let price = script.price(Cost::fixed(Nanos(nanos)).on_cores(1.0));
        script.push(Item { queue, price, ..Item::default() });
    }
    let outcome = script.simulate(&RECORD).unwrap();
    let mut spans = outcome.timeline.unwrap().spans;
    spans.sort_unstable_by_key(|span| span.op);
    (spans.iter().map(|s| (s.start.0, s.end.0)).collect(), outcome.summary.lane_busy)
}

#[test]
fn the_third_lane_on_two_cores_waits_for_one_and_is_not_busy_meanwhile() {
    let (spans, busy) = on_two_cores([600, 200, 600]);
    assert_eq!(spans, [(0, 600), (0, 200), (200, 800)]);
    assert_eq!(busy, [600, 200, 600].map(Nanos));
}

#[test]
fn lanes_that_take_turns_share_cores_equally() {
    const MS: u64 = 1_000_000;
    let (spans, _) = on_two_cores([10 * MS; 3]);
    // Turns of 3 ms: the third lane has its first core then. A core idles only when one lane is left.
    let rounded: Vec<(u64, u64)> =
        spans.iter().map(|(start, end)| ((start + MS / 2) / MS, (end + MS / 2) / MS)).collect();
    assert_eq!(rounded, [(0, 13), (0, 14), (3, 16)]);
}

#[test]
fn what_a_host_and_a_gpu_hand_each_other_starts_late_and_counts_for_no_lane() {
    let mut script = Script::with_lanes(&[LaneKind::H2d, LaneKind::Gpu, LaneKind::Host]);
    script.crossings = [Nanos(7), Nanos(5)];
    let copy = script.run(0, 100, &[]);
    // The GPU goes on by itself.
    let kernel = script.run(1, 50, &[copy]);
    let barrier = script.run(2, 10, &[copy, kernel]);
    let last = script.run(1, 20, &[barrier]);
    // This one could have been noticed long before the thread was done with the other.
    let slow = script.run(2, 90, &[barrier]);
    let both = script.run(2, 1, &[last, slow]);
    let outcome = script.simulate(&RECORD).unwrap();
    let timeline = outcome.timeline.unwrap();
    let mut spans: Vec<(u32, u64, u64)> =
        timeline.spans.iter().map(|span| (span.op.0, span.start.0, span.end.0)).collect();
    spans.sort_unstable();
    let expected = [
        (copy, 0, 100),
        (kernel, 100, 150),
        (barrier, 157, 167),
        (last, 172, 192),
        (slow, 167, 257),
        (both, 257, 258),
    ];
    assert_eq!(spans, expected);
    assert_eq!(outcome.summary.lane_busy, [100, 70, 101].map(Nanos));
}

#[test]
fn who_wakes_up_for_an_operation_starts_late_and_who_is_awake_does_not() {
    let mut script = Script::with_lanes(&[LaneKind::H2d, LaneKind::Gpu]);
    script.handover = Nanos(7);
    let first = script.run(0, 100, &[]);
    let waits = script.run(1, 50, &[first]);
    script.run(1, 50, &[]);
    script.run(0, 100, &[waits]);
    let timeline = script.simulate(&RECORD).unwrap().timeline.unwrap();
    let spans: Vec<(u64, u64)> =
        timeline.spans.iter().map(|span| (span.start.0, span.end.0)).collect();
    // At time 0 nobody is late: the lanes have not been idle.
    assert_eq!(spans, [(0, 100), (100, 157), (157, 207), (157, 264)]);
}
