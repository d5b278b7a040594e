//! The disk that weights are read from, by the size of a request.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use pipo_plan::units::Bytes;
use rustix::fs::{Advice, fadvise, statvfs};

use super::sampling::{Middle, Sampler};
use super::{ProfileError, not_direct};
use crate::disk::{AlignedBuf, BlockReader, Buffered, Direct};
use crate::store::in_memory;

/// Sizes of one request.
const REQUESTS: [usize; 5] = [64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20];

/// One sample reads so much: many requests, so that the first one's latency does not count.
const STRETCH: usize = 64 << 20;

/// What reading and writing take, for a stretch in requests of each size.
pub(super) struct DiskTimes {
    pub(super) direct: Vec<(Bytes, Middle)>,
    pub(super) written: Vec<(Bytes, Middle)>,
    pub(super) buffered: Vec<(Bytes, Middle)>,
    /// In requests as a memory map makes them, cold and then from the page cache.
    pub(super) mapped: Middle,
    pub(super) mapped_again: Middle,
    /// One direct read of a page: what a request costs at least.
    pub(super) request: Middle,
    /// Free on the disk.
    pub(super) capacity: Bytes,
}

impl DiskTimes {
    /// Bytes that each time is of.
    pub(super) const STRETCH: Bytes = Bytes(STRETCH as u64);
}

/// A memory map is read ahead by so much.
const READ_AHEAD: usize = 128 << 10;

pub(super) fn measure(
    sampler: &mut Sampler,
    folder: &Path,
    size: u64,
    notes: &mut Vec<String>,
) -> Result<DiskTimes, ProfileError> {
    let failed = |action| {
        move |source: io::Error| ProfileError::Scratch { action, path: folder.into(), source }
    };
    // Whole stretches, at least two, so that going round never reads the same one twice in a row.
    let size = (size / STRETCH as u64).max(2) * STRETCH as u64;
    let scratch = tempfile::NamedTempFile::new_in(folder).map_err(failed("create a file in"))?;
    let mut buffer = AlignedBuf::zeroed(STRETCH).ok_or(ProfileError::Memory(STRETCH))?;
    // Not all zeros, which some disks do not store.
    for (index, byte) in buffer.iter_mut().enumerate() {
        *byte = (index.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0];
    }
    fill(scratch.path(), size, &buffer).map_err(failed("write a file in"))?;
    let forget = || forget(scratch.path()).map_err(failed("read a file in"));
    forget()?;

    let mut walk = Walk { next: 0, size };
    let mut direct = Vec::new();
    for request in REQUESTS {
        let reader: Box<dyn BlockReader> = match Direct::open(scratch.path(), request) {
            Ok(reader) => Box::new(reader),
            Err(why) => {
                let note = not_direct(folder, &why);
                if !notes.contains(&note) {
                    notes.push(note);
                }
                Box::new(Buffered::open(scratch.path(), request)?)
            }
        };
        let exact = Bytes(request as u64).exact();
        let read = || reader.read(walk.step(), &mut buffer);
        direct.push((Bytes(request as u64), sampler.time("disk.read", &exact, read)?));
    }
    let mut page = AlignedBuf::zeroed(4096).ok_or(ProfileError::Memory(4096))?;
    let request = match Direct::open(scratch.path(), 4096) {
        Ok(reader) => {
            let mut at = 0;
            sampler.time("software.disk_request", "4KiB", || {
                at = (at + 97 * 4096) % size;
                reader.read(at / 4096 * 4096, &mut page)
            })?
        }
        Err(_) => Middle { median: pipo_plan::units::Nanos(1000), spread: 0.0 },
    };
    let mut buffered = Vec::new();
    for request in REQUESTS {
        let reader = Buffered::open(scratch.path(), request)?;
        let exact = Bytes(request as u64).exact();
        let middle = cold(sampler, "disk.buffered_read", &exact, &forget, || {
            reader.read(walk.step(), &mut buffer).map_err(ProfileError::from)
        })?;
        buffered.push((Bytes(request as u64), middle));
    }
    let mapped = Buffered::open(scratch.path(), READ_AHEAD)?;
    let exact = Bytes(STRETCH as u64).exact();
    let first = cold(sampler, "disk.page_fault_read", &exact, &forget, || {
        mapped.read(walk.step(), &mut buffer).map_err(ProfileError::from)
    })?;
    let again = sampler
        .time("disk.page_fault_hit", &exact, || mapped.read(0, &mut buffer))
        .map_err(ProfileError::from)?;
    let mut written = Vec::new();
    for request in REQUESTS {
        let exact = Bytes(request as u64).exact();
        let file = writer(scratch.path()).map_err(failed("write a file in"))?;
        let write = || write(&file, walk.step(), &buffer, request);
        let middle =
            sampler.time("disk.write", &exact, write).map_err(failed("write a file in"))?;
        written.push((Bytes(request as u64), middle));
    }
    let free = statvfs(folder).map_err(|error| failed("inspect")(error.into()))?;
    let capacity = Bytes(free.f_bavail.saturating_mul(free.f_frsize).max(1));
    Ok(DiskTimes {
        direct,
        written,
        buffered,
        mapped: first,
        mapped_again: again,
        request,
        capacity,
    })
}

/// Goes round a file in stretches.
struct Walk {
    next: u64,
    size: u64,
}

impl Walk {
    fn step(&mut self) -> u64 {
        let at = self.next;
        self.next = (at + STRETCH as u64) % self.size;
        at
    }
}

/// Times `work` with the page cache emptied of the file before each sample.
fn cold(
    sampler: &mut Sampler,
    figure: &str,
    size: &str,
    forget: &impl Fn() -> Result<(), ProfileError>,
    mut work: impl FnMut() -> Result<(), ProfileError>,
) -> Result<Middle, ProfileError> {
    sampler.measure(figure, size, || {
        forget()?;
        let start = std::time::Instant::now();
        work()?;
        Ok(start.elapsed())
    })
}

fn fill(path: &Path, size: u64, stretch: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    for _ in 0..size / stretch.len() as u64 {
        file.write_all(stretch)?;
    }
    file.sync_all()
}

/// Asks the system to drop what it keeps of a file; clean pages it drops at once.
fn forget(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
}

/// Past the page cache where that is possible, through it where not.
fn writer(path: &Path) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    if let Ok(file) = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path) {
        return Ok(file);
    }
    OpenOptions::new().write(true).open(path)
}

fn write(file: &File, offset: u64, from: &[u8], request: usize) -> io::Result<()> {
    let mut at = offset;
    for piece in from[..in_memory(STRETCH as u64)].chunks(request) {
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}
