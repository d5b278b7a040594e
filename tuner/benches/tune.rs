//! How fast the default request is tuned, in candidates a second.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pipo_plan::machine::catalog::find as machine;
use pipo_plan::model::catalog::find as model;
use pipo_plan::units::Bytes;
use pipo_plan::workload::{Budget, Objective, Workload};
use pipo_tuner::{Request, tune};

/// OPT-13B at 4 bits with 6 GB of a laptop's GPU; the batch given, or free.
fn request(batch: Option<u64>) -> Option<Request> {
    let machine = machine("rtx3060-laptop")?;
    let budget = Budget {
        gpu: Bytes(6_000_000_000),
        host: *machine.host.memory,
        disk: machine.disk.as_ref().map_or(Bytes::ZERO, |disk| *disk.capacity),
    };
    let workload = Workload {
        prompt: 512,
        new_tokens: 32,
        batch,
        objective: Objective::Throughput,
        token_within: None,
    };
    Some(Request::new(model("opt-13b")?, machine, workload, budget))
}

fn tunes(c: &mut Criterion) {
    let mut group = c.benchmark_group("tune opt-13b in 6 GB");
    group.sample_size(10);
    for (name, batch) in [("batch 1", Some(1)), ("free batch", None)] {
        let Some(request) = request(batch) else { continue };
        let Ok(tuning) = tune(&request, &|_| {}) else { continue };
        // Criterion prints elements a second: candidates considered, most of them excluded by a bound.
        group.throughput(Throughput::Elements(tuning.considered));
        group.bench_function(name, |b| b.iter(|| tune(black_box(&request), &|_| {})));
    }
    group.finish();
}

criterion_group!(benches, tunes);
criterion_main!(benches);
