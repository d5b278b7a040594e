//! The driver, behind values that give back what they hold: the context, streams, events, memory of the
//! device, and pages of the host that copy engines may reach.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use pipo_kernels::cuda::{Architecture, Region};
use pipo_plan::schedule::Tier;
use pipo_plan::units::Bytes;

use crate::executor::Fault;
use crate::memory::MemoryError;
use crate::run::RunError;

/// The oldest driver whose functions are all there: 12.8, of the series 570.
const OLDEST: i32 = 12_080;

/// A driver's refusal, with what was tried.
pub(crate) fn checked<T>(what: &str, result: Result<T, DriverError>) -> Result<T, Fault> {
    result.map_err(|error| {
        let text = |text: Result<&std::ffi::CStr, _>| {
            text.map_or_else(|_| "unknown".into(), |text| text.to_string_lossy().into_owned())
        };
        let (name, why) = (text(error.error_name()), text(error.error_string()));
        Fault(format!("the GPU's driver failed to {what}: {name} ({why})"))
    })
}

/// Whether the driver is on this machine and has a device.
pub(crate) fn is_present() -> bool {
    // SAFETY: loading the driver's library runs its initialisers, which it is made for.
    let library = unsafe { sys::is_culib_present() };
    library && result::init().is_ok() && result::device::get_count().is_ok_and(|count| count > 0)
}

/// The context of one device.
#[derive(Debug)]
pub(crate) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: a context may be used by any thread that has made it current.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks what its calls share.
unsafe impl Sync for Context {}

impl Context {
    /// The context of the first device, made current on this thread.
    pub(crate) fn open() -> Result<Self, RunError> {
        let unavailable = |what: String, next_step| RunError::Unavailable { what, next_step };
        // SAFETY: loading the driver's library runs its initialisers, which it is made for.
        if !unsafe { sys::is_culib_present() } {
            return Err(unavailable(
                "the NVIDIA driver's library (libcuda) is not on this machine".into(),
                "install the driver, or run on the CPU with --backend cpu",
            ));
        }
        let mut version = 0;
        // SAFETY: the pointer is to a variable that outlives the call.
        let asked = unsafe { sys::cuDriverGetVersion(&raw mut version) }.result();
        checked("say its version", asked)?;
        if version < OLDEST {
            let (major, minor) = (version / 1000, version % 1000 / 10);
            return Err(unavailable(
                format!("the GPU's driver is for CUDA {major}.{minor}, and 12.8 is needed"),
                "install a driver of the series 570 or newer",
            ));
        }
        checked("start", result::init())?;
        if checked("count devices", result::device::get_count())? == 0 {
            return Err(unavailable(
                "the driver sees no GPU".into(),
                "check CUDA_VISIBLE_DEVICES, or run on the CPU with --backend cpu",
            ));
        }
        let device = checked("find the device", result::device::get(0))?;
        // SAFETY: the device is one the driver has just named; the release is in `drop`.
        let context = unsafe { result::primary_ctx::retain(device) };
        let context = checked("make a context", context)?;
        let context = Self { device, context };
        context.enter()?;
        Ok(context)
    }

    /// Makes the context current on this thread.
    pub(crate) fn enter(&self) -> Result<(), Fault> {
        // SAFETY: the context is retained until `self` is dropped.
        checked("enter its context", unsafe { result::ctx::set_current(self.context) })
    }

    /// What kernels are compiled for.
    pub(crate) fn architecture(&self) -> Result<Architecture, Fault> {
        use sys::CUdevice_attribute as Attribute;
        let figure = |attribute| {
            // SAFETY: the device is one the driver named.
            let value = unsafe { result::device::get_attribute(self.device, attribute) };
            let value = checked("describe the device", value)?;
            Ok::<u32, Fault>(u32::try_from(value).unwrap_or(0))
        };
        let major = figure(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = figure(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Architecture::of(major, minor).map_err(|error| Fault(error.to_string()))
    }

    /// Streaming multiprocessors.
    pub(crate) fn multiprocessors(&self) -> Result<u32, Fault> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        // SAFETY: the device is one the driver named.
        let count = unsafe { result::device::get_attribute(self.device, attribute) };
        Ok(u32::try_from(checked("describe the device", count)?).unwrap_or(0))
    }

    /// The device's name, as the driver gives it.
    pub(crate) fn name(&self) -> Result<String, Fault> {
        checked("name the device", result::device::get_name(self.device))
    }

    /// Memory of the device that nobody holds, and all of it.
    pub(crate) fn memory() -> Result<(Bytes, Bytes), Fault> {
        let (free, all) = checked("say how much memory is free", result::mem_get_info())?;
        Ok((Bytes(free as u64), Bytes(all as u64)))
    }

    /// Waits for everything that the device was given.
    pub(crate) fn synchronise(&self) -> Result<(), Fault> {
        self.enter()?;
        checked("finish its work", result::ctx::synchronize())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`; whatever was made in it has been dropped before.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Some of a device's multiprocessors, to run kernels on and no others.
#[derive(Debug)]
pub(crate) struct Part(sys::CUgreenCtx);

// SAFETY: the driver locks what its calls on one context share.
unsafe impl Send for Part {}
// SAFETY: as above.
unsafe impl Sync for Part {}

impl Part {
    /// At least so many multiprocessors: they come in groups, of 8 on recent devices.
    pub(crate) fn new(context: &Context, sms: u32) -> Result<Self, Fault> {
        let mut all = MaybeUninit::<sys::CUdevResource>::uninit();
        let kind = sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM;
        // SAFETY: the device is one the driver named; it fills the resource in.
        let found = unsafe { sys::cuDeviceGetDevResource(context.device, all.as_mut_ptr(), kind) };
        checked("list multiprocessors", found.result())?;
        let (mut part, mut groups) = (MaybeUninit::<sys::CUdevResource>::uninit(), 1);
        // SAFETY: there is room for the one group that is asked for, and what is left over is not wanted.
        let split = unsafe {
            sys::cuDevSmResourceSplitByCount(
                part.as_mut_ptr(),
                &raw mut groups,
                all.as_ptr(),
                std::ptr::null_mut(),
                0,
                sms,
            )
        };
        checked(&format!("set {sms} multiprocessors apart"), split.result())?;
        let mut description = MaybeUninit::uninit();
        // SAFETY: the group was filled in by the call before.
        let described = unsafe {
            sys::cuDevResourceGenerateDesc(description.as_mut_ptr(), part.as_mut_ptr(), 1)
        };
        checked("describe multiprocessors", described.result())?;
        let mut green = MaybeUninit::uninit();
        let flags = sys::CUgreenCtxCreate_flags::CU_GREEN_CTX_DEFAULT_STREAM as u32;
        // SAFETY: the description was filled in by the call before.
        let made = unsafe {
            let description = description.assume_init();
            sys::cuGreenCtxCreate(green.as_mut_ptr(), description, context.device, flags)
        };
        checked("make a context of some multiprocessors", made.result())?;
        // SAFETY: the driver has filled it in.
        Ok(Self(unsafe { green.assume_init() }))
    }

    /// A stream whose kernels run there.
    pub(crate) fn stream(&self) -> Result<Stream, Fault> {
        let mut stream = MaybeUninit::uninit();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is alive; the driver fills the stream in.
        let made = unsafe { sys::cuGreenCtxStreamCreate(stream.as_mut_ptr(), self.0, flags, 0) };
        checked("make a stream on some multiprocessors", made.result())?;
        // SAFETY: as above.
        Ok(Stream(unsafe { stream.assume_init() }))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and its streams have been dropped before.
        let _ = unsafe { sys::cuGreenCtxDestroy(self.0) }.result();
    }
}

/// A stream: what is given to it happens in that order.
#[derive(Debug)]
pub(crate) struct Stream(sys::CUstream);

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

    /// Fills memory with a byte.
    pub(crate) fn fill(&self, region: Region, byte: u8) -> Result<(), Fault> {
        let length = usize::try_from(region.bytes()).unwrap_or(usize::MAX);
        // SAFETY: the region is memory of the device, used in the stream's order.
        let result = unsafe { result::memset_d8_async(region.address(), byte, length, self.0) };
        checked("fill memory", result)
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

/// Something that a stream gets to, with its time.
#[derive(Debug)]
pub(crate) struct Event(sys::CUevent);

// SAFETY: the driver locks what its calls on one event share.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(crate) fn new() -> Result<Self, Fault> {
        // Who waits should not take a core from the threads that read and copy; where there are plenty, it
        // is sooner awake for that.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let flags = if cores > 8 {
            sys::CUevent_flags::CU_EVENT_DEFAULT
        } else {
            sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC
        };
        Ok(Self(checked("make an event", result::event::create(flags))?))
    }

    /// Waits until it has happened.
    pub(crate) fn synchronise(&self) -> Result<(), Fault> {
        // SAFETY: the event is alive.
        checked("finish an operation", unsafe { result::event::synchronize(self.0) })
    }

    /// Milliseconds from this event to a later one; both have happened.
    pub(crate) fn until(&self, later: &Self) -> Result<f32, Fault> {
        // SAFETY: both are alive and were made with their times kept.
        checked("read a time", unsafe { result::event::elapsed(self.0, later.0) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nobody else holds it.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

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
        let result = unsafe { sys::cuMemHostRegister_v2(address, bytes.len(), 0) };
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
