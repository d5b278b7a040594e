//! Where a plan's time goes, and what would buy more.

use std::cmp::Reverse;

use pipo_plan::machine::{Curve, Disk, Machine};
use pipo_plan::plan::Plan;
use pipo_plan::schedule::{LaneKind, OpKind};
use pipo_plan::units::{Bandwidth, Bytes, FlopRate, Nanos};
use pipo_simulator::{CostModel, critical_path};
use rayon::prelude::*;

use crate::evaluate::{EvaluateError, Evaluation, Fitted, ratio};
use crate::refill::refill;
use crate::verdict::{Ceiling, binding, ceiling};

/// A part of the whole time.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// What the time is spent on.
    pub name: String,
    /// How much.
    pub time: Nanos,
    /// Its share of the whole.
    pub share: f64,
}

/// A change, simulated.
#[derive(Debug, Clone, PartialEq)]
pub struct WhatIf {
    /// The change, such as "link 2x faster".
    pub change: String,
    /// New tokens a second over the request with it.
    pub tokens_per_second: f64,
    /// What is gained: 0.1 is a tenth more tokens a second.
    pub gain: f64,
}

/// Where a plan's time goes, and what would buy more.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The plan as it is.
    pub evaluation: Evaluation,
    /// What the binding resource alone would allow, or one in the prefill and another in decode.
    pub ceiling: Ceiling,
    /// The critical path by kind of lane, the largest share first; the shares add up to one.
    pub by_lane: Vec<Share>,
    /// The critical path by kind of operation, the largest share first.
    pub by_operation: Vec<Share>,
    /// How long each lane is busy, the longest first; these overlap.
    pub busy: Vec<Share>,
    /// What other machines or budgets would bring, the largest gain first.
    pub what_ifs: Vec<WhatIf>,
}

/// Explains a plan: simulates it, walks its critical path, and simulates it again with each resource
/// improved.
///
/// A faster resource keeps the plan as it is. More memory is of no use to the plan as it is, so there
/// resident weights are filled anew.
pub fn explain(plan: &Plan, machine: &Machine) -> Result<Explanation, EvaluateError> {
    let costs = CostModel::new(machine);
    let fitted = Fitted::new(plan, machine)?;
    let (summary, timeline) = fitted.run(&costs, true)?;
    let evaluation = fitted.evaluation(plan, &costs, &summary)?;
    let lanes = fitted.schedule.layout.lanes.iter().zip(&summary.lane_busy);
    let busy = lanes.map(|(lane, &time)| (lane.kind.name().to_owned(), time));
    let (mut by_lane, mut by_operation) = (Vec::new(), Vec::new());
    if let Some(path) = timeline.as_ref().map(critical_path) {
        let on_lane = |kind: LaneKind| (kind.name().to_owned(), path.on_lane(kind));
        let on_kind = |kind: OpKind| (kind.name().to_owned(), path.on_kind(kind));
        // Between an operation and one that waited for it on the other side of a GPU's queue.
        let idle = std::iter::once(("handing over".to_owned(), path.idle));
        by_lane = shares(LaneKind::ALL.into_iter().map(on_lane).chain(idle.clone()), summary.end);
        by_operation = shares(OpKind::ALL.into_iter().map(on_kind).chain(idle), summary.end);
    }
    let binding = binding(&fitted, &costs)?;
    Ok(Explanation {
        ceiling: ceiling(plan, &evaluation, &binding),
        by_lane,
        by_operation,
        busy: shares(busy, summary.end),
        what_ifs: what_ifs(plan, machine, evaluation.tokens_per_second)?,
        evaluation,
    })
}

/// The parts that are not nothing, the largest first.
fn shares(parts: impl Iterator<Item = (String, Nanos)>, whole: Nanos) -> Vec<Share> {
    let share = |(name, time): (String, Nanos)| {
        let share = ratio(time.as_f64(), whole.as_f64());
        Share { name, time, share }
    };
    let mut all: Vec<Share> = parts.filter(|(_, time)| *time > Nanos::ZERO).map(share).collect();
    all.sort_by_key(|share| Reverse(share.time));
    all
}

/// Makes a machine better.
type Improve = fn(&mut Machine);

/// What more memory may be, in each of two steps.
const MORE: [Bytes; 2] = [Bytes(2_000_000_000), Bytes(8_000_000_000)];

fn what_ifs(plan: &Plan, machine: &Machine, now: f64) -> Result<Vec<WhatIf>, EvaluateError> {
    let mut changes: Vec<(String, Plan, Machine)> = Vec::new();
    let faster: [(&str, Improve); 5] = [
        ("link 2x faster", faster_link),
        ("disk 2x faster", faster_disk),
        ("GPU 2x faster", faster_gpu),
        ("CPU 2x faster", faster_cpu),
        ("host memory 2x faster", faster_memory),
    ];
    for (change, improve) in faster {
        let mut machine = machine.clone();
        improve(&mut machine);
        changes.push((change.into(), plan.clone(), machine));
    }
    for more in MORE {
        let mut budget = plan.budget.clone();
        budget.gpu += more;
        let larger = Plan { budget, ..plan.clone() };
        changes.push((format!("GPU memory +{}", more.exact()), larger, machine.clone()));
        let mut budget = plan.budget.clone();
        budget.host += more;
        let larger = Plan { budget, ..plan.clone() };
        changes.push((format!("host memory +{}", more.exact()), larger, machine.clone()));
    }
    let simulate = |(change, other, machine): (String, Plan, Machine)| {
        let tokens = |plan: &Plan| -> Result<f64, EvaluateError> {
            Ok(crate::evaluate(plan, &machine, false)?.0.tokens_per_second)
        };
        let tokens_per_second = if other.budget == plan.budget {
            tokens(&other)?
        } else {
            let filled = tokens(&refill(&other, &machine)?)?;
            // Nobody has to use the memory: filling it shifts which units stay, not always for the better.
            if filled < now { tokens(&other)? } else { filled }
        };
        let gain = ratio(tokens_per_second, now) - 1.0;
        Ok(WhatIf { change, tokens_per_second, gain })
    };
    let mut all: Vec<WhatIf> =
        changes.into_par_iter().map(simulate).collect::<Result<_, EvaluateError>>()?;
    // Stable: equal gains stay in the order above.
    all.sort_by(|a, b| b.gain.total_cmp(&a.gain));
    Ok(all)
}

fn twice(rate: &mut Bandwidth) {
    *rate = Bandwidth(rate.0.saturating_mul(2));
}

fn twice_the_flops(rate: &mut FlopRate) {
    *rate = FlopRate(rate.0.saturating_mul(2));
}

/// Twice the rate at the same fixed cost of each transfer.
fn twice_the_rate(curve: &mut Curve) {
    let (_, last) = curve.points()[curve.points().len() - 1];
    *curve = curve.with_rate(Bandwidth(last.0.saturating_mul(2)));
}

fn faster_link(machine: &mut Machine) {
    let link = &mut machine.link;
    for curve in [&mut link.h2d, &mut link.d2h, &mut link.pageable_h2d, &mut link.pageable_d2h] {
        twice_the_rate(&mut curve.value);
    }
    twice(&mut link.duplex.value);
}

fn faster_disk(machine: &mut Machine) {
    let Some(disk) = &mut machine.disk else { return };
    let Disk { read, write, buffered_read, page_fault_read, .. } = disk;
    for curve in [read, write, buffered_read, page_fault_read] {
        twice_the_rate(&mut curve.value);
    }
    let Disk { read_total, buffered_pair, buffered_total, .. } = disk;
    let Disk { page_fault_total, direct_to_gpu, .. } = disk;
    let rates = [read_total, buffered_pair, buffered_total, page_fault_total, direct_to_gpu];
    for rate in rates.into_iter().flatten() {
        twice(&mut rate.value);
    }
    if let Some(jump) = &mut disk.buffered_jump {
        jump.value = half(jump.value);
    }
}

fn faster_gpu(machine: &mut Machine) {
    let gpu = &mut machine.gpu;
    twice(&mut gpu.memory_bandwidth.value);
    twice_the_flops(&mut gpu.matmul.value);
    twice_the_flops(&mut gpu.attention.value);
    twice(&mut gpu.dequantise.value);
    if let Some(decompress) = &mut gpu.decompress {
        twice(&mut decompress.value);
    }
    if let Some(elementwise) = &mut gpu.elementwise {
        twice(&mut elementwise.value);
    }
    let kernels = gpu.kernels.iter_mut().map(|kernel| &mut kernel.time);
    for time in kernels.chain(gpu.attentions.iter_mut().map(|attention| &mut attention.time)) {
        time.value = half(time.value);
    }
}

fn half(time: Nanos) -> Nanos {
    Nanos(time.0.div_ceil(2))
}

fn faster_cpu(machine: &mut Machine) {
    let host = &mut machine.host;
    twice_the_flops(&mut host.compute.value);
    twice_the_flops(&mut host.attention.value);
    twice(&mut host.weights.value);
    if let Some(gather) = &mut host.gather {
        twice(&mut gather.value);
    }
    for attention in &mut host.attentions {
        attention.time.value = half(attention.time.value);
    }
}

fn faster_memory(machine: &mut Machine) {
    twice(&mut machine.host.memory_bandwidth.value);
    twice(&mut machine.host.copy.value);
}
