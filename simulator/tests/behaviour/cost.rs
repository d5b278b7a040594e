//! Prices on catalogue machines, against figures worked out by hand from their profiles.

use pipo_plan::machine::{AttentionTime, Figure, KernelTime, Machine, catalog};
use pipo_plan::model::Precision;
use pipo_plan::schedule::{Attention, Compute, DiskIo, HostMemory, LaneKind, Linear, Work};
use pipo_plan::units::{Bandwidth, Bytes, FlopRate, LIMIT, Nanos};
use pipo_simulator::{Cost, CostModel, Costs, Resource};
use proptest::prelude::*;

/// The catalogue's laptop in round figures.
pub(crate) fn laptop() -> Machine {
    let mut machine = catalog::find("rtx3060-laptop").unwrap();
    // Round figures, so that a change of the catalogue changes no test.
    machine.gpu.memory_bandwidth.value = Bandwidth(200_000_000_000);
    machine.gpu.matmul.value = FlopRate(20_000_000_000_000);
    machine.gpu.attention.value = FlopRate(10_000_000_000_000);
    machine.gpu.dequantise.value = Bandwidth(20_000_000_000);
    machine.gpu.launch.value = Nanos(5000);
    machine.host.copy.value = Bandwidth(10_000_000_000);
    machine.host.weights.value = Bandwidth(20_000_000_000);
    machine
}

fn cost(machine: &Machine, work: &Work) -> Cost {
    CostModel::new(machine).price(work).unwrap().cost
}

fn linear(rows: u64, precision: Precision, fused: bool) -> Linear {
    Linear {
        rows,
        outputs: 4096,
        inputs: 4096,
        copies: 1,
        all_rows: rows,
        all_copies: 1,
        precision,
        fused,
        joined: false,
        beside: 0,
    }
}

fn gpu(linear: Linear) -> Work {
    Work::Gpu(Compute { linears: vec![linear], ..Compute::default() })
}

#[test]
fn one_row_is_bound_by_reading_weights() {
    // 4096 x 4096 x 2 bytes and two rows of 8192 bytes, at 200 GB/s.
    let bytes = 33_554_432.0 + 16_384.0_f64;
    let got = cost(&laptop(), &gpu(linear(1, Precision::Fp16, true)));
    assert_eq!(got.nanos, Nanos::ceil(bytes / 200.0));
    assert_eq!(got.gpu_permille, 1000);
    assert!((got.drawn()[Resource::Hbm as usize] - bytes).abs() < 1.0);
}

#[test]
fn many_rows_are_bound_by_arithmetic() {
    // 2 x 4096^3 operations at 20 TFLOP/s.
    let got = cost(&laptop(), &gpu(linear(4096, Precision::Fp16, true)));
    assert_eq!(got.nanos, Nanos::ceil(2.0 * 4096.0_f64.powi(3) / 20_000.0));
}

#[test]
fn unfused_weights_are_written_out_and_read_again() {
    let machine = laptop();
    let dense = 33_554_432.0_f64;
    let plain = cost(&machine, &gpu(linear(1, Precision::Fp16, true))).nanos;
    let fused = cost(&machine, &gpu(linear(1, Precision::Int4, true))).nanos;
    let unfused = cost(&machine, &gpu(linear(1, Precision::Int4, false))).nanos;
    let expected = plain.as_f64() + dense / 20.0;
    assert!((unfused.as_f64() - expected).abs() <= 2.0, "{unfused:?} is not {expected}");
    assert!(fused.0 * 3 < plain.0, "4.5 bits are read in less than a third of the time of 16");
    let unquantised = cost(&machine, &gpu(linear(1, Precision::Bf16, false))).nanos;
    assert_eq!(unquantised, plain, "there is nothing to dequantise in 16 bits");
}

#[test]
fn launches_add_gaps_in_which_the_gpu_is_idle() {
    let compute = Compute { elementwise: Bytes(1_000_000), launches: 3, ..Compute::default() };
    let got = cost(&laptop(), &Work::Gpu(compute));
    assert_eq!((got.nanos, got.gpu_permille), (Nanos(20_000), 250));
}

#[test]
fn what_kernels_read_across_the_link_takes_as_long_as_a_copy() {
    let machine = laptop();
    let mapped = Bytes(12_000_000);
    let got = cost(&machine, &Work::Gpu(Compute { mapped, ..Compute::default() }));
    let copied = Nanos::ceil(mapped.as_f64() / machine.link.h2d.best().per_nano());
    assert_eq!((got.nanos, got.gpu_permille), (copied, 1000));
    let drawn = got.drawn()[Resource::LinkDuplex as usize];
    assert!((drawn - mapped.as_f64()).abs() < 1.0, "{drawn} bytes are drawn from the link");
}

#[test]
fn a_host_that_enqueues_ahead_counts_only_where_it_is_slower() {
    let mut machine = laptop();
    machine.gpu.gap = Some(Figure::new(Nanos(1000), "estimate"));
    let compute = |bytes, joined_launches| Compute {
        passes: Bytes(bytes),
        launches: 9,
        joined_launches,
        ..Compute::default()
    };
    // Two kernels of 50 us and what lies between kernels; ten launches of 5 us beside little to do.
    let got = cost(&machine, &Work::Gpu(compute(10_000_000, 2)));
    assert_eq!((got.nanos, got.gpu_permille), (Nanos(52_000), 1000));
    let got = cost(&machine, &Work::Gpu(compute(1_000_000, 10)));
    assert_eq!((got.nanos, got.gpu_permille), (Nanos(50_000), 300));
}

#[test]
fn products_together_are_one_and_a_product_in_tiles_is_several() {
    let mut machine = laptop();
    machine.gpu.gap = Some(Figure::new(Nanos(1), "estimate"));
    machine.gpu.launch.value = Nanos(0);
    let kernel = |rows, outputs, nanos| KernelTime {
        precision: "int4".into(),
        rows,
        outputs,
        inputs: 4096,
        time: Figure::new(Nanos(nanos), "measured"),
    };
    machine.gpu.kernels = vec![
        kernel(1, 4096, 5000),
        kernel(1, 12288, 9000),
        kernel(64, 4096, 6000),
        kernel(4096, 4096, 90_000),
        kernel(4096, 1024, 40_000),
    ];
    let nanos = |linears: Vec<Linear>| {
        cost(&machine, &Work::Gpu(Compute { linears, ..Compute::default() })).nanos
    };
    let one = linear(1, Precision::Int4, true);
    let joined = Linear { joined: true, ..one };
    assert_eq!(nanos(vec![one, joined, joined, one]), Nanos(14_000));
    // Room for a quarter of the decoded weights, for all of them, and for none.
    let many = |beside| Linear { beside, ..linear(4096, Precision::Int4, true) };
    assert_eq!(nanos(vec![many(1024)]), Nanos(160_000));
    assert_eq!(nanos(vec![many(4096)]), Nanos(90_000));
    assert_eq!(nanos(vec![many(0)]), Nanos(64 * 6000));
    let joined = Linear { joined: true, ..many(4096) };
    assert_eq!(nanos(vec![many(4096), joined]), Nanos(180_000), "many rows stay apart");
}

#[test]
fn on_pipos_own_backend_every_expert_works_on_every_row() {
    let mut machine = laptop();
    let of = |rows, copies| {
        let experts = linear(rows, Precision::Fp16, true);
        let linears = vec![Linear { copies, all_rows: 64, all_copies: 8, ..experts }];
        Work::Gpu(Compute { linears, ..Compute::default() })
    };
    // 64 rows, two experts of eight for each: as many rows as are sent are 16 for each.
    let (routed, all) = (of(16, 8), of(64, 8));
    assert!(cost(&machine, &routed).nanos < cost(&machine, &all).nanos);
    machine.gpu.gap = Some(Figure::new(Nanos(1000), "estimate"));
    assert_eq!(cost(&machine, &routed).nanos, cost(&machine, &all).nanos);
    // One row is sent to two experts, and the others' weights are read all the same.
    assert_eq!(cost(&machine, &of(1, 2)).nanos, cost(&machine, &all).nanos);
}

#[test]
fn attention_of_one_token_reads_the_cache() {
    let attention = Attention {
        sequences: 4,
        rows: 1,
        context: 1000,
        window: None,
        heads: 32,
        kv_heads: 32,
        head_dim: 128,
        precision: Precision::Fp16,
        fused: true,
    };
    let compute = Compute { attention: Some(attention), ..Compute::default() };
    let bytes = 2.0 * 2.0 * 32.0 * 128.0 * 4000.0;
    let got = cost(&laptop(), &Work::Gpu(compute.clone()));
    assert_eq!(got.nanos, Nanos::ceil(bytes / 200.0));
    let on_cpu = cost(&laptop(), &Work::Cpu(compute));
    assert!(on_cpu.nanos > got.nanos && on_cpu.draw[Resource::Dram as usize] > 0.0);
}

#[test]
fn attention_on_the_host_takes_what_was_measured_for_its_heads() {
    let mut machine = laptop();
    machine.host.memory_bandwidth.value = Bandwidth(40_000_000_000);
    machine.host.attention.value = FlopRate(20_000_000_000);
    let asked = |machine: &Machine, kv_heads, head_dim, precision| {
        let attention = Attention {
            sequences: 2,
            rows: 1,
            context: 512,
            window: None,
            heads: 32,
            kv_heads,
            head_dim,
            precision,
            fused: true,
        };
        let compute = Compute { attention: Some(attention), ..Compute::default() };
        cost(machine, &Work::Cpu(compute)).nanos
    };
    // Four operations for each head, feature and position, in each of two sequences.
    let flops = |head_dim: u64| 2 * 4 * 32 * head_dim * 512;
    let unmeasured = Nanos::ceil(flops(64) as f64 / 20.0);
    assert_eq!(asked(&machine, 32, 64, Precision::Fp16), unmeasured);
    let measured = |head_dim, time| AttentionTime {
        precision: "fp16".into(),
        rows: 1,
        context: 512,
        heads: 32,
        kv_heads: 32,
        head_dim,
        sequences: None,
        time: Figure::new(Nanos(time), "measured"),
    };
    machine.host.attentions = vec![measured(64, 300_000), measured(128, 350_000)];
    assert_eq!(asked(&machine, 32, 64, Precision::Fp16), Nanos(600_000));
    assert_eq!(asked(&machine, 32, 128, Precision::Fp16), Nanos(700_000));
    assert_eq!(asked(&machine, 32, 64, Precision::Bf16), Nanos(600_000), "as fast");
    assert_eq!(
        asked(&machine, 32, 64, Precision::Int8),
        unmeasured,
        "no table for that precision, so the one rate"
    );
    // Keys and values of two sequences at 40 GB/s are slower than a table that knows no such memory.
    machine.host.attentions = vec![measured(64, 1000)];
    let bytes = 2.0 * 2.0 * 2.0 * 32.0 * 64.0 * 512.0;
    assert_eq!(asked(&machine, 32, 64, Precision::Fp16), Nanos::ceil(bytes / 40.0));
}

#[test]
fn measured_kernels_go_before_the_roofline() {
    let mut machine = laptop();
    let kernel = |rows, time| KernelTime {
        precision: "fp16".into(),
        rows,
        outputs: 4096,
        inputs: 4096,
        time: Figure::new(Nanos(time), "test"),
    };
    machine.gpu.kernels = vec![kernel(64, 400_000), kernel(1, 200_000), kernel(16, 200_000)];
    let time = |rows, precision| cost(&machine, &gpu(linear(rows, precision, true))).nanos;
    assert_eq!(time(8, Precision::Fp16), Nanos(200_000));
    assert_eq!(time(64, Precision::Bf16), Nanos(400_000), "16 bits are 16 bits");
    assert_eq!(time(128, Precision::Fp16), Nanos(800_000));
    let half = Linear { outputs: 2048, ..linear(8, Precision::Fp16, true) };
    assert_eq!(cost(&machine, &gpu(half)).nanos, Nanos(100_000), "scaled by the weights");
    let experts = Linear { copies: 3, ..linear(8, Precision::Fp16, true) };
    assert_eq!(cost(&machine, &gpu(experts)).nanos, Nanos(600_000));
    assert!(time(8, Precision::Int8) < Nanos(200_000), "no table, so the roofline");
}

#[test]
fn copies_draw_on_what_they_touch() {
    let machine = laptop();
    let bytes = Bytes(256 << 20);
    let pinned = cost(&machine, &Work::H2d { bytes, memory: HostMemory::Pinned });
    assert_eq!(pinned.nanos, machine.link.h2d.time(bytes));
    assert_eq!((pinned.draw, pinned.gpu_permille), ([1.0, 0.0, 1.0, 1.0], 1000));
    // 12 GB/s pinned, 6 GB/s pageable: the engine is busy half of the time.
    let pageable = cost(&machine, &Work::H2d { bytes, memory: HostMemory::Pageable });
    assert_eq!(pageable.nanos, machine.link.pageable_h2d.time(bytes));
    assert_eq!((pageable.draw[Resource::Dram as usize], pageable.gpu_permille), (3.0, 500));
    let staged = cost(&machine, &Work::HostCopy { bytes: Bytes(1_000_000) });
    let alone = machine.host.copy.time(Bytes(1_000_000));
    assert_eq!((staged.nanos, staged.draw), (alone, [0.0, 0.0, 2.0, 0.0]));
}

#[test]
fn what_waits_on_another_lane_starts_late_by_who_takes_part() {
    use LaneKind::{DiskRead, Gpu, H2d, Host};
    let mut machine = laptop();
    let late = |machine: &Machine| {
        let model = CostModel::new(machine);
        let pairs = [(H2d, H2d), (H2d, Gpu), (Gpu, Host), (Host, H2d), (DiskRead, Host)];
        pairs.map(|(from, to)| model.crossing(from, to).0)
    };
    let software = &mut machine.software;
    let figure = |nanos| Some(Figure::new(Nanos(nanos), "measured"));
    (software.follow, software.notice) = (figure(9), figure(18));
    (software.submit, software.handover) = (figure(26), figure(20));
    assert_eq!(late(&machine), [0, 9, 18, 26, 20]);
    machine.software.follow = None;
    assert_eq!(late(&machine), [0, 0, 18, 26, 20]);
}

#[test]
fn a_small_pinned_copy_takes_as_long_as_the_host_to_issue_it() {
    let mut machine = laptop();
    let up = |machine: &Machine, bytes, memory| {
        cost(machine, &Work::H2d { bytes: Bytes(bytes), memory }).nanos
    };
    let down = |machine: &Machine, bytes, memory| {
        cost(machine, &Work::D2h { bytes: Bytes(bytes), memory }).nanos
    };
    let (pinned, pageable) = (HostMemory::Pinned, HostMemory::Pageable);
    let before = machine.clone();
    let issue = before.link.h2d.time(Bytes(4096)) + before.link.d2h.time(Bytes(4096));
    machine.software.issue = Some(Figure::new(issue, "measured"));
    assert_eq!((up(&machine, 4096, pinned), down(&machine, 4096, pinned)), (issue, issue));
    // The engine is busy for as long as the bytes take, and the link yields no more of them.
    let got = cost(&machine, &Work::H2d { bytes: Bytes(4096), memory: pinned });
    assert!((got.drawn()[Resource::LinkDuplex as usize] - 4096.0).abs() < 1e-6);
    assert!(got.gpu_permille < 500, "{got:?}");
    for copy in [up, down] {
        let large = 64 << 20;
        assert_eq!(copy(&machine, large, pinned), copy(&before, large, pinned));
        assert_eq!(copy(&machine, 4096, pageable), copy(&before, 4096, pageable));
        assert_eq!(copy(&machine, 0, pinned), Nanos::ZERO, "nothing is not copied");
    }
    // A thread that copies within host memory hands nothing to anybody.
    machine.gpu.architecture = "cpu".into();
    assert_eq!(up(&machine, 4096, pinned), up(&before, 4096, pinned));
}

#[test]
fn missing_hardware_is_an_answer_with_a_next_step() {
    let mut machine = laptop();
    let message = |machine: &Machine, work: &Work| {
        CostModel::new(machine).price(work).unwrap_err().to_string()
    };
    let direct = Work::DiskToGpu { bytes: Bytes(1) };
    insta::assert_snapshot!(message(&machine, &direct), @"the plan reads from a disk straight into GPU memory, but `rtx3060-laptop` has no disk.direct_to_gpu; read through host memory, or measure the rate and add it to the profile");
    machine.gpu.decompress = None;
    let decompress = Work::Decompress { compressed: Bytes(7), dense: Bytes(10) };
    insta::assert_snapshot!(message(&machine, &decompress), @"the plan decompresses weights on the GPU, but `rtx3060-laptop` has no gpu.decompress; store the weights uncompressed, or measure the rate and add it to the profile");
    machine.disk = None;
    let write = Work::DiskWrite { bytes: Bytes(1), request: Bytes(1) };
    insta::assert_snapshot!(message(&machine, &write), @"the plan writes the cache to a disk, but `rtx3060-laptop` has no disk; keep everything in memory, or add a [disk] section to the profile");
}

#[test]
fn one_operation_alone_runs_at_full_speed_on_every_catalogue_machine() {
    let bytes = Bytes(64 << 20);
    let request = Bytes(8 << 20);
    let [pinned, pageable] = [HostMemory::Pinned, HostMemory::Pageable];
    let totals = [None, Some(Bandwidth(1_000_000)), Some(Bandwidth(100_000_000_000))];
    for (name, total) in catalog::names().flat_map(|name| totals.map(|total| (name, total))) {
        let mut machine = catalog::find(name).unwrap();
        if let Some(disk) = &mut machine.disk {
            disk.buffered_total = total.map(|total| Figure::new(total, "estimate"));
            disk.page_fault_total.clone_from(&disk.buffered_total);
            disk.buffered_pair.clone_from(&disk.buffered_total);
        }
        let model = CostModel::new(&machine);
        let capacities = model.capacities();
        let works = [
            Work::H2d { bytes, memory: pinned },
            Work::H2d { bytes, memory: pageable },
            Work::D2h { bytes, memory: pinned },
            Work::D2h { bytes, memory: pageable },
            Work::HostCopy { bytes },
            Work::DiskRead { bytes, request, io: DiskIo::Direct, jumps: false },
            Work::DiskRead { bytes, request, io: DiskIo::Buffered, jumps: false },
            Work::DiskRead { bytes, request, io: DiskIo::BufferedPair, jumps: true },
            Work::DiskRead { bytes, request, io: DiskIo::BufferedInTurn, jumps: false },
            Work::DiskRead { bytes, request, io: DiskIo::PageFault, jumps: false },
            Work::DiskWrite { bytes, request },
            Work::DiskToGpu { bytes },
            Work::Decompress { compressed: bytes, dense: bytes },
            gpu(linear(1, Precision::Int4, true)),
            gpu(linear(1, Precision::Int4, false)),
            Work::Cpu(Compute {
                linears: vec![linear(1, Precision::Int4, true)],
                ..Compute::default()
            }),
        ];
        for work in works {
            let Ok(price) = model.price(&work) else { continue };
            for cost in [Some(price.cost), price.hit].into_iter().flatten() {
                for (draw, limit) in cost.draw.iter().zip(capacities.rates()) {
                    let share = draw * cost.payload / limit;
                    assert!(share <= 1.0 + 1e-9, "{name}: {work:?} draws {share} of a resource");
                }
            }
        }
    }
}

fn precision() -> impl Strategy<Value = Precision> {
    prop::sample::select(Precision::ALL.to_vec())
}

prop_compose! {
    fn compute()(
        sizes in prop::collection::vec(prop_oneof![0..10_000_u64, any::<u64>()], 10),
        precision in precision(),
        fused: bool,
        copies: u32,
        launches: u32,
    ) -> Compute {
        let [rows, outputs, inputs, sequences, context, heads, kv_heads, head_dim, elementwise, mapped] =
            <[u64; 10]>::try_from(sizes).unwrap_or_default();
        Compute {
            linears: vec![
                Linear {
                    rows,
                    outputs,
                    inputs,
                    copies,
                    all_rows: context,
                    all_copies: launches,
                    precision,
                    fused,
                    joined: fused,
                    beside: rows,
                };
                2
            ],
            attention: Some(Attention {
                sequences, rows, context, window: None, heads, kv_heads, head_dim, precision, fused,
            }),
            elementwise: Bytes(elementwise),
            passes: Bytes(elementwise),
            mapped: Bytes(mapped),
            launches,
            joined_launches: launches,
        }
    }
}

prop_compose! {
    fn work()(
        which in 0..11,
        a in prop_oneof![0..10_000_000_u64, any::<u64>()],
        b in prop_oneof![0..10_000_000_u64, any::<u64>()],
        io in prop::sample::select(DiskIo::ALL.to_vec()),
        memory in prop::sample::select(vec![HostMemory::Pinned, HostMemory::Pageable]),
        compute in compute(),
    ) -> Work {
        let (bytes, request) = (Bytes(a), Bytes(b));
        match which {
            0 => Work::DiskRead { bytes, request, io, jumps: a % 2 == 0 },
            1 => Work::DiskWrite { bytes, request },
            2 => Work::HostCopy { bytes },
            3 => Work::H2d { bytes, memory },
            4 => Work::D2h { bytes, memory },
            5 => Work::DiskToGpu { bytes },
            6 => Work::Decompress { compressed: request, dense: bytes },
            7 => Work::Gather { bytes },
            8 => Work::Cpu(compute),
            9 => Work::Barrier,
            _ => Work::Gpu(compute),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_size_overflows(
        work in work(),
        name in prop::sample::select(catalog::names().collect::<Vec<_>>()),
        total in prop::option::of(1..=u64::MAX),
    ) {
        let mut machine = catalog::find(name).unwrap();
        if let Some(disk) = &mut machine.disk {
            disk.buffered_total = total.map(|total| Figure::new(Bandwidth(total), "estimate"));
            disk.buffered_jump = total.map(|total| Figure::new(Nanos(total), "estimate"));
            disk.page_fault_total.clone_from(&disk.buffered_total);
            disk.buffered_pair.clone_from(&disk.buffered_total);
        }
        if let Ok(price) = CostModel::new(&machine).price(&work) {
            for cost in [Some(price.cost), price.hit].into_iter().flatten() {
                prop_assert!(cost.nanos <= Nanos(LIMIT));
                prop_assert!(cost.payload.is_finite() && cost.payload >= 0.0);
                prop_assert!(cost.gpu_permille <= 1000);
            }
        }
    }
}
