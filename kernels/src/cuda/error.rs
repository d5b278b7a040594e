//! Why an operation cannot run on a GPU.

use thiserror::Error;

use crate::ShapeError;

/// Why an operation cannot run on a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CudaError {
    /// A library is not on this machine.
    #[error("{what} is missing: {how}")]
    Missing {
        /// The library.
        what: &'static str,
        /// How to get it.
        how: &'static str,
    },
    /// No kernels are made for such a GPU.
    #[error(
        "the GPU has compute capability {major}.{minor}, but kernels are made for 7.5, 8, 9, 10.x and 12.x: choose another GPU"
    )]
    Architecture {
        /// Before the point.
        major: u32,
        /// Behind it.
        minor: u32,
    },
    /// NVRTC refused a kernel: a bug, or an NVRTC older than 12.
    #[error("NVRTC {version} cannot compile {unit} ({code}): {log}")]
    Compile {
        /// Which kernels.
        unit: String,
        /// NVRTC's version.
        version: String,
        /// NVRTC's name of the error.
        code: String,
        /// What it printed.
        log: String,
    },
    /// The driver refused.
    #[error("the driver failed to {operation}: {code} ({text})")]
    Driver {
        /// What was tried.
        operation: &'static str,
        /// The driver's name of the error.
        code: String,
        /// The driver's explanation.
        text: String,
    },
    /// cuBLAS refused.
    #[error("cuBLAS failed to {operation}: {code}")]
    Blas {
        /// What was tried.
        operation: &'static str,
        /// Its name of the error.
        code: String,
    },
    /// A region is smaller than what the shapes call for.
    #[error("{what} has {found} bytes, but the shapes call for {needed}: give a larger region")]
    Small {
        /// The argument.
        what: &'static str,
        /// What the shapes call for.
        needed: u64,
        /// What was given.
        found: u64,
    },
    /// Arguments that do not fit each other.
    #[error(transparent)]
    Shape(#[from] ShapeError),
}
