//! The driver, behind values that give back what they hold: the context, streams, events, memory of the
//! device, and pages of the host that copy engines may reach.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use pipo_kernels::cuda::Architecture;
use pipo_plan::units::Bytes;

use crate::executor::Fault;
use crate::run::RunError;
use crate::shape::Shape;

mod event;
mod memory;
mod part;
mod stream;
mod words;

pub(crate) use event::Event;
pub(crate) use memory::{Arena, Pin, mapped};
pub(crate) use part::Part;
pub(crate) use stream::{Rows, Stream};
pub(crate) use words::Words;

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

    /// Streaming multiprocessors that kernels run on: all of the device's, or those of a shape.
    pub(crate) fn multiprocessors(&self, shape: &Shape) -> Result<u32, Fault> {
        if let Some(sms) = shape.sms {
            return Ok(sms);
        }
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
