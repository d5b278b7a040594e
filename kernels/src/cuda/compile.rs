//! Compiling with NVRTC, once for each machine: machine code is kept in the user's cache folder.

use std::ffi::CString;
use std::fs;
use std::path::PathBuf;

use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

use super::unit::Unit;
use super::{Architecture, CudaError};

/// Machine code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// What the driver loads.
    pub image: Vec<u8>,
    /// What NVRTC printed, with the registers and the local memory of every kernel.
    pub log: String,
}

/// An error unless NVRTC can be called.
pub(super) fn nvrtc_present() -> Result<(), CudaError> {
    // SAFETY: it only tries to open the library.
    if unsafe { sys::is_culib_present() } {
        Ok(())
    } else {
        let how = "install CUDA 12 or newer, or the wheel nvidia-cuda-nvrtc, and add its folder to LD_LIBRARY_PATH";
        Err(CudaError::Missing { what: "libnvrtc, the compiler of kernels", how })
    }
}

/// Compiles, whatever is in the cache. Needs NVRTC, but no GPU.
pub fn compile(unit: Unit, architecture: Architecture) -> Result<Compiled, CudaError> {
    nvrtc_present()?;
    let failed = |code: String, log: String| CudaError::Compile {
        unit: unit.to_string(),
        version: version(),
        code,
        log,
    };
    let error = |error: result::NvrtcError| failed(error.to_string(), String::new());
    let name = CString::new(format!("{unit}.cu")).unwrap_or_default();
    let source = CString::new(unit.source())
        .map_err(|_| failed("a zero byte in the source".into(), String::new()))?;
    let program = result::create_program(&source, Some(&name)).map_err(error)?;
    // SAFETY: the program lives until it is destroyed below, and `source` and `name` as long.
    let compiled = unsafe { result::compile_program(program, &options(unit, architecture)) };
    // SAFETY: as above. The log is there whether or not it compiled.
    let log = unsafe { result::get_program_log(program) }.unwrap_or_default();
    let log: String =
        log.iter().map(|&c| char::from(c.cast_unsigned())).take_while(|&c| c != '\0').collect();
    let image = match compiled {
        Ok(()) => image(program).map_err(error),
        Err(error) => Err(failed(error.to_string(), log.clone())),
    };
    // SAFETY: it is not used any more. Failing to free it changes nothing.
    let _ = unsafe { result::destroy_program(program) };
    Ok(Compiled { image: image?, log })
}

/// Machine code of a program that compiled.
fn image(program: sys::nvrtcProgram) -> Result<Vec<u8>, result::NvrtcError> {
    let mut size = 0;
    // SAFETY: the program is alive, and the size is written where it may be.
    unsafe { sys::nvrtcGetCUBINSize(program, &raw mut size) }.result()?;
    let mut image = vec![0_u8; size];
    // SAFETY: as many bytes as NVRTC said it writes.
    unsafe { sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()) }.result()?;
    Ok(image)
}

/// Machine code from the cache, or compiled and put there.
pub(super) fn cached(unit: Unit, architecture: Architecture) -> Result<Vec<u8>, CudaError> {
    let file = folder().map(|folder| folder.join(key(unit, architecture)));
    if let Some(image) = file.as_ref().and_then(|file| read(&fs::read(file).ok()?)) {
        return Ok(image);
    }
    let image = compile(unit, architecture)?.image;
    if let Some(file) = file {
        // A cache that cannot be written is compiled again next time.
        let _ = write(&file, &image);
    }
    Ok(image)
}

/// The image of a file, unless it is damaged: the file starts with the image's hash.
fn read(file: &[u8]) -> Option<Vec<u8>> {
    let (hash, image) = file.split_first_chunk::<32>()?;
    (Sha256::digest(image)[..] == hash[..]).then(|| image.to_vec())
}

fn write(file: &std::path::Path, image: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut bytes = Sha256::digest(image).to_vec();
    bytes.extend_from_slice(image);
    // Two processes may write the same file: each under a name of its own, and the last one stays.
    let temporary = file.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, file).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// Where machine code is kept; `None` where there is no home.
fn folder() -> Option<PathBuf> {
    let from = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")))?;
    Some(caches.join("pipo").join("kernels"))
}

/// Everything that machine code depends on.
fn key(unit: Unit, architecture: Architecture) -> String {
    let mut hash = Sha256::new();
    let options = options(unit, architecture);
    for part in [unit.source(), version()].iter().chain(&options) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let hash = hash.finalize();
    let hash = hash.first_chunk().map_or(0, |bytes| u128::from_be_bytes(*bytes));
    format!("{unit}-{architecture}-{hash:032x}.cubin")
}

fn version() -> String {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: NVRTC is there, which the callers checked, and both are written where they may be.
    let _ = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    format!("{major}.{minor}")
}

fn options(unit: Unit, architecture: Architecture) -> Vec<String> {
    let mut options = unit.defines();
    options.push(format!("--gpu-architecture={architecture}"));
    options.push("--std=c++17".into());
    options.push("--ptxas-options=-v".into());
    options
}
