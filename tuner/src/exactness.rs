//! The search is exact: on random small requests, bounds never exceed what is simulated, pruning loses
//! nothing, the number of threads decides nothing, and no plan is above its ceiling.

use pipo_plan::machine::{Figure, Machine, catalog};
use pipo_plan::model::{AttentionBias, Experts, Family, Model};
use pipo_plan::strategy::pipo::{Embedding, ExpertLoads, FileReads};
use pipo_plan::strategy::{Granularity, KvTier, Order, Processor, Strategy as Lowering};
use pipo_plan::timeline::Times;
use pipo_plan::units::{Bandwidth, Bytes, FlopRate, Nanos};
use pipo_plan::workload::{Budget, Objective, Workload};
use pipo_simulator::CostModel;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::baselines::try_all;
use crate::evaluate::Fitted;
use crate::problem::Problem;
use crate::search::{Found, simulate};
use crate::tree::Tree;
use crate::verdict::binding;
use crate::{HostChoice, Request, Space, TuneError, Tuning, tune};

fn model() -> impl Strategy<Value = Model> {
    let families = select(vec![Family::Opt, Family::Llama, Family::Qwen3, Family::Mixtral]);
    (families, 1..5_u32, 1..5_u64, 1..4_u64, 1..40_u64, any::<bool>()).prop_map(
        |(family, layers, width, ffn, vocab, tied)| {
            let hidden = 128 * width;
            Model {
                name: "small".into(),
                source: String::new(),
                family,
                layers,
                hidden,
                heads: 4,
                kv_heads: if family == Family::Opt { 4 } else { 2 },
                head_dim: hidden / 4,
                ffn: hidden * ffn,
                vocab: 512 * vocab,
                positions: if family == Family::Opt { 2050 } else { 0 },
                max_context: 2048,
                tied_embeddings: tied,
                attention_bias: if family == Family::Opt {
                    AttentionBias::All
                } else {
                    AttentionBias::None
                },
                mlp_bias: family == Family::Opt,
                post_norm: false,
                embedding_width: None,
                sliding_window: None,
                experts: (family == Family::Mixtral).then_some(Experts { count: 4, active: 2 }),
            }
        },
    )
}

/// A laptop whose parts are each up to a thousand times slower than they are: models here are that much
/// smaller, and every part should be the bottleneck of some.
fn machine() -> impl Strategy<Value = Machine> {
    let slower = || (0..11_u32).prop_map(|power| 1_u64 << power);
    let rates = (slower(), slower(), slower(), slower(), slower());
    let flags = [0.8, 0.3, 0.4].map(prop::bool::weighted);
    (rates, flags, 0..300_000_u64).prop_map(
        |((link, disk, gpu, cpu, memory), [has_disk, no_latency, measured], nanos)| {
            let mut machine = catalog::find("rtx3060-laptop").expect("it is in the catalogue");
            let slow = |rate: Bandwidth, by: u64| Bandwidth((rate.0 / by).max(1));
            let flops = |rate: FlopRate, by: u64| FlopRate((rate.0 / by).max(1));
            for curve in [&mut machine.link.h2d, &mut machine.link.d2h] {
                curve.value = curve.with_rate(slow(curve.best(), link));
            }
            machine.link.duplex.value = slow(machine.link.duplex.value, link);
            if let Some(disks) = &mut machine.disk {
                for curve in [&mut disks.read, &mut disks.write, &mut disks.buffered_read] {
                    curve.value = curve.with_rate(slow(curve.best(), disk));
                }
            }
            if !has_disk {
                machine.disk = None;
            }
            let by = gpu;
            machine.gpu.memory_bandwidth.value = slow(machine.gpu.memory_bandwidth.value, by);
            machine.gpu.matmul.value = flops(machine.gpu.matmul.value, by);
            machine.gpu.attention.value = flops(machine.gpu.attention.value, by);
            machine.host.compute.value = flops(machine.host.compute.value, cpu);
            machine.host.attention.value = flops(machine.host.attention.value, cpu);
            machine.host.memory_bandwidth.value = slow(machine.host.memory_bandwidth.value, memory);
            machine.host.copy.value = slow(machine.host.copy.value, memory);
            machine.gpu.context.value = Bytes(0);
            machine.host.reserved.value = Bytes(0);
            if no_latency {
                machine.gpu.launch.value = Nanos(0);
                machine.software.disk_request.value = Nanos(0);
            }
            if measured {
                // What a catalogue machine lacks and a profile has.
                let figure = |part| Some(Figure::new(Nanos(nanos / part), "estimate"));
                machine.gpu.gap = figure(100);
                if let Some(disk) = &mut machine.disk {
                    // From a tenth of what one thread reaches to three times as much.
                    let best = disk.buffered_read.best().0;
                    let total = Bandwidth((best / 10 * (1 + nanos % 30)).max(1));
                    disk.buffered_total = Some(Figure::new(total, "estimate"));
                    disk.buffered_pair.clone_from(&disk.buffered_total);
                    disk.buffered_jump = figure(2);
                    disk.page_fault_total.clone_from(&disk.buffered_total);
                }
                machine.gpu.page_tables = Some(Figure::new(0.1, "estimate"));
                let software = &mut machine.software;
                (software.handover, software.lookup) = (figure(10), figure(1));
                (software.notice, software.submit) = (figure(7), figure(4));
                (software.follow, software.issue) = (figure(5), figure(3));
            }
            machine
        },
    )
}

fn workload() -> impl Strategy<Value = Workload> {
    let objectives = select(vec![Objective::Throughput, Objective::Latency, Objective::FirstToken]);
    let goal = prop::option::weighted(0.3, (1..1_000_000_u64).prop_map(|us| Nanos(us * 1000)));
    (1..80_u64, 1..7_u64, prop::option::of(1..5_u64), objectives, goal).prop_map(
        |(prompt, new_tokens, batch, objective, token_within)| Workload {
            prompt,
            new_tokens,
            batch,
            objective,
            token_within,
        },
    )
}

/// So many values of each knob, or fewer, in any order of preference.
fn some<T: Clone + std::fmt::Debug + 'static>(
    all: Vec<T>,
    most: usize,
) -> impl Strategy<Value = Vec<T>> {
    subsequence(all, 1..=most).prop_shuffle()
}

fn space() -> impl Strategy<Value = Space> {
    const KIB: u64 = 1 << 10;
    let blocks = vec![Bytes(16 * KIB), Bytes(64 * KIB), Bytes(1024 * KIB)];
    let reads = vec![Bytes(8 * KIB), Bytes(256 * KIB)];
    let batches = (some(vec![1, 2, 4], 2), some(vec![1, 2, 3], 2), some(vec![7, 16, 64], 1));
    let slots = (some(vec![1, 2, 3, 4], 3), some(vec![1, 2, 4], 2));
    let transfers = (
        some(blocks, 2),
        some(reads, 1),
        some(vec![1, 2, 4], 2),
        some(vec![FileReads::Direct, FileReads::Buffered], 2),
    );
    let units = (
        some(vec![Granularity::Layer, Granularity::Part, Granularity::Tensor], 1),
        some(vec![Order::Spread, Order::First, Order::Head], 2),
        some(vec![HostChoice::Pinned, HostChoice::Pageable, HostChoice::Disk], 3),
        some(vec![Embedding::Host, Embedding::Mapped, Embedding::Unit], 1),
    );
    let cache = (
        some(vec![KvTier::Gpu, KvTier::Host, KvTier::Disk], 3),
        some(vec![0, 2, 4], 2),
        some(vec![Processor::Gpu, Processor::Cpu], 2),
        some(vec![Processor::Gpu, Processor::Cpu], 1),
        some(vec![ExpertLoads::All, ExpertLoads::Routed], 2),
    );
    (batches, slots, transfers, units, cache).prop_map(
        |(batches, slots, transfers, units, cache)| Space {
            micro: batches.0,
            count: batches.1,
            most_sequences: 8,
            prefill_chunk: batches.2,
            granularity: units.0,
            gpu_slots: slots.0,
            host_slots: slots.1,
            block: transfers.0,
            most_blocks: 64,
            read_block: transfers.1,
            disk_threads: transfers.2,
            reads: transfers.3,
            order: units.1,
            host: units.2,
            embedding: units.3,
            kv: cache.0,
            kv_gpu_quarters: cache.1,
            attention: cache.2,
            hidden: cache.3,
            experts: cache.4,
        },
    )
}

/// Budgets as shares of what the model takes, from too little to enough.
fn request() -> impl Strategy<Value = Request> {
    (model(), machine(), workload(), space(), 0..40_u64, 0..40_u64, any::<u16>(), 0..4_usize)
        .prop_map(|(model, machine, workload, space, gpu, host, seed, top)| {
            let weights = model.total_bytes(pipo_plan::model::Precision::Int4);
            let budget = Budget {
                gpu: Bytes(weights.0 * gpu / 16 + 400_000),
                host: Bytes(weights.0 * host / 16 + 400_000),
                disk: Bytes(1 << 40),
            };
            let mut request = Request::new(model, machine, workload, budget);
            request.space = space;
            request.seed = u64::from(seed);
            request.strategies = vec!["pipo".into(), "resident".into(), "accelerate".into()];
            request.top = top;
            request.effort = u64::MAX;
            request
        })
}

/// What must be the same however the search is done.
fn essence(tuning: &Result<Tuning, TuneError>) -> Result<(String, Vec<String>), TuneError> {
    let text = |plan: &pipo_plan::plan::Plan| {
        pipo_plan::plan::Plan { prediction: None, runners_up: Vec::new(), ..plan.clone() }.to_toml()
    };
    let tuning = tuning.as_ref().map_err(Clone::clone)?;
    let runners_up = tuning.runners_up.iter().map(|r| text(&r.plan)).collect();
    Ok((text(&tuning.best.plan), runners_up))
}

fn on_threads(request: &Request, threads: usize) -> Result<Tuning, TuneError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.expect("a pool of a few threads").install(|| tune(request, &|_| {}))
}

/// The last token of a run is no earlier than what the ceiling is made of.
fn within_its_ceiling(problem: &Problem, found: &Found) -> Result<(), TestCaseError> {
    let text = found.plan.to_toml();
    let fail = |e: &dyn std::fmt::Display| TestCaseError::fail(format!("{e}\n{text}"));
    let fitted = Fitted::new(&found.plan, &problem.request.machine).map_err(|e| fail(&e))?;
    let binding = binding(&fitted, problem.costs).map_err(|e| fail(&e))?;
    let request = Times::of(&found.summary.passes).request;
    prop_assert!(binding.time <= request, "{:?} > {:?}\n{}", binding, request, text);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn pruning_loses_nothing_and_threads_decide_nothing(request in request()) {
        let exhaustive = Request { exhaustive: true, ..request.clone() };
        let pruned = on_threads(&request, 1);
        prop_assert_eq!(&pruned, &on_threads(&request, 2));
        let all = on_threads(&exhaustive, 2);
        prop_assert_eq!(essence(&pruned), essence(&all));
        if let (Ok(pruned), Ok(all)) = (pruned, all) {
            prop_assert_eq!(pruned.considered, all.considered);
            prop_assert_eq!(all.excluded_by_bound, 0);
            prop_assert_eq!(pruned.left, 0);
            prop_assert!(pruned.simulated <= all.simulated);
        }
    }

    #[test]
    fn a_search_that_stops_early_says_how_good_it_is(request in request()) {
        let hasty = tune(&Request { effort: 1, ..request.clone() }, &|_| {});
        let whole = tune(&request, &|_| {});
        prop_assert_eq!(hasty.is_ok(), whole.is_ok());
        let (Ok(hasty), Ok(whole)) = (hasty, whole) else { return Ok(()) };
        prop_assert_eq!(hasty.considered, whole.considered);
        let goal = request.workload.token_within;
        if request.workload.objective == Objective::Throughput && goal.is_none() {
            let [got, best] = [&hasty, &whole].map(|t| t.best.evaluation.tokens_per_second);
            prop_assert!(best <= got * (1.0 + hasty.gap) * (1.0 + 1e-9), "{best} {got} {}", hasty.gap);
        }
    }

    #[test]
    fn no_candidate_is_better_than_its_bounds(request in request()) {
        let costs = CostModel::new(&request.machine);
        let problem = Problem::new(&request, &costs);
        let Ok(tree) = Tree::new(&problem) else { return Ok(()) };
        let stands = tree.stands(&problem);
        let (nodes, _) = tree.nodes(&stands);
        for node in &nodes {
            let stand = &stands[node.base];
            let second = stand.second_bound(node);
            let leaves = stand.leaves(node).expect("the machine can do what a node asks");
            prop_assert_eq!(leaves.len(), node.leaves);
            for leaf in &leaves {
                let plan = stand.plan(node, leaf);
                let text = plan.to_toml();
                let why = Fitted::new(&plan, &request.machine).err();
                let found = simulate(&problem, plan);
                let found = found.map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
                let Some(found) = found else {
                    return Err(TestCaseError::fail(format!("{why:?}:\n{text}")));
                };
                within_its_ceiling(&problem, &found)?;
                for bound in [node.bound, second, leaf.bound] {
                    prop_assert!(bound <= found.score, "{:?} > {:?}\n{}", bound, found.score, text);
                }
            }
        }
    }

    #[test]
    fn no_plan_of_any_strategy_is_above_its_ceiling(request in request(), roomy: bool) {
        let strategies = Lowering::NAMES.map(String::from).to_vec();
        let mut request = Request { strategies, ..request };
        if roomy {
            // FlexGen alone relays copies through 8 GiB.
            request.budget.gpu += Bytes(20_000_000);
            request.budget.host += Bytes(10_000_000_000);
        }
        let costs = CostModel::new(&request.machine);
        let problem = Problem::new(&request, &costs);
        for found in try_all(&problem).iter().flat_map(|tried| &tried.found) {
            within_its_ceiling(&problem, found)?;
        }
    }
}
