//! NVRTC from a folder.

use std::path::PathBuf;

/// Loads NVRTC from the folder that `PIPO_NVRTC_DIR` names, for good, so that it is found by its name
/// afterwards; or says why not.
pub(crate) fn preload() -> Result<(), String> {
    let folder = std::env::var_os("PIPO_NVRTC_DIR").ok_or("PIPO_NVRTC_DIR is not set")?;
    // The second needs the first, and does not look for it beside itself.
    for name in ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"] {
        let path = PathBuf::from(&folder).join(name);
        // SAFETY: NVIDIA's libraries start nothing when they are loaded.
        let library = unsafe { libloading::Library::new(&path) };
        std::mem::forget(library.map_err(|error| format!("{}: {error}", path.display()))?);
    }
    Ok(())
}
