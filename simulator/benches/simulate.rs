//! Operations simulated per second: a decode pipeline of 300 000 operations on six lanes, and a whole
//! plan for a large model, lowering and pricing included.

#![allow(clippy::expect_used, reason = "a benchmark without its plan has nothing to measure")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pipo_plan::machine::catalog as machines;
use pipo_plan::model::{Precision, catalog as models};
use pipo_plan::plan::{Batching, Plan, Precisions};
use pipo_plan::schedule::{
    Builder, LaneKind, Layout, OpId, OpKind, Phase, Program, QueueId, RingId, Schedule, Tier, Work,
    WorkId,
};
use pipo_plan::strategy::pipo::Pipo;
use pipo_plan::strategy::{KvTier, Strategy, lower};
use pipo_plan::units::{Bytes, Nanos};
use pipo_plan::workload::{Budget, Objective, Workload};
use pipo_simulator::{
    Capacities, Cost, Costs, Options, PageCache, Price, Resource, Unsupported, lower_bound,
    simulate, simulate_with,
};

/// Six operations a layer: read, stage, load, compute, save the new cache, write it.
const OPS: u32 = 6;
const LAYERS: u32 = 100;
const PASSES: u32 = 500;

struct Pipeline {
    disk: QueueId,
    stage: QueueId,
    load: QueueId,
    gpu: QueueId,
    save: QueueId,
    write: QueueId,
    host: RingId,
    pinned: RingId,
    weights: RingId,
}

fn pipeline() -> Schedule {
    let mut layout = Layout { window: 2, ..Layout::default() };
    let program = Pipeline {
        disk: layout.lane_queue(LaneKind::DiskRead),
        stage: layout.lane_queue(LaneKind::HostCopy),
        load: layout.lane_queue(LaneKind::H2d),
        gpu: layout.lane_queue(LaneKind::Gpu),
        save: layout.lane_queue(LaneKind::D2h),
        write: layout.lane_queue(LaneKind::DiskWrite),
        host: layout.ring("host", Tier::Pageable, 4, Bytes(1)),
        pinned: layout.ring("pinned", Tier::Pinned, 2, Bytes(1)),
        weights: layout.ring("weights", Tier::Gpu, 2, Bytes(1)),
    };
    layout.marks = 1;
    Schedule { layout, program: Box::new(program) }
}

/// The work that stands for a row of the price table.
fn works(out: &mut Builder) -> [WorkId; OPS as usize] {
    std::array::from_fn(|i| out.work(Work::HostCopy { bytes: Bytes(i as u64) }))
}

impl Program for Pipeline {
    fn passes(&self) -> u32 {
        PASSES
    }

    fn phase(&self, _: u32) -> Phase {
        Phase::Decode
    }

    fn emit(&self, _: u32, out: &mut Builder) {
        let [read, stage, load, compute, save, write] = works(out);
        let mut before = out.marked(0);
        let mut saved: Option<OpId> = None;
        for _ in 0..LAYERS {
            let host = out.take(self.host);
            let pinned = out.take(self.pinned);
            let weights = out.take(self.weights);
            let read = out.op(self.disk, OpKind::ReadWeights, read).takes(host).emit();
            let staged = out
                .op(self.stage, OpKind::StageWeights, stage)
                .after_all(&[read])
                .after(saved)
                .takes(pinned)
                .frees(host)
                .emit();
            let loaded = out
                .op(self.load, OpKind::LoadWeights, load)
                .after_all(&[read, staged])
                .after(before)
                .takes(weights)
                .frees(pinned)
                .emit();
            let computed = out
                .op(self.gpu, OpKind::Compute, compute)
                .after_all(&[read, staged, loaded])
                .after(before)
                .frees(weights)
                .emit();
            let save = out
                .op(self.save, OpKind::SaveCache, save)
                .after_all(&[loaded, computed])
                .after(saved)
                .emit();
            out.op(self.write, OpKind::WriteCache, write)
                .after_all(&[loaded, computed, save])
                .emit();
            before = Some(computed);
            saved = Some(save);
        }
        if let Some(last) = before {
            out.mark(0, last);
        }
    }
}

/// Prices by row; `contended` makes host memory too slow for everything at once.
struct Table {
    contended: bool,
}

impl Costs for Table {
    fn price(&self, work: &Work) -> Result<Price, Unsupported> {
        let nanos = [90_000, 40_000, 80_000, 30_000, 9000, 20_000][(work.bytes().0 % 6) as usize];
        let moves = Cost::moving(Bytes(1_000_000), Nanos(nanos)).drawing(Resource::Dram, 1.0);
        let cost = if work.bytes().0 == 3 { Cost::fixed(Nanos(nanos)) } else { moves };
        Ok(Price::plain(work, cost))
    }

    fn capacities(&self) -> Capacities {
        let dram = if self.contended { 30.0 } else { 1e6 };
        Capacities::UNLIMITED.with(Resource::Dram, dram)
    }
}

fn pipeline_of_layers(c: &mut Criterion) {
    let mut group = c.benchmark_group("simulate");
    group.throughput(Throughput::Elements(u64::from(OPS * LAYERS * PASSES)));
    group.sample_size(20);
    let schedule = pipeline();
    let bare = Options { record: false, page_cache: PageCache::NONE };
    for (name, contended, options) in [
        ("summary", false, bare),
        ("summary, contended", true, bare),
        ("timeline", false, Options { record: true, ..bare }),
    ] {
        let costs = Table { contended };
        group.bench_function(name, |b| {
            b.iter(|| simulate_with(black_box(&schedule), &costs, &options));
        });
    }
    let costs = Table { contended: false };
    group.bench_function("lower bound", |b| {
        b.iter(|| lower_bound(black_box(&schedule), &costs, &bare));
    });
    group.finish();
}

/// OPT-175B on a machine with 16 GB of GPU memory: 12 micro-batches, 32 new tokens, everything priced.
fn opt_175b() -> Plan {
    let gigabytes = |n: u64| Bytes(n * 1_000_000_000);
    let knobs = Pipo { kv: KvTier::Host, host_weights: gigabytes(150), ..Pipo::default() };
    Plan {
        machine: "t4-flexgen".into(),
        profile: String::new(),
        seed: 1,
        workload: Workload {
            prompt: 512,
            new_tokens: 32,
            batch: None,
            objective: Objective::Throughput,
            token_within: None,
        },
        budget: Budget { gpu: gigabytes(16), host: gigabytes(200), disk: gigabytes(1500) },
        precision: Precisions { weights: Precision::Int4, kv: Precision::Fp16 },
        batch: Batching { micro: 4, count: 12, prefill_chunk: None },
        strategy: Strategy::Pipo(knobs),
        model: models::find("opt-175b").expect("the catalogue has it"),
        prediction: None,
        runners_up: Vec::new(),
    }
}

fn whole_plan(c: &mut Criterion) {
    let machine = machines::find("t4-flexgen").expect("the catalogue has it");
    let schedule = lower(&opt_175b()).expect("the plan is valid");
    let options = Options { record: false, page_cache: PageCache::NONE };
    let ops = simulate(&schedule, &machine, &options).expect("it runs to its end").summary.ops;
    let mut group = c.benchmark_group("OPT-175B, PIPO");
    group.throughput(Throughput::Elements(ops));
    group.sample_size(10);
    group.bench_function("summary", |b| {
        b.iter(|| simulate(black_box(&schedule), &machine, &options));
    });
    group.finish();
}

criterion_group!(benches, pipeline_of_layers, whole_plan);
criterion_main!(benches);
