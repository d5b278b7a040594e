//! Prices works on a machine profile.

use pipo_plan::machine::{Curve, Disk, Figure, Host, Machine};
use pipo_plan::schedule::{DiskIo, HostMemory, LaneKind, Work, checked_at_once};
use pipo_plan::units::{Bandwidth, Bytes, Nanos};

use crate::cost::{Capacities, Cost, Costs, Price, Resource};
use crate::error::Unsupported;

mod arithmetic;
mod attentions;
mod joined;
mod kernels;

use arithmetic::Tables;

/// Prices works on a machine profile.
///
/// Each time is what the operation takes when nothing else runs. What it draws from shared resources
/// is counted by who touches the bytes: a copy engine reads host memory once; a `memcpy` reads and
/// writes it; a pageable copy is a `memcpy` into the driver's pinned buffer and a copy from there.
#[derive(Debug, Clone)]
pub struct CostModel<'a> {
    machine: &'a Machine,
    tables: Tables,
}

impl<'a> CostModel<'a> {
    /// A cost model of one machine.
    pub fn new(machine: &'a Machine) -> Self {
        Self { machine, tables: Tables::new(machine) }
    }

    /// Disk requests in a row: the rate at their size, and one request's overhead at the start. All
    /// later requests overlap with the one before; their overhead is in the curve.
    fn requests(&self, bytes: Bytes, request: Bytes, curve: &Curve) -> Cost {
        self.transfer(bytes, curve.bandwidth(request.min(bytes)))
    }

    /// The same read with what cores do beside waiting for the disk: they copy it where it comes through
    /// the page cache, and check each piece while the next one is read. Whichever is slower runs through,
    /// and one piece of the other has nothing beside it: the last one to check, or the first one to read.
    /// It counts as a whole piece, so that more bytes never take less time.
    fn checked(&self, read: Cost, bytes: Bytes, piece: Bytes, copied: Option<Bandwidth>) -> Cost {
        let piece = piece.min(bytes);
        let check = |bytes| self.machine.software.checksum.as_ref().map(|rate| rate.time(bytes));
        let (checks, last) = (check(bytes).unwrap_or_default(), check(piece).unwrap_or_default());
        let copies = copied.map_or(Nanos::ZERO, |rate| rate.time(bytes));
        let share = piece.as_f64() / bytes.as_f64().max(1.0);
        let first = Nanos::ceil(read.nanos.as_f64() * share);
        let nanos = (read.nanos + last).max(first + checks);
        let cores = (checks + copies.min(read.nanos)).as_f64() / nanos.as_f64().max(1.0);
        let draw = read.draw;
        Cost { draw, ..Cost::moving(bytes, nanos) }.on_cores(cores)
    }

    fn transfer(&self, bytes: Bytes, rate: Bandwidth) -> Cost {
        self.one_of_several(bytes, rate, self.apart(rate), Nanos::ZERO)
    }

    /// What several reach together that do not get in each other's way. What goes faster than all direct reads
    /// together (writes into a disk's cache, reads ahead of a page cache) takes less of the disk for each byte, and
    /// must not make room for direct reads.
    fn apart(&self, rate: Bandwidth) -> Bandwidth {
        rate.max(disk_capacity(self.machine))
    }

    /// A transfer at `rate`, where as many as there may be of its kind reach `together` and no more. Each of
    /// their bytes takes so much of the disk that all of it is gone at that rate: more than a byte where they
    /// keep a disk from what it can do, and less where they go faster than direct reads. All of the disk is gone
    /// while it is busy with what is `lost`, too.
    fn one_of_several(
        &self,
        bytes: Bytes,
        rate: Bandwidth,
        together: Bandwidth,
        lost: Nanos,
    ) -> Cost {
        if bytes == Bytes::ZERO {
            return Cost::default();
        }
        let nanos = rate.min(together).time(bytes) + self.machine.software.disk_request.value;
        let disk = disk_capacity(self.machine);
        let each = disk.as_f64() / together.as_f64();
        let unwanted = disk.per_nano() * lost.as_f64() / bytes.as_f64();
        Cost::moving(bytes, nanos + lost).drawing(Resource::Disk, each + unwanted)
    }

    /// Requests in a row through a page cache. All threads that make such reach `together` and no more, be it less
    /// than one of them does alone; each on its own as much as it does, where that was not measured.
    fn buffered(
        &self,
        bytes: Bytes,
        request: Bytes,
        disk: &Disk,
        together: Option<&Figure<Bandwidth>>,
        jumps: bool,
    ) -> Cost {
        let rate = disk.buffered_read.bandwidth(request.min(bytes));
        let together = together.map_or_else(|| self.apart(rate), |together| together.value);
        let jump = disk.buffered_jump.as_ref().filter(|_| jumps);
        let lost = jump.map_or(Nanos::ZERO, |jump| jump.value);
        // The disk writes into the page cache, from where the bytes are copied.
        self.one_of_several(bytes, rate, together, lost).drawing(Resource::Dram, 2.0)
    }

    /// A stretch of a memory map by one of several threads, which together may reach no more than one alone.
    fn faulted(&self, bytes: Bytes, disk: &Disk) -> Cost {
        let rate = disk.page_fault_read.bandwidth(bytes);
        match &disk.page_fault_total {
            Some(total) => self.one_of_several(bytes, rate, total.value.max(rate), Nanos::ZERO),
            None => self.transfer(bytes, rate),
        }
    }

    fn read(
        &self,
        bytes: Bytes,
        request: Bytes,
        io: DiskIo,
        jumps: bool,
    ) -> Result<Price, Unsupported> {
        let disk = self.disk("reads weights or cache from a disk")?;
        let cost = match io {
            DiskIo::Direct => self.requests(bytes, request, &disk.read),
            DiskIo::Buffered => self.buffered(bytes, request, disk, None, jumps),
            DiskIo::BufferedPair => {
                self.buffered(bytes, request, disk, disk.buffered_pair.as_ref(), jumps)
            }
            DiskIo::BufferedInTurn => {
                // Reading ahead follows none of so many, and loses nothing where one jumps.
                self.buffered(bytes, request, disk, disk.buffered_total.as_ref(), false)
            }
            DiskIo::PageFault => self.faulted(bytes, disk),
        };
        let copy = self.machine.host.copy.value;
        let (copied, hit) = match io {
            DiskIo::Direct => (None, None),
            DiskIo::Buffered | DiskIo::BufferedPair | DiskIo::BufferedInTurn => {
                (Some(copy), Some(memcpy(bytes, copy)))
            }
            DiskIo::PageFault => {
                let mapped = disk.page_fault_hit.as_ref().map_or(copy, |rate| rate.value);
                (Some(mapped), Some(memcpy(bytes, mapped)))
            }
        };
        let piece = checked_at_once(request);
        let cost = self.checked(cost.drawing(Resource::Dram, 1.0), bytes, piece, copied);
        let hit = hit.map(|hit| self.checked(hit, bytes, piece, copied));
        Ok(Price { bytes, disk_read: bytes, cost, hit })
    }

    fn disk_to_gpu(&self, bytes: Bytes) -> Result<Price, Unsupported> {
        let disk = self.disk("reads from a disk straight into GPU memory")?;
        let Some(rate) = &disk.direct_to_gpu else {
            return Err(self.missing(
                "reads from a disk straight into GPU memory",
                "disk.direct_to_gpu",
                "read through host memory, or measure the rate and add it to the profile",
            ));
        };
        let cost = self
            .transfer(bytes, rate.value)
            .drawing(Resource::LinkDuplex, 1.0)
            .drawing(Resource::Hbm, 1.0);
        Ok(Price { bytes, disk_read: bytes, cost, hit: None })
    }

    fn decompress(&self, compressed: Bytes, dense: Bytes) -> Result<Cost, Unsupported> {
        let Some(rate) = &self.machine.gpu.decompress else {
            return Err(self.missing(
                "decompresses weights on the GPU",
                "gpu.decompress",
                "store the weights uncompressed, or measure the rate and add it to the profile",
            ));
        };
        let cost = Cost::moving(compressed + dense, rate.time(dense)).busy(1000);
        Ok(cost.drawing(Resource::Hbm, 1.0))
    }

    /// A copy over the link. The copy engine is busy for as long as the bytes take at the pinned rate; the
    /// rest is latency, or the driver's staging. Where host memory plays the GPU's, a thread copies within
    /// it. A GPU is done with a few pinned bytes before the host has issued the next copy, so that copies
    /// that follow each other take as long as it does; what a pageable copy takes was measured on the host.
    fn copy(&self, bytes: Bytes, memory: HostMemory, pinned: &Curve, pageable: &Curve) -> Cost {
        let (nanos, dram) = match memory {
            HostMemory::Pinned => (pinned.time(bytes).max(self.issue(bytes)), 1.0),
            HostMemory::Pageable => (pageable.time(bytes), 3.0),
        };
        let cost = Cost::moving(bytes, nanos)
            .drawing(Resource::LinkDuplex, 1.0)
            .busy(permille(pinned.best().time(bytes), nanos))
            .on_cores(1.0);
        if self.machine.gpu.is_on_host() {
            return cost.drawing(Resource::Dram, 2.0);
        }
        cost.drawing(Resource::Dram, dram).drawing(Resource::Hbm, 1.0)
    }

    /// What the host takes to issue a copy of so many bytes: nothing is not copied.
    fn issue(&self, bytes: Bytes) -> Nanos {
        let device = !self.machine.gpu.is_on_host() && bytes > Bytes::ZERO;
        let issue = self.machine.software.issue.as_ref().filter(|_| device);
        issue.map_or(Nanos::ZERO, |time| time.value)
    }

    fn disk(&self, does: &str) -> Result<&Disk, Unsupported> {
        self.machine.disk.as_ref().ok_or_else(|| {
            let next = "keep everything in memory, or add a [disk] section to the profile";
            self.missing(does, "disk", next)
        })
    }

    fn missing(&self, does: &str, figure: &str, next_step: &str) -> Unsupported {
        Unsupported {
            what: format!("the plan {does}, but `{}` has no {figure}", self.machine.name),
            next_step: next_step.into(),
        }
    }
}

impl Costs for CostModel<'_> {
    fn price(&self, work: &Work) -> Result<Price, Unsupported> {
        let Machine { link, software, .. } = self.machine;
        let threads = f64::from(self.machine.gpu.sms.value);
        let cost = match work {
            &Work::DiskRead { bytes, request, io, jumps } => {
                return self.read(bytes, request, io, jumps);
            }
            &Work::DiskToGpu { bytes } => return self.disk_to_gpu(bytes),
            &Work::DiskWrite { bytes, request } => {
                let disk = self.disk("writes the cache to a disk")?;
                self.requests(bytes, request, &disk.write).drawing(Resource::Dram, 1.0)
            }
            &Work::HostCopy { bytes } => memcpy(bytes, self.machine.host.copy.value),
            &Work::Gather { bytes } => {
                let Host { gather, copy, .. } = &self.machine.host;
                let lookup = software.lookup.as_ref().map_or(Nanos::ZERO, |time| time.value);
                let nanos = gather.as_ref().unwrap_or(copy).value.time(bytes) + lookup;
                Cost::moving(bytes, nanos).drawing(Resource::Dram, 2.0).on_cores(1.0)
            }
            &Work::H2d { bytes, memory } => {
                self.copy(bytes, memory, &link.h2d.value, &link.pageable_h2d.value)
            }
            &Work::D2h { bytes, memory } => {
                self.copy(bytes, memory, &link.d2h.value, &link.pageable_d2h.value)
            }
            &Work::Decompress { compressed, dense } => {
                self.decompress(compressed, dense)?.on_cores(threads)
            }
            Work::Gpu(compute) => {
                arithmetic::on_gpu(self.machine, &self.tables, compute).on_cores(threads)
            }
            // Where they play the GPU, the cores do what a GPU is asked in the same way.
            Work::Cpu(compute) if self.machine.gpu.is_on_host() => {
                arithmetic::on_gpu(self.machine, &self.tables, compute).on_cores(threads)
            }
            Work::Cpu(compute) => {
                arithmetic::on_cpu(&self.machine.host, &self.tables, compute).on_cores(threads)
            }
            Work::Barrier => Cost::fixed(software.barrier.value),
        };
        Ok(Price::plain(work, cost))
    }

    /// A resource's capacity is never below the best that one operation alone gets from it: a profile
    /// in which the two were measured apart would otherwise slow an operation that is alone.
    fn capacities(&self) -> Capacities {
        let Machine { gpu, link, host, .. } = self.machine;
        let duplex = link.duplex.value.max(link.h2d.best()).max(link.d2h.best());
        let shared = Capacities::UNLIMITED
            .with(Resource::LinkDuplex, duplex.per_nano())
            .with(Resource::Disk, disk_capacity(self.machine).per_nano())
            .with(Resource::Dram, host.memory_bandwidth.per_nano())
            .with(Resource::Hbm, gpu.memory_bandwidth.per_nano());
        if gpu.is_on_host() { shared.with_cores(f64::from(host.cores.value)) } else { shared }
    }

    fn handover(&self) -> Nanos {
        let handover = self.machine.software.handover.as_ref();
        handover.filter(|_| self.machine.gpu.is_on_host()).map_or(Nanos::ZERO, |time| time.value)
    }

    /// Operations of a GPU wait for each other there, which its queues take a while to notice. Where a thread
    /// of the host takes part, it has to wake up, and what it has not issued the GPU cannot begin.
    fn crossing(&self, from: LaneKind, to: LaneKind) -> Nanos {
        if self.machine.gpu.is_on_host() || from == to {
            return Nanos::ZERO;
        }
        let software = &self.machine.software;
        let figure = match (from.is_of_gpu(), to.is_of_gpu()) {
            (true, true) => &software.follow,
            (true, false) => &software.notice,
            (false, true) => &software.submit,
            (false, false) => &software.handover,
        };
        figure.as_ref().map_or(Nanos::ZERO, |time| time.value)
    }
}

/// What all direct reads of a disk reach together, at least what one of them reaches alone.
fn disk_capacity(machine: &Machine) -> Bandwidth {
    machine.disk.as_ref().map_or(Bandwidth::ZERO, |disk| {
        let rate = |figure: &Option<Figure<Bandwidth>>| {
            figure.as_ref().map_or(Bandwidth::ZERO, |rate| rate.value)
        };
        disk.read.best().max(rate(&disk.read_total)).max(rate(&disk.direct_to_gpu))
    })
}

/// One thread's copy within host memory.
fn memcpy(bytes: Bytes, rate: Bandwidth) -> Cost {
    Cost::moving(bytes, rate.time(bytes)).drawing(Resource::Dram, 2.0).on_cores(1.0)
}

/// Thousandths that `part` is of `whole`, at most all of them.
fn permille(part: Nanos, whole: Nanos) -> u16 {
    let thousandths = u128::from(part.0) * 1000 / u128::from(whole.0.max(1));
    u16::try_from(thousandths.min(1000)).unwrap_or(1000)
}
