//! Prices of reads from a disk, past a page cache and through it, alone and several at once.

use pipo_plan::machine::{Curve, Figure, Machine};
use pipo_plan::schedule::{DiskIo, LaneKind, Work};
use pipo_plan::units::{Bandwidth, Bytes, Nanos};
use pipo_simulator::{CostModel, Costs};

use crate::cost::laptop;
use crate::script::{Item, RECORD, Script};

fn rate(giga: f64) -> Figure<Bandwidth> {
    Figure::new(format!("{giga}GB/s").parse().unwrap(), "ssd")
}

/// A disk that gives one thread 2.5 GB/s, several 4, and one through the page cache 2, and takes requests at once.
fn with_ssd() -> Machine {
    let mut machine = laptop();
    machine.software.disk_request.value = Nanos(0);
    let disk = machine.disk.as_mut().unwrap();
    disk.read.value = Curve::flat(rate(2.5).value);
    disk.buffered_read.value = Curve::flat(rate(2.0).value);
    disk.read_total = Some(rate(4.0));
    machine
}

#[test]
fn reads_go_past_or_through_the_page_cache() {
    let mut machine = laptop();
    machine.software.disk_request.value = Nanos(80_000);
    let (bytes, request) = (Bytes(100 << 20), Bytes(1 << 20));
    let model = CostModel::new(&machine);
    let read = |io| model.price(&Work::DiskRead { bytes, request, io, jumps: false }).unwrap();
    let disk = machine.disk.as_ref().unwrap();
    let direct = read(DiskIo::Direct);
    let expected = disk.read.bandwidth(request).time(bytes) + Nanos(80_000);
    assert_eq!((direct.cost.nanos, direct.hit), (expected, None));
    let fault = read(DiskIo::PageFault);
    assert_eq!(fault.cost.nanos, disk.page_fault_read.bandwidth(bytes).time(bytes) + Nanos(80_000));
    let mapped = disk.page_fault_hit.as_ref().unwrap();
    assert_eq!(fault.hit.unwrap().nanos, mapped.time(bytes));
    assert_eq!(fault.hit.unwrap().draw, [0.0, 0.0, 2.0, 0.0]);
    let buffered = read(DiskIo::Buffered);
    assert_eq!(buffered.cost.draw, [0.0, 1.0, 3.0, 0.0]);
    assert_eq!(buffered.hit.unwrap().nanos, machine.host.copy.time(bytes));
    // Where faults in the page cache were not measured, they are taken to cost no more than the copy.
    machine.disk.as_mut().unwrap().page_fault_hit = None;
    let work = Work::DiskRead { bytes, request, io: DiskIo::PageFault, jumps: false };
    let unmeasured = CostModel::new(&machine).price(&work).unwrap();
    assert_eq!(unmeasured.hit.unwrap().nanos, machine.host.copy.time(bytes));
}

/// When each of so many reads ends that begin together, each on a lane of its own.
fn ends(machine: &Machine, work: &Work, threads: usize) -> Vec<u64> {
    let model = CostModel::new(machine);
    let mut script = Script::with_lanes(&vec![LaneKind::DiskRead; threads]);
    script.capacities = Some(model.capacities());
    script.prices.push(model.price(work).unwrap());
    for queue in (0..).take(threads) {
        script.push(Item { queue, ..Item::default() });
    }
    let spans = script.simulate(&RECORD).unwrap().timeline.unwrap().spans;
    spans.iter().map(|span| span.end.0).collect()
}

#[test]
fn several_threads_through_the_page_cache_get_what_they_reach_together() {
    let mut machine = with_ssd();
    let (bytes, request) = (Bytes(100_000_000), Bytes(1 << 20));
    let work = |io| Work::DiskRead { bytes, request, io, jumps: false };
    let in_turn = work(DiskIo::BufferedInTurn);
    // Where that was not measured they are as fast as the disk allows, each as one is alone.
    let price = |machine: &Machine, work: &Work| CostModel::new(machine).price(work).unwrap();
    assert_eq!(price(&machine, &in_turn), price(&machine, &work(DiskIo::Buffered)));
    assert_eq!(ends(&machine, &in_turn, 4), [100_000_000; 4]);
    // Less than one reaches alone, more than that, and more than all direct reads; 100 MB at each rate.
    for (total, alone, four) in [
        (1.25, 80_000_000, 320_000_000),
        (3.2, 50_000_000, 125_000_000),
        (5.0, 50_000_000, 80_000_000),
        (16.0, 50_000_000, 50_000_000),
    ] {
        machine.disk.as_mut().unwrap().buffered_total = Some(rate(total));
        let alone = [alone];
        assert_eq!(price(&machine, &in_turn).cost.nanos.0, alone[0], "{total}");
        assert_eq!(ends(&machine, &in_turn, 1), alone, "{total}");
        assert_eq!(ends(&machine, &in_turn, 4), [four; 4], "{total}");
        // The figure is of nothing else.
        assert_eq!(ends(&machine, &work(DiskIo::Buffered), 1), [50_000_000]);
        assert_eq!(ends(&machine, &work(DiskIo::BufferedPair), 2), [50_000_000; 2]);
        assert_eq!(ends(&machine, &work(DiskIo::Direct), 4), [100_000_000; 4]);
    }
    // Two have a figure of their own.
    machine.disk.as_mut().unwrap().buffered_pair = Some(rate(1.25));
    assert_eq!(ends(&machine, &work(DiskIo::BufferedPair), 2), [160_000_000; 2]);
    assert_eq!(ends(&machine, &in_turn, 4), [50_000_000; 4]);
}

#[test]
fn a_read_that_jumps_costs_what_was_read_ahead_for_nothing() {
    let mut machine = with_ssd();
    let (bytes, request) = (Bytes(100_000_000), Bytes(1 << 20));
    let work = |io, jumps| Work::DiskRead { bytes, request, io, jumps };
    let goes_on = ends(&machine, &work(DiskIo::Buffered, true), 1);
    assert_eq!(goes_on, [50_000_000], "nothing where that was not measured");
    machine.disk.as_mut().unwrap().buffered_jump = Some(Figure::new(Nanos(10_000_000), "ssd"));
    let ends = |io, threads| ends(&machine, &work(io, true), threads);
    assert_eq!(ends(DiskIo::Buffered, 1), [60_000_000]);
    // Two have all of the disk for 25 ms each, and each for another 10 that it jumps.
    assert_eq!(ends(DiskIo::BufferedPair, 2), [70_000_000; 2]);
    // What is read past the page cache, or by more than are followed, has nothing read ahead.
    assert_eq!(ends(DiskIo::Direct, 1), [40_000_000]);
    assert_eq!(ends(DiskIo::BufferedInTurn, 1), [50_000_000]);
    let held = CostModel::new(&machine).price(&work(DiskIo::Buffered, true)).unwrap().hit.unwrap();
    assert_eq!(held.nanos, machine.host.copy.time(bytes), "what the page cache holds is copied");
}

#[test]
fn a_memory_map_is_read_by_how_much_of_it_and_several_share_what_they_reach_together() {
    let mut machine = with_ssd();
    let work = |bytes| {
        let request = Bytes(128 << 10);
        Work::DiskRead { bytes: Bytes(bytes), request, io: DiskIo::PageFault, jumps: false }
    };
    let disk = machine.disk.as_mut().unwrap();
    // 2 ms for a megabyte, 50 for a hundred: what the system reads ahead begins anew each time.
    let points = [(1_000_000, 0.5), (100_000_000, 2.0)];
    let points = points.map(|(bytes, giga)| (Bytes(bytes), rate(giga).value));
    disk.page_fault_read.value = Curve::new(points.into()).unwrap();
    for (bytes, nanos) in [(4096, 2_000_000), (1_000_000, 2_000_000), (100_000_000, 50_000_000)] {
        // A rate of whole bytes a second stands between.
        let found = ends(&machine, &work(bytes), 1)[0];
        assert!(found.abs_diff(nanos) < nanos / 10_000, "{bytes}: {found}");
    }
    // As the disk allows where that was not measured, less than that, and no less than one reaches alone.
    for (total, four) in [(None, 100), (Some(2.5), 160), (Some(8.0), 50), (Some(1.0), 200)] {
        machine.disk.as_mut().unwrap().page_fault_total = total.map(rate);
        assert_eq!(ends(&machine, &work(100_000_000), 1), [50_000_000], "{total:?}");
        assert_eq!(ends(&machine, &work(100_000_000), 4), [four * 1_000_000; 4], "{total:?}");
    }
}
