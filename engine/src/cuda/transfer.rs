//! Copies between host and device.
//!
//! All of them are queued. What they read or write in host memory lives as long as the backend, which
//! waits for the device before it gives anything back; that nobody else uses it meanwhile is what the
//! schedule's waits and slots are for.

use std::ops::Range;

use pipo_plan::schedule::Tier;
use pipo_plan::units::Bytes;

use super::driver::{Arena, Pin, Stream};
use super::{CudaBackend, Region, bound, fault, length};
use crate::backend::accounts::Accounts;
use crate::backend::cache_rows::outside;
use crate::backend::moved;
use crate::backend::source::Source;
use crate::backend::unit::Unit;
use crate::executor::{Fault, Task};
use crate::memory::Buffer;
use crate::run::RunError;
use crate::store::in_memory;

/// Pinned memory through which weights reach the device before the run.
pub(super) struct Bounce {
    _pin: Option<Pin>,
    buffer: Buffer,
    stream: Stream,
}

/// Bytes of it: enough for full speed of disk and link.
const BOUNCE: Bytes = Bytes(16 << 20);

impl Bounce {
    pub(super) fn new() -> Result<Self, RunError> {
        let buffer = Buffer::apart("weights on their way to the device", BOUNCE)?;
        // SAFETY: the buffer is never moved or resized, and the pin is dropped before it.
        let pin = unsafe { Pin::new(&buffer.read()?) }?;
        Ok(Self { _pin: pin, buffer, stream: Stream::new()? })
    }

    /// Reads what a unit keeps on the device.
    pub(super) fn keep(
        &mut self,
        unit: &Unit,
        index: usize,
        accounts: &mut Accounts,
        source: &Source,
        arena: &mut Arena,
    ) -> Result<Option<Region>, RunError> {
        let bytes = unit.own(index, Tier::Gpu).map(|stretch| Bytes(stretch.length())).sum();
        if bytes == Bytes::ZERO {
            return Ok(None);
        }
        let region = arena.take(accounts.claim(Tier::Gpu, "weights, resident", bytes)?)?;
        let mut at = 0;
        for stretch in unit.own(index, Tier::Gpu) {
            let mut from = 0;
            while from < stretch.length() {
                let mut buffer = self.buffer.write()?;
                let now = buffer.len().min(in_memory(stretch.length() - from));
                let piece = &mut buffer[..now];
                source.read_once(stretch, from, piece)?;
                let to = region.slice(at + from, now as u64).map_err(Fault::from)?;
                // SAFETY: the stream is waited for before the buffer is used again or unlocked.
                unsafe { self.stream.upload(piece, to) }?;
                self.stream.synchronise()?;
                from += now as u64;
            }
            at += stretch.length();
        }
        Ok(Some(region))
    }
}

impl CudaBackend<'_> {
    /// One block from host memory into the device.
    pub(super) fn load_weights(&self, task: &Task, stream: &Stream) -> Result<(), Fault> {
        let slot = self.slot(bound(task.bound.weights, "a device slot")?)?;
        let unit = self.host.unit(task)?;
        let (start, length) = (unit.block(task.op)?, length(task.work.bytes())?);
        let to = slot.slice(start as u64, length as u64)?;
        let upload = |bytes: &[u8], range: Range<usize>| {
            let to = to.slice(range.start as u64, range.len() as u64)?;
            // SAFETY: see the head of this file; the slot of the device is this operation's.
            unsafe { stream.upload(bytes, to) }
        };
        match task.bound.host {
            Some(host) => {
                let host = self.host.rings.slot(host)?.read()?;
                let from = host.get(..length);
                upload(from.ok_or_else(|| fault("a block is larger than its slot"))?, 0..length)
            }
            None => unit.visit(&self.host.units, start, length, upload),
        }
    }

    /// Everything before this pass, from host memory to the device.
    pub(super) fn load_cache(&self, task: &Task, stream: &Stream) -> Result<(), Fault> {
        let slot = self.slot(bound(task.bound.cache, "a slot of the cache")?)?;
        let home = match task.bound.host {
            Some(slot) => self.host.rings.slot(slot)?,
            None => self.home(task)?,
        };
        let (home, before) = (home.read()?, 0..self.host.before(task));
        moved(task, self.copy_rows(stream, (slot, before.clone()), (&home, before), true)?)
    }

    /// The rows of this pass, from the device to host memory; with them the queries, where attention is
    /// not on the device.
    pub(super) fn save_cache(&self, task: &Task, stream: &Stream) -> Result<(), Fault> {
        let Some(slot) = task.bound.cache else { return self.save_queries(task, stream) };
        let new = self.host.new_positions(task);
        let device = (self.slot(slot)?, new.clone());
        if let Some(rows) = task.bound.host {
            // Towards the disk: as in a cache that has room for them alone.
            let rows = self.host.rings.slot(rows)?.read()?;
            let rows = rows.get(..length(task.work.bytes())?).ok_or_else(outside)?;
            return moved(task, self.copy_rows(stream, device, (rows, 0..new.len()), false)?);
        }
        let home = self.home(task)?.read()?;
        moved(task, self.copy_rows(stream, device, (&home, new), false)?)
    }

    /// Where the cache of a task's layer and micro-batch stays in host memory.
    pub(super) fn home(&self, task: &Task) -> Result<&Buffer, Fault> {
        let layer = self.cache_home.get(self.host.unit(task)?.layer);
        let home = layer.and_then(|micros| micros.get(usize::from(task.op.micro)));
        home.ok_or_else(|| fault("a cache is not there"))
    }

    /// Copies some positions of every sequence between memory of the device and of the host, and says how
    /// many bytes they are. Planes follow each other at even distances on both sides, so that one copy takes
    /// the same rows of all of them.
    pub(super) fn copy_rows(
        &self,
        stream: &Stream,
        (device, here): (Region, Range<usize>),
        (host, there): (&[u8], Range<usize>),
        up: bool,
    ) -> Result<usize, Fault> {
        let (from, to) = (here, there);
        let (here, there) =
            (self.host.shape(in_memory(device.bytes()))?, self.host.shape(host.len())?);
        let planes = 2 * self.host.micro();
        let mut copied = 0;
        let places = here.places(from).into_iter().zip(there.places(to));
        for (here_at, there_at) in places {
            let width = here_at.len();
            if width == 0 {
                continue;
            }
            let end = (planes - 1) * there.plane() + there_at.end;
            let bytes = host.get(there_at.start..end).ok_or_else(outside)?;
            let span = (planes - 1) * here.plane() + width;
            let region = device.slice(here_at.start as u64, span as u64)?;
            let rows = super::driver::Rows {
                width,
                count: planes,
                device: region,
                device_pitch: here.plane(),
                host: bytes.as_ptr().cast_mut(),
                host_pitch: there.plane(),
            };
            // SAFETY: see the head of this file; both ends were checked to lie within their memory.
            unsafe { if up { stream.upload_rows(&rows) } else { stream.download_rows(&rows) } }?;
            copied += planes * width;
        }
        Ok(copied)
    }
}
