//! Copies between host and device.

#![allow(unsafe_code, reason = "copies to and from a GPU are calls of a C interface")]

use std::time::Instant;

use pipo_kernels::cuda::Region;
use pipo_plan::units::Bytes;

use super::super::ProfileError;
use super::super::sampling::{Middle, Sampler};
use super::super::walk::{Walk, beyond_caches};
use super::Bench;
use super::queues::{self, Crossings};
use crate::cuda::driver::{Context, Event, Pin, Stream};
use crate::executor::Fault;
use crate::memory::Buffer;

/// Sizes of a copy.
const SIZES: [usize; 6] = [4 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20];

/// Bytes of pinned memory that copies walk through, and of the device's that they go to and come from. Those of the
/// pageable are more: a core reads them.
pub(super) const PINNED: usize = 512 << 20;

/// Bytes that are copied in one sample, at least.
const STRETCH: usize = 64 << 20;

/// A block of weights.
const BLOCK: usize = 16 << 20;

/// Writes numbers that look like nothing in particular: copies are measured for weights, and zeros need not cost
/// the same. Writing all of a buffer also leaves nothing of its beginning in a cache.
fn fill(bytes: &mut [u8]) {
    let mut number: u64 = 0;
    for word in bytes.chunks_exact_mut(8) {
        // An odd step of about 2^64 over the golden ratio goes through all numbers, and its high bits seem
        // random.
        number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&number.to_le_bytes());
    }
}

/// Host memory on both sides of a link.
pub(super) struct Link {
    _pin: Option<Pin>,
    pinned: Buffer,
    pageable: Buffer,
    back: Stream,
}

impl Link {
    pub(super) fn new() -> Result<Self, ProfileError> {
        let buffer = |name, bytes: usize| {
            let buffer = Buffer::apart(name, Bytes(bytes as u64));
            buffer.map_err(|_| ProfileError::Memory(bytes))
        };
        let (pinned, pageable) = (buffer("pinned", PINNED)?, buffer("pageable", beyond_caches())?);
        for buffer in [&pinned, &pageable] {
            fill(&mut buffer.write()?);
        }
        // SAFETY: the buffer is never moved or resized, and the pin is dropped before it.
        let pin = unsafe { Pin::new(&pinned.read()?) }?;
        Ok(Self { _pin: pin, pinned, pageable, back: Stream::new()? })
    }

    /// Copies behind one another, which nobody waits for in between; the end of each is noted, as in a run.
    pub(super) fn pinned(
        &self,
        sampler: &mut Sampler,
        bench: &mut Bench,
        up: bool,
    ) -> Result<Vec<(Bytes, Middle)>, ProfileError> {
        let figure = if up { "link.h2d" } else { "link.d2h" };
        let mark = Event::new()?;
        let (mut curve, mut walk) = (Vec::new(), Walk::through(PINNED));
        for size in SIZES {
            let count = (STRETCH / size).clamp(2, 256);
            let time = sampler.measure(figure, &Bytes(size as u64).exact(), || {
                let count = u32::try_from(count).unwrap_or(1);
                bench.time(count, |bench| {
                    copy(&bench.stream, bench.copied, &self.pinned, walk.next(size), size, up)?;
                    bench.stream.record(&mark)
                })
            })?;
            curve.push((Bytes(size as u64), time));
        }
        Ok(curve)
    }

    /// Copies that the driver stages, which is one core's work, each on the host's clock until it has ended.
    pub(super) fn pageable(
        &self,
        sampler: &mut Sampler,
        bench: &mut Bench,
        up: bool,
    ) -> Result<Vec<(Bytes, Middle)>, ProfileError> {
        let figure = if up { "link.pageable_h2d" } else { "link.pageable_d2h" };
        let length = self.pageable.read()?.len();
        let mut walk = Walk::through(length);
        let sizes = SIZES.map(|size| Bytes(size as u64));
        let times = sampler.on_each_core(figure, &sizes.map(Bytes::exact), |index| {
            let (size, start) = (SIZES[index], Instant::now());
            copy(&bench.stream, bench.copied, &self.pageable, walk.next(size), size, up)?;
            bench.stream.synchronise()?;
            Ok::<_, Fault>(start.elapsed())
        })?;
        Ok(sizes.into_iter().zip(times).collect())
    }

    /// Queues copies to the device, and returns how much they copy: no less than asked for. The event happens once
    /// they have ended.
    pub(super) fn queue(&self, bench: &Bench, bytes: Bytes, end: &Event) -> Result<Bytes, Fault> {
        let count = bytes.0.div_ceil(BLOCK as u64);
        let mut walk = Walk::through(PINNED);
        for _ in 0..count {
            copy(&bench.stream, bench.copied, &self.pinned, walk.next(BLOCK), BLOCK, true)?;
        }
        bench.stream.record(end)?;
        Ok(Bytes(count * BLOCK as u64))
    }

    /// What passes between the device and threads of the host.
    pub(super) fn crossings(
        &self,
        sampler: &mut Sampler,
        context: &Context,
        bench: &Bench,
    ) -> Result<Crossings, ProfileError> {
        let from = self.pinned.read()?;
        let bench = queues::Bench {
            context,
            kernels: &bench.kernels,
            to: bench.copied.slice(0, queues::COPIED as u64).map_err(Fault::from)?,
            numbers: bench.out,
            from: &from[..queues::COPIED.min(from.len())],
            launches: queues::LAUNCHES,
        };
        queues::crossings(sampler, &bench)
    }

    /// Both ways at once.
    pub(super) fn duplex(
        &self,
        sampler: &mut Sampler,
        bench: &Bench,
    ) -> Result<(Bytes, Middle), ProfileError> {
        let size = PINNED / 2;
        let [to, from] = [0, size as u64].map(|at| bench.copied.slice(at, size as u64));
        let (to, from) = (to.map_err(Fault::from)?, from.map_err(Fault::from)?);
        let time = sampler.measure("link.duplex", &Bytes(PINNED as u64).exact(), || {
            let start = Instant::now();
            copy(&bench.stream, to, &self.pinned, 0, size, true)?;
            copy(&self.back, from, &self.pinned, size, size, false)?;
            bench.stream.synchronise()?;
            self.back.synchronise()?;
            Ok::<_, Fault>(start.elapsed())
        })?;
        Ok((Bytes(PINNED as u64), time))
    }
}

/// Queues a copy between a device and a place in host memory.
fn copy(
    stream: &Stream,
    device: Region,
    host: &Buffer,
    place: usize,
    size: usize,
    up: bool,
) -> Result<(), Fault> {
    let bytes = host.read()?;
    let bytes = bytes.get(place..place + size);
    let bytes = bytes.ok_or_else(|| Fault("a copy lies outside its buffer".into()))?;
    let device = device.slice(0, size as u64)?;
    // SAFETY: the buffer is given back only after the stream was waited for, and nobody looks at what is
    // in it.
    unsafe {
        if up {
            stream.upload(bytes, device)
        } else {
            stream.download(device, bytes.as_ptr().cast_mut(), size)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_stretch_of_a_filled_buffer_is_zero() {
        let mut bytes = vec![0; 64 << 10];
        fill(&mut bytes);
        assert!(bytes.chunks(16).all(|some| some.iter().any(|&byte| byte != 0)));
        assert_ne!(bytes[..4096], bytes[4096..8192]);
    }
}
