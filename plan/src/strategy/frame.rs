//! What every strategy needs for one plan: the units, the rows of each pass, the memory they all share.

use super::residency::{Home, Placed};
use super::routing;
use super::shapes::{self, Rows, Style};
use super::units::{self, Granularity, Unit};
use crate::model::{Precision, Tensor, TensorKind};
use crate::plan::Plan;
use crate::schedule::{Compute, Layout, Phase, Piece, Tier};
use crate::units::Bytes;

/// A plan seen from a lowering: sizes and shapes, no policy.
#[derive(Debug, Clone)]
pub struct Frame {
    /// The plan.
    pub plan: Plan,
    /// The model's units, from embedding to head.
    pub units: Vec<Unit>,
    /// How it computes.
    pub style: Style,
    /// How finely the model is cut.
    pub granularity: Granularity,
}

impl Frame {
    /// Cuts the plan's model; `fused` says whether dequantisation is fused into the products.
    pub fn new(plan: &Plan, granularity: Granularity, fused: bool) -> Self {
        let style = Style {
            weights: plan.precision.weights,
            kv: plan.precision.kv,
            fused,
            all_logits: false,
            kv_heads: u64::from(plan.model.kv_heads),
        };
        let units = units::cut(&plan.model, plan.precision.weights, granularity);
        Self { plan: plan.clone(), units, style, granularity }
    }

    /// A layout with the units named and the window set.
    pub fn layout(&self) -> Layout {
        let units = self.units.iter().map(|u| u.name.clone()).collect();
        Layout { units, window: 2, ..Layout::default() }
    }

    /// Micro-batches of the effective batch.
    pub fn micros(&self) -> u16 {
        u16::try_from(self.plan.batch.count).unwrap_or(u16::MAX)
    }

    /// Passes: the prefill and one for each new token after the first.
    pub fn passes(&self) -> u32 {
        u32::try_from(self.plan.workload.new_tokens.max(1)).unwrap_or(u32::MAX)
    }

    /// What a pass is for.
    pub fn phase(&self, pass: u32) -> Phase {
        if pass == 0 { Phase::Prefill } else { Phase::Decode }
    }

    /// Pieces into which a unit's work on the prompt is cut along the sequence; one in decode.
    pub fn chunks(&self, pass: u32) -> u16 {
        if pass > 0 {
            return 1;
        }
        let chunk = self.plan.batch.prefill_chunk.unwrap_or(self.plan.workload.prompt).max(1);
        u16::try_from(self.plan.workload.prompt.div_ceil(chunk)).unwrap_or(u16::MAX)
    }

    /// The rows of one micro-batch in one chunk of a pass.
    pub fn rows(&self, pass: u32, chunk: u16) -> Rows {
        let sequences = self.plan.batch.micro;
        let prompt = self.plan.workload.prompt;
        if pass > 0 {
            return Rows { sequences, positions: 1, context: prompt + u64::from(pass) };
        }
        let size = self.plan.batch.prefill_chunk.unwrap_or(prompt).max(1);
        let start = u64::from(chunk) * size;
        let positions = size.min(prompt.saturating_sub(start)).max(1);
        Rows { sequences, positions, context: start + positions }
    }

    /// All rows of a pass: every micro-batch, every position.
    pub fn pass_rows(&self, pass: u32) -> u64 {
        let positions = if pass == 0 { self.plan.workload.prompt } else { 1 };
        self.plan.batch.micro * self.plan.batch.count * positions
    }

    /// The experts of a unit's layer that a pass needs.
    pub fn routed(&self, unit: &Unit, pass: u32) -> Option<Vec<bool>> {
        self.routed_by(unit, pass, self.pass_rows(pass))
    }

    /// Those that so many of its rows need.
    fn routed_by(&self, unit: &Unit, pass: u32, rows: u64) -> Option<Vec<bool>> {
        let experts = self.plan.model.experts.filter(|_| unit.has_experts())?;
        Some(routing::routed(experts, rows, self.plan.seed, pass, unit.layer))
    }

    /// The arithmetic of a unit, or a piece of it, for one micro-batch in one chunk of a pass.
    pub fn compute(&self, unit: &Unit, pass: u32, chunk: u16, piece: Piece) -> Compute {
        let rows = self.rows(pass, chunk);
        // Of the experts that a pass needs only some are those of these rows.
        let active = self
            .routed_by(unit, pass, rows.count())
            .map_or(1, |hit| u32::try_from(hit.iter().filter(|&&h| h).count()).unwrap_or(u32::MAX));
        shapes::compute(&self.plan.model, unit, rows, self.style, piece, active)
    }

    /// Bytes of a lookup in tables that stay in host memory, for one chunk of a pass: a row of each table
    /// for each row of the activation, and all of what is multiplied with.
    pub fn looked_up(&self, unit: &Unit, pass: u32, chunk: u16) -> Bytes {
        let rows = self.rows(pass, chunk).count();
        let bytes = |tensor: &Tensor| match (tensor.kind, tensor.name) {
            (TensorKind::Matrix, "tokens") => self.style.weights.matrix_bytes(rows, tensor.inputs),
            (TensorKind::Matrix, _) => tensor.bytes(self.style.weights),
            (TensorKind::Vector, "positions") => Precision::Fp16.matrix_bytes(rows, tensor.inputs),
            (TensorKind::Vector, _) => Bytes::ZERO,
        };
        unit.tensors.iter().map(|(_, tensor)| bytes(tensor)).sum()
    }

    /// Hidden states of one micro-batch in one pass (all chunks).
    pub fn hidden(&self, pass: u32) -> Bytes {
        let positions = if pass == 0 { self.plan.workload.prompt } else { 1 };
        shapes::hidden_bytes(&self.plan.model, self.plan.batch.micro * positions)
    }

    /// New cache rows of one layer and micro-batch in one pass.
    pub fn new_cache(&self, pass: u32) -> Bytes {
        let positions = if pass == 0 { self.plan.workload.prompt } else { 1 };
        shapes::kv_bytes(&self.plan.model, self.style, self.plan.batch.micro, positions)
    }

    /// The cache of one layer and micro-batch that a pass finds when it begins.
    pub fn old_cache(&self, pass: u32) -> Bytes {
        if pass == 0 {
            return Bytes::ZERO;
        }
        let positions = self.plan.workload.prompt + u64::from(pass) - 1;
        shapes::kv_bytes(&self.plan.model, self.style, self.plan.batch.micro, positions)
    }

    /// Room for the cache of one layer and micro-batch over the whole run.
    pub fn cache_room(&self) -> Bytes {
        let (micro, context) = (self.plan.batch.micro, self.plan.workload.context());
        shapes::kv_bytes(&self.plan.model, self.style, micro, context)
    }

    /// Query rows that attention on the CPU needs, and output rows that come back.
    pub fn query(&self, pass: u32) -> Bytes {
        let rows = self.rows(pass, 0).count();
        let features = u64::from(self.plan.model.heads) * self.plan.model.head_dim;
        Precision::Fp16.matrix_bytes(rows, features)
    }

    /// The arithmetic behind a decode step's attention on the CPU. A kernel reads what was attended across the
    /// link and puts it down on the GPU: a few hundred kilobytes, which would wait for a copy engine that is
    /// at work on a block of weights.
    pub fn behind_cpu(&self, unit: &Unit, pass: u32) -> Compute {
        let mut compute = self.compute(unit, pass, 0, Piece::AfterAttention);
        compute.mapped = self.query(pass);
        compute.joined_launches += 1;
        compute
    }

    /// Scratch on the GPU: the largest unit's inner activations. Where a part is cut into units, what one
    /// of them leaves for the next must stay while all micro-batches and chunks pass through it.
    pub fn workspace(&self) -> Bytes {
        let Plan { batch, workload, .. } = &self.plan;
        let rows = match self.granularity {
            Granularity::Layer | Granularity::Part => self.rows(0, 0),
            Granularity::Tensor => Rows {
                sequences: batch.micro * batch.count,
                positions: workload.prompt.max(1),
                context: workload.prompt.max(1),
            },
        };
        shapes::workspace(&self.plan.model, &self.units, rows, self.style)
    }

    /// Hidden states on the GPU: input and output of every micro-batch of the prefill.
    pub fn activations(&self) -> Bytes {
        self.hidden(0) * (2 * self.plan.batch.count)
    }

    /// Bytes that a tied head has in common with the embedding: the table alone, for the head's norm is
    /// its own. Nothing where they are not tied.
    pub fn tied_table(&self) -> Bytes {
        let head = self.units.last().filter(|_| self.plan.model.tied_embeddings);
        let tensors = head.into_iter().flat_map(|head| &head.tensors);
        let table = tensors.filter(|(_, tensor)| tensor.name == "head");
        table.map(|(_, tensor)| tensor.bytes(self.style.weights)).sum()
    }

    /// Notes the weights that stay: on the GPU, in host memory at `host`, on disk. A head tied to an
    /// embedding that stays at the same tier is the same bytes and counted once.
    pub fn allocate_weights(&self, layout: &mut Layout, placed: &[Placed], host: Tier) {
        let homes: Vec<Home> = placed.iter().map(Placed::total).collect();
        let table = self.tied_table();
        let shared = |tier: fn(&Home) -> Bytes| match (homes.first(), homes.last()) {
            (Some(first), Some(last)) => table.min(tier(first)).min(tier(last)),
            _ => Bytes::ZERO,
        };
        let total = |tier: fn(&Home) -> Bytes| homes.iter().map(tier).sum::<Bytes>() - shared(tier);
        layout.allocate("weights, resident", Tier::Gpu, total(|h| h.gpu));
        layout.allocate("weights, resident", host, total(|h| h.host));
        layout.allocate("weights", Tier::Disk, total(|h| h.disk));
    }
}
