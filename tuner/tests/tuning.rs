//! What the tuner concludes, and what it writes into a plan.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use pipo_plan::diagnostic::Document;
use pipo_plan::machine::{Curve, Figure, Machine, catalog as machines};
use pipo_plan::model::catalog as models;
use pipo_plan::plan::Plan;
use pipo_plan::strategy::pipo::FileReads;
use pipo_plan::strategy::{Granularity, Processor, Strategy};
use pipo_plan::units::{Bandwidth, Bytes, Nanos};
use pipo_plan::workload::{Budget, Objective, Workload};
use pipo_tuner::{Request, Space, TuneError, Tuning, Verdict, evaluate, explain, tune};

fn laptop() -> Machine {
    machines::find("rtx3060-laptop").unwrap()
}

/// Few enough candidates for a test in a debug build.
fn small_space() -> Space {
    Space {
        granularity: vec![Granularity::Part],
        gpu_slots: vec![2, 1],
        block: vec![Bytes(32 << 20), Bytes(8 << 20)],
        prefill_chunk: Vec::new(),
        ..Space::default()
    }
}

fn request(model: &str, gpu: &str) -> Request {
    let machine = laptop();
    let budget = Budget {
        gpu: gpu.parse().unwrap(),
        host: *machine.host.memory,
        disk: "1TB".parse().unwrap(),
    };
    let workload = Workload {
        prompt: 128,
        new_tokens: 8,
        batch: Some(1),
        objective: Objective::Throughput,
        token_within: None,
    };
    let model = models::find(model).unwrap();
    Request { space: small_space(), ..Request::new(model, machine, workload, budget) }
}

fn tuned(request: &Request) -> Tuning {
    tune(request, &|_| {}).unwrap()
}

/// Whoever streams through more than one slot is not wanted.
fn several_slots(plan: &Plan) -> Option<String> {
    let Strategy::Pipo(knobs) = &plan.strategy else { return Some("another system".into()) };
    (knobs.gpu_slots != 1).then(|| "more than one slot".into())
}

#[test]
fn what_is_refused_is_not_chosen_and_hides_nothing_else() {
    let free = Request { strategies: vec!["pipo".into()], ..request("opt-13b", "6GB") };
    let refusing = tuned(&Request { refuses: Some(several_slots), ..free.clone() });
    let space = Space { gpu_slots: vec![1], ..small_space() };
    let restricted = tuned(&Request { space, ..free.clone() });
    assert_eq!(refusing.best.evaluation, restricted.best.evaluation);
    assert!(refusing.refused > 0 && restricted.refused == 0);
    let runners = refusing.runners_up.iter().chain([&refusing.best]);
    assert!(runners.into_iter().all(|candidate| several_slots(&candidate.plan).is_none()));
    let other = Request { refuses: Some(several_slots), ..request("opt-13b", "6GB") };
    let tuning = tuned(&Request { strategies: Vec::new(), ..other });
    assert!(tuning.baselines.iter().all(|baseline| baseline.outcome.is_err()));
}

#[test]
fn a_model_that_does_not_fit_is_offloaded_and_no_baseline_is_better() {
    let request = request("opt-13b", "6GB");
    let tuning = tuned(&request);
    assert_eq!(tuning.verdict, Verdict::Offload);
    let names: Vec<&str> = tuning.baselines.iter().map(|b| b.name).collect();
    assert_eq!(names, ["flexgen", "accelerate", "resident", "cpu-split", "headinfer"]);
    let best = tuning.best.evaluation.tokens_per_second;
    for baseline in &tuning.baselines {
        if let Ok(evaluation) = &baseline.outcome {
            assert!(evaluation.tokens_per_second <= best, "{} is better", baseline.name);
        }
    }
    assert!(tuning.baselines[2].outcome.as_ref().is_err_and(|why| why.contains("GPU memory")));
    let counted = tuning.simulated + tuning.excluded_by_bound;
    assert!(counted <= tuning.considered && tuning.excluded_by_bound > 0);
    assert!(tuning.ceiling.share > 0.0 && tuning.ceiling.share <= 1.0, "{:?}", tuning.ceiling);
    assert_eq!(tuning.runners_up.len(), request.top);
    assert!(tuning.runners_up.iter().all(|r| r.difference.contains(" instead of ")));
}

#[test]
fn a_ceiling_names_what_binds_the_prefill_and_what_binds_decode() {
    let mut request = request("opt-13b", "6GB");
    request.workload.prompt = 512;
    request.strategies = vec!["pipo".into()];
    request.space.attention = vec![Processor::Gpu];
    let tuning = tuned(&request);
    let both = "GPU compute in the prefill and the link to the GPU in decode";
    assert_eq!(tuning.ceiling.resource, both);
    assert!(tuning.ceiling.share <= 1.0, "{:?}", tuning.ceiling);
    let prediction = tuning.best.plan.prediction.unwrap();
    assert_eq!(prediction.ceiling_resource, both);

    request.workload.new_tokens = 1;
    assert_eq!(tuned(&request).ceiling.resource, "GPU compute");
}

#[test]
fn the_plan_is_canonical_and_predicts_itself() {
    let request = request("opt-6.7b", "3GB");
    let tuning = tuned(&request);
    let text = tuning.best.plan.to_toml();
    let read = Plan::from_toml(&Document::new("plan.toml", &text)).unwrap();
    assert_eq!(read.to_toml(), text);
    assert_eq!(read.profile, request.machine.hash());
    let prediction = read.prediction.clone().unwrap();
    let (evaluation, timeline) = evaluate(&read, &request.machine, true).unwrap();
    assert_eq!(evaluation, tuning.best.evaluation);
    assert_eq!(prediction.request, evaluation.request);
    assert_eq!(prediction.gpu_bytes, evaluation.memory.gpu());
    assert_eq!(timeline.unwrap().passes.len(), 8);
    assert_eq!(tuned(&request), tuning, "the same request gives the same result");
}

#[test]
fn a_model_that_fits_needs_no_offload() {
    let tuning = tuned(&request("opt-1.3b", "6GB"));
    assert_eq!(tuning.verdict, Verdict::NoOffloadNeeded);
    assert_eq!(tuning.best.evaluation.disk_bytes_per_step, Bytes::ZERO);
}

#[test]
fn a_baseline_keeps_on_the_gpu_what_the_host_has_no_room_for() {
    // 16.9 GB of weights, and a host of 16 GiB: layers on the GPU are none that the host has to hold.
    let split = Request { strategies: vec!["cpu-split".into()], ..request("opt-30b", "6GB") };
    let tuning = tuned(&split);
    let Strategy::CpuSplit(knobs) = &tuning.best.plan.strategy else { panic!("{tuning:?}") };
    assert!(knobs.gpu_layers > 0);
    assert_eq!(tuning.best.evaluation.disk_bytes_per_step, Bytes::ZERO);
    assert_eq!(tuning.verdict, Verdict::Offload, "nothing is streamed, but most is in host memory");
    let mut more = tuning.best.plan.clone();
    let Strategy::CpuSplit(knobs) = &mut more.strategy else { panic!() };
    knobs.gpu_layers += 1;
    assert!(evaluate(&more, &split.machine, false).is_err(), "one more layer does not fit");
}

#[test]
fn counts_that_no_run_can_have_are_refused_at_once() {
    for (new_tokens, path) in [(4_000_000_000, "workload.new_tokens"), (200_000, "workload.prompt")]
    {
        let mut request = request("opt-1.3b", "6GB");
        request.workload.new_tokens = new_tokens;
        let error = tune(&request, &|_| {}).unwrap_err();
        assert!(matches!(&error, TuneError::Request(at) if at.path == path), "{error}");
    }
}

#[test]
fn a_gpu_that_is_twice_as_fast_is_so_in_all_that_was_measured_of_it() {
    // A profile of an H200, whose tables say what products and attentions take, and a plan all on the GPU.
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../results/published/h200-verify/second/whole.toml");
    let document = Document::new(path, std::fs::read_to_string(path).unwrap());
    let machine = Machine::from_toml(&document).unwrap();
    let mut request = request("opt-1.3b", "40GB");
    request.workload = Workload { prompt: 1024, batch: Some(64), ..request.workload };
    request.budget.host = *machine.host.memory;
    let request = Request { machine, strategies: vec!["resident".into()], ..request };
    let explained = explain(&tuned(&request).best.plan, &request.machine).unwrap();
    let faster = explained.what_ifs.iter().find(|what| what.change == "GPU 2x faster").unwrap();
    // What is left is between kernels.
    assert!(faster.gain > 0.9 && faster.gain <= 1.0, "{faster:?}");
}

#[test]
fn too_small_a_budget_is_told_what_would_do() {
    let error = tune(&request("opt-13b", "400MB"), &|_| {}).unwrap_err();
    let TuneError::NothingFits { needs, budget } = &error else { panic!("{error}") };
    assert!(needs.gpu > budget.gpu && error.to_string().contains("raise --gpu-mem to at least"));
    let mut enough = request("opt-13b", "400MB");
    enough.budget.gpu = needs.gpu;
    enough.budget.host = enough.budget.host.max(needs.host);
    assert!(tune(&enough, &|_| {}).is_ok(), "what was asked for is enough");
}

#[test]
fn a_goal_out_of_reach_is_told_why() {
    let mut request = request("opt-13b", "6GB");
    request.workload.token_within = Some(Nanos(10_000_000));
    let Verdict::GoalOutOfReach { goal, step, bound, reason } = tuned(&request).verdict else {
        panic!("10 ms a token is not possible");
    };
    assert!(goal < bound && bound <= step, "{goal} {bound} {step}");
    assert!(reason.contains("alone needs"), "{reason}");

    request.workload.token_within = Some(Nanos(2_000_000_000));
    assert_eq!(tuned(&request).verdict, Verdict::Offload);
}

#[test]
fn objectives_choose_batches() {
    let mut request = request("opt-13b", "6GB");
    request.space.count = vec![1];
    request.space.micro = vec![1, 4];
    request.workload.batch = None;
    assert_eq!(tuned(&request).best.plan.batch.sequences(), 4);
    request.workload.objective = Objective::Latency;
    assert_eq!(tuned(&request).best.plan.batch.sequences(), 1);
}

#[test]
fn strategies_can_be_named() {
    let mut one = request("opt-6.7b", "6GB");
    one.strategies = vec!["accelerate".into()];
    assert_eq!(tuned(&one).best.plan.strategy.name(), "accelerate");
    one.strategies = vec!["magic".into()];
    assert!(matches!(tune(&one, &|_| {}), Err(TuneError::UnknownStrategy { .. })));
}

#[test]
fn an_explanation_adds_up() {
    let mut request = request("opt-13b", "6GB");
    request.strategies = vec!["pipo".into()];
    // Arithmetic fast enough that the link binds the prefill as well: the premise of what follows.
    request.machine.gpu.matmul.value = "25TFLOP/s".parse().unwrap();
    let tuning = tuned(&request);
    assert!(tuning.ceiling.share > 0.8, "two slots keep the link busy: {:?}", tuning.ceiling);
    let plan = tuning.best.plan;
    let explanation = explain(&plan, &request.machine).unwrap();
    let sum = |shares: &[pipo_tuner::Share]| shares.iter().map(|s| s.share).sum::<f64>();
    assert!((sum(&explanation.by_lane) - 1.0).abs() < 1e-9);
    assert!((sum(&explanation.by_operation) - 1.0).abs() < 1e-9);
    let gain = |change: &str| {
        explanation.what_ifs.iter().find(|w| w.change.starts_with(change)).unwrap().gain
    };
    assert!(gain("link") > 0.2, "weights cross the link in every step");
    assert!(gain("GPU memory +2GB") > 0.2, "2 GB more are kept");
    assert!(gain("disk").abs() < 1e-9, "nothing is on disk");
}

#[test]
fn a_faster_disk_is_faster_however_many_threads_read_it() {
    for reads in [FileReads::Direct, FileReads::Buffered] {
        let mut request = request("opt-13b", "6GB");
        request.strategies = vec!["pipo".into()];
        request.budget.host = Bytes(2_000_000_000);
        request.space.reads = vec![reads];
        request.space.disk_threads = vec![4];
        let rate = |mega: u64| Bandwidth(mega * 1_000_000);
        let disk = request.machine.disk.as_mut().unwrap();
        disk.read.value = Curve::flat(rate(200));
        disk.buffered_read.value = Curve::flat(rate(200));
        // What several threads reach together is what binds, not what each does alone.
        let total = |mega| Some(Figure::new(rate(mega), "estimate"));
        (disk.read_total, disk.buffered_total) = (total(300), total(100));
        let plan = tuned(&request).best.plan;
        let explanation = explain(&plan, &request.machine).unwrap();
        let gain = explanation.what_ifs.iter().find(|w| w.change == "disk 2x faster").unwrap().gain;
        assert!(gain > 0.95, "{reads:?}: {gain}");
    }
}
