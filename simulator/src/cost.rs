//! What an operation costs: a time when it runs alone, and what it draws from shared resources.

use pipo_plan::schedule::{LaneKind, Work};
use pipo_plan::units::{Bytes, LIMIT, Nanos};

use crate::error::Unsupported;
use crate::page_cache::HitShare;

/// Something that operations on different lanes share, max-min fairly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// The host link, both directions together: less than twice one direction.
    LinkDuplex,
    /// The disk, however many threads read it.
    Disk,
    /// Host memory.
    Dram,
    /// GPU memory.
    Hbm,
}

impl Resource {
    /// How many there are.
    pub const COUNT: usize = 4;

    /// Every resource, in the order of the arrays indexed by it.
    pub const ALL: [Self; Self::COUNT] = [Self::LinkDuplex, Self::Disk, Self::Dram, Self::Hbm];

    /// As printed in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::LinkDuplex => "link, both directions",
            Self::Disk => "disk",
            Self::Dram => "host memory",
            Self::Hbm => "GPU memory",
        }
    }
}

/// What one operation costs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Duration when nothing else runs.
    pub nanos: Nanos,
    /// Bytes per nanosecond at full speed. Sharing slows this rate, never raises it.
    pub payload: f64,
    /// Bytes drawn from each resource for each byte of payload: a memory copy draws two from DRAM.
    pub draw: [f64; Resource::COUNT],
    /// Host cores kept busy at full speed, where the host's cores are what is short.
    pub cores: f64,
    /// Thousandths of the duration in which a GPU engine (kernels or copies) is really busy.
    pub gpu_permille: u16,
}

impl Cost {
    /// A cost that draws on nothing shared.
    pub fn fixed(nanos: Nanos) -> Self {
        Self::moving(Bytes::ZERO, nanos)
    }

    /// Moving `bytes` in `nanos`, at most [`LIMIT`]; what it draws is added by [`Cost::drawing`].
    pub fn moving(bytes: Bytes, nanos: Nanos) -> Self {
        let nanos = nanos.min(Nanos(LIMIT));
        let payload = if nanos == Nanos::ZERO { 0.0 } else { bytes.as_f64() / nanos.as_f64() };
        Self { nanos, payload, ..Self::default() }
    }

    /// Also draws `each` bytes of `resource` for each byte of payload.
    #[must_use]
    pub fn drawing(mut self, resource: Resource, each: f64) -> Self {
        self.draw[resource as usize] += each;
        self
    }

    /// Keeps `cores` host cores busy.
    #[must_use]
    pub fn on_cores(mut self, cores: f64) -> Self {
        self.cores = cores;
        self
    }

    /// Keeps a GPU engine busy for `permille` thousandths of its duration.
    #[must_use]
    pub fn busy(mut self, permille: u16) -> Self {
        self.gpu_permille = permille.min(1000);
        self
    }

    /// Bytes drawn in all from each resource.
    pub fn drawn(&self) -> [f64; Resource::COUNT] {
        self.draw.map(|each| each * self.payload * self.nanos.as_f64())
    }
}

/// The price of one [`Work`], computed once however many operations share it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Price {
    /// Bytes moved between tiers, from wherever they come.
    pub bytes: Bytes,
    /// Bytes read from the disk itself, as far as the page cache does not hold them.
    pub disk_read: Bytes,
    /// What it costs, page-cache misses included.
    pub cost: Cost,
    /// What it costs instead when the page cache holds all of it; none where it is bypassed.
    pub hit: Option<Cost>,
}

impl Price {
    /// A price without a page cache or a disk read.
    pub fn plain(work: &Work, cost: Cost) -> Self {
        Self { bytes: work.bytes(), disk_read: Bytes::ZERO, cost, hit: None }
    }

    /// What it costs once its extent has been read before and a share of the bytes is still in the
    /// page cache; none where that cannot happen.
    ///
    /// One thread finds hits and misses in turn, so their times add up; it draws from each resource
    /// what the two parts draw.
    pub fn reread(&self, hits: HitShare) -> Option<Cost> {
        let hit = self.hit.filter(|_| hits > HitShare::NONE)?;
        let nanos = hits.mean(hit.nanos.as_f64(), self.cost.nanos.as_f64());
        let mut cost = Cost::moving(self.bytes, Nanos::ceil(nanos));
        cost.cores = hits.mean(hit.cores, self.cost.cores);
        for (draw, (hit, miss)) in
            cost.draw.iter_mut().zip(hit.draw.into_iter().zip(self.cost.draw))
        {
            *draw = hits.mean(hit, miss);
        }
        Some(cost)
    }
}

/// What there is of everything that operations share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Capacities {
    rates: [f64; Resource::COUNT],
    cores: f64,
}

impl Capacities {
    /// Nothing is shared: every operation runs at full speed.
    pub const UNLIMITED: Self = Self { rates: [f64::MAX; Resource::COUNT], cores: f64::MAX };

    /// Sets the capacity of one resource.
    ///
    /// One byte a second is the least: a rate of zero would make an operation endless instead of
    /// absurdly long, and only the latter has an end to report.
    #[must_use]
    pub fn with(mut self, resource: Resource, bytes_per_nano: f64) -> Self {
        self.rates[resource as usize] = bytes_per_nano.max(1e-9);
        self
    }

    /// Sets the number of host cores, at least one.
    #[must_use]
    pub fn with_cores(mut self, cores: f64) -> Self {
        self.cores = cores.max(1.0);
        self
    }

    /// Total rate of each resource in bytes per nanosecond, indexed by [`Resource`].
    pub fn rates(&self) -> &[f64; Resource::COUNT] {
        &self.rates
    }

    /// Host cores.
    pub fn cores(&self) -> f64 {
        self.cores
    }
}

/// Prices works: a machine profile, or a table in a test.
pub trait Costs {
    /// What a work costs.
    fn price(&self, work: &Work) -> Result<Price, Unsupported>;
    /// What is shared.
    fn capacities(&self) -> Capacities;
    /// What an operation waits for in addition when it starts on a lane that stood idle: a thread of the
    /// host has to wake up.
    fn handover(&self) -> Nanos {
        Nanos::ZERO
    }
    /// How long after the end of an operation on a lane `from` one on a lane `to` that waited for it can
    /// start, whatever `to` did in between.
    fn crossing(&self, _from: LaneKind, _to: LaneKind) -> Nanos {
        Nanos::ZERO
    }
}
