//! Candidates with everything decided but the weights: what they hold, and what they ask of the machine
//! beside moving weights.

use pipo_plan::plan::Plan;
use pipo_plan::schedule::Tier;
use pipo_plan::strategy::frame::Frame;
use pipo_plan::strategy::pipo::{Embedding, ExpertLoads, Pipo};
use pipo_plan::strategy::{Granularity, KvTier, LowerError, Processor, Strategy, lower};
use pipo_plan::units::Bytes;
use pipo_simulator::Unsupported;

use crate::demand::{Demand, Series};
use crate::pipeline::Pace;
use crate::problem::Problem;
use crate::shape::{Cut, Shape};
use crate::traffic::Traffic;

/// Everything but the weights.
#[derive(Debug)]
pub(crate) struct Base {
    /// Index of the shape.
    pub(crate) shape: usize,
    /// Knobs; those about weights mean nothing yet.
    pub(crate) knobs: Pipo,
    /// All that is asked beside moving weights.
    pub(crate) series: Series,
    /// For each unit, an index into the chains of `pace`; none for a table that is looked up in host memory.
    pub(crate) chain_of: Vec<Option<usize>>,
    /// How long units compute at least, and what else paces them.
    pub(crate) pace: Pace,
    /// For each layer, whether its cache crosses the link in each step.
    pub(crate) cache_crosses: Vec<bool>,
    /// What of a decode step may already have run when the step before it ends.
    pub(crate) ahead: Demand,
    /// What of a step may still run when its token is ready.
    pub(crate) behind: Demand,
    /// Time to write to disk what the last step reads back.
    pub(crate) writes: Demand,
    /// GPU memory left for weights and their slots.
    pub(crate) gpu_room: Bytes,
    /// Host memory left for weights and the blocks in flight.
    pub(crate) host_room: Bytes,
    /// The least memory that any candidate of this base needs.
    pub(crate) smallest: Needs,
}

/// What candidates need at each tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    /// GPU memory, the context included.
    pub(crate) gpu: Bytes,
    /// Host memory, the operating system's share included.
    pub(crate) host: Bytes,
}

/// What came of one setting of the knobs.
#[derive(Debug)]
pub(crate) enum Tried {
    /// It has room for weights.
    Base(Box<Base>),
    /// It does not fit.
    TooLarge(Needs),
    /// It cannot be lowered, or the machine lacks something.
    Impossible(Refusal),
}

/// Why a setting of the knobs is impossible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It cannot be lowered.
    Lower(LowerError),
    /// The machine lacks something.
    Unsupported(Unsupported),
}

/// All bases of one shape.
pub(crate) fn bases(problem: &Problem, cut: &Cut, shape: &Shape, index: usize) -> Vec<Tried> {
    let maker = Maker { problem, cut, shape, index };
    settings(problem, cut).into_iter().flat_map(|knobs| maker.with_kv_layers(&knobs)).collect()
}

/// Settings of the knobs that decide neither weights nor the layers whose cache stays on the GPU.
fn settings(problem: &Problem, cut: &Cut) -> Vec<Pipo> {
    let space = &problem.request.space;
    let routable = cut.frame.plan.model.experts.is_some() && cut.granularity == Granularity::Part;
    // Knobs that a model or a cache does not have keep the one value that is possible.
    let experts: &[ExpertLoads] = if routable { &space.experts } else { &[ExpertLoads::All] };
    let mut all = Vec::new();
    for &kv in &space.kv {
        let attention: &[Processor] =
            if kv == KvTier::Host { &space.attention } else { &[Processor::Gpu] };
        for &attention in attention {
            for &hidden in &space.hidden {
                if attention == Processor::Cpu && hidden == Processor::Cpu {
                    continue; // its two halves keep hidden states on the GPU between them
                }
                for &embedding in &space.embedding {
                    let granularity = cut.granularity;
                    let knobs =
                        Pipo { granularity, embedding, kv, attention, hidden, ..Pipo::default() };
                    all.extend(experts.iter().map(|&experts| Pipo { experts, ..knobs.clone() }));
                }
            }
        }
    }
    all
}

/// Memory that does not depend on where weights are.
struct Fixed {
    gpu: Bytes,
    /// Pinned or not.
    host: Bytes,
    pinned: Bytes,
}

struct Maker<'a> {
    problem: &'a Problem<'a>,
    cut: &'a Cut,
    shape: &'a Shape,
    index: usize,
}

impl Maker<'_> {
    /// One base for each number of layers whose cache stays on the GPU although the others' does not.
    fn with_kv_layers(&self, knobs: &Pipo) -> Vec<Tried> {
        let none = self.make(knobs);
        if knobs.kv == KvTier::Gpu {
            return vec![none];
        }
        let layers = self.cut.frame.plan.model.layers;
        let most = match &none {
            Tried::Base(base) => self.most_kv_layers(base),
            Tried::TooLarge(_) | Tried::Impossible(_) => 0,
        };
        let most = most.min(u64::from(layers.saturating_sub(1)));
        let quarters = &self.problem.request.space.kv_gpu_quarters;
        let mut counts: Vec<u64> =
            quarters.iter().map(|&q| most * u64::from(q.min(4)) / 4).collect();
        counts.sort_unstable();
        counts.dedup();
        let counts = counts.into_iter().map(|c| u32::try_from(c).unwrap_or(layers));
        let mut none = Some(none);
        let make = |count: u32| match none.take_if(|_| count == 0) {
            Some(none) => none,
            None => self.make(&Pipo { kv_gpu_layers: count, ..knobs.clone() }),
        };
        counts.map(make).collect()
    }

    /// Layers whose cache fits beside the slots for the largest unit.
    fn most_kv_layers(&self, base: &Base) -> u64 {
        let units = self.cut.placed_units(base.knobs.embedding);
        let largest = units.iter().map(|u| u.bytes).max().unwrap_or(Bytes::ZERO);
        let slots = self.problem.request.space.gpu_slots.first().copied().unwrap_or(1);
        let room = base.gpu_room - largest * u64::from(slots);
        let layer = self.frame().cache_room() * self.shape.batch.count;
        room.0.checked_div(layer.0).unwrap_or(0)
    }

    fn frame(&self) -> Frame {
        let plan = Plan { batch: self.shape.batch, ..self.cut.frame.plan.clone() };
        // Rows and bytes come from the plan alone; units are not asked for.
        Frame { plan, units: Vec::new(), ..self.cut.frame }
    }

    fn make(&self, knobs: &Pipo) -> Tried {
        match self.try_make(knobs) {
            Ok(tried) => tried,
            Err(refusal) => Tried::Impossible(refusal),
        }
    }

    fn try_make(&self, knobs: &Pipo) -> Result<Tried, Refusal> {
        let Fixed { gpu, host, pinned } = self.fixed(knobs).map_err(Refusal::Lower)?;
        let overheads = self.problem.overheads;
        let budget = &self.problem.request.budget;
        let host = host + overheads.host_reserved;
        // How much of the weights is pinned is not known yet: there are tables for all that can be.
        let pinned = pinned + self.most_pinned().min(budget.host - host);
        let tables = overheads.tables_of(pinned);
        let needs = Needs { gpu: gpu + overheads.gpu_context + tables, host };
        let smallest = self.with_weights(needs, knobs.embedding);
        if needs.gpu > budget.gpu || needs.host > budget.host {
            return Ok(Tried::TooLarge(smallest));
        }
        let Self { problem, cut, shape, .. } = *self;
        let asked = Traffic { problem, cut, shape, frame: self.frame(), knobs };
        let series = asked.series().map_err(Refusal::Unsupported)?;
        let (chain_of, chains) = asked.chains();
        let pace = asked.pace(chains).map_err(Refusal::Unsupported)?;
        let (ahead, behind) = asked.at_the_edges().map_err(Refusal::Unsupported)?;
        let writes = asked.writes().map_err(Refusal::Unsupported)?;
        Ok(Tried::Base(Box::new(Base {
            shape: self.index,
            knobs: knobs.clone(),
            series,
            chain_of,
            pace,
            cache_crosses: asked.cache_crosses(),
            ahead,
            behind,
            writes,
            gpu_room: budget.gpu - needs.gpu,
            host_room: budget.host - needs.host,
            smallest,
        })))
    }

    /// The least memory with weights: the fewest slots and the smallest blocks, and nothing resident but
    /// what has to be where there is no disk.
    fn with_weights(&self, needs: Needs, embedding: Embedding) -> Needs {
        let units = self.cut.placed_units(embedding);
        let total: Bytes = units.iter().map(|u| u.bytes).sum();
        let largest = units.iter().map(|u| u.bytes).max().unwrap_or(Bytes::ZERO);
        let space = &self.problem.request.space;
        let least = |list: &[u32]| u64::from(list.iter().copied().min().unwrap_or(1));
        let block = space.block.iter().copied().min().unwrap_or(Bytes::ZERO).min(largest);
        let has_disk = self.problem.request.machine.disk.is_some();
        let host = if has_disk { block * least(&space.host_slots) } else { total };
        let slots = largest * least(&space.gpu_slots);
        Needs { gpu: needs.gpu + slots.min(total), host: needs.host + host }
    }

    /// The most pinned memory that weights and the blocks in which they come can take.
    fn most_pinned(&self) -> Bytes {
        let space = &self.problem.request.space;
        let block = space.block.iter().copied().max().unwrap_or(Bytes::ZERO);
        let slots = space.host_slots.iter().copied().max().unwrap_or(1);
        self.cut.frame.units.iter().map(|u| u.bytes).sum::<Bytes>() + block * u64::from(slots)
    }

    /// What everything takes that is neither a weight nor a buffer for weights, from the layout itself:
    /// nothing resident, and the rings taken out by their names.
    fn fixed(&self, knobs: &Pipo) -> Result<Fixed, LowerError> {
        let knobs = Pipo {
            gpu_slots: 1,
            host_slots: 1,
            gpu_weights: Bytes::ZERO,
            host_weights: Bytes::ZERO,
            ..knobs.clone()
        };
        let plan = self.problem.plan(self.shape.batch, Strategy::Pipo(knobs));
        let layout = lower(&plan)?.layout;
        let ring = |name: &str| {
            let named = layout.rings.iter().filter(|r| r.name == name);
            named.map(|r| r.slot_bytes * u64::from(r.slots)).sum::<Bytes>()
        };
        let pinned = layout.bytes(Tier::Pinned);
        let host = pinned + layout.bytes(Tier::Pageable);
        let gpu = layout.bytes(Tier::Gpu) - ring("weight slots");
        Ok(Fixed { gpu, host: host - ring("weight blocks"), pinned })
    }
}
