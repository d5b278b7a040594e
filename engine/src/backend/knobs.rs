//! What of a plan the backend goes by, and what it refuses.

use pipo_plan::plan::Plan;
use pipo_plan::schedule::{DiskIo, Layout, Tier};
use pipo_plan::strategy::accelerate::{self, Accelerate};
use pipo_plan::strategy::flexgen::{self, FlexGen};
use pipo_plan::strategy::frame::Frame;
use pipo_plan::strategy::pipo::{self, ExpertLoads, HostWeights, Pipo};
use pipo_plan::strategy::residency::{Home, Placed};
use pipo_plan::strategy::resident::Resident;
use pipo_plan::strategy::{Granularity, KvTier, Processor, Strategy};
use pipo_plan::units::Bytes;

use super::source::Way;
use crate::run::RunError;

/// What of a plan the backend goes by.
pub(crate) struct Knobs {
    pub(crate) frame: Frame,
    /// For each unit where its bytes live, in the order in which they lie in its slot.
    pub(crate) placement: Vec<Vec<Segment>>,
    /// Whether that is the order of the plan's tensors, and not that of the store: they differ where a
    /// tensor has a copy for each expert.
    pub(crate) by_tensor: bool,
    /// Whether a head that is tied to the embedding is counted once where both stay at the same tier.
    pub(crate) shares_table: bool,
    /// The host memory that holds the embedding apart, where it is not among the weights.
    pub(crate) embedding: Option<Tier>,
    /// For each layer, where its cache stays.
    pub(crate) cache: Vec<Tier>,
    /// Whether hidden states stay in host memory.
    pub(crate) hidden_in_host: bool,
    /// How weights are read.
    pub(crate) way: Way,
}

/// Bytes of a unit that live at one tier, and travel by themselves where blocks are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) tier: Tier,
    pub(crate) bytes: Bytes,
}

impl Knobs {
    /// The name under which the plan counts what a unit keeps.
    pub(crate) fn kept(&self, unit: usize) -> &'static str {
        let is_apart = unit == 0 && self.embedding.is_some();
        if is_apart { "embedding table" } else { "weights, resident" }
    }

    /// Whether the host looks tokens up.
    pub(crate) fn gathers(&self) -> bool {
        self.embedding == Some(Tier::Pageable)
    }

    pub(crate) fn of(plan: &Plan) -> Result<Self, RunError> {
        match &plan.strategy {
            Strategy::Resident(knobs) => Ok(Self::resident(plan, knobs)),
            Strategy::Pipo(knobs) => Self::pipo(plan, knobs),
            Strategy::Accelerate(knobs) => Ok(Self::accelerate(plan, knobs)),
            Strategy::FlexGen(knobs) => Self::flexgen(plan, knobs),
            other => refuse(
                &format!("the strategy `{}`", other.name()),
                "use a plan of `pipo`, `flexgen`, `accelerate` or `resident`",
            ),
        }
    }

    /// Everything on the device, read once and through the page cache.
    fn resident(plan: &Plan, knobs: &Resident) -> Self {
        let frame = Frame::new(plan, Granularity::Part, knobs.fused);
        let placement = frame.units.iter();
        let placement =
            placement.map(|u| vec![Segment { tier: Tier::Gpu, bytes: u.bytes }]).collect();
        let way = Way { io: DiskIo::Buffered, request: Bytes(8 << 20) };
        Self::new(frame, placement, way)
    }

    fn pipo(plan: &Plan, knobs: &Pipo) -> Result<Self, RunError> {
        // The plan draws which experts a pass needs; the router may want others, which were not loaded.
        if knobs.experts == ExpertLoads::Routed {
            return refuse("experts loaded as they are routed to", "set pipo.experts to \"all\"");
        }
        let frame = Frame::new(plan, knobs.granularity, knobs.fused);
        let host = match knobs.host_memory {
            HostWeights::Pinned => Tier::Pinned,
            HostWeights::Pageable => Tier::Pageable,
        };
        let placed = pipo::place(&frame, &pipo::placed_units(&frame, knobs), knobs);
        let mut placement = whole(&placed, host);
        let embedding = knobs.embedding.apart();
        if let Some(tier) = embedding {
            let bytes = frame.units[0].bytes;
            placement[0] = vec![Segment { tier, bytes }];
        }
        let io = knobs.reads.io(knobs.disk_threads);
        let way = Way { io, request: knobs.read_block };
        let elsewhere = if knobs.kv == KvTier::Disk { Tier::Disk } else { Tier::Pinned };
        let cache = pipo::kv_layers_on_gpu(plan, knobs).into_iter();
        let cache = cache.map(|on_device| if on_device { Tier::Gpu } else { elsewhere }).collect();
        let hidden_in_host = knobs.hidden == Processor::Cpu;
        let all = Self::new(frame, placement, way);
        Ok(Self { embedding, cache, hidden_in_host, ..all })
    }

    fn accelerate(plan: &Plan, knobs: &Accelerate) -> Self {
        let frame = accelerate::frame(plan);
        let placement = whole(&accelerate::place(&frame.units, knobs), Tier::Pageable);
        let way = Way { io: DiskIo::PageFault, request: accelerate::REQUEST };
        Self::new(frame, placement, way)
    }

    fn flexgen(plan: &Plan, knobs: &FlexGen) -> Result<Self, RunError> {
        if knobs.cache_gpu != 100 {
            return refuse(
                "FlexGen's cache outside the device",
                "set flexgen.cache_gpu to 100 and cache_host to 0",
            );
        }
        let frame = flexgen::frame(plan, knobs);
        // The layout gets the extents of files, which are nothing to this backend.
        let stored = flexgen::place(&frame, knobs, &mut Layout::default());
        let segment = |s: &flexgen::Stored| Segment { tier: s.tier, bytes: s.bytes };
        let placement = stored.iter().map(|unit| unit.iter().map(segment).collect()).collect();
        let way = Way { io: DiskIo::PageFault, request: flexgen::REQUEST };
        let all = Self::new(frame, placement, way);
        let hidden_in_host = knobs.hidden == Processor::Cpu;
        Ok(Self { by_tensor: true, shares_table: false, hidden_in_host, ..all })
    }

    fn new(frame: Frame, placement: Vec<Vec<Segment>>, way: Way) -> Self {
        let cache = vec![Tier::Gpu; frame.plan.model.layers as usize];
        Self {
            frame,
            placement,
            by_tensor: false,
            shares_table: true,
            embedding: None,
            cache,
            hidden_in_host: false,
            way,
        }
    }
}

/// Units that live at one tier each.
fn whole(placed: &[Placed], host: Tier) -> Vec<Vec<Segment>> {
    let segment = |home: Home| {
        let tier = match home {
            Home { gpu, .. } if gpu > Bytes::ZERO => Tier::Gpu,
            Home { host: bytes, .. } if bytes > Bytes::ZERO => host,
            _ => Tier::Disk,
        };
        vec![Segment { tier, bytes: home.total() }]
    };
    placed.iter().map(|unit| segment(unit.total())).collect()
}

fn refuse<T>(what: &str, next_step: &'static str) -> Result<T, RunError> {
    Err(RunError::Unavailable { what: format!("the engine does not run {what}"), next_step })
}
