//! What it asks of the machine to move the weights that are not resident.

use std::collections::BTreeMap;

use pipo_plan::schedule::{HostMemory, LaneKind, Work};
use pipo_plan::strategy::pipo::FileReads;
use pipo_plan::strategy::residency::Placed;
use pipo_plan::strategy::stream::blocks;
use pipo_plan::units::Bytes;
use pipo_simulator::Unsupported;

use crate::demand::{Demand, Pricer};
use crate::shape::Picked;

/// How weights are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transfer {
    pub(crate) block: Bytes,
    pub(crate) host_slots: u32,
    pub(crate) read_block: Bytes,
    pub(crate) disk_threads: u32,
    pub(crate) reads: FileReads,
    /// Host weights are pageable, and copied to pinned memory first.
    pub(crate) staged: bool,
}

impl Transfer {
    /// The read of one block, which costs more where it is the first of a stretch of the file.
    fn read(&self, bytes: Bytes) -> Work {
        let io = self.reads.io(self.disk_threads);
        Work::DiskRead { bytes, request: self.read_block, io, jumps: false }
    }
}

/// Bytes of one segment that wait in host memory and on disk.
type Waiting = (Bytes, Bytes);

/// Times of bytes on the link and from the disk.
pub(crate) trait Times {
    /// Nanoseconds that the link takes for a segment.
    fn link(&mut self, bytes: Bytes) -> f64;
    /// Nanoseconds that all disk threads together take for a segment.
    fn disk(&mut self, bytes: Bytes) -> f64;
}

/// For the prefill, and at least for any later pass: link time of one unit's loads, and the time in which
/// they can be there if nothing is done ahead.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loads {
    pub(crate) link: (f64, f64),
    pub(crate) wait: (f64, f64),
}

impl Loads {
    pub(crate) fn new(unit: &Placed, picked: Option<&Picked>, times: &mut dyn Times) -> Self {
        let mut segment = |index: usize| {
            let home = unit.segments.get(index).copied().unwrap_or_default();
            (times.link(home.host) + times.link(home.disk), times.disk(home.disk))
        };
        let (dense, expert) = (segment(0), segment(1));
        let experts = unit.segments.len().saturating_sub(1) as f64;
        let (first, least) = picked.map_or((experts, experts), |p| (p.first, p.least));
        let link = |experts: f64| dense.0 + expert.0 * experts;
        // Reading and loading overlap, but neither begins before the other's beginning.
        let wait = |experts: f64| link(experts).max(dense.1 + expert.1 * experts);
        Self { link: (link(first), link(least)), wait: (wait(first), wait(least)) }
    }
}

/// The least share of any streamed unit's bytes that is moved: in the prefill, in all decode steps
/// together (in steps), and in any step. All of them, where there is no router.
pub(crate) fn shares_moved(placed: &[Placed], picked: &[Picked]) -> (f64, f64, f64) {
    let mut least = (1.0_f64, f64::MAX, 1.0_f64);
    for (unit, picked) in placed.iter().zip(picked) {
        let experts = unit.segments.len().saturating_sub(1) as f64;
        if experts < 1.0 || unit.streamed() == Bytes::ZERO {
            continue;
        }
        let bytes = |index: usize| unit.segments[index].streamed().as_f64();
        let (dense, expert) = (bytes(0), bytes(1));
        let share = |steps: f64, moved: f64| {
            let all = dense + expert * experts;
            if all > 0.0 { (dense * steps + expert * moved) / all } else { steps }
        };
        least.0 = least.0.min(share(1.0, picked.first));
        least.1 = least.1.min(share(picked.steps, picked.rest));
        least.2 = least.2.min(share(1.0, picked.least));
    }
    least
}

/// Units that are alike in what must be moved: the part that is always needed, one expert, how many
/// experts there are.
type Kind = (Waiting, Waiting, usize);

/// How often the units of a kind are moved.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    units: f64,
    experts: Picked,
}

/// The weights that are moved in each pass, grouped by what they are alike in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Moved {
    kinds: BTreeMap<Kind, Tally>,
}

/// What moving weights asks in the prefill, in all decode steps, and at least in any of them; and what
/// of a step may be done before it begins.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) first: Demand,
    pub(crate) rest: Demand,
    pub(crate) least: Demand,
    pub(crate) ahead: Demand,
}

impl Moved {
    /// Groups units; `picked` says how many experts of each are needed, and is empty where all are.
    pub(crate) fn new(placed: &[Placed], picked: &[Picked], steps: f64) -> Self {
        let mut kinds: BTreeMap<Kind, Tally> = BTreeMap::new();
        for (index, unit) in placed.iter().enumerate() {
            if unit.streamed() == Bytes::ZERO {
                continue;
            }
            let waiting = |segment: usize| {
                unit.segments.get(segment).map_or((Bytes::ZERO, Bytes::ZERO), |s| (s.host, s.disk))
            };
            let experts = unit.segments.len().saturating_sub(1);
            let tally = kinds.entry((waiting(0), waiting(1), experts)).or_default();
            tally.units += 1.0;
            let all = Picked {
                first: experts as f64,
                rest: experts as f64 * steps,
                least: experts as f64,
                steps,
            };
            let needed = if experts > 0 { picked.get(index).copied().unwrap_or(all) } else { all };
            tally.experts.first += needed.first;
            tally.experts.rest += needed.rest;
            tally.experts.least += needed.least;
        }
        Self { kinds }
    }

    /// Bytes that cross the link in the prefill, in all of `steps` decode steps, and at least in one.
    pub(crate) fn bytes(&self, steps: f64) -> (f64, f64, f64) {
        let mut sum = (0.0, 0.0, 0.0);
        for (&((host, disk), expert, _), tally) in &self.kinds {
            let dense = (host + disk).as_f64() * tally.units;
            let expert = (expert.0 + expert.1).as_f64();
            sum.0 += dense + expert * tally.experts.first;
            sum.1 += dense * steps + expert * tally.experts.rest;
            sum.2 += dense + expert * tally.experts.least;
        }
        sum
    }

    /// All bytes on disk.
    pub(crate) fn on_disk(&self) -> Bytes {
        let of = |(&(dense, expert, experts), tally): (&Kind, &Tally)| {
            dense.1.as_f64() * tally.units + expert.1.as_f64() * tally.units * experts as f64
        };
        Bytes(pipo_plan::units::Nanos::ceil(self.kinds.iter().map(of).sum()).0)
    }

    /// What a transfer asks, with `cached` bytes of the file kept by the page cache from the first pass
    /// on, and `gpu_slots` units that may be loaded before a step begins.
    pub(crate) fn asked(
        &self,
        transfer: &Transfer,
        pricer: Pricer,
        steps: f64,
        gpu_slots: u32,
        cached: Bytes,
    ) -> Result<Asked, Unsupported> {
        let mut blocks = Blocks { transfer, pricer, hits: Vec::new() };
        let mut asked = Asked {
            first: Demand::NOTHING,
            rest: Demand::NOTHING,
            least: Demand::NOTHING,
            ahead: Demand::NOTHING,
        };
        let mut largest = Demand::NOTHING;
        for (&(dense, expert, experts), tally) in &self.kinds {
            let each = blocks.segment(dense, tally.units)?;
            let expert = blocks.segment(expert, tally.units * experts as f64)?;
            asked.first.add(&each, tally.units);
            asked.first.add(&expert, tally.experts.first);
            asked.rest.add(&each, tally.units * steps);
            asked.rest.add(&expert, tally.experts.rest);
            asked.least.add(&each, tally.units);
            asked.least.add(&expert, tally.experts.least);
            let mut unit = each;
            unit.add(&expert, experts as f64);
            largest = largest.or_more(&unit);
        }
        blocks.keep(&mut asked.rest, cached, steps);
        blocks.keep(&mut asked.least, cached, 1.0);
        // Units ahead of their step sit in GPU slots; blocks ahead of those sit in host slots.
        asked.ahead.add(&largest, f64::from(gpu_slots));
        let in_flight = blocks.in_flight(largest)?;
        asked.ahead.add(&in_flight, f64::from(transfer.host_slots));
        Ok(asked)
    }
}

/// What one block's hit in the page cache saves.
struct Hit {
    saves: Demand,
    bytes: f64,
    /// Blocks like it.
    count: f64,
}

struct Blocks<'a> {
    transfer: &'a Transfer,
    pricer: Pricer<'a>,
    hits: Vec<Hit>,
}

impl Blocks<'_> {
    /// What it asks to move one segment, of which there are `count`; every read misses the page cache.
    fn segment(&mut self, (host, disk): Waiting, count: f64) -> Result<Demand, Unsupported> {
        let mut asked = Demand::NOTHING;
        for (bytes, times) in sizes(host, self.transfer.block) {
            asked.add(&self.load(bytes)?, times);
            if self.transfer.staged {
                asked.add(&self.stage(bytes)?, times);
            }
        }
        for (bytes, times) in sizes(disk, self.transfer.block) {
            asked.add(&self.load(bytes)?, times);
            let (miss, hit) = self.pricer.cached(LaneKind::DiskRead, &self.transfer.read(bytes))?;
            asked.add(&miss, times);
            if let Some(hit) = hit {
                let saves = miss.less(&hit);
                self.hits.push(Hit { saves, bytes: bytes.as_f64(), count: times * count });
            }
        }
        Ok(asked)
    }

    fn load(&self, bytes: Bytes) -> Result<Demand, Unsupported> {
        let memory = HostMemory::Pinned;
        self.pricer.demand(LaneKind::H2d, &Work::H2d { bytes, memory })
    }

    fn stage(&self, bytes: Bytes) -> Result<Demand, Unsupported> {
        self.pricer.demand(LaneKind::HostCopy, &Work::HostCopy { bytes })
    }

    /// What one block asks on its way into a host slot; nothing where no unit goes that way.
    fn in_flight(&self, largest: Demand) -> Result<Demand, Unsupported> {
        let mut asked = Demand::NOTHING;
        if largest.lane(LaneKind::DiskRead) > 0.0 {
            let read = self.transfer.read(self.transfer.block);
            asked.add(&self.pricer.demand(LaneKind::DiskRead, &read)?, 1.0);
        }
        if largest.lane(LaneKind::HostCopy) > 0.0 {
            asked.add(&self.stage(self.transfer.block)?, 1.0);
        }
        Ok(asked)
    }

    /// Takes from `asked` the most that `cached` bytes of hits can save in each of `steps` steps.
    ///
    /// What is kept is a set of blocks of at most `cached` bytes. No such set saves more, of any one
    /// entry, than a fractional knapsack filled with the blocks that save most for each byte.
    fn keep(&self, asked: &mut Demand, cached: Bytes, steps: f64) {
        for entry in 0..asked.entries().len() {
            let mut hits: Vec<(f64, f64, f64)> = self
                .hits
                .iter()
                .map(|hit| (hit.saves.entries()[entry], hit.bytes, hit.count))
                .filter(|&(saves, _, _)| saves > 0.0)
                .collect();
            hits.sort_by(|a, b| (b.0 / b.1).total_cmp(&(a.0 / a.1)));
            let mut room = cached.as_f64();
            for (saves, bytes, count) in hits {
                let kept = count.min(room / bytes);
                room -= kept * bytes;
                asked.take(entry, saves * kept * steps);
            }
        }
    }
}

/// Nanoseconds that a disk thread takes at least for a segment cut into blocks, from disk or page cache.
pub(crate) fn disk_time(
    bytes: Bytes,
    transfer: &Transfer,
    pricer: Pricer,
) -> Result<f64, Unsupported> {
    let mut sum = 0.0;
    for (bytes, times) in sizes(bytes, transfer.block) {
        let (miss, hit) = pricer.cached(LaneKind::DiskRead, &transfer.read(bytes))?;
        let least = hit.map_or(miss, |hit| miss.or_less(&hit));
        sum += least.lane(LaneKind::DiskRead) * times;
    }
    Ok(sum)
}

/// Nanoseconds that the link takes for a segment cut into blocks.
pub(crate) fn link_time(bytes: Bytes, block: Bytes, pricer: Pricer) -> Result<f64, Unsupported> {
    let mut sum = 0.0;
    for (bytes, times) in sizes(bytes, block) {
        let work = Work::H2d { bytes, memory: HostMemory::Pinned };
        sum += pricer.demand(LaneKind::H2d, &work)?.lane(LaneKind::H2d) * times;
    }
    Ok(sum)
}

/// The sizes of the blocks of a segment, with how many there are of each: whole ones and the last.
fn sizes(bytes: Bytes, block: Bytes) -> impl Iterator<Item = (Bytes, f64)> {
    let whole = bytes.0 / block.0.max(1);
    let last = blocks(Bytes(bytes.0 - whole * block.0.max(1)), block).next();
    let whole = (whole > 0).then_some((block, whole as f64));
    whole.into_iter().chain(last.map(|last| (last, 1.0)))
}
