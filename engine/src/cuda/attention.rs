//! The attention part on the device.

use pipo_kernels::cuda::{Append, Attention, DeviceCache, Region, Then, Turn};

use pipo_plan::schedule::Piece;

use super::arithmetic::{Step, span};
use super::fault;
use crate::decoder::format;
use crate::executor::Fault;
use crate::store::in_memory;

impl Step<'_> {
    /// What is there of the part.
    pub(super) fn attention(&self) -> Result<(), Fault> {
        if self.task.op.piece == Piece::AfterAttention {
            return self.after_attention();
        }
        let input = self.input("q")?;
        let [q, k, v, o] = self.results(["q", "k", "v", "o"])?;
        let products = [("q", q, span(k, o)), ("k", k, span(v, o)), ("v", v, o)];
        self.advance(input, &products, Then::Store)?;
        if !self.has("o") {
            return Ok(());
        }
        let heads = &self.arithmetic().heads;
        self.turn(q, k)?;
        if self.task.op.piece == Piece::BeforeAttention {
            return self.leave([q, k, v]);
        }
        // Wide heads cannot be attended in place.
        let attended = if heads.dim <= 128 { q } else { o.slice(0, q.bytes())? };
        self.attend([q, k, v], attended)?;
        self.close("o", attended, if heads.dim <= 128 { span(k, o) } else { span(q, v) })
    }

    /// Each head on its own: its norm, where there is one, then the rotation by its position.
    fn turn(&self, q: Region, k: Region) -> Result<(), Fault> {
        let (q_norm, k_norm) = (self.optional("q_norm")?, self.optional("k_norm")?);
        let frequencies = self.arithmetic().frequencies;
        if frequencies.is_none() && q_norm.is_none() && k_norm.is_none() {
            return Ok(());
        }
        let turn = Turn {
            q,
            k,
            sequences: self.sequences(),
            positions: self.rows.count,
            first_position: self.rows.first,
            heads: &self.arithmetic().heads,
            q_norm: q_norm.as_ref(),
            k_norm: k_norm.as_ref(),
            epsilon: self.arithmetic().epsilon,
            frequencies,
        };
        Ok(self.kernels().turn(self.stream.raw(), &turn)?)
    }

    /// New rows into the cache, and attention over all of it.
    fn attend(&self, [q, k, v]: [Region; 3], out: Region) -> Result<(), Fault> {
        let cache = self.cache()?;
        let (kernels, stream) = (self.kernels(), self.stream.raw());
        let (first_position, positions) = (self.rows.first, self.rows.count);
        let append = Append { keys: k, values: v, cache: &cache, first_position, positions };
        kernels.append_cache(stream, &append)?;
        let attention = Attention {
            q,
            out,
            cache: &cache,
            heads: &self.arithmetic().heads,
            first_position,
            positions,
            spare: self.backend.apart.attention,
        };
        Ok(kernels.attention(stream, &attention)?)
    }

    /// The cache of the layer and micro-batch: in its slot, or where it stays on the device.
    fn cache(&self) -> Result<DeviceCache, Fault> {
        let backend = self.backend;
        let region = if let Some(slot) = self.task.bound.cache {
            backend.slot(slot)?
        } else {
            let layer = backend.cache.get(backend.host.unit(self.task)?.layer);
            let home = layer.and_then(|micros| micros.get(usize::from(self.task.op.micro)));
            *home.ok_or_else(|| fault("a cache is not there"))?
        };
        self.cache_in(region)
    }

    /// A cache with room for as many positions as a region has.
    pub(super) fn cache_in(&self, region: Region) -> Result<DeviceCache, Fault> {
        let backend = self.backend;
        let shape = backend.host.shape(in_memory(region.bytes()))?;
        let capacity = shape.plane.outputs / shape.kv_heads.max(1);
        let format = format(backend.host.frame.plan.precision.kv);
        let (kv_heads, dim) = (shape.kv_heads, self.arithmetic().heads.dim);
        Ok(DeviceCache::new(format, self.sequences(), capacity, kv_heads, dim, region)?)
    }
}
