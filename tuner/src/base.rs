//! Candidates with everything decided but the weights: what they hold, and what they ask of the machine
//! beside moving weights.

use pipo_plan::plan::Plan;
use pipo_plan::schedule::{DiskIo, HostMemory, LaneKind, Tier, Work};
use pipo_plan::strategy::frame::Frame;
use pipo_plan::strategy::pipo::{Embedding, ExpertLoads, Pipo, kv_layers_on_gpu};
use pipo_plan::strategy::units::Unit;
use pipo_plan::strategy::{Granularity, KvTier, LowerError, Processor, Strategy, lower};
use pipo_plan::units::Bytes;
use pipo_simulator::Unsupported;

use crate::demand::{Demand, Pricer, Series};
use crate::pipeline::Pace;
use crate::problem::Problem;
use crate::shape::{Cut, Shape};

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
    let routable = cut.frame.plan.model.experts.is_some() && cut.granularity != Granularity::Tensor;
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
        Frame { plan, units: Vec::new(), style: self.cut.frame.style }
    }

    fn make(&self, knobs: &Pipo) -> Tried {
        match self.try_make(knobs) {
            Ok(tried) => tried,
            Err(refusal) => Tried::Impossible(refusal),
        }
    }

    fn try_make(&self, knobs: &Pipo) -> Result<Tried, Refusal> {
        let (gpu, host) = self.fixed(knobs).map_err(Refusal::Lower)?;
        let overheads = self.problem.overheads;
        let budget = &self.problem.request.budget;
        let needs =
            Needs { gpu: gpu + overheads.gpu_context, host: host + overheads.host_reserved };
        let smallest = self.with_weights(needs, knobs.embedding);
        if needs.gpu > budget.gpu || needs.host > budget.host {
            return Ok(Tried::TooLarge(smallest));
        }
        let asked = Asked { maker: self, frame: self.frame(), knobs, pricer: self.problem.pricer };
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

    /// GPU and host bytes of everything that is neither a weight nor a buffer for weights, from the
    /// layout itself: nothing resident, and the rings taken out by their names.
    fn fixed(&self, knobs: &Pipo) -> Result<(Bytes, Bytes), LowerError> {
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
        let host = layout.bytes(Tier::Pinned) + layout.bytes(Tier::Pageable);
        Ok((layout.bytes(Tier::Gpu) - ring("weight slots"), host - ring("weight blocks")))
    }
}

/// What a base asks of the machine beside moving weights. This mirrors what PIPO's lowering emits; a
/// property test holds the two together.
struct Asked<'a> {
    maker: &'a Maker<'a>,
    frame: Frame,
    knobs: &'a Pipo,
    pricer: Pricer<'a>,
}

impl Asked<'_> {
    fn micros(&self) -> f64 {
        self.frame.plan.batch.count as f64
    }

    fn series(&self) -> Result<Series, Unsupported> {
        let Maker { cut, shape, problem, .. } = self.maker;
        let kv_on_gpu = kv_layers_on_gpu(&self.frame.plan, self.knobs);
        let mut sum = Series::NOTHING;
        let mut streamed_caches = 0.0;
        for (index, unit) in cut.frame.units.iter().enumerate() {
            if index == 0 && self.knobs.embedding == Embedding::Host {
                continue;
            }
            let Some(arithmetic) = shape.arithmetic(cut, index) else { continue };
            let leaves = cache_leaves(&kv_on_gpu, unit);
            let split = arithmetic.split.as_ref();
            let split = split.filter(|_| leaves && self.knobs.attention == Processor::Cpu);
            sum.add(split.unwrap_or(&arithmetic.whole), self.micros());
            streamed_caches += f64::from(u8::from(leaves));
        }
        let passes = self.frame.passes();
        let other = Series::over(passes, problem.keeps_steps(), |pass| {
            let mut asked = self.hidden(pass)?;
            asked.add(&self.cache(pass)?, streamed_caches);
            let mut all = Demand::NOTHING;
            all.add(&asked, self.micros());
            Ok(all)
        })?;
        sum.add(&other, 1.0);
        Ok(sum)
    }

    /// How long each unit computes at least: for each an index, and the times in each pass. Units that
    /// are alike share them.
    fn chains(&self) -> (Vec<Option<usize>>, Vec<Vec<f64>>) {
        let Maker { cut, shape, .. } = self.maker;
        let kv_on_gpu = kv_layers_on_gpu(&self.frame.plan, self.knobs);
        let mut seen: Vec<(usize, usize)> = Vec::new();
        let mut chains = Vec::new();
        let mut of_unit = |index: usize, unit: &Unit| {
            if index == 0 && self.knobs.embedding == Embedding::Host {
                return None;
            }
            let leaves = cache_leaves(&kv_on_gpu, unit);
            let on_cpu = leaves && self.knobs.attention == Processor::Cpu;
            let key = (cut.like[index], usize::from(on_cpu));
            let known = seen.iter().position(|other| *other == key);
            Some(known.unwrap_or_else(|| {
                let arithmetic = shape.arithmetic(cut, index);
                chains.push(arithmetic.map_or_else(Vec::new, |a| a.chains[key.1].clone()));
                seen.push(key);
                seen.len() - 1
            }))
        };
        let units = cut.frame.units.iter().enumerate();
        let chain_of = units.map(|(index, unit)| of_unit(index, unit)).collect();
        (chain_of, chains)
    }

    /// What else paces the units.
    fn pace(&self, chains: Vec<Vec<f64>>) -> Result<Pace, Unsupported> {
        let memory = HostMemory::Pinned;
        let passes = self.frame.passes();
        let travels = self.knobs.hidden == Processor::Cpu;
        let trip = |pass: u32| -> Result<f64, Unsupported> {
            let bytes = self.frame.hidden(pass);
            let down = self.pricer.demand(LaneKind::D2h, &Work::D2h { bytes, memory })?;
            let up = self.pricer.demand(LaneKind::H2d, &Work::H2d { bytes, memory })?;
            Ok(down.lanes() + up.lanes())
        };
        let cache = |pass: u32| -> Result<f64, Unsupported> {
            if pass == 0 {
                return Ok(0.0); // the prefill makes its cache
            }
            Ok(self.cache_load(pass)?.lane(LaneKind::H2d) * self.micros())
        };
        let trips = if travels { 0..passes } else { 0..0 };
        let caches = if self.cache_crosses().contains(&true) { 0..passes } else { 0..0 };
        let slots = u64::from(self.knobs.kv_slots);
        let ahead = slots.div_ceil(self.frame.plan.batch.count.max(1));
        Ok(Pace {
            chains,
            caches: caches.map(cache).collect::<Result<_, _>>()?,
            caches_ahead: usize::try_from(ahead).unwrap_or(usize::MAX),
            trips: trips.map(trip).collect::<Result<_, _>>()?,
            micros: self.micros(),
        })
    }

    /// For each layer, whether its cache crosses the link in each step.
    fn cache_crosses(&self) -> Vec<bool> {
        let on_gpu = kv_layers_on_gpu(&self.frame.plan, self.knobs);
        let by_gpu = self.knobs.attention == Processor::Gpu;
        on_gpu.into_iter().map(|on_gpu| by_gpu && !on_gpu).collect()
    }

    /// Hidden states of one micro-batch in one pass: the lookup, and the way to and from each unit.
    fn hidden(&self, pass: u32) -> Result<Demand, Unsupported> {
        let bytes = self.frame.hidden(pass);
        let memory = HostMemory::Pinned;
        let units = self.maker.cut.frame.units.len() as f64 - 1.0;
        let up = self.pricer.demand(LaneKind::H2d, &Work::H2d { bytes, memory })?;
        let mut asked = Demand::NOTHING;
        if self.knobs.embedding == Embedding::Host {
            asked.add(&self.pricer.demand(LaneKind::Cpu, &Work::Gather { bytes })?, 1.0);
        }
        match (self.knobs.hidden, self.knobs.embedding) {
            (Processor::Cpu, _) => {
                let down = self.pricer.demand(LaneKind::D2h, &Work::D2h { bytes, memory })?;
                asked.add(&up, units);
                asked.add(&down, units);
            }
            (Processor::Gpu, Embedding::Host) => asked.add(&up, 1.0),
            (Processor::Gpu, Embedding::Unit) => {}
        }
        Ok(asked)
    }

    /// The cache of one layer and micro-batch in one pass, where it is not on the GPU. Writes to disk
    /// are counted by [`Self::writes`], because they may trail far behind.
    fn cache(&self, pass: u32) -> Result<Demand, Unsupported> {
        let on_cpu = self.knobs.attention == Processor::Cpu;
        if on_cpu && pass > 0 {
            return Ok(Demand::NOTHING);
        }
        let memory = HostMemory::Pinned;
        let bytes = self.frame.new_cache(pass);
        let mut asked = self.pricer.demand(LaneKind::D2h, &Work::D2h { bytes, memory })?;
        if pass > 0 {
            asked.add(&self.cache_load(pass)?, 1.0);
        }
        Ok(asked)
    }

    /// What comes back of the cache of one layer and micro-batch.
    fn cache_load(&self, pass: u32) -> Result<Demand, Unsupported> {
        let bytes = self.frame.old_cache(pass);
        let load = Work::H2d { bytes, memory: HostMemory::Pinned };
        let mut asked = self.pricer.demand(LaneKind::H2d, &load)?;
        if self.knobs.kv == KvTier::Disk {
            let io = DiskIo::Direct;
            let read = |request| Work::DiskRead { bytes, request, io };
            asked.add(&self.cheapest(LaneKind::DiskRead, read)?, 1.0);
        }
        Ok(asked)
    }

    /// What may run before a decode step's own beginning, and what after its end.
    ///
    /// Before: no more caches than there are slots for them (two more on their way from disk), and the
    /// looked-up rows of every micro-batch. After: saves of as many new cache rows as there are slots,
    /// and hidden states on their way down, one of each micro-batch and one for each of three slots.
    fn at_the_edges(&self) -> Result<(Demand, Demand), Unsupported> {
        let last = self.frame.passes().saturating_sub(1);
        let memory = HostMemory::Pinned;
        let mut ahead = Demand::NOTHING;
        let mut behind = Demand::NOTHING;
        if self.knobs.kv != KvTier::Gpu {
            if last > 0 {
                ahead.add(&self.cache_load(last)?, f64::from(self.knobs.kv_slots) + 2.0);
            }
            let save = Work::D2h { bytes: self.frame.new_cache(0), memory };
            let save = self.pricer.demand(LaneKind::D2h, &save)?;
            behind.add(&save, f64::from(self.knobs.kv_slots));
        }
        let bytes = self.frame.hidden(1);
        let gather = self.pricer.demand(LaneKind::Cpu, &Work::Gather { bytes })?;
        let up = self.pricer.demand(LaneKind::H2d, &Work::H2d { bytes, memory })?;
        ahead.add(&gather.plus(&up), self.micros());
        if self.knobs.hidden == Processor::Cpu {
            let down = Work::D2h { bytes: self.frame.hidden(0), memory };
            behind.add(&self.pricer.demand(LaneKind::D2h, &down)?, self.micros() + 3.0);
        }
        Ok((ahead, behind))
    }

    /// Writes that the last step waits for: it reads back what all steps before it wrote.
    fn writes(&self) -> Result<Demand, Unsupported> {
        let mut writes = Demand::NOTHING;
        if self.knobs.kv != KvTier::Disk {
            return Ok(writes);
        }
        let kv_on_gpu = kv_layers_on_gpu(&self.frame.plan, self.knobs);
        let layers = kv_on_gpu.iter().filter(|&&on| !on).count() as f64;
        // Asked for even where nothing is read back, because what is new is written in any case.
        self.cheapest(LaneKind::DiskWrite, |request| Work::DiskWrite { bytes: Bytes(1), request })?;
        for pass in 0..self.frame.passes().saturating_sub(1) {
            let bytes = self.frame.new_cache(pass);
            let write = |request| Work::DiskWrite { bytes, request };
            writes.add(&self.cheapest(LaneKind::DiskWrite, write)?, layers * self.micros());
        }
        Ok(writes)
    }

    /// The least that a work asks for at any size of disk request: candidates of one base differ in it.
    fn cheapest(
        &self,
        kind: LaneKind,
        work: impl Fn(Bytes) -> Work,
    ) -> Result<Demand, Unsupported> {
        let mut least: Option<Demand> = None;
        for &request in &self.maker.problem.request.space.read_block {
            let one = self.pricer.demand(kind, &work(request))?;
            least = Some(least.map_or(one, |least| least.or_less(&one)));
        }
        Ok(least.unwrap_or(Demand::NOTHING))
    }
}

/// Whether a unit attends over a cache that is not on the GPU.
fn cache_leaves(kv_on_gpu: &[bool], unit: &Unit) -> bool {
    unit.attends && !kv_on_gpu.get(unit.layer as usize).copied().unwrap_or(true)
}
