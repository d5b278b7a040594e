//! A GPU for tests and measurements: memory, one stream, the kernels.

#![allow(dead_code, reason = "tests use one part, measurements another")]
#![allow(clippy::unwrap_used, reason = "a test whose data cannot be made has failed")]
#![allow(clippy::print_stdout, reason = "a test that is skipped says so")]

pub(crate) mod values;

use std::ffi::c_void;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUdevice_attribute::{
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as MULTIPROCESSORS,
};
use cudarc::driver::sys::{self, CUresult};
use half::f16;
use pipo_kernels::cuda::{Architecture, Kernels, Region, Stream};

/// What cuBLAS wants on recent GPUs.
const SCRATCH: usize = 32 << 20;

/// The GPU, its kernels, and one stream.
pub(crate) struct Device {
    pub(crate) kernels: Kernels,
    pub(crate) stream: Stream,
    pub(crate) name: String,
    context: sys::CUcontext,
}

// SAFETY: handles of the driver, which any thread may use; the lock below lets in one at a time.
unsafe impl Send for Device {}

static DEVICE: Mutex<Option<Result<Device, String>>> = Mutex::new(None);

/// Runs with the first GPU, one caller at a time; where there is none, says so and does nothing.
pub(crate) fn with(run: impl FnOnce(&Device)) {
    let mut device: MutexGuard<_> = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    match device.get_or_insert_with(Device::open) {
        Ok(device) => {
            // SAFETY: the context is alive.
            ok(unsafe { sys::cuCtxSetCurrent(device.context) });
            run(device);
        }
        Err(reason) => println!("skipped: {reason}"),
    }
}

impl Device {
    fn open() -> Result<Self, String> {
        // SAFETY: it only tries to open the library.
        if !unsafe { sys::is_culib_present() } {
            return Err("there is no driver of an NVIDIA GPU".into());
        }
        let (mut device, mut major, mut minor, mut multiprocessors) = (0, 0, 0, 0);
        let (mut context, mut stream) = (ptr::null_mut(), ptr::null_mut());
        let mut name = [0_u8; 64];
        // SAFETY: the driver is there, and writes where it may.
        unsafe {
            if sys::cuInit(0) != CUresult::CUDA_SUCCESS
                || sys::cuDeviceGet(&raw mut device, 0) != CUresult::CUDA_SUCCESS
            {
                return Err("there is no NVIDIA GPU".into());
            }
            ok(sys::cuDeviceGetAttribute(&raw mut major, MAJOR, device));
            ok(sys::cuDeviceGetAttribute(&raw mut minor, MINOR, device));
            ok(sys::cuDeviceGetAttribute(&raw mut multiprocessors, MULTIPROCESSORS, device));
            ok(sys::cuDeviceGetName(name.as_mut_ptr().cast(), 63, device));
            ok(sys::cuDevicePrimaryCtxRetain(&raw mut context, device));
            ok(sys::cuCtxSetCurrent(context));
            ok(sys::cuStreamCreate(&raw mut stream, 1));
        }
        let scratch = Buffer::new(SCRATCH);
        let architecture = Architecture::of(major.cast_unsigned(), minor.cast_unsigned());
        let kernels = architecture.and_then(|architecture| {
            Kernels::load(architecture, multiprocessors.cast_unsigned(), scratch.region())
        });
        // It must live as long as the kernels, which is until the end.
        std::mem::forget(scratch);
        let name = name.split(|&c| c == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        Ok(Self { kernels: kernels.map_err(|error| error.to_string())?, stream, name, context })
    }

    /// Waits until everything that was launched has ended.
    pub(crate) fn wait(&self) {
        // SAFETY: the stream is alive.
        ok(unsafe { sys::cuStreamSynchronize(self.stream) });
    }
}

/// Device memory, freed with it.
pub(crate) struct Buffer {
    address: u64,
    bytes: usize,
}

impl Buffer {
    /// Memory in which every number is not one.
    pub(crate) fn new(bytes: usize) -> Self {
        let mut address = 0;
        // SAFETY: a context is current, and the driver writes the address where it may.
        unsafe {
            ok(sys::cuMemAlloc_v2(&raw mut address, bytes.max(1)));
            ok(sys::cuMemsetD8_v2(address, 0xff, bytes.max(1)));
            ok(sys::cuCtxSynchronize());
        }
        Self { address, bytes }
    }

    /// Memory with these bytes, `offset` bytes into an allocation.
    pub(crate) fn at(bytes: &[u8], offset: usize) -> (Self, Region) {
        let buffer = Self::new(bytes.len() + offset);
        buffer.write(offset, bytes);
        let region = buffer.region().slice(offset as u64, bytes.len() as u64).unwrap();
        (buffer, region)
    }

    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::at(bytes, 0).0
    }

    pub(crate) fn region(&self) -> Region {
        // SAFETY: it is allocated, and tests wait for a launch before they free what it uses.
        unsafe { Region::new(self.address, self.bytes as u64) }
    }

    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.bytes);
        if bytes.is_empty() {
            return;
        }
        let from: *const c_void = bytes.as_ptr().cast();
        // SAFETY: both are as long as that.
        ok(unsafe { sys::cuMemcpyHtoD_v2(self.address + offset as u64, from, bytes.len()) });
        // SAFETY: a context is current.
        ok(unsafe { sys::cuCtxSynchronize() });
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: it was allocated, and the driver waits for what uses it.
        unsafe {
            let _ = sys::cuCtxSynchronize();
            let _ = sys::cuMemFree_v2(self.address);
        }
    }
}

/// The bytes of a region, once everything has ended.
pub(crate) fn read(region: Region) -> Vec<u8> {
    let mut bytes = vec![0_u8; usize::try_from(region.bytes()).unwrap()];
    if !bytes.is_empty() {
        // SAFETY: both are as long as that.
        unsafe {
            ok(sys::cuCtxSynchronize());
            ok(sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), region.address(), bytes.len()));
        }
    }
    bytes
}

pub(crate) fn read_halves(region: Region) -> Vec<f32> {
    let bytes = read(region);
    bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
}

pub(crate) fn read_floats(region: Region) -> Vec<f32> {
    let bytes = read(region);
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

pub(crate) fn halves(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()
}

pub(crate) fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Panics with the driver's error.
pub(crate) fn ok(result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS);
}
