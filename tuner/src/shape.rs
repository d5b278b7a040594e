//! What does not depend on where weights live: the model cut into units, and their arithmetic for one way
//! of grouping sequences.

use pipo_plan::plan::{Batching, Plan};
use pipo_plan::schedule::{HostMemory, LaneKind, Piece, Work};
use pipo_plan::strategy::Granularity;
use pipo_plan::strategy::frame::Frame;
use pipo_plan::strategy::pipo::{Embedding, Pipo, placed_units};
use pipo_plan::strategy::units::Unit;
use pipo_plan::units::Bytes;
use pipo_simulator::Unsupported;

use crate::demand::{Demand, Pricer, Series};
use crate::problem::Problem;

/// The model cut into units.
#[derive(Debug)]
pub(crate) struct Cut {
    /// How finely.
    pub(crate) granularity: Granularity,
    /// Units and sizes; its batch means nothing here.
    pub(crate) frame: Frame,
    /// Units as they are placed where the embedding is looked up in host memory.
    with_host_table: Vec<Unit>,
    /// For each unit, the first unit that is like it in all but name.
    pub(crate) like: Vec<usize>,
}

impl Cut {
    pub(crate) fn new(plan: &Plan, granularity: Granularity) -> Self {
        let frame = Frame::new(plan, granularity, true);
        let host = Pipo { embedding: Embedding::Host, ..Pipo::default() };
        let with_host_table = placed_units(&frame, &host);
        let like = (0..frame.units.len()).map(|u| like(&frame, u)).collect();
        Self { granularity, frame, with_host_table, like }
    }

    /// The units as they are placed.
    pub(crate) fn placed_units(&self, embedding: Embedding) -> &[Unit] {
        match embedding {
            Embedding::Host | Embedding::Mapped => &self.with_host_table,
            Embedding::Unit => &self.frame.units,
        }
    }
}

impl Cut {
    /// What head and embedding have in common, if both are placed.
    pub(crate) fn tied_table(&self, embedding: Embedding) -> Bytes {
        match embedding {
            Embedding::Host | Embedding::Mapped => Bytes::ZERO,
            Embedding::Unit => self.frame.tied_table(),
        }
    }
}

/// The first unit like this one. Layers with experts are all different, because each draws its own.
fn like(frame: &Frame, unit: usize) -> usize {
    let this = &frame.units[unit];
    if this.has_experts() {
        return unit;
    }
    let same = |other: &Unit| other.attends == this.attends && other.tensors == this.tensors;
    frame.units.iter().position(same).unwrap_or(unit)
}

/// The arithmetic of every unit for one way of grouping sequences.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) batch: Batching,
    /// Index of the cut.
    pub(crate) cut: usize,
    /// By unit; empty for units that are like an earlier one.
    units: Vec<Option<Arithmetic>>,
    /// Experts of each unit that the router picks; empty where there are none.
    pub(crate) picked: Vec<Picked>,
}

/// What one unit computes for one micro-batch.
#[derive(Debug)]
pub(crate) struct Arithmetic {
    /// On the GPU.
    pub(crate) whole: Series,
    /// With decode attention on the CPU, transfers included; for units that attend, if it may be asked for.
    pub(crate) split: Option<Series>,
    /// Nanoseconds from the beginning of its first computation to the end of its last, at least, in each
    /// pass: for all micro-batches, on the GPU alone and with attention on the CPU.
    pub(crate) chains: [Vec<f64>; 2],
    /// The same of the last micro-batch alone in every pass but the first: all that is sure where
    /// micro-batches take turns.
    pub(crate) in_turns: [Vec<f64>; 2],
}

/// How many experts of a unit are loaded if only those that are picked are.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Picked {
    /// In the prefill.
    pub(crate) first: f64,
    /// In all decode steps together.
    pub(crate) rest: f64,
    /// In the step that needs fewest.
    pub(crate) least: f64,
    /// Decode steps.
    pub(crate) steps: f64,
}

impl Shape {
    /// `split` says whether attention on the CPU may be asked for.
    pub(crate) fn new(
        cut: &Cut,
        index: usize,
        problem: &Problem,
        batch: Batching,
        split: bool,
    ) -> Result<Self, Unsupported> {
        let (pricer, steps) = (problem.pricer, problem.keeps_steps());
        let plan = Plan { batch, ..cut.frame.plan.clone() };
        let frame = Frame { plan, ..cut.frame.clone() };
        let arithmetic = |unit: usize| {
            if cut.like[unit] != unit {
                return Ok(None);
            }
            Arithmetic::new(&frame, unit, pricer, split, steps).map(Some)
        };
        let units = (0..frame.units.len()).map(arithmetic).collect::<Result<_, _>>()?;
        let picked = frame
            .plan
            .model
            .experts
            .map(|_| frame.units.iter().map(|unit| Picked::new(&frame, unit)).collect());
        Ok(Self { batch, cut: index, units, picked: picked.unwrap_or_default() })
    }

    /// The arithmetic of a unit.
    pub(crate) fn arithmetic(&self, cut: &Cut, unit: usize) -> Option<&Arithmetic> {
        self.units[cut.like[unit]].as_ref()
    }
}

impl Arithmetic {
    fn new(
        frame: &Frame,
        unit: usize,
        pricer: Pricer,
        split: bool,
        steps: bool,
    ) -> Result<Self, Unsupported> {
        let unit = &frame.units[unit];
        let pieces = Pieces { frame, unit, pricer };
        let passes = frame.passes();
        let whole = (0..passes).map(|pass| pieces.on_gpu(pass, Piece::Whole));
        let whole = whole.collect::<Result<Vec<_>, _>>()?;
        let micros = frame.plan.batch.count as f64;
        // One micro-batch after the other.
        let serial = |demand: &Demand| demand.lane(LaneKind::Gpu) * micros;
        let first = || whole.iter().take(1).map(serial);
        let alone = whole.iter().map(serial).collect();
        let on_gpu = |demand: &Demand| demand.lane(LaneKind::Gpu);
        let last_alone = first().chain(whole.iter().skip(1).map(on_gpu)).collect();
        let series = Series::of(&whole, steps);
        if !(split && unit.attends) {
            let (chains, in_turns) = ([alone, Vec::new()], [last_alone, Vec::new()]);
            return Ok(Self { whole: series, split: None, chains, in_turns });
        }
        let mut apart = whole[..1].to_vec();
        for pass in 1..passes {
            apart.push(pieces.split(pass)?);
        }
        // Every micro-batch passes through the same lanes one after the other. The first reaches the
        // slowest lane after the lanes before it, all pass that lane in turn, and the last goes on through
        // the lanes after it: one whole round, and the slowest lane once more for each of the others.
        let round = |demand: &Demand| {
            let stages = [LaneKind::D2h, LaneKind::Cpu].map(|kind| demand.lane(kind));
            let slowest = stages.into_iter().fold(0.0, f64::max);
            serial(demand).max(demand.lanes() + slowest * (micros - 1.0))
        };
        let with_cpu = first().chain(apart.iter().skip(1).map(round)).collect();
        let last_with_cpu = first().chain(apart.iter().skip(1).map(Demand::lanes)).collect();
        let split = Some(Series::of(&apart, steps));
        let (chains, in_turns) = ([alone, with_cpu], [last_alone, last_with_cpu]);
        Ok(Self { whole: series, split, chains, in_turns })
    }
}

/// Prices the pieces of a unit.
struct Pieces<'a> {
    frame: &'a Frame,
    unit: &'a Unit,
    pricer: Pricer<'a>,
}

impl Pieces<'_> {
    fn on_gpu(&self, pass: u32, piece: Piece) -> Result<Demand, Unsupported> {
        let mut sum = Demand::NOTHING;
        for chunk in 0..self.frame.chunks(pass) {
            let work = Work::Gpu(self.frame.compute(self.unit, pass, chunk, piece));
            sum.add(&self.pricer.demand(LaneKind::Gpu, &work)?, 1.0);
        }
        Ok(sum)
    }

    /// One micro-batch of a decode step with attention on the CPU.
    fn split(&self, pass: u32) -> Result<Demand, Unsupported> {
        let memory = HostMemory::Pinned;
        let down = self.frame.query(pass) + self.frame.new_cache(pass);
        let down = Work::D2h { bytes: down, memory };
        let attention = Work::Cpu(self.frame.compute(self.unit, pass, 0, Piece::AttentionOnly));
        let behind = Work::Gpu(self.frame.behind_cpu(self.unit, pass));
        let gpu = self.on_gpu(pass, Piece::BeforeAttention)?;
        Ok(gpu
            .plus(&self.pricer.demand(LaneKind::Gpu, &behind)?)
            .plus(&self.pricer.demand(LaneKind::D2h, &down)?)
            .plus(&self.pricer.demand(LaneKind::Cpu, &attention)?))
    }
}

impl Picked {
    fn new(frame: &Frame, unit: &Unit) -> Self {
        let of = |pass: u32| {
            let hit = frame.routed(unit, pass).unwrap_or_default();
            hit.iter().filter(|&&h| h).count() as f64
        };
        let steps = f64::from(frame.passes().saturating_sub(1));
        let mut picked = Self { first: of(0), rest: 0.0, least: f64::MAX, steps };
        for pass in 1..frame.passes() {
            let step = of(pass);
            picked.rest += step;
            picked.least = picked.least.min(step);
        }
        if frame.passes() < 2 { Self { least: 0.0, ..picked } } else { picked }
    }
}
