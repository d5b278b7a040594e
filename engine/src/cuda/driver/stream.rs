//! Streams, and what they copy.

use cudarc::driver::{result, sys};
use pipo_kernels::cuda::Region;

use super::{Event, checked};
use crate::executor::Fault;

/// A stream: what is given to it happens in that order.
#[derive(Debug)]
pub(crate) struct Stream(pub(super) sys::CUstream);

// SAFETY: the driver locks what its calls on one stream share.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    pub(crate) fn new() -> Result<Self, Fault> {
        let kind = result::stream::StreamKind::NonBlocking;
        Ok(Self(checked("make a stream", result::stream::create(kind))?))
    }

    pub(crate) fn raw(&self) -> sys::CUstream {
        self.0
    }

    /// Notes in an event when the stream gets here.
    pub(crate) fn record(&self, event: &Event) -> Result<(), Fault> {
        // SAFETY: both are alive.
        checked("record an event", unsafe { result::event::record(event.0, self.0) })
    }

    /// Lets the stream wait until an event has happened.
    pub(crate) fn wait(&self, event: &Event) -> Result<(), Fault> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are alive.
        checked("wait for an event", unsafe { result::stream::wait_event(self.0, event.0, flags) })
    }

    pub(crate) fn synchronise(&self) -> Result<(), Fault> {
        // SAFETY: the stream is alive.
        checked("finish a stream", unsafe { result::stream::synchronize(self.0) })
    }

    /// Copies into the device.
    ///
    /// # Safety
    ///
    /// Nobody writes or frees `from`, nor uses `to` outside of this stream's order, before the stream has
    /// got past the copy.
    pub(crate) unsafe fn upload(&self, from: &[u8], to: Region) -> Result<(), Fault> {
        fits(from.len(), to)?;
        // SAFETY: `to` is memory of the device and as long as `from`; the caller promises the rest.
        checked("copy to the device", unsafe {
            result::memcpy_htod_async(to.address(), from, self.0)
        })
    }

    /// Copies out of the device.
    ///
    /// # Safety
    ///
    /// Nobody uses or frees the `length` bytes from `to` on, nor writes `from` outside of this stream's
    /// order, before the stream has got past the copy.
    pub(crate) unsafe fn download(
        &self,
        from: Region,
        to: *mut u8,
        length: usize,
    ) -> Result<(), Fault> {
        fits(length, from)?;
        // SAFETY: `from` is memory of the device and as long; the caller promises the rest.
        let result =
            unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from.address(), length, self.0) };
        checked("copy from the device", result.result())
    }

    /// Copies within the device.
    pub(crate) fn copy(&self, from: Region, to: Region) -> Result<(), Fault> {
        let length = usize::try_from(from.bytes()).unwrap_or(usize::MAX);
        fits(length, to)?;
        // SAFETY: both regions are memory of the device, and are used in the stream's order.
        checked("copy on the device", unsafe {
            result::memcpy_dtod_async(to.address(), from.address(), length, self.0)
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nobody else holds it.
        let _ = unsafe { result::stream::destroy(self.0) };
    }
}

fn fits(length: usize, region: Region) -> Result<(), Fault> {
    if length as u64 == region.bytes() {
        return Ok(());
    }
    Err(Fault(format!(
        "{length} bytes were to be copied to or from {}; this is an error in pipo, please report it",
        region.bytes()
    )))
}

/// Rows of equal width at even distances, on the device and in host memory.
#[derive(Debug)]
pub(crate) struct Rows {
    /// Bytes of a row.
    pub(crate) width: usize,
    pub(crate) count: usize,
    /// From the first row's first byte to the last row's last.
    pub(crate) device: Region,
    /// Bytes from one row to the next.
    pub(crate) device_pitch: usize,
    /// The first byte.
    pub(crate) host: *mut u8,
    pub(crate) host_pitch: usize,
}

impl Rows {
    fn copy(&self, up: bool) -> Result<sys::CUDA_MEMCPY2D, Fault> {
        let span = self.device_pitch * self.count.saturating_sub(1) + self.width;
        fits(span, self.device)?;
        let (host, device) =
            (sys::CUmemorytype::CU_MEMORYTYPE_HOST, sys::CUmemorytype::CU_MEMORYTYPE_DEVICE);
        let none = std::ptr::null_mut();
        let mut copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: host,
            srcHost: self.host.cast(),
            srcDevice: 0,
            srcArray: none,
            srcPitch: self.host_pitch,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: device,
            dstHost: std::ptr::null_mut(),
            dstDevice: self.device.address(),
            dstArray: none,
            dstPitch: self.device_pitch,
            WidthInBytes: self.width,
            Height: self.count,
        };
        if !up {
            (copy.srcMemoryType, copy.dstMemoryType) = (device, host);
            (copy.srcHost, copy.dstHost) = (std::ptr::null(), self.host.cast());
            (copy.srcDevice, copy.dstDevice) = (self.device.address(), 0);
            (copy.srcPitch, copy.dstPitch) = (self.device_pitch, self.host_pitch);
        }
        Ok(copy)
    }
}

impl Stream {
    /// Copies rows into the device.
    ///
    /// # Safety
    ///
    /// The rows in host memory are there, and nobody writes or frees them, nor uses those of the device
    /// outside of this stream's order, before the stream has got past the copy.
    pub(crate) unsafe fn upload_rows(&self, rows: &Rows) -> Result<(), Fault> {
        // SAFETY: as promised by the caller.
        unsafe { self.copy_rows(rows, true) }
    }

    /// Copies rows out of the device.
    ///
    /// # Safety
    ///
    /// The rows in host memory are there, and nobody uses or frees them, nor writes those of the device
    /// outside of this stream's order, before the stream has got past the copy.
    pub(crate) unsafe fn download_rows(&self, rows: &Rows) -> Result<(), Fault> {
        // SAFETY: as promised by the caller.
        unsafe { self.copy_rows(rows, false) }
    }

    /// # Safety
    ///
    /// As of the two above.
    unsafe fn copy_rows(&self, rows: &Rows, up: bool) -> Result<(), Fault> {
        let copy = rows.copy(up)?;
        // SAFETY: the description is whole, its device side was checked, its host side is promised.
        let result = unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, self.0) };
        checked("copy rows", result.result())
    }
}
