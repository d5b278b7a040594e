//! Loading kernels and launching them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::sync::PoisonError;

use cudarc::driver::sys::{self, CUfunction, CUmodule, CUresult};

use super::unit::Unit;
use super::{CudaError, Kernels, Stream, compile};
use crate::error::ShapeError;

/// Blocks that a grid may have in its second and its third direction, which is the driver's limit. An attention
/// has a block there for each sequence and key-value head.
pub const MOST_ACROSS: u32 = 65535;

/// A loaded unit.
#[derive(Debug)]
pub(super) struct Loaded {
    module: CUmodule,
    functions: BTreeMap<&'static str, CUfunction>,
}

// SAFETY: handles of the driver, which any thread may use whose current context is theirs.
unsafe impl Send for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: the module was loaded and is not used any more. A context that is gone has taken it
        // along, and the driver says so.
        let _ = unsafe { sys::cuModuleUnload(self.module) };
    }
}

/// What is launched, and over which blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch {
    pub(super) unit: Unit,
    pub(super) name: &'static str,
    /// Blocks; none at all is no launch.
    pub(super) grid: [usize; 3],
    /// Threads of a block.
    pub(super) threads: u32,
}

impl Kernels {
    /// Compiles and loads a unit, if it is not there.
    pub(super) fn load_unit(&self, unit: Unit) -> Result<(), CudaError> {
        self.function(unit, None).map(|_| ())
    }

    /// Launches a kernel. Every argument fills eight bytes, of which the kernel reads as many as its
    /// parameter has: the low ones. The last parameter may be a structure: what is left of the arguments.
    pub(super) fn launch(
        &self,
        stream: Stream,
        launch: Launch,
        arguments: &[u64],
    ) -> Result<(), CudaError> {
        self.launch_when(stream, launch, arguments, self.architecture.starts_early())
    }

    /// The same, after all earlier kernels of the stream have ended: for what reads of theirs before it waits.
    pub(super) fn launch_after(
        &self,
        stream: Stream,
        launch: Launch,
        arguments: &[u64],
    ) -> Result<(), CudaError> {
        self.launch_when(stream, launch, arguments, false)
    }

    fn launch_when(
        &self,
        stream: Stream,
        launch: Launch,
        arguments: &[u64],
        early: bool,
    ) -> Result<(), CudaError> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let mut grid = [0; 3];
        for (index, (grid, blocks)) in grid.iter_mut().zip(launch.grid).enumerate() {
            // The driver's limits.
            let limit = if index == 0 { i32::MAX.cast_unsigned() } else { MOST_ACROSS };
            let fits = u32::try_from(blocks).ok().filter(|blocks| *blocks <= limit);
            *grid = fits.ok_or(ShapeError::TooLarge { what: "the grid of a kernel" })?;
        }
        let function = self.function(launch.unit, Some(launch.name))?;
        // Each points to all that follow, of which the kernel reads a parameter's size.
        let tail = |index: usize| arguments[index..].as_ptr().cast_mut().cast();
        let mut pointers: Vec<*mut c_void> = (0..arguments.len()).map(tail).collect();
        let [x, y, z] = grid;
        let mut starts_early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: stream,
            attrs: &raw mut starts_early,
            numAttrs: u32::from(early),
        };
        // SAFETY: the function belongs to a module that stays loaded as long as `self`. The callers
        // pass every parameter of the kernel, checked that the regions hold what it touches, and who
        // made the regions answers for their memory. A kernel that may start early waits for the one
        // before it, and reads nothing that a kernel makes before that. The driver copies arguments and attributes before it returns.
        let result = unsafe {
            let parameters = pointers.as_mut_ptr();
            sys::cuLaunchKernelEx(&raw const config, function, parameters, ptr::null_mut())
        };
        check("launch a kernel", result)
    }

    fn function(&self, unit: Unit, name: Option<&'static str>) -> Result<CUfunction, CudaError> {
        let mut all = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Vacant(place) = all.entry(unit) {
            let image = compile::cached(unit, self.architecture)?;
            let mut module = ptr::null_mut();
            // SAFETY: a whole image of machine code, which says itself how long it is.
            let result = unsafe { sys::cuModuleLoadData(&raw mut module, image.as_ptr().cast()) };
            check("load compiled kernels", result)?;
            place.insert(Loaded { module, functions: BTreeMap::new() });
        }
        let (Some(loaded), Some(name)) = (all.get_mut(&unit), name) else {
            return Ok(ptr::null_mut());
        };
        if let Some(function) = loaded.functions.get(name) {
            return Ok(*function);
        }
        let text = CString::new(name).unwrap_or_default();
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded, and the name ends with a zero.
        let result =
            unsafe { sys::cuModuleGetFunction(&raw mut function, loaded.module, text.as_ptr()) };
        check("find a kernel", result)?;
        loaded.functions.insert(name, function);
        Ok(function)
    }
}

/// An error unless the driver can be called.
pub(super) fn driver_present() -> Result<(), CudaError> {
    // SAFETY: it only tries to open the library.
    if unsafe { sys::is_culib_present() } {
        Ok(())
    } else {
        let how = "install the driver of an NVIDIA GPU";
        Err(CudaError::Missing { what: "libcuda, the driver", how })
    }
}

/// The driver's answer as a value.
pub(super) fn check(operation: &'static str, result: CUresult) -> Result<(), CudaError> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = ptr::null();
    // SAFETY: the driver writes a pointer to a text of its own that is never freed, or null.
    let known = unsafe { sys::cuGetErrorString(result, &raw mut text) } == CUresult::CUDA_SUCCESS;
    let text = if known && !text.is_null() {
        // SAFETY: as above, and it ends with a zero.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    } else {
        "unknown".into()
    };
    Err(CudaError::Driver { operation, code: format!("{result:?}"), text })
}
