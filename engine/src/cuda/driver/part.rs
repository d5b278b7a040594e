//! Some of a device's multiprocessors.

use std::mem::MaybeUninit;

use cudarc::driver::sys;

use super::{Context, Stream, checked};
use crate::executor::Fault;

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
