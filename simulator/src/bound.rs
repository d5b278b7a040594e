//! A lower bound on how long a schedule can take, without simulating it.

use pipo_plan::schedule::{Builder, Pass, Schedule};
use pipo_plan::units::Nanos;

use crate::cost::{Cost, Costs, Resource};
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
    let hits = options.page_cache.hits_of(layout);
    let mut floors: Vec<Floor> = Vec::new();
    let mut lanes = vec![Nanos::ZERO; layout.lanes.len()];
    let mut drawn = [0.0; Resource::COUNT];
    let mut builder = Builder::new(layout);
    let mut pass = Pass::default();
    for number in 0..schedule.program.passes() {
        schedule.program.emit(number, &mut builder);
        pass = builder.finish(pass);
        for work in &builder.works.as_slice()[floors.len()..] {
            floors.push(Floor::of(&costs.price(work)?, hits));
        }
        for (index, op) in (0..).zip(&pass.ops) {
            let unknown = |what, index: u32, count| {
                let op = pipo_plan::schedule::OpId(pass.first.saturating_add(index));
                Invalid::Unknown { op, what, index, count }
            };
            let floor = floors
                .get(op.work.0 as usize)
                .ok_or_else(|| unknown("work", op.work.0, floors.len()))?;
            let lane = layout
                .queues
                .get(usize::from(op.queue.0))
                .ok_or_else(|| unknown("queue", index, layout.queues.len()))?;
            lanes[usize::from(lane.0)] += floor.nanos;
            for (sum, bytes) in drawn.iter_mut().zip(floor.drawn) {
                *sum += bytes;
            }
        }
    }
    let capacity = costs.capacities();
    let resources =
        std::array::from_fn(|r| at_least(drawn[r] / capacity.rates()[r] * (1.0 - 1e-8)));
    Ok(Bound { lanes, resources })
}

/// The least that an operation of one work takes and draws.
struct Floor {
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
