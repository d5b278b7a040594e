//! What a run asks of every lane and every shared resource, in nanoseconds.
//!
//! A [`Demand`] is a vector: the time for which each kind of lane is held, the time that each shared
//! resource needs at its capacity, and one more entry for the ring of GPU weight slots. Bounds are sums
//! of such vectors; the largest entry of a sum is a time below which no run can go.

use pipo_plan::schedule::{LaneKind, Work};
use pipo_plan::units::Nanos;
use pipo_simulator::{Cost, Costs, Resource, Unsupported};

const LANES: usize = LaneKind::ALL.len();
const SLOTS: usize = LANES + Resource::COUNT;
const WIDTH: usize = SLOTS + 1;

/// Covers the tolerance with which the simulator divides shared resources and the rounding of long sums.
const SAFETY: f64 = 1.0 - 1e-8;

/// Nanoseconds asked of each lane kind, each shared resource, and the ring of weight slots.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Demand([f64; WIDTH]);

impl Demand {
    pub(crate) const NOTHING: Self = Self([0.0; WIDTH]);

    /// So many nanoseconds of one kind of lane.
    pub(crate) fn on(kind: LaneKind, nanos: f64) -> Self {
        let mut demand = Self::NOTHING;
        demand.0[kind.index()] = nanos;
        demand
    }

    /// So many nanoseconds of one shared resource at its capacity.
    pub(crate) fn of(resource: Resource, nanos: f64) -> Self {
        let mut demand = Self::NOTHING;
        demand.0[LANES + resource as usize] = nanos;
        demand
    }

    /// Adds `times` times another demand.
    pub(crate) fn add(&mut self, other: &Self, times: f64) {
        for (sum, each) in self.0.iter_mut().zip(other.0) {
            *sum += each * times;
        }
    }

    /// The sum of two.
    pub(crate) fn plus(mut self, other: &Self) -> Self {
        self.add(other, 1.0);
        self
    }

    /// What is left when `other` is taken away, entry by entry, at least nothing.
    pub(crate) fn less(mut self, other: &Self) -> Self {
        for (left, each) in self.0.iter_mut().zip(other.0) {
            *left = (*left - each).max(0.0);
        }
        self
    }

    /// The larger of two, entry by entry.
    pub(crate) fn or_more(mut self, other: &Self) -> Self {
        for (most, each) in self.0.iter_mut().zip(other.0) {
            *most = most.max(each);
        }
        self
    }

    /// The smaller of two, entry by entry.
    pub(crate) fn or_less(mut self, other: &Self) -> Self {
        for (least, each) in self.0.iter_mut().zip(other.0) {
            *least = least.min(each);
        }
        self
    }

    /// Time asked of one kind of lane.
    pub(crate) fn lane(&self, kind: LaneKind) -> f64 {
        self.0[kind.index()]
    }

    /// Time asked of all lanes, one after the other.
    pub(crate) fn lanes(&self) -> f64 {
        self.0[..LANES].iter().sum()
    }

    /// Spreads the demand on a kind of lane over several lanes: the busiest has at least the mean.
    pub(crate) fn spread(&mut self, kind: LaneKind, lanes: u32) {
        self.0[kind.index()] /= f64::from(lanes.max(1));
    }

    /// Sets the time asked of a ring of weight slots: the time for which slots are held, all together,
    /// over their number.
    pub(crate) fn hold_slots(&mut self, nanos: f64, slots: u32) {
        self.0[SLOTS] = nanos / f64::from(slots.max(1));
    }

    /// The entries, for a search over what one resource gains.
    pub(crate) fn entries(&self) -> &[f64; WIDTH] {
        &self.0
    }

    /// Takes `nanos` from one entry.
    pub(crate) fn take(&mut self, entry: usize, nanos: f64) {
        self.0[entry] = (self.0[entry] - nanos).max(0.0);
    }

    /// No run that satisfies all of this is shorter.
    pub(crate) fn least(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }
}

/// Whole nanoseconds that a run lasts at least, from a sum of demands.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to what a run can last on the line itself"
)]
pub(crate) fn at_least(nanos: f64) -> Nanos {
    Nanos((nanos * SAFETY).floor().clamp(0.0, (1_u64 << 62) as f64) as u64)
}

/// Prices works as demands.
#[derive(Clone, Copy)]
pub(crate) struct Pricer<'a> {
    costs: &'a (dyn Costs + Sync),
    capacity: [f64; Resource::COUNT],
}

impl<'a> Pricer<'a> {
    pub(crate) fn new(costs: &'a (dyn Costs + Sync)) -> Self {
        Self { costs, capacity: *costs.capacities().rates() }
    }

    /// Bytes per nanosecond that a resource yields to all.
    pub(crate) fn capacity(&self, resource: Resource) -> f64 {
        self.capacity[resource as usize]
    }

    /// What a work asks of a lane and of what it shares.
    pub(crate) fn demand(&self, kind: LaneKind, work: &Work) -> Result<Demand, Unsupported> {
        Ok(self.of_cost(kind, &self.costs.price(work)?.cost))
    }

    /// The same, and what it asks instead when the page cache answers.
    pub(crate) fn cached(
        &self,
        kind: LaneKind,
        work: &Work,
    ) -> Result<(Demand, Option<Demand>), Unsupported> {
        let price = self.costs.price(work)?;
        Ok((self.of_cost(kind, &price.cost), price.hit.map(|hit| self.of_cost(kind, &hit))))
    }

    fn of_cost(&self, kind: LaneKind, cost: &Cost) -> Demand {
        let mut demand = Demand::NOTHING;
        demand.0[kind.index()] = cost.nanos.as_f64();
        for (resource, drawn) in cost.drawn().into_iter().enumerate() {
            demand.0[LANES + resource] = drawn / self.capacity[resource];
        }
        demand
    }
}

/// The demands of a whole request: of the prefill, of all decode steps together, and of each step where
/// somebody asks for a time of one step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Series {
    pub(crate) first: Demand,
    pub(crate) rest: Demand,
    pub(crate) steps: Vec<Demand>,
}

impl Series {
    pub(crate) const NOTHING: Self =
        Self { first: Demand::NOTHING, rest: Demand::NOTHING, steps: Vec::new() };

    /// Sums the passes; `steps` says whether each decode step is kept apart.
    pub(crate) fn of(passes: &[Demand], steps: bool) -> Self {
        let mut series = Self::NOTHING;
        let Some((first, rest)) = passes.split_first() else { return series };
        series.first = *first;
        for step in rest {
            series.rest.add(step, 1.0);
        }
        if steps {
            series.steps = rest.to_vec();
        }
        series
    }

    /// Sums what `demand` says of each pass; `steps` says whether each step is kept apart.
    pub(crate) fn over<E>(
        passes: u32,
        steps: bool,
        demand: impl Fn(u32) -> Result<Demand, E>,
    ) -> Result<Self, E> {
        let mut series = Self { first: demand(0)?, ..Self::NOTHING };
        for pass in 1..passes {
            let step = demand(pass)?;
            series.rest.add(&step, 1.0);
            if steps {
                series.steps.push(step);
            }
        }
        Ok(series)
    }

    /// Adds `times` times another series of the same length.
    pub(crate) fn add(&mut self, other: &Self, times: f64) {
        self.first.add(&other.first, times);
        self.rest.add(&other.rest, times);
        if self.steps.is_empty() {
            self.steps = vec![Demand::NOTHING; other.steps.len()];
        }
        for (sum, each) in self.steps.iter_mut().zip(&other.steps) {
            sum.add(each, times);
        }
    }
}
