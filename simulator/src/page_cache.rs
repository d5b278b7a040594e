//! The page cache: how much of a file that is read pass after pass comes from host memory.

use pipo_plan::machine::Machine;
use pipo_plan::schedule::{Layout, Tier};
use pipo_plan::units::Bytes;

/// The page cache that buffered and page-fault reads go through.
///
/// Weights are read in a cyclic scan. A scan that fits into the capacity stays in memory. Of a larger
/// one, strict least-recently-used eviction would keep nothing, since each page is evicted just before
/// it is wanted again, and a policy that protects what was there first would keep a full capacity.
/// Linux does neither: it ages pages in approximate lists, from several threads at once. Random
/// eviction stands between the two and has no constant to choose. A page read in one pass is a hit in
/// the next if it survives the misses in between. With a scan of `n` pages, a capacity of `c` and a
/// share `h` of hits there are `(1 - h) n` of those, each evicts it with probability `1 / c`, and so
///
/// ```text
/// h = (1 - 1/c)^((1 - h) n), for many pages h = exp(-(1 - h) n / c)
/// ```
///
/// of which the root below one is meant. Survivors lie anywhere in the file, so every read finds the
/// same share of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageCache {
    /// Memory the operating system has for it; zero where nothing is cached.
    pub capacity: Bytes,
    /// Whether the file has just been read through once.
    pub warm: bool,
}

impl PageCache {
    /// Nothing is ever cached.
    pub const NONE: Self = Self { capacity: Bytes::ZERO, warm: false };

    /// What a machine's host memory has left for it beside the buffers of a schedule, cold or warm.
    pub fn beside(layout: &Layout, machine: &Machine, warm: bool) -> Self {
        let taken = layout.bytes(Tier::Pinned) + layout.bytes(Tier::Pageable);
        Self { warm, ..Self::within(machine.host.available() - taken, machine) }
    }

    /// What a machine makes of memory that is left over. Nothing has been read yet.
    pub fn within(left_over: Bytes, machine: &Machine) -> Self {
        let kept = machine.host.page_cache_kept.clamp(0.0, 1.0);
        let kept = HitShare(floor(kept * f64::from(HitShare::ONE)));
        Self { capacity: kept.of(left_over), warm: false }
    }

    /// The share of each read that is a hit while everything in a layout's files is read pass after pass.
    pub(crate) fn hits_of(&self, layout: &Layout) -> HitShare {
        self.hits(layout.extents.iter().copied().sum())
    }

    /// The share of each read that is a hit while `scan` bytes are read pass after pass.
    pub fn hits(&self, scan: Bytes) -> HitShare {
        if self.capacity == Bytes::ZERO {
            return HitShare::NONE;
        }
        if scan <= self.capacity {
            return HitShare::ALL;
        }
        let ratio = scan.as_f64() / self.capacity.as_f64();
        // `h - exp(-(1 - h) ratio)` rises from below zero to a maximum above it here, and the root in
        // between is the one below one.
        let summit = (1.0 - ratio.ln() / ratio).clamp(0.0, 1.0);
        let below = |millionths: u32| {
            let share = f64::from(millionths) / f64::from(HitShare::ONE);
            share <= (-(1.0 - share) * ratio).exp()
        };
        let (mut low, mut high) = (0, floor(summit * f64::from(HitShare::ONE)));
        while low < high {
            let middle = (low + high).div_ceil(2);
            if below(middle) { low = middle } else { high = middle - 1 }
        }
        HitShare(low)
    }
}

/// A share of bytes in millionths: integers, so that all sums come out the same everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HitShare(u32);

impl HitShare {
    const ONE: u32 = 1_000_000;
    /// Every byte is a miss.
    pub const NONE: Self = Self(0);
    /// Every byte is a hit.
    pub const ALL: Self = Self(Self::ONE);

    /// That share of some bytes, rounded down.
    pub fn of(self, bytes: Bytes) -> Bytes {
        let share = u128::from(bytes.0) * u128::from(self.0) / u128::from(Self::ONE);
        Bytes(u64::try_from(share).unwrap_or(bytes.0))
    }

    /// The mean of two values, weighted by hits and misses. Exact where all are one or the other.
    pub(crate) fn mean(self, hit: f64, miss: f64) -> f64 {
        match self {
            Self::ALL => hit,
            Self::NONE => miss,
            Self(millionths) => {
                let share = f64::from(millionths) / f64::from(Self::ONE);
                miss + (hit - miss) * share
            }
        }
    }
}

/// What has been read of each extent during a run.
#[derive(Debug)]
pub(crate) struct Residency {
    /// Bytes that are still to be read for the first time.
    unread: Vec<Bytes>,
}

impl Residency {
    pub(crate) fn new(cache: &PageCache, extents: &[Bytes]) -> Self {
        let unread = |&size| if cache.warm { Bytes::ZERO } else { size };
        Self { unread: extents.iter().map(unread).collect() }
    }

    /// Reads `bytes` of an extent; true when all of it had been read before.
    ///
    /// Decided when the read starts. The pieces of a first scan are no hits on one another.
    pub(crate) fn read(&mut self, extent: usize, bytes: Bytes) -> bool {
        let Some(unread) = self.unread.get_mut(extent) else { return false };
        let again = *unread == Bytes::ZERO;
        *unread = *unread - bytes;
        again
    }
}

/// Rounds down; what is not between zero and one million counts as its nearer end.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped on the line itself"
)]
fn floor(millionths: f64) -> u32 {
    millionths.clamp(0.0, f64::from(HitShare::ONE)) as u32
}
