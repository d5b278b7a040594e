//! Schedules written out operation by operation, and prices that are looked up in a table.

use pipo_plan::schedule::{
    Builder, LaneKind, Layout, Op, OpId, OpKind, Phase, Program, QueueId, Schedule, Slot, Work,
};
use pipo_plan::units::{Bytes, Nanos};
use pipo_simulator::{
    Capacities, Cost, Costs, Options, Outcome, PageCache, Price, SimulationError, Unsupported,
    simulate_with,
};

/// One operation of a script.
#[derive(Debug, Clone, Default)]
pub(crate) struct Item {
    pub(crate) queue: u8,
    /// Index into [`Script::prices`].
    pub(crate) price: usize,
    pub(crate) waits: Vec<u32>,
    pub(crate) takes: Option<Slot>,
    pub(crate) frees: [Option<Slot>; 2],
    pub(crate) extent: Option<u32>,
    pub(crate) ends_pass: bool,
}

/// A schedule written out, with the price of everything in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script {
    pub(crate) layout: Layout,
    pub(crate) passes: Vec<Vec<Item>>,
    pub(crate) prices: Vec<Price>,
    pub(crate) capacities: Option<Capacities>,
    pub(crate) handover: Nanos,
    /// From a GPU's lane to another, and to one of those.
    pub(crate) crossings: [Nanos; 2],
}

impl Script {
    /// A script with one queue on each of some lanes.
    pub(crate) fn with_lanes(kinds: &[LaneKind]) -> Self {
        let mut script = Self { passes: vec![Vec::new()], ..Self::default() };
        script.layout.window = 1;
        for &kind in kinds {
            script.layout.lane_queue(kind);
        }
        script
    }

    /// Adds an operation to the last pass and returns its id.
    pub(crate) fn push(&mut self, item: Item) -> u32 {
        let id = self.passes.iter().map(Vec::len).sum::<usize>();
        if let Some(pass) = self.passes.last_mut() {
            pass.push(item);
        }
        u32::try_from(id).unwrap_or(u32::MAX)
    }

    /// Adds an operation that only takes time.
    pub(crate) fn run(&mut self, queue: u8, nanos: u64, waits: &[u32]) -> u32 {
        let price = self.price(Cost::fixed(Nanos(nanos)));
        self.push(Item { queue, price, waits: waits.into(), ..Item::default() })
    }

    /// Adds a price and returns its index.
    pub(crate) fn price(&mut self, cost: Cost) -> usize {
        self.prices.push(Price { cost, ..Price::default() });
        self.prices.len() - 1
    }

    pub(crate) fn schedule(&self) -> Schedule {
        Schedule { layout: self.layout.clone(), program: Box::new(self.clone()) }
    }

    pub(crate) fn simulate(&self, options: &Options) -> Result<Outcome, SimulationError> {
        simulate_with(&self.schedule(), self, options)
    }

    /// Every operation with its waits, in program order.
    pub(crate) fn items(&self) -> impl Iterator<Item = &Item> {
        self.passes.iter().flatten()
    }
}

pub(crate) const RECORD: Options = Options { record: true, page_cache: PageCache::NONE };

/// The work that stands for a price: its index, as bytes.
fn work(price: usize) -> Work {
    Work::HostCopy { bytes: Bytes(price as u64) }
}

impl Costs for Script {
    fn price(&self, work: &Work) -> Result<Price, Unsupported> {
        let index = usize::try_from(work.bytes().0).unwrap_or(usize::MAX);
        self.prices.get(index).copied().ok_or_else(|| Unsupported {
            what: "a price that is not in the table".into(),
            next_step: "add it".into(),
        })
    }

    fn capacities(&self) -> Capacities {
        self.capacities.unwrap_or(Capacities::UNLIMITED)
    }

    fn handover(&self) -> Nanos {
        self.handover
    }

    fn crossing(&self, from: LaneKind, to: LaneKind) -> Nanos {
        match (from.is_of_gpu(), to.is_of_gpu()) {
            (true, false) => self.crossings[0],
            (false, true) => self.crossings[1],
            _ => Nanos::ZERO,
        }
    }
}

impl Program for Script {
    fn passes(&self) -> u32 {
        u32::try_from(self.passes.len()).unwrap_or(u32::MAX)
    }

    fn phase(&self, pass: u32) -> Phase {
        if pass == 0 { Phase::Prefill } else { Phase::Decode }
    }

    fn emit(&self, pass: u32, out: &mut Builder) {
        for item in &self.passes[pass as usize] {
            let waits: Vec<OpId> = item.waits.iter().map(|&id| OpId(id)).collect();
            let work = out.work(work(item.price));
            out.op(QueueId(item.queue), OpKind::Compute, work)
                .after_all(&waits)
                .takes(item.takes)
                .frees(item.frees[0])
                .frees(item.frees[1])
                .extent(item.extent.unwrap_or(Op::NO_EXTENT))
                .ends_pass(item.ends_pass)
                .emit();
        }
    }
}
