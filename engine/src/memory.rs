//! Memory as the plan accounts for it: allocated once, before anything starts, to the byte.
//!
//! Each line of the plan's memory table becomes an [`Account`], from which buffers are drawn until it is
//! used up. Who asks for more than the plan has is refused, and so is who leaves some: either means that
//! the plan's accounting is wrong, and it is found before the run and not during it. What the allocator
//! adds to begin each buffer on a page boundary is not counted.

use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use pipo_plan::schedule::{Layout, Slot, Tier};
use pipo_plan::units::Bytes;

use crate::disk::AlignedBuf;
use crate::executor::Fault;

/// Why memory could not be set up as the plan says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The system has not so much.
    #[error(
        "{} of {} for `{name}` could not be allocated; close other programs, or tune with a smaller budget",
        .bytes.both(), .tier.name()
    )]
    Refused {
        /// The line of the plan's table.
        name: String,
        /// Its tier.
        tier: Tier,
        /// What was asked for.
        bytes: Bytes,
    },
    /// More is needed than the plan accounts for.
    #[error(
        "`{name}` ({}) has {} in the plan, but {} are needed; this is an error in pipo, please report it",
        .tier.name(), .has.exact(), .needs.exact()
    )]
    Overdrawn {
        /// The line of the plan's table.
        name: String,
        /// Its tier.
        tier: Tier,
        /// What the plan has.
        has: Bytes,
        /// What is needed.
        needs: Bytes,
    },
    /// Less is needed than the plan accounts for.
    #[error(
        "`{name}` ({}) has {} in the plan, of which only {} are used; this is an error in pipo, please report it",
        .tier.name(), .has.exact(), .used.exact()
    )]
    Unused {
        /// The line of the plan's table.
        name: String,
        /// Its tier.
        tier: Tier,
        /// What the plan has.
        has: Bytes,
        /// What was drawn.
        used: Bytes,
    },
}

/// One line of the plan's memory table.
#[derive(Debug)]
pub struct Account {
    name: String,
    tier: Tier,
    has: Bytes,
    used: Bytes,
}

impl Account {
    /// What a layout holds at a tier under a name; nothing where it has no such line.
    pub fn open(layout: &Layout, tier: Tier, name: &str) -> Self {
        let lines = layout.allocations.iter().filter(|a| a.tier == tier && a.name == name);
        Self { name: name.into(), tier, has: lines.map(|a| a.bytes).sum(), used: Bytes::ZERO }
    }

    /// A zeroed buffer out of it.
    pub fn draw(&mut self, bytes: Bytes) -> Result<Buffer, MemoryError> {
        self.claim(bytes)?;
        Buffer::new(&self.name, self.tier, bytes)
    }

    /// Counts bytes that are allocated elsewhere: on a device of its own.
    pub fn claim(&mut self, bytes: Bytes) -> Result<(), MemoryError> {
        let needs = self.used + bytes;
        if needs > self.has {
            let (name, tier, has) = (self.name.clone(), self.tier, self.has);
            return Err(MemoryError::Overdrawn { name, tier, has, needs });
        }
        self.used = needs;
        Ok(())
    }

    /// What has not been drawn.
    pub fn left(&self) -> Bytes {
        self.has - self.used
    }

    /// Closes it: all of it must have been drawn.
    pub fn close(self) -> Result<Bytes, MemoryError> {
        let Self { name, tier, has, used } = self;
        if used == has { Ok(has) } else { Err(MemoryError::Unused { name, tier, has, used }) }
    }
}

/// A stretch of memory that lanes read and write in turn.
///
/// The schedule keeps them apart. The lock does not make anybody wait: it turns a schedule that does not
/// into an error instead of a race.
#[derive(Debug)]
pub struct Buffer {
    name: String,
    bytes: RwLock<AlignedBuf>,
}

impl Buffer {
    fn new(name: &str, tier: Tier, bytes: Bytes) -> Result<Self, MemoryError> {
        let length = usize::try_from(bytes.0).ok();
        let memory = length.and_then(AlignedBuf::zeroed);
        let memory =
            memory.ok_or_else(|| MemoryError::Refused { name: name.into(), tier, bytes })?;
        Ok(Self { name: name.into(), bytes: RwLock::new(memory) })
    }

    /// Zeroed memory of the host that is no part of a plan's account.
    pub fn apart(name: &str, bytes: Bytes) -> Result<Self, MemoryError> {
        Self::new(name, Tier::Pinned, bytes)
    }

    /// Its bytes, to read.
    pub fn read(&self) -> Result<RwLockReadGuard<'_, AlignedBuf>, Fault> {
        self.bytes.try_read().map_err(|error| self.conflict(&error))
    }

    /// Its bytes, to write.
    pub fn write(&self) -> Result<RwLockWriteGuard<'_, AlignedBuf>, Fault> {
        self.bytes.try_write().map_err(|error| self.conflict(&error))
    }

    fn conflict<T>(&self, error: &TryLockError<T>) -> Fault {
        let why = match error {
            TryLockError::WouldBlock => "another operation uses it at the same time",
            TryLockError::Poisoned(_) => "an operation panicked while it wrote it",
        };
        Fault(format!("`{}`: {why}; this is an error in pipo, please report it", self.name))
    }
}

/// The buffers of a layout's rings.
#[derive(Debug)]
pub struct Rings(Vec<Vec<Buffer>>);

impl Rings {
    /// Allocates every slot of every ring at the tiers that are `here`; the others have no slots.
    pub fn new(layout: &Layout, here: impl Fn(Tier) -> bool) -> Result<Self, MemoryError> {
        let ring = |ring: &pipo_plan::schedule::Ring| {
            let slot = |_| Buffer::new(&ring.name, ring.tier, ring.slot_bytes);
            (0..if here(ring.tier) { ring.slots } else { 0 })
                .map(slot)
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self(layout.rings.iter().map(ring).collect::<Result<_, _>>()?))
    }

    /// All buffers of a tier.
    pub fn at<'a>(&'a self, layout: &'a Layout, tier: Tier) -> impl Iterator<Item = &'a Buffer> {
        let rings = layout.rings.iter().zip(&self.0).filter(move |(ring, _)| ring.tier == tier);
        rings.flat_map(|(_, buffers)| buffers)
    }

    /// The buffer of a slot.
    pub fn slot(&self, slot: Slot) -> Result<&Buffer, Fault> {
        let ring = self.0.get(usize::from(slot.ring.0));
        ring.and_then(|ring| ring.get(usize::from(slot.index))).ok_or_else(|| {
            Fault(format!("slot {} of ring {} is not there", slot.index, slot.ring.0))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let mut layout = Layout::default();
        layout.allocate("KV cache", Tier::Gpu, Bytes(100));
        layout.allocate("KV cache", Tier::Pinned, Bytes(1 << 60));
        layout.ring("weight slots", Tier::Gpu, 2, Bytes(5000));
        layout
    }

    #[test]
    fn an_account_is_used_up_to_the_byte() {
        let mut cache = Account::open(&layout(), Tier::Gpu, "KV cache");
        assert_eq!(cache.draw(Bytes(60)).unwrap().read().unwrap().len(), 60);
        let more = cache.draw(Bytes(41)).unwrap_err();
        insta::assert_snapshot!(more, @"`KV cache` (GPU) has 100B in the plan, but 101B are needed; this is an error in pipo, please report it");
        cache.draw(Bytes(40)).unwrap();
        assert_eq!(cache.close(), Ok(Bytes(100)));
        let mut cache = Account::open(&layout(), Tier::Gpu, "KV cache");
        cache.draw(Bytes(99)).unwrap();
        insta::assert_snapshot!(cache.close().unwrap_err(), @"`KV cache` (GPU) has 100B in the plan, of which only 99B are used; this is an error in pipo, please report it");
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        let mut cache = Account::open(&layout(), Tier::Pinned, "KV cache");
        insta::assert_snapshot!(cache.draw(Bytes(1 << 60)).unwrap_err(), @"1152922 TB (1048576 TiB) of host, pinned for `KV cache` could not be allocated; close other programs, or tune with a smaller budget");
        assert_eq!(Account::open(&layout(), Tier::Disk, "KV cache").close(), Ok(Bytes::ZERO));
    }

    #[test]
    fn two_writers_at_once_are_an_error_and_not_a_race() {
        let rings = Rings::new(&layout(), |_| true).unwrap();
        let slot = |index| Slot { ring: pipo_plan::schedule::RingId(0), index };
        let buffer = rings.slot(slot(1)).unwrap();
        let reading = buffer.read().unwrap();
        assert_eq!(reading.len(), 5000);
        drop(buffer.read().unwrap());
        let error = buffer.write().unwrap_err();
        insta::assert_snapshot!(error, @"`weight slots`: another operation uses it at the same time; this is an error in pipo, please report it");
        drop(reading);
        buffer.write().unwrap()[4999] = 1;
        assert!(rings.slot(slot(2)).is_err());
    }
}
