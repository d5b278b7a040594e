//! Memory of the device, and pages of the host that its copy engines may reach.

use std::ffi::c_void;

use cudarc::driver::{result, sys};
use pipo_kernels::cuda::Region;
use pipo_plan::schedule::Tier;
use pipo_plan::units::Bytes;

use super::{Context, checked};
use crate::executor::Fault;
use crate::memory::MemoryError;
use crate::run::RunError;

/// Memory of the device, in one piece.
#[derive(Debug)]
pub(crate) struct Arena {
    all: Region,
    used: u64,
}

impl Arena {
    /// Where a part of it begins: the driver's own alignment, which every kernel and copy likes.
    pub(crate) const ALIGNMENT: u64 = 256;

    pub(crate) fn new(name: &str, bytes: u64) -> Result<Self, RunError> {
        let (free, _) = Context::memory()?;
        let refused = || MemoryError::Refused {
            name: format!("{name} (the device has {} free)", free.both()),
            tier: Tier::Gpu,
            bytes: Bytes(bytes),
        };
        let length = usize::try_from(bytes.max(1)).map_err(|_| refused())?;
        // SAFETY: given back in `drop`, before the context goes.
        let address = unsafe { result::malloc_sync(length) }.map_err(|_| refused())?;
        // SAFETY: it is memory of this context until `drop`, and the backend waits for the device before.
        Ok(Self { all: unsafe { Region::new(address, bytes) }, used: 0 })
    }

    /// All of it.
    pub(crate) fn all(&self) -> Region {
        self.all
    }

    /// The next part of it.
    pub(crate) fn take(&mut self, bytes: Bytes) -> Result<Region, Fault> {
        let region = self.all.slice(self.used, bytes.0);
        let region = region.map_err(|error| Fault(format!("the device's memory: {error}")))?;
        let end = (self.used + bytes.0).next_multiple_of(Self::ALIGNMENT);
        self.used = end.min(self.all.bytes());
        Ok(region)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and the backend has waited for whatever used it.
        let _ = unsafe { result::free_sync(self.all.address()) };
    }
}

/// Pages of the host that copy engines may reach, until it is dropped.
#[derive(Debug)]
pub(crate) struct Pin(*mut c_void);

// SAFETY: the address is only ever given back to the driver.
unsafe impl Send for Pin {}
// SAFETY: as above.
unsafe impl Sync for Pin {}

/// Kernels may read the pages, too.
const MAPPED: u32 = sys::CU_MEMHOSTREGISTER_DEVICEMAP;

/// Pinned memory of the host as kernels see it.
///
/// # Safety
///
/// The bytes were pinned by [`Pin::new`], and stay so for as long as the region is used, for reading.
pub(crate) unsafe fn mapped(bytes: &[u8]) -> Result<Region, Fault> {
    let mut address = 0;
    let host = bytes.as_ptr().cast_mut().cast();
    // SAFETY: the address is that of a registered range, and the result has room.
    let result = unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut address, host, 0) };
    checked("reach pinned memory from kernels", result.result())?;
    // SAFETY: as the caller promises.
    Ok(unsafe { Region::new(address, bytes.len() as u64) })
}

impl Pin {
    /// # Safety
    ///
    /// The bytes stay where they are until the pin is dropped.
    pub(crate) unsafe fn new(bytes: &[u8]) -> Result<Option<Self>, Fault> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let address = bytes.as_ptr().cast_mut().cast();
        // SAFETY: the bytes are there; the driver keeps the pages and does not write them.
        let result = unsafe { sys::cuMemHostRegister_v2(address, bytes.len(), MAPPED) };
        let what = format!("pin {} of host memory", Bytes(bytes.len() as u64).both());
        checked(&what, result.result())?;
        Ok(Some(Self(address)))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // SAFETY: registered by `new`, and nobody else holds it.
        let _ = unsafe { sys::cuMemHostUnregister(self.0) }.result();
    }
}
