//! Where a plan keeps weights and cache, in the terms that other engines think in: layers and shares.

use pipo_plan::model::Part;
use pipo_plan::plan::Plan;
use pipo_plan::schedule::Tier;
use pipo_plan::strategy::cpu_split::CpuSplit;
use pipo_plan::strategy::frame::Frame;
use pipo_plan::strategy::pipo::{Pipo, place, placed_units};
use pipo_plan::strategy::residency::Placed;
use pipo_plan::strategy::{Strategy, lower};
use pipo_plan::units::Bytes;

use super::EmitError;

/// Bytes at each tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) gpu: Bytes,
    pub(super) host: Bytes,
    pub(super) disk: Bytes,
}

impl Split {
    pub(super) fn total(&self) -> Bytes {
        self.gpu + self.host + self.disk
    }

    fn add(&mut self, tier: Tier, bytes: Bytes) {
        match tier {
            Tier::Gpu => self.gpu += bytes,
            Tier::Pinned | Tier::Pageable => self.host += bytes,
            Tier::Disk => self.disk += bytes,
        }
    }
}

/// Where one layer's attention and MLP are kept: the slowest tier of any of their weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LayerHome {
    pub(super) attention: Tier,
    pub(super) mlp: Tier,
}

/// Where everything is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placement {
    /// Weights, the embedding among them.
    pub(super) weights: Split,
    /// The cache.
    pub(super) cache: Split,
    /// The layers in order.
    pub(super) layers: Vec<LayerHome>,
    /// Where the head is kept.
    pub(super) head: Tier,
    /// Whether host weights are page-locked.
    pub(super) pinned: bool,
    /// Whether layers are placed one by one; if not, they are placed here by their share of the bytes,
    /// the first on the GPU, as engines do that split the model once.
    pub(super) by_layer: bool,
}

impl Placement {
    pub(super) fn of(plan: &Plan) -> Result<Self, EmitError> {
        let layout = lower(plan).map_err(EmitError::Lower)?.layout;
        let (mut weights, mut cache) = (Split::default(), Split::default());
        let mut pinned = false;
        for allocation in &layout.allocations {
            if allocation.name.starts_with("weights") || allocation.name == "embedding table" {
                weights.add(allocation.tier, allocation.bytes);
                pinned |= allocation.tier == Tier::Pinned;
            } else if allocation.name.starts_with("KV") {
                cache.add(allocation.tier, allocation.bytes);
            }
        }
        let (layers, head, by_layer) = match &plan.strategy {
            Strategy::Pipo(knobs) => of_pipo(plan, knobs),
            Strategy::CpuSplit(knobs) => of_cpu_split(plan, knobs),
            _ => by_share(plan, &weights),
        };
        Ok(Self { weights, cache, layers, head, pinned, by_layer })
    }

    /// Layers that are wholly on the GPU.
    pub(super) fn whole_layers_on_gpu(&self) -> usize {
        let whole = |home: &&LayerHome| home.attention == Tier::Gpu && home.mlp == Tier::Gpu;
        self.layers.iter().filter(whole).count()
    }
}

fn of_pipo(plan: &Plan, knobs: &Pipo) -> (Vec<LayerHome>, Tier, bool) {
    let frame = Frame::new(plan, knobs.granularity, knobs.fused);
    let placed = place(&frame, &placed_units(&frame, knobs), knobs);
    let start = LayerHome { attention: Tier::Gpu, mlp: Tier::Gpu };
    let mut layers = vec![start; plan.model.layers as usize];
    let mut head = Tier::Gpu;
    for (unit, placed) in frame.units.iter().zip(&placed) {
        let tier = slowest(placed);
        for (part, _) in &unit.tensors {
            match (part, layers.get_mut(unit.layer as usize)) {
                (Part::Attention, Some(home)) => home.attention = home.attention.max(tier),
                (Part::Mlp, Some(home)) => home.mlp = home.mlp.max(tier),
                (Part::Head, _) => head = head.max(tier),
                _ => {}
            }
        }
    }
    (layers, head, true)
}

/// The first layers stay off the GPU.
fn of_cpu_split(plan: &Plan, knobs: &CpuSplit) -> (Vec<LayerHome>, Tier, bool) {
    let tier = |on_gpu: bool| if on_gpu { Tier::Gpu } else { Tier::Pageable };
    let first_on_gpu = plan.model.layers.saturating_sub(knobs.gpu_layers);
    let home = |tier| LayerHome { attention: tier, mlp: tier };
    let layers = (0..plan.model.layers).map(|layer| home(tier(layer >= first_on_gpu)));
    (layers.collect(), tier(knobs.gpu_head), true)
}

fn slowest(placed: &Placed) -> Tier {
    let home = placed.total();
    match (home.disk > Bytes::ZERO, home.host > Bytes::ZERO) {
        (true, _) => Tier::Disk,
        (false, true) => Tier::Pinned,
        (false, false) => Tier::Gpu,
    }
}

fn by_share(plan: &Plan, weights: &Split) -> (Vec<LayerHome>, Tier, bool) {
    let layers = u64::from(plan.model.layers);
    let total = u128::from(weights.total().0.max(1));
    // Rounded down, so that what is asked for fits.
    let whole = |bytes: Bytes| {
        let share = u128::from(layers) * u128::from(bytes.0) / total;
        u64::try_from(share).unwrap_or(layers)
    };
    let (on_gpu, not_on_disk) = (whole(weights.gpu), whole(weights.gpu + weights.host));
    let tier = |layer: u64| match layer {
        l if l < on_gpu => Tier::Gpu,
        l if l < not_on_disk => Tier::Pinned,
        _ if weights.disk > Bytes::ZERO => Tier::Disk,
        _ => Tier::Pinned,
    };
    let home = |layer| LayerHome { attention: tier(layer), mlp: tier(layer) };
    let head = if on_gpu == layers { Tier::Gpu } else { Tier::Pinned };
    ((0..layers).map(home).collect(), head, false)
}
