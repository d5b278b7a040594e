//! A lower bound on how long a schedule can take, without simulating it.

use pipo_plan::schedule::{Builder, Layout, Op, OpId, Pass, Schedule, WorkTable};
use pipo_plan::units::Nanos;

use crate::cost::{Capacities, Cost, Costs, Resource};
use crate::engine::{Options, check_layout};
use crate::error::{Invalid, SimulationError};
use crate::page_cache::HitShare;

/// What each lane and resource needs at least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// Summed solo time of each lane's operations, in the layout's order.
    pub lanes: Vec<Nanos>,
    /// Time to draw all bytes from each resource at its capacity, in the order of [`Resource::ALL`].
    pub resources: [Nanos; Resource::COUNT],
}

impl Bound {
    /// No run of the schedule ends earlier than this.
    pub fn total(&self) -> Nanos {
        self.lanes.iter().chain(&self.resources).copied().max().unwrap_or(Nanos::ZERO)
    }
}

/// The least time that a schedule needs, whatever the order in which things happen.
///
/// # Proof
///
/// A lane runs one operation at a time. Sharing only slows an operation, so each occupies its lane for
/// at least its solo time, and the last on the lane ends no earlier than the sum of these.
///
/// A resource never yields more than its capacity in any interval, because the division keeps the sum
/// of what is drawn at or below it. All draws happen between the start and the end of the run, so it
/// lasts at least the bytes drawn over the capacity. This quotient is reduced by a part in 10^8, which
/// covers the tolerance of the division and the rounding of its arithmetic.
///
/// A read through the page cache may be the first of its extent or a later one, of which a share hits.
/// The cheaper of the two is counted, for the lane and for each resource separately, so that the bound
/// holds whichever it is; where the cache has no capacity they are the same. The run must satisfy all of these at once, hence the maximum.
///
/// # Errors
///
/// [`SimulationError::Unsupported`] and [`SimulationError::Invalid`], as a simulation would.
pub fn lower_bound(
    schedule: &Schedule,
    costs: &dyn Costs,
    options: &Options,
) -> Result<Bound, SimulationError> {
    let layout = &schedule.layout;
    check_layout(layout)?;
    let mut floors = Floors::new(options.page_cache.hits_of(layout));
    let mut sums = Sums::new(layout);
    let mut builder = Builder::new(layout);
    let mut pass = Pass::default();
    for number in 0..schedule.program.passes() {
        schedule.program.emit(number, &mut builder);
        pass = builder.finish(pass);
        floors.add(&builder.works, costs)?;
        for (index, op) in (0..).zip(&pass.ops) {
            let lane = floors.lane(layout, OpId(pass.first.saturating_add(index)), op)?;
            sums.add(lane, &floors[op.work.0 as usize]);
        }
    }
    Ok(sums.bound(&costs.capacities()))
}

/// What some operations need at least, added up.
#[derive(Debug, Clone)]
pub(crate) struct Sums {
    lanes: Vec<Nanos>,
    drawn: [f64; Resource::COUNT],
}

impl Sums {
    pub(crate) fn new(layout: &Layout) -> Self {
        Self { lanes: vec![Nanos::ZERO; layout.lanes.len()], drawn: [0.0; Resource::COUNT] }
    }

    pub(crate) fn add(&mut self, lane: usize, floor: &Floor) {
        self.lanes[lane] += floor.nanos;
        for (sum, bytes) in self.drawn.iter_mut().zip(floor.drawn) {
            *sum += bytes;
        }
    }

    pub(crate) fn bound(&self, capacity: &Capacities) -> Bound {
        let rates = capacity.rates();
        let resources = std::array::from_fn(|r| at_least(self.drawn[r] / rates[r] * (1.0 - 1e-8)));
        Bound { lanes: self.lanes.clone(), resources }
    }
}

/// The least that an operation of each work takes and draws, by work.
pub(crate) struct Floors {
    floors: Vec<Floor>,
    hits: HitShare,
}

impl Floors {
    pub(crate) fn new(hits: HitShare) -> Self {
        Self { floors: Vec::new(), hits }
    }

    /// Prices the works that are new.
    pub(crate) fn add(
        &mut self,
        works: &WorkTable,
        costs: &dyn Costs,
    ) -> Result<(), SimulationError> {
        for work in &works.as_slice()[self.floors.len()..] {
            self.floors.push(Floor::of(&costs.price(work)?, self.hits));
        }
        Ok(())
    }

    /// The lane of an operation, whose work and queue there are.
    pub(crate) fn lane(&self, layout: &Layout, id: OpId, op: &Op) -> Result<usize, Invalid> {
        let unknown = |what, index, count| Invalid::Unknown { op: id, what, index, count };
        if op.work.0 as usize >= self.floors.len() {
            return Err(unknown("work", op.work.0, self.floors.len()));
        }
        let lane = layout.queues.get(usize::from(op.queue.0));
        let lane = lane.ok_or_else(|| unknown("queue", op.queue.0.into(), layout.queues.len()))?;
        Ok(usize::from(lane.0))
    }
}

impl std::ops::Index<usize> for Floors {
    type Output = Floor;

    fn index(&self, work: usize) -> &Floor {
        &self.floors[work]
    }
}

/// The least that an operation of one work takes and draws.
pub(crate) struct Floor {
    nanos: Nanos,
    drawn: [f64; Resource::COUNT],
}

impl Floor {
    fn of(price: &crate::Price, hits: HitShare) -> Self {
        let of = |cost: &Cost| Self { nanos: cost.nanos, drawn: cost.drawn() };
        let first = of(&price.cost);
        let Some(again) = price.reread(hits).as_ref().map(of) else { return first };
        Self {
            nanos: first.nanos.min(again.nanos),
            drawn: std::array::from_fn(|r| first.drawn[r].min(again.drawn[r])),
        }
    }
}

/// Rounds down to whole nanoseconds: a run that lasts at least x lasts at least the integer below.
fn at_least(nanos: f64) -> Nanos {
    Nanos::ceil(nanos.floor())
}
