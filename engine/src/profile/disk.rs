//! The disk that weights are read from, by the size of a request.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pipo_plan::units::{Bytes, Nanos};
use rustix::fs::{Advice, fadvise};

use super::sampling::{Middle, Sampler};
use super::{ProfileError, not_direct};
use crate::disk::{AlignedBuf, BlockReader, Buffered, Direct, PAGE, ReadError, free_space};
use crate::shape::Shape;
use crate::store::in_memory;

/// Sizes of one request.
const REQUESTS: [usize; 5] = [64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20];

/// One sample reads so much: many requests, so that the first one's latency does not count.
const STRETCH: usize = 64 << 20;

/// What reading and writing take, for a stretch in requests of each size.
pub(super) struct DiskTimes {
    pub(super) direct: Vec<(Bytes, Middle)>,
    /// Several threads, each a stretch.
    pub(super) together: Middle,
    /// Nothing where a file was read that is not ours to write.
    pub(super) written: Vec<(Bytes, Middle)>,
    pub(super) buffered: Vec<(Bytes, Middle)>,
    /// Two threads, and several, that take blocks in turn, through the page cache.
    pub(super) buffered_pair: Middle,
    pub(super) buffered_together: Middle,
    /// One thread through the page cache, a stretch of the file in one and in pieces that lie apart.
    pub(super) in_one: Middle,
    pub(super) in_pieces: Middle,
    /// In requests as a memory map makes them, by how much is read: what the page cache does not hold.
    pub(super) mapped: Vec<(Bytes, Middle)>,
    /// Several threads, each in a map of its own.
    pub(super) mapped_together: Middle,
    /// A stretch that it does hold.
    pub(super) mapped_again: Middle,
    /// One direct read of a page: what a request costs at least.
    pub(super) request: Middle,
    /// Free on the disk.
    pub(super) capacity: Bytes,
}

impl DiskTimes {
    /// Bytes that each time is of.
    pub(super) const STRETCH: Bytes = Bytes(STRETCH as u64);
    /// Bytes that the time of several threads is of.
    pub(super) const TOGETHER: Bytes = Bytes((THREADS * STRETCH) as u64);
    /// The same where they take blocks in turn: all of the smallest file that is measured.
    pub(super) const IN_TURN: Bytes = Bytes((LEAST * STRETCH) as u64);
    /// The same of those with memory maps.
    pub(super) const MAPPED_TOGETHER: Bytes = Bytes((THREADS * MAPPED_AT_ONCE) as u64);

    /// What a piece takes longer than what goes on: a stretch in one begins anew once, too.
    pub(super) fn buffered_jump(&self) -> Middle {
        let longer = self.in_pieces.median - self.in_one.median;
        Middle { median: Nanos(longer.0 / (PIECES as u64 - 1)), ..self.in_pieces }
    }

    /// Reads that are held back to a shape's rate, all of them together; what the page cache has is not.
    pub(super) fn shaped(mut self, shape: &Shape) -> Self {
        let Some(rate) = shape.disk else { return self };
        let slowed =
            |time: &mut Middle, bytes: Bytes| time.median = time.median.max(rate.time(bytes));
        for (_, time) in self.direct.iter_mut().chain(&mut self.buffered) {
            slowed(time, Self::STRETCH);
        }
        for (bytes, time) in &mut self.mapped {
            slowed(time, *bytes);
        }
        for time in [&mut self.in_one, &mut self.in_pieces] {
            slowed(time, Self::STRETCH);
        }
        slowed(&mut self.mapped_together, Self::MAPPED_TOGETHER);
        slowed(&mut self.together, Self::TOGETHER);
        for time in [&mut self.buffered_pair, &mut self.buffered_together] {
            slowed(time, Self::IN_TURN);
        }
        self
    }
}

/// Threads that read at once.
const THREADS: usize = 4;

/// Stretches that a file must have.
const LEAST: usize = 2;

/// One request of several threads, and what each of them takes at a time where they take blocks in turn.
const BLOCK: usize = 4 << 20;

/// Such blocks begin so much before a multiple of their size: those of a store begin on any page, and where all
/// begin on such a multiple the system now and then follows several threads as well as one.
const ASIDE: u64 = 123 * PAGE as u64;

/// Pieces of a stretch that is read with gaps of the same length: about what plans that keep a part of each unit on
/// disk read in a row.
const PIECES: usize = 4;
const PIECE: usize = STRETCH / PIECES;

/// A memory map is faulted in by so much.
const FAULTED: usize = 128 << 10;

/// Reads of a memory map, and how far apart they are: further than any system reads ahead.
const MAPPED: [usize; 4] = [1 << 20, 4 << 20, 16 << 20, 32 << 20];
const APART: usize = 16 << 20;

/// What each of several threads reads of its own.
const MAPPED_AT_ONCE: usize = 16 << 20;

/// All of that lies in the smallest file.
const _: () = {
    let one_by_one = MAPPED[0] + MAPPED[1] + MAPPED[2] + MAPPED[3] + MAPPED.len() * APART;
    assert!(one_by_one <= LEAST * STRETCH);
    assert!(2 * PIECES * PIECE <= LEAST * STRETCH);
    assert!(THREADS * (MAPPED_AT_ONCE + APART) <= LEAST * STRETCH);
};

/// Measures a scratch file of `size` bytes in `folder`.
pub(super) fn measure(
    sampler: &mut Sampler,
    folder: &Path,
    size: u64,
    notes: &mut Vec<String>,
) -> Result<DiskTimes, ProfileError> {
    let scratch = Scratch::new(folder, size)?;
    let read = reads(&scratch, sampler, notes)?;
    Ok(DiskTimes { written: scratch.written(sampler)?, ..read })
}

/// Measures an existing file, which is only read.
pub(super) fn measure_file(
    sampler: &mut Sampler,
    file: &Path,
    notes: &mut Vec<String>,
) -> Result<DiskTimes, ProfileError> {
    reads(&Scratch::existing(file)?, sampler, notes)
}

fn reads(
    scratch: &Scratch,
    sampler: &mut Sampler,
    notes: &mut Vec<String>,
) -> Result<DiskTimes, ProfileError> {
    scratch.forget()?;
    let direct = scratch.direct(sampler, notes)?;
    let together = scratch.together(sampler)?;
    let request = scratch.request(sampler)?;
    let buffered = scratch.buffered(sampler)?;
    let [buffered_pair, buffered_together] = scratch.buffered_together(sampler)?;
    let [in_one, in_pieces] = scratch.buffered_apart(sampler)?;
    let mapped = scratch.mapped(sampler)?;
    let mapped_together = scratch.mapped_together(sampler)?;
    let mapped_again = scratch.mapped_again(sampler)?;
    let free = free_space(&scratch.folder).map_err(|error| scratch.failed("inspect", error))?;
    let capacity = free.max(Bytes(1));
    Ok(DiskTimes {
        direct,
        together,
        written: Vec::new(),
        buffered,
        buffered_pair,
        buffered_together,
        in_one,
        in_pieces,
        mapped,
        mapped_together,
        mapped_again,
        request,
        capacity,
    })
}

/// A file to read, and to write where it is ours. A scratch file has no name where the system has a path for open files, so that nothing
/// stays behind however the process ends.
struct Scratch {
    _unnamed: Option<File>,
    _named: Option<tempfile::NamedTempFile>,
    path: PathBuf,
    folder: PathBuf,
    size: u64,
    /// Where the next stretch begins: each read meets another one.
    next: AtomicU64,
}

impl Scratch {
    fn new(folder: &Path, size: u64) -> Result<Self, ProfileError> {
        let failed = |source| ProfileError::Scratch {
            action: "create a file in",
            path: folder.into(),
            source,
        };
        let unnamed = tempfile::tempfile_in(folder).map_err(failed)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", unnamed.as_raw_fd()));
        let (unnamed, named, path) = if path.exists() {
            (Some(unnamed), None, path)
        } else {
            let named = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
            let path = named.path().to_owned();
            (None, Some(named), path)
        };
        // Whole stretches, several of them, so that going round never meets the same one soon.
        let size = (size / STRETCH as u64).max(4) * STRETCH as u64;
        let mut stretch = buffer()?;
        // Not all zeros, which some disks do not store.
        for (index, byte) in stretch.iter_mut().enumerate() {
            *byte = (index.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0];
        }
        let scratch = Self {
            _unnamed: unnamed,
            _named: named,
            path,
            folder: folder.into(),
            size,
            next: AtomicU64::new(0),
        };
        scratch.fill(&stretch).map_err(|source| scratch.failed("write in", source))?;
        Ok(scratch)
    }

    /// A file that is there already, at least as long as one round of reads.
    fn existing(path: &Path) -> Result<Self, ProfileError> {
        let failed = |source| ProfileError::Scratch { action: "read", path: path.into(), source };
        let length = File::open(path).and_then(|file| file.metadata()).map_err(failed)?.len();
        let size = length / STRETCH as u64 * STRETCH as u64;
        if size < (LEAST * STRETCH) as u64 {
            let least = DiskTimes::IN_TURN;
            return Err(ProfileError::Short { path: path.into(), length: Bytes(length), least });
        }
        Ok(Self {
            _unnamed: None,
            _named: None,
            path: path.into(),
            folder: path.parent().filter(|p| p.is_dir()).unwrap_or(Path::new(".")).into(),
            size,
            next: AtomicU64::new(0),
        })
    }

    fn failed(&self, action: &'static str, source: io::Error) -> ProfileError {
        ProfileError::Scratch { action, path: self.folder.clone(), source }
    }

    fn fill(&self, stretch: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(&self.path)?;
        for _ in 0..self.size / stretch.len() as u64 {
            file.write_all(stretch)?;
        }
        file.sync_all()
    }

    /// Asks the system to drop what it keeps of the file; clean pages it drops at once.
    fn forget(&self) -> Result<(), ProfileError> {
        let drop = || {
            let file = File::open(&self.path)?;
            file.sync_all()?;
            Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
        };
        drop().map_err(|source| self.failed("read in", source))
    }

    /// Where each part of the file begins that is as long as the smallest file, round and round.
    fn rounds(&self) -> impl Iterator<Item = u64> + use<> {
        let each = DiskTimes::IN_TURN.0;
        (0..self.size / each).map(move |round| round * each).cycle()
    }

    fn step(&self) -> u64 {
        self.next.fetch_add(STRETCH as u64, Ordering::Relaxed) % self.size
    }

    /// Reads past the page cache where that is possible, through it where not.
    fn reader(&self, request: usize) -> Result<Box<dyn BlockReader>, ProfileError> {
        match Direct::open(&self.path, request) {
            Ok(reader) => Ok(Box::new(reader)),
            Err(_) => Ok(Box::new(Buffered::open(&self.path, request)?)),
        }
    }

    /// One thread, by the size of a request. The sizes take turns, because a disk that others use too is
    /// not equally fast at all times.
    fn direct(
        &self,
        sampler: &mut Sampler,
        notes: &mut Vec<String>,
    ) -> Result<Vec<(Bytes, Middle)>, ProfileError> {
        if let Err(why) = Direct::open(&self.path, REQUESTS[0]) {
            notes.push(not_direct(&self.folder, &why));
        }
        let readers = REQUESTS.map(|request| self.reader(request));
        let readers = readers.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut into = buffer()?;
        in_turn(sampler, "disk.read", |index| {
            let start = Instant::now();
            readers[index].read(self.step(), &mut into)?;
            Ok(start.elapsed())
        })
    }

    /// Several threads at once, 4 MiB a request: what the disk has in all.
    fn together(&self, sampler: &mut Sampler) -> Result<Middle, ProfileError> {
        let reader = self.reader(BLOCK)?;
        let mut buffers = buffers(STRETCH)?;
        sampler.measure("disk.read_total", &DiskTimes::TOGETHER.exact(), || {
            at_once(buffers.iter_mut().map(|into| {
                let (offset, reader) = (self.step(), &reader);
                move || reader.read(offset, into)
            }))
        })
    }

    /// One direct read of a page.
    fn request(&self, sampler: &mut Sampler) -> Result<Middle, ProfileError> {
        let reader = self.reader(PAGE)?;
        let mut page = room(PAGE)?;
        let mut at = 0;
        sampler.time("software.disk_request", "4KiB", || {
            at = (at + 97 * PAGE as u64) % self.size;
            Ok(reader.read(at, &mut page)?)
        })
    }

    /// Through a page cache that does not hold what is read. Each stretch goes on where the one before ended, of
    /// which the system keeps only what it has read ahead, as in a run: starting anew with nothing in memory took
    /// a fifth to a half longer. One open file for all sizes of a request, because the system reads ahead of each.
    fn buffered(&self, sampler: &mut Sampler) -> Result<Vec<(Bytes, Middle)>, ProfileError> {
        let first = Buffered::open(&self.path, REQUESTS[0])?;
        let readers = REQUESTS.map(|request| first.with_request(request));
        let readers = readers.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut into = buffer()?;
        self.forget()?;
        in_turn(sampler, "disk.buffered_read", |index| self.go_on(&readers[index], &mut into))
    }

    /// The next stretch, which is forgotten once its time is known.
    fn go_on(&self, reader: &Buffered, into: &mut [u8]) -> Result<Duration, ProfileError> {
        let at = self.step();
        let start = Instant::now();
        reader.read(at, into)?;
        let time = start.elapsed();
        reader.forget(at, STRETCH as u64);
        Ok(time)
    }

    /// The same by two threads, and by several, which take one block after the other from a common count: a run's
    /// lanes take them in turn, and the ring that they fill keeps them together.
    fn buffered_together(&self, sampler: &mut Sampler) -> Result<[Middle; 2], ProfileError> {
        let reader = Buffered::open(&self.path, BLOCK)?;
        let mut buffers = buffers(BLOCK)?;
        let (all, mut begins) = (DiskTimes::IN_TURN, self.rounds());
        self.forget()?;
        let mut by = |figure, threads: usize| {
            sampler.measure(figure, &all.exact(), || {
                let begin = begins.next().unwrap_or_default();
                let time = blocks_in_turn(&reader, begin, &mut buffers[..threads])?;
                reader.forget(begin, all.0);
                Ok::<_, ProfileError>(time)
            })
        };
        Ok([by("disk.buffered_pair", 2)?, by("disk.buffered_total", THREADS)?])
    }

    /// A stretch in one, and one in pieces that lie apart: of a file that goes on behind what is wanted, the system
    /// reads ahead what is not.
    fn buffered_apart(&self, sampler: &mut Sampler) -> Result<[Middle; 2], ProfileError> {
        let reader = Buffered::open(&self.path, BLOCK)?;
        let mut into = room(PIECE)?;
        let mut begins = self.rounds();
        self.forget()?;
        let named = ["64MiB in one", "64MiB in 4 pieces"].map(str::to_owned);
        let times = sampler.in_turn("disk.buffered_jump", &named, |pieces| {
            let (begin, apart) = (begins.next().unwrap_or_default(), PIECE * (1 + pieces));
            let start = Instant::now();
            for piece in 0..PIECES {
                reader.read(begin + (piece * apart) as u64, &mut into)?;
            }
            let time = start.elapsed();
            reader.forget(begin, DiskTimes::IN_TURN.0);
            Ok::<_, ProfileError>(time)
        })?;
        Ok([times[0], times[1]])
    }

    /// In requests as a memory map makes them. Each read begins anew, with a file that it opens for itself, as in a
    /// run: of what plans keep on disk one tensor seldom follows the other. Places come round again, and only what
    /// was asked for is forgotten, so that what the system reads beyond it is read once and for all, as there.
    fn mapped(&self, sampler: &mut Sampler) -> Result<Vec<(Bytes, Middle)>, ProfileError> {
        let mut into = buffer()?;
        let mut begin = 0;
        let places = MAPPED.map(|length| {
            let place = begin;
            begin += (length + APART) as u64;
            place
        });
        self.forget()?;
        let sizes = MAPPED.map(|length| Bytes(length as u64));
        let times = sampler.in_turn("disk.page_fault_read", &sizes.map(Bytes::exact), |index| {
            self.fault_in(places[index], &mut into[..MAPPED[index]])
        })?;
        Ok(sizes.into_iter().zip(times).collect())
    }

    /// One read of a memory map, which is forgotten once its time is known.
    fn fault_in(&self, at: u64, into: &mut [u8]) -> Result<Duration, ProfileError> {
        let start = Instant::now();
        let reader = Buffered::open(&self.path, FAULTED)?;
        reader.read(at, into)?;
        let time = start.elapsed();
        reader.forget(at, into.len() as u64);
        Ok(time)
    }

    /// The same by several threads at once, each in a map of its own.
    fn mapped_together(&self, sampler: &mut Sampler) -> Result<Middle, ProfileError> {
        let mut buffers = buffers(MAPPED_AT_ONCE)?;
        let place = |thread: usize| (thread * (MAPPED_AT_ONCE + APART)) as u64;
        self.forget()?;
        let mut one = || {
            let time = at_once(buffers.iter_mut().enumerate().map(|(thread, into)| {
                move || Buffered::open(&self.path, FAULTED)?.read(place(thread), into)
            }))?;
            let all = Buffered::open(&self.path, FAULTED)?;
            for thread in 0..THREADS {
                all.forget(place(thread), MAPPED_AT_ONCE as u64);
            }
            Ok::<_, ProfileError>(time)
        };
        one()?;
        sampler.measure("disk.page_fault_total", &DiskTimes::MAPPED_TOGETHER.exact(), one)
    }

    /// A stretch that the page cache holds.
    fn mapped_again(&self, sampler: &mut Sampler) -> Result<Middle, ProfileError> {
        let reader = Buffered::open(&self.path, FAULTED)?;
        let mut into = buffer()?;
        sampler.time("disk.page_fault_hit", &DiskTimes::STRETCH.exact(), || {
            Ok(reader.read(0, &mut into)?)
        })
    }

    fn written(&self, sampler: &mut Sampler) -> Result<Vec<(Bytes, Middle)>, ProfileError> {
        let file = writer(&self.path).map_err(|source| self.failed("write in", source))?;
        let from = buffer()?;
        in_turn(sampler, "disk.write", |index| {
            let mut at = self.step();
            let start = Instant::now();
            for piece in from.chunks(REQUESTS[index]) {
                file.write_all_at(piece, at).map_err(|source| self.failed("write in", source))?;
                at += piece.len() as u64;
            }
            Ok(start.elapsed())
        })
    }
}

/// A stretch in requests of each size, size after size, and again.
fn in_turn(
    sampler: &mut Sampler,
    figure: &str,
    one: impl FnMut(usize) -> Result<Duration, ProfileError>,
) -> Result<Vec<(Bytes, Middle)>, ProfileError> {
    let sizes = REQUESTS.map(|request| Bytes(request as u64));
    let middles = sampler.in_turn(figure, &sizes.map(Bytes::exact), one)?;
    Ok(sizes.into_iter().zip(middles).collect())
}

/// What threads take for all bytes from `begin` on that [`DiskTimes::IN_TURN`] counts, each with a buffer.
fn blocks_in_turn(
    reader: &Buffered,
    begin: u64,
    buffers: &mut [AlignedBuf],
) -> Result<Duration, ProfileError> {
    let taken = AtomicU64::new(0);
    let next = || {
        let number = taken.fetch_add(1, Ordering::Relaxed);
        let border =
            |number: u64| (number * BLOCK as u64).saturating_sub(ASIDE).min(DiskTimes::IN_TURN.0);
        Some(border(number)..border(number + 1)).filter(|block| !block.is_empty())
    };
    at_once(buffers.iter_mut().map(|into| {
        let next = &next;
        move || {
            while let Some(block) = next() {
                let into = &mut into[..in_memory(block.end - block.start)];
                reader.read(begin + block.start, into)?;
            }
            Ok(())
        }
    }))
}

/// What several threads take when each does one of some reads.
fn at_once<R>(reads: impl Iterator<Item = R>) -> Result<Duration, ProfileError>
where
    R: FnOnce() -> Result<(), ReadError> + Send,
{
    let start = Instant::now();
    std::thread::scope(|scope| {
        let reads: Vec<_> = reads.map(|read| scope.spawn(read)).collect();
        for read in reads {
            read.join().map_err(|_| ProfileError::Memory(STRETCH))??;
        }
        Ok::<(), ProfileError>(())
    })?;
    Ok(start.elapsed())
}

fn buffer() -> Result<AlignedBuf, ProfileError> {
    room(STRETCH)
}

/// One for each of several threads.
fn buffers(length: usize) -> Result<Vec<AlignedBuf>, ProfileError> {
    (0..THREADS).map(|_| room(length)).collect()
}

fn room(length: usize) -> Result<AlignedBuf, ProfileError> {
    AlignedBuf::zeroed(length).ok_or(ProfileError::Memory(length))
}

/// Past the page cache where that is possible, through it where not.
fn writer(path: &Path) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    if let Ok(file) = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path) {
        return Ok(file);
    }
    OpenOptions::new().write(true).open(path)
}
