//! Copies within host memory, which is what a link is where host memory plays the GPU's.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pipo_kernels::attention::{Heads, attentions, caches};
use pipo_kernels::format::Layout;
use pipo_kernels::linear::linear;
use pipo_kernels::{Cpu, Format, Matrix};
use pipo_plan::units::{Bandwidth, Bytes};

use super::gpu::Card;
use super::sampling::{Middle, Sampler};
use super::walk::{Walk, beyond_caches};
use super::{ProfileError, Settings};
use crate::disk::AlignedBuf;
use crate::run::Device;

/// Sizes of one copy.
const SIZES: [usize; 5] = [4 << 10, 64 << 10, 1 << 20, 8 << 20, 64 << 20];

/// What copying takes.
pub(super) struct Copies {
    /// One thread, by size.
    pub(super) one: Vec<(Bytes, Middle)>,
    /// One thread, the largest size, while another does the same.
    pub(super) beside: (Bytes, Middle),
    /// Bytes that are read and written in all, where they are most in that time: while all cores copy, while one
    /// multiplies and one copies, or while all attend beside a busy link.
    pub(super) all: (Bytes, Middle),
    /// Checking the checksum of one block.
    pub(super) checksum: (Bytes, Middle),
}

pub(super) fn measure(
    sampler: &mut Sampler,
    settings: &Settings,
    beside: Option<&mut Card>,
) -> Result<Copies, ProfileError> {
    // Beside a GPU, samples of a link are those of its link.
    let figures = match settings.device {
        Device::Cpu => ["link.h2d", "link.duplex"],
        Device::Cuda => ["host.copy"; 2],
    };
    let length = beyond_caches();
    let buffer = || AlignedBuf::zeroed(length).ok_or(ProfileError::Memory(length));
    let (mut from, mut to) = (buffer()?, buffer()?);
    // Zeroed memory may be one shared page until it is written. As 16-bit numbers these are normal.
    from.fill(0x20);
    to.fill(2);
    let one =
        SIZES.map(|size| (Bytes(size as u64), one(sampler, figures[0], size, &from, &mut to)));
    let largest = SIZES[SIZES.len() - 1];
    let two = (Bytes(largest as u64), together(sampler, figures[1], largest, &from, &mut to));
    let cores = std::thread::available_parallelism().map_or(settings.threads, usize::from);
    let copied = all(sampler, largest, cores, &from, &mut to);
    let copied = (Bytes(2 * largest as u64), copied);
    let mixed = (MIXED, mixed(sampler, &from, &mut to)?);
    let beside_link = match beside {
        Some(card) => Some((MIXED, beside_link(sampler, settings.threads, &from, card)?)),
        None => None,
    };
    let rate = |&(bytes, time): &(Bytes, Middle)| Bandwidth::of(bytes, time.median);
    let all = [Some(copied), Some(mixed), beside_link].into_iter().flatten();
    let all = all.max_by_key(rate).unwrap_or(copied);
    let block = 4 << 20;
    let mut walk = Walk::through(length);
    let check = || {
        let at = walk.next(block);
        std::hint::black_box(crc32fast::hash(&from[at..at + block]));
        Ok::<(), Infallible>(())
    };
    let Ok(checksum) = sampler.time("software.checksum", &Bytes(block as u64).exact(), check);
    Ok(Copies { one: one.into(), beside: two, all, checksum: (Bytes(block as u64), checksum) })
}

fn one(sampler: &mut Sampler, figure: &str, size: usize, from: &[u8], to: &mut [u8]) -> Middle {
    let mut walk = Walk::through(from.len());
    let copy = || {
        // What is small lies far from what was copied before, too.
        let at = walk.next(size.next_multiple_of(1 << 20));
        to[at..at + size].copy_from_slice(&from[at..at + size]);
        Ok::<(), Infallible>(())
    };
    let Ok(middle) = sampler.time(figure, &Bytes(size as u64).exact(), copy);
    middle
}

/// Two threads copy at once, each in its own half; the sample is the slower one's.
fn together(
    sampler: &mut Sampler,
    figure: &str,
    size: usize,
    from: &[u8],
    to: &mut [u8],
) -> Middle {
    let half = from.len() / 2;
    let (first, second) = to.split_at_mut(half);
    let (low, high) = from.split_at(half);
    let mut walk = Walk::through(half);
    let both = || {
        let at = walk.next(size);
        let range = at..at + size;
        let start = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| first[range.clone()].copy_from_slice(&low[range.clone()]));
            second[range.clone()].copy_from_slice(&high[range.clone()]);
        });
        Ok::<_, Infallible>(start.elapsed())
    };
    let Ok(middle) = sampler.measure(figure, &Bytes(2 * size as u64).exact(), both);
    middle
}

/// All cores copy one piece each of the same stretch.
fn all(sampler: &mut Sampler, size: usize, cores: usize, from: &[u8], to: &mut [u8]) -> Middle {
    let cpu = Cpu::new(cores);
    let mut walk = Walk::through(from.len());
    let copy = || {
        let at = walk.next(size);
        let piece = size.div_ceil(4 * cores);
        let (from, to) = (&from[at..at + size], &mut to[at..at + size]);
        let pieces = from.chunks(piece).zip(to.chunks_mut(piece)).collect();
        cpu.pool().for_each(pieces, |(from, to): (&[u8], &mut [u8])| to.copy_from_slice(from));
        Ok::<(), Infallible>(())
    };
    let Ok(middle) = sampler.time("host.memory_bandwidth", &Bytes(size as u64).exact(), copy);
    middle
}

/// What a time of what reads and copies at once is for.
const MIXED: Bytes = Bytes(1 << 30);

/// One core multiplies a row by 16-bit weights, which reads, while another copies: closer to what lanes do
/// than copies alone. The sample is the time for [`MIXED`] bytes of both.
fn mixed(sampler: &mut Sampler, from: &[u8], to: &mut [u8]) -> Result<Middle, ProfileError> {
    const COPY: usize = 8 << 20;
    let (outputs, inputs) = (4096, 4096);
    let matrix = 2 * outputs * inputs;
    let cpu = Cpu::new(1);
    let (x, mut out) = (vec![0.5; inputs], vec![0.0; outputs]);
    let mut walk = Walk::through(from.len());
    sampler.measure("host.memory_bandwidth", "1GiB, multiplying and copying", || {
        let stop = AtomicBool::new(false);
        let (cpu, x, out, stop) = (&cpu, &x, &mut out, &stop);
        std::thread::scope(|scope| {
            let multiplying = scope.spawn(move || {
                let mut bytes = 0;
                let mut weights = from.chunks_exact(matrix).cycle();
                while let Some(weights) = weights.next().filter(|_| !stop.load(Ordering::Relaxed)) {
                    let weights = Matrix::new(Format::Fp16, outputs, inputs, weights)?;
                    linear(cpu, x, 1, &weights, None, out)?;
                    bytes += matrix;
                }
                Ok::<usize, ProfileError>(bytes)
            });
            let start = Instant::now();
            let mut copied = 0;
            while start.elapsed() < Duration::from_millis(60) {
                let at = walk.next(COPY);
                to[at..at + COPY].copy_from_slice(&from[at..at + COPY]);
                copied += 2 * COPY;
            }
            stop.store(true, Ordering::Relaxed);
            let read = multiplying.join().map_err(|_| ProfileError::Memory(matrix))??;
            // What it was at when it was told to stop it has read to its end.
            let time = start.elapsed();
            let share = MIXED.as_f64() / (copied + read) as f64;
            Ok(time.mul_f64(share))
        })
    })
}

/// All threads that compute attend over caches while a link copies from memory: reads alone, as in a run that attends
/// on the cores, which are more than reads and writes. The sample is the time for [`MIXED`] bytes of both.
fn beside_link(
    sampler: &mut Sampler,
    threads: usize,
    from: &[u8],
    card: &mut Card,
) -> Result<Middle, ProfileError> {
    const COPYING: Duration = Duration::from_millis(60);
    let (sequences, positions) = (32, 512);
    let heads = Heads { query: 32, kv: 32, dim: 128, window: None, scale: 0.1 };
    let plane = Layout::new(Format::Fp16, positions * heads.kv, heads.dim)?;
    let bytes = 2 * plane.bytes() * sequences;
    let cpu = Cpu::new(threads);
    let q = vec![0.1; sequences * heads.query * heads.dim];
    let mut out = vec![0.0; q.len()];
    let mut places = Walk::through(from.len());
    sampler.measure("host.memory_bandwidth", "1GiB, attending beside a busy link", || {
        let start = Instant::now();
        let copied = card.copy_for(COPYING)?;
        let mut read = 0;
        loop {
            let at = places.next(bytes);
            let caches = caches(&plane, &from[at..at + bytes])?;
            attentions(&cpu, &heads, &q, positions - 1, &caches, &mut out)?;
            read += bytes as u64;
            if !card.copies()? {
                break;
            }
        }
        let share = MIXED.as_f64() / (copied + Bytes(read)).as_f64();
        Ok::<_, ProfileError>(start.elapsed().mul_f64(share))
    })
}
