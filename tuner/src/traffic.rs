//! What a candidate asks of the machine beside moving weights: arithmetic, cache, hidden states.

use pipo_plan::schedule::{DiskIo, HostMemory, LaneKind, Work};
use pipo_plan::strategy::frame::Frame;
use pipo_plan::strategy::pipo::{Embedding, Pipo, kv_layers_on_gpu, takes_turns};
use pipo_plan::strategy::units::Unit;
use pipo_plan::strategy::{KvTier, Processor};
use pipo_plan::units::Bytes;
use pipo_simulator::Unsupported;

use crate::demand::{Demand, Series};
use crate::pipeline::Pace;
use crate::problem::Problem;
use crate::shape::{Arithmetic, Cut, Shape};

/// What a base asks of the machine beside moving weights. This mirrors what PIPO's lowering emits; a
/// property test holds the two together.
pub(crate) struct Traffic<'a> {
    pub(crate) problem: &'a Problem<'a>,
    pub(crate) cut: &'a Cut,
    pub(crate) shape: &'a Shape,
    /// Sizes and shapes for this way of grouping sequences.
    pub(crate) frame: Frame,
    pub(crate) knobs: &'a Pipo,
}

impl Traffic<'_> {
    fn micros(&self) -> f64 {
        self.frame.plan.batch.count as f64
    }

    pub(crate) fn series(&self) -> Result<Series, Unsupported> {
        let Self { cut, shape, problem, .. } = self;
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
    pub(crate) fn chains(&self) -> (Vec<Option<usize>>, Vec<Vec<f64>>) {
        let Self { cut, shape, .. } = self;
        let kv_on_gpu = kv_layers_on_gpu(&self.frame.plan, self.knobs);
        let in_turns = takes_turns(&self.frame.plan, self.knobs);
        let of = |arithmetic: &Arithmetic, on_cpu: usize| {
            let all = if in_turns { &arithmetic.in_turns } else { &arithmetic.chains };
            all[on_cpu].clone()
        };
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
                chains.push(arithmetic.map_or_else(Vec::new, |a| of(a, key.1)));
                seen.push(key);
                seen.len() - 1
            }))
        };
        let units = cut.frame.units.iter().enumerate();
        let chain_of = units.map(|(index, unit)| of_unit(index, unit)).collect();
        (chain_of, chains)
    }

    /// What else paces the units.
    pub(crate) fn pace(&self, chains: Vec<Vec<f64>>) -> Result<Pace, Unsupported> {
        let memory = HostMemory::Pinned;
        let passes = self.frame.passes();
        let travels = self.knobs.hidden == Processor::Cpu;
        let trip = |pass: u32| -> Result<f64, Unsupported> {
            let bytes = self.frame.hidden(pass);
            let down = self.problem.pricer.demand(LaneKind::D2h, &Work::D2h { bytes, memory })?;
            let up = self.problem.pricer.demand(LaneKind::H2d, &Work::H2d { bytes, memory })?;
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
    pub(crate) fn cache_crosses(&self) -> Vec<bool> {
        let on_gpu = kv_layers_on_gpu(&self.frame.plan, self.knobs);
        let by_gpu = self.knobs.attention == Processor::Gpu;
        on_gpu.into_iter().map(|on_gpu| by_gpu && !on_gpu).collect()
    }

    /// Hidden states of one micro-batch in one pass: the lookup, and the way to and from each unit.
    fn hidden(&self, pass: u32) -> Result<Demand, Unsupported> {
        let bytes = self.frame.hidden(pass);
        let memory = HostMemory::Pinned;
        let units = self.cut.frame.units.len() as f64 - 1.0;
        let up = self.problem.pricer.demand(LaneKind::H2d, &Work::H2d { bytes, memory })?;
        let mut asked = Demand::NOTHING;
        if self.knobs.embedding == Embedding::Host {
            asked.add(&self.problem.pricer.demand(LaneKind::Cpu, &Work::Gather { bytes })?, 1.0);
        }
        match (self.knobs.hidden, self.knobs.embedding) {
            (Processor::Cpu, _) => {
                let down =
                    self.problem.pricer.demand(LaneKind::D2h, &Work::D2h { bytes, memory })?;
                asked.add(&up, units);
                asked.add(&down, units);
            }
            (Processor::Gpu, Embedding::Host) => asked.add(&up, 1.0),
            (Processor::Gpu, Embedding::Mapped | Embedding::Unit) => {}
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
        let mut asked = self.problem.pricer.demand(LaneKind::D2h, &Work::D2h { bytes, memory })?;
        if pass > 0 {
            asked.add(&self.cache_load(pass)?, 1.0);
        }
        Ok(asked)
    }

    /// What comes back of the cache of one layer and micro-batch.
    fn cache_load(&self, pass: u32) -> Result<Demand, Unsupported> {
        let bytes = self.frame.old_cache(pass);
        let load = Work::H2d { bytes, memory: HostMemory::Pinned };
        let mut asked = self.problem.pricer.demand(LaneKind::H2d, &load)?;
        if self.knobs.kv == KvTier::Disk {
            let io = DiskIo::Direct;
            let read = |request| Work::DiskRead { bytes, request, io, jumps: true };
            asked.add(&self.cheapest(LaneKind::DiskRead, read)?, 1.0);
        }
        Ok(asked)
    }

    /// What may run before a decode step's own beginning, and what after its end.
    ///
    /// Before: no more caches than there are slots for them (two more on their way from disk), and the
    /// looked-up rows of every micro-batch. After: saves of as many new cache rows as there are slots,
    /// and hidden states on their way down, one of each micro-batch and one for each of three slots.
    pub(crate) fn at_the_edges(&self) -> Result<(Demand, Demand), Unsupported> {
        let last = self.frame.passes().saturating_sub(1);
        let memory = HostMemory::Pinned;
        let mut ahead = Demand::NOTHING;
        let mut behind = Demand::NOTHING;
        if self.knobs.kv != KvTier::Gpu {
            if last > 0 {
                ahead.add(&self.cache_load(last)?, f64::from(self.knobs.kv_slots) + 2.0);
            }
            let save = Work::D2h { bytes: self.frame.new_cache(0), memory };
            let save = self.problem.pricer.demand(LaneKind::D2h, &save)?;
            behind.add(&save, f64::from(self.knobs.kv_slots));
        }
        let bytes = self.frame.hidden(1);
        let gather = self.problem.pricer.demand(LaneKind::Cpu, &Work::Gather { bytes })?;
        let up = self.problem.pricer.demand(LaneKind::H2d, &Work::H2d { bytes, memory })?;
        ahead.add(&gather.plus(&up), self.micros());
        if self.knobs.hidden == Processor::Cpu {
            let down = Work::D2h { bytes: self.frame.hidden(0), memory };
            behind.add(&self.problem.pricer.demand(LaneKind::D2h, &down)?, self.micros() + 3.0);
        }
        Ok((ahead, behind))
    }

    /// Writes that the last step waits for: it reads back what all steps before it wrote.
    pub(crate) fn writes(&self) -> Result<Demand, Unsupported> {
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
        for &request in &self.problem.request.space.read_block {
            let one = self.problem.pricer.demand(kind, &work(request))?;
            least = Some(least.map_or(one, |least| least.or_less(&one)));
        }
        Ok(least.unwrap_or(Demand::NOTHING))
    }
}

/// Whether a unit attends over a cache that is not on the GPU.
fn cache_leaves(kv_on_gpu: &[bool], unit: &Unit) -> bool {
    unit.attends && !kv_on_gpu.get(unit.layer as usize).copied().unwrap_or(true)
}
