//! A machine whose host cores and memory play the GPU's: what lanes do to each other there.

use pipo_plan::machine::{Figure, Gpu, Machine, catalog};
use pipo_plan::model::Precision;
use pipo_plan::schedule::{Compute, DiskIo, HostMemory, Linear, Work};
use pipo_plan::units::{Bandwidth, Bytes, Nanos};
use pipo_simulator::{Cost, CostModel, Costs, Resource};

/// Two cores, one of which computes; round figures.
fn host() -> Machine {
    let mut machine = catalog::find("rtx3060-laptop").unwrap();
    machine.gpu.architecture = Gpu::ON_HOST.into();
    machine.gpu.sms.value = 1;
    machine.host.cores.value = 2;
    machine.host.copy.value = Bandwidth(10_000_000_000);
    machine.software.handover = Some(Figure::new(Nanos(5000), "estimate"));
    machine.software.checksum = Some(Figure::new(Bandwidth(10_000_000_000), "estimate"));
    machine
}

const BYTES: Bytes = Bytes(100_000_000);

#[test]
fn a_copy_over_the_link_is_a_copy_in_memory_by_a_core() {
    let (host, laptop) = (host(), catalog::find("rtx3060-laptop").unwrap());
    let copy = Work::H2d { bytes: BYTES, memory: HostMemory::Pinned };
    let here = CostModel::new(&host).price(&copy).unwrap().cost;
    assert_eq!(here.cores, 1.0);
    assert_eq!(here.draw[Resource::Dram as usize], 2.0);
    assert_eq!(here.draw[Resource::Hbm as usize], 0.0);
    let there = CostModel::new(&laptop).price(&copy).unwrap().cost;
    assert_eq!(there.draw[Resource::Dram as usize], 1.0);
    assert_eq!(there.draw[Resource::Hbm as usize], 1.0);
}

#[test]
fn arithmetic_draws_on_the_hosts_memory_and_keeps_its_threads_busy() {
    let mut machine = host();
    machine.gpu.sms.value = 2;
    let compute = Compute { elementwise: BYTES, ..Compute::default() };
    let model = CostModel::new(&machine);
    for work in [Work::Gpu(compute.clone()), Work::Cpu(compute)] {
        let cost = model.price(&work).unwrap().cost;
        assert_eq!(cost.cores, 2.0);
        assert_eq!(cost.draw[Resource::Hbm as usize], 0.0);
        assert!(cost.draw[Resource::Dram as usize] > 0.0);
    }
    assert_eq!(model.capacities().cores(), 2.0);
}

/// A direct read of 100 MB at the profile's 10 GB/s of checks.
fn read(machine: &Machine, request: u64) -> Cost {
    let work =
        Work::DiskRead { bytes: BYTES, request: Bytes(request), io: DiskIo::Direct, jumps: false };
    CostModel::new(machine).price(&work).unwrap().cost
}

#[test]
fn a_read_is_checked_piece_by_piece_while_the_next_is_read() {
    let machine = host();
    let mut unchecked = machine.clone();
    unchecked.software.checksum = None;
    for request in [10_000_000, 100_000_000, 800_000_000] {
        let (cost, without) = (read(&machine, request), read(&unchecked, request));
        // Only the last piece's check has no read beside it, and a core is needed for all of them.
        let last = BYTES.0.min(request) / 10;
        assert_eq!(cost.nanos - without.nanos, Nanos(last));
        assert!((cost.cores - 10_000_000.0 / cost.nanos.as_f64()).abs() < 1e-9);
        assert_eq!(without.cores, 0.0);
    }
}

#[test]
fn where_checks_are_slower_than_the_disk_they_take_the_time() {
    let mut machine = host();
    machine.software.checksum = None;
    let first = read(&machine, 10_000_000).nanos.0 / 10;
    machine.software.checksum = Some(Figure::new(Bandwidth(100_000_000), "estimate"));
    let slow = read(&machine, 10_000_000).nanos;
    assert!(slow.0.abs_diff(1_000_000_000 + first) <= 1, "{slow}");
}

#[test]
fn more_bytes_never_take_less_time_to_read() {
    let mut machine = host();
    let disk = machine.disk.as_mut().unwrap();
    let half = Bandwidth(disk.buffered_read.best().0 / 2);
    disk.buffered_total = Some(Figure::new(half, "estimate"));
    disk.buffered_pair.clone_from(&disk.buffered_total);
    disk.buffered_jump = Some(Figure::new(Nanos(1_000_000), "estimate"));
    let model = CostModel::new(&machine);
    for io in DiskIo::ALL {
        let prices = (1..400_u64).map(|step| {
            let work = Work::DiskRead {
                bytes: Bytes(step * 250_001),
                request: Bytes(8 << 20),
                io,
                jumps: true,
            };
            model.price(&work).unwrap()
        });
        let prices: Vec<_> = prices.collect();
        for pair in prices.windows(2) {
            assert!(pair[0].cost.nanos < pair[1].cost.nanos);
            let hits = pair[0].hit.zip(pair[1].hit);
            assert!(hits.is_none_or(|(less, more)| less.nanos < more.nanos));
        }
    }
}

#[test]
fn beside_a_real_gpu_cores_are_not_short() {
    let laptop = catalog::find("rtx3060-laptop").unwrap();
    let model = CostModel::new(&laptop);
    assert_eq!(model.capacities().cores(), f64::MAX);
    assert_eq!(model.handover(), Nanos::ZERO);
    assert_eq!(CostModel::new(&host()).handover(), Nanos(5000));
}

#[test]
fn weights_are_decoded_in_the_product_whatever_a_plan_says() {
    let machine = host();
    let price = |fused| {
        let linear = Linear {
            rows: 1,
            outputs: 4096,
            inputs: 4096,
            copies: 1,
            all_rows: 1,
            all_copies: 1,
            precision: Precision::Int4,
            fused,
            joined: false,
            beside: 0,
        };
        let compute = Compute { linears: vec![linear], ..Compute::default() };
        CostModel::new(&machine).price(&Work::Gpu(compute)).unwrap().cost.nanos
    };
    assert_eq!(price(false), price(true));
}
