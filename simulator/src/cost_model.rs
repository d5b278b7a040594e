//! Prices works on a machine profile.

use pipo_plan::machine::{Curve, Disk, Machine};
use pipo_plan::schedule::{DiskIo, HostMemory, Work};
use pipo_plan::units::{Bandwidth, Bytes, Nanos};

use crate::cost::{Capacities, Cost, Costs, Price, Resource};
use crate::error::Unsupported;

mod arithmetic;
mod kernels;

use kernels::Kernels;

/// Prices works on a machine profile.
///
/// Each time is what the operation takes when nothing else runs. What it draws from shared resources
/// is counted by who touches the bytes: a copy engine reads host memory once; a `memcpy` reads and
/// writes it; a pageable copy is a `memcpy` into the driver's pinned buffer and a copy from there.
#[derive(Debug, Clone)]
pub struct CostModel<'a> {
    machine: &'a Machine,
    kernels: Kernels,
}

impl<'a> CostModel<'a> {
    /// A cost model of one machine.
    pub fn new(machine: &'a Machine) -> Self {
        Self { machine, kernels: Kernels::new(&machine.gpu.kernels) }
    }

    /// Disk requests in a row: the rate at their size, and one request's overhead at the start. All
    /// later requests overlap with the one before; their overhead is in the curve.
    fn requests(&self, bytes: Bytes, request: Bytes, curve: &Curve) -> Cost {
        self.transfer(bytes, curve.bandwidth(request.min(bytes)))
    }

    fn transfer(&self, bytes: Bytes, rate: Bandwidth) -> Cost {
        if bytes == Bytes::ZERO {
            return Cost::default();
        }
        let nanos = rate.time(bytes) + self.machine.software.disk_request.value;
        Cost::moving(bytes, nanos).drawing(Resource::Disk, 1.0)
    }

    fn read(&self, bytes: Bytes, request: Bytes, io: DiskIo) -> Result<Price, Unsupported> {
        let disk = self.disk("reads weights or cache from a disk")?;
        let cost = match io {
            DiskIo::Direct => self.requests(bytes, request, &disk.read),
            // The disk writes into the page cache, from where the bytes are copied.
            DiskIo::Buffered => {
                self.requests(bytes, request, &disk.buffered_read).drawing(Resource::Dram, 2.0)
            }
            DiskIo::PageFault => self.transfer(bytes, disk.page_fault_read.value),
        };
        let hit = match io {
            DiskIo::Direct => None,
            DiskIo::Buffered => Some(memcpy(bytes, self.machine.host.copy.value)),
            DiskIo::PageFault => {
                let mapped = disk.page_fault_hit.as_ref().unwrap_or(&self.machine.host.copy);
                Some(memcpy(bytes, mapped.value))
            }
        };
        Ok(Price { bytes, disk_read: bytes, cost: cost.drawing(Resource::Dram, 1.0), hit })
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
        let cost = match work {
            &Work::DiskRead { bytes, request, io } => return self.read(bytes, request, io),
            &Work::DiskToGpu { bytes } => return self.disk_to_gpu(bytes),
            &Work::DiskWrite { bytes, request } => {
                let disk = self.disk("writes the cache to a disk")?;
                self.requests(bytes, request, &disk.write).drawing(Resource::Dram, 1.0)
            }
            &Work::HostCopy { bytes } | &Work::Gather { bytes } => {
                memcpy(bytes, self.machine.host.copy.value)
            }
            &Work::H2d { bytes, memory } => copy(bytes, memory, &link.h2d, &link.pageable_h2d),
            &Work::D2h { bytes, memory } => copy(bytes, memory, &link.d2h, &link.pageable_d2h),
            &Work::Decompress { compressed, dense } => self.decompress(compressed, dense)?,
            Work::Gpu(compute) => arithmetic::on_gpu(&self.machine.gpu, &self.kernels, compute),
            Work::Cpu(compute) => arithmetic::on_cpu(&self.machine.host, compute),
            Work::Barrier => Cost::fixed(software.barrier.value),
        };
        Ok(Price::plain(work, cost))
    }

    /// A resource's capacity is never below the best that one operation alone gets from it: a profile
    /// in which the two were measured apart would otherwise slow an operation that is alone.
    fn capacities(&self) -> Capacities {
        let Machine { gpu, link, disk, host, .. } = self.machine;
        let duplex = link.duplex.value.max(link.h2d.best()).max(link.d2h.best());
        let disk = disk.as_ref().map_or(Bandwidth::ZERO, |disk| {
            let direct = disk.direct_to_gpu.as_ref().map_or(Bandwidth::ZERO, |rate| rate.value);
            let buffered = disk.buffered_read.best().max(disk.page_fault_read.value);
            disk.read.best().max(disk.write.best()).max(buffered).max(direct)
        });
        Capacities::UNLIMITED
            .with(Resource::LinkDuplex, duplex.per_nano())
            .with(Resource::Disk, disk.per_nano())
            .with(Resource::Dram, host.memory_bandwidth.per_nano())
            .with(Resource::Hbm, gpu.memory_bandwidth.per_nano())
    }
}

/// A copy over the link. The copy engine is busy for as long as the bytes take at the pinned rate; the
/// rest is latency, or the driver's staging.
fn copy(bytes: Bytes, memory: HostMemory, pinned: &Curve, pageable: &Curve) -> Cost {
    let (nanos, dram) = match memory {
        HostMemory::Pinned => (pinned.time(bytes), 1.0),
        HostMemory::Pageable => (pageable.time(bytes), 3.0),
    };
    Cost::moving(bytes, nanos)
        .drawing(Resource::LinkDuplex, 1.0)
        .drawing(Resource::Dram, dram)
        .drawing(Resource::Hbm, 1.0)
        .busy(permille(pinned.best().time(bytes), nanos))
}

/// One thread's copy within host memory.
fn memcpy(bytes: Bytes, rate: Bandwidth) -> Cost {
    Cost::moving(bytes, rate.time(bytes)).drawing(Resource::Dram, 2.0)
}

/// Thousandths that `part` is of `whole`, at most all of them.
fn permille(part: Nanos, whole: Nanos) -> u16 {
    let thousandths = u128::from(part.0) * 1000 / u128::from(whole.0.max(1));
    u16::try_from(thousandths.min(1000)).unwrap_or(1000)
}
