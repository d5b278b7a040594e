//! The page cache: which file extents are in host memory.

use pipo_plan::machine::Machine;
use pipo_plan::schedule::{Layout, Tier};
use pipo_plan::units::Bytes;

/// The page cache that buffered and page-fault reads go through.
///
/// Weights are read in a cyclic scan, pass after pass. A scan that fits stays in memory. Of one that
/// does not, strict least-recently-used eviction would keep nothing: each page is evicted just before
/// it is wanted again. Linux does better, because its active list protects some of what was there
/// first. So the policy here is: an extent that is read while it still fits into `kept` times the
/// capacity stays for good, and every other extent is missed each time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PageCache {
    /// Memory the operating system has for it; zero where nothing is cached.
    pub capacity: Bytes,
    /// Share of the capacity that survives a scan larger than the capacity, from 0 (strict LRU) to 1.
    pub kept: f64,
    /// Whether the file has just been read through once, in the order of its extents.
    pub warm: bool,
}

impl PageCache {
    /// Nothing is ever cached.
    pub const NONE: Self = Self { capacity: Bytes::ZERO, kept: 0.0, warm: false };

    /// What a machine's host memory has left for it beside the buffers of a schedule.
    pub fn beside(layout: &Layout, machine: &Machine, warm: bool) -> Self {
        let taken = layout.bytes(Tier::Pinned) + layout.bytes(Tier::Pageable);
        let capacity = machine.host.available() - taken;
        Self { capacity, kept: machine.host.page_cache_kept.value, warm }
    }
}

/// The state of the cache during a run.
#[derive(Debug)]
pub(crate) struct Residency {
    extents: Vec<Extent>,
    room: Bytes,
}

#[derive(Debug, Clone, Copy)]
enum Extent {
    /// Not decided yet.
    Unread { size: Bytes },
    /// Room is set aside; `left` bytes are still to be read before it is a hit.
    Filling { left: Bytes },
    /// In memory for good.
    Resident,
    /// Read from disk every time.
    Refused,
}

impl Residency {
    pub(crate) fn new(cache: &PageCache, extents: &[Bytes]) -> Self {
        let all: Bytes = extents.iter().copied().sum();
        let room =
            if all <= cache.capacity { cache.capacity } else { share(cache.capacity, cache.kept) };
        let extents: Vec<Extent> = extents.iter().map(|&size| Extent::Unread { size }).collect();
        let mut residency = Self { extents, room };
        if cache.warm {
            for extent in 0..residency.extents.len() {
                residency.admit(extent);
                if let Extent::Filling { .. } = residency.extents[extent] {
                    residency.extents[extent] = Extent::Resident;
                }
            }
        }
        residency
    }

    /// Reads `bytes` of an extent; true when they come from memory.
    ///
    /// Decided when the read starts. An extent read in several pieces is a hit only once all of it
    /// has been read, so that the pieces of the first scan do not count as hits on one another.
    pub(crate) fn read(&mut self, extent: usize, bytes: Bytes) -> bool {
        self.admit(extent);
        match self.extents[extent] {
            Extent::Resident => true,
            Extent::Filling { left } if left <= bytes => {
                self.extents[extent] = Extent::Resident;
                false
            }
            Extent::Filling { left } => {
                self.extents[extent] = Extent::Filling { left: left - bytes };
                false
            }
            Extent::Unread { .. } | Extent::Refused => false,
        }
    }

    fn admit(&mut self, extent: usize) {
        let Extent::Unread { size } = self.extents[extent] else { return };
        self.extents[extent] = if size <= self.room {
            self.room = self.room - size;
            Extent::Filling { left: size }
        } else {
            Extent::Refused
        };
    }
}

/// A share between 0 and 1 of some bytes, rounded down; NaN is nothing.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between zero and the bytes themselves"
)]
fn share(bytes: Bytes, of: f64) -> Bytes {
    Bytes((bytes.as_f64() * of.clamp(0.0, 1.0)) as u64).min(bytes)
}
