//! The products of many rows, by cuBLAS.

use std::ptr;

use cudarc::cublas::sys::{self, cublasStatus_t};

use super::{CudaError, Region, Stream};

/// A handle of cuBLAS.
#[derive(Debug)]
pub(super) struct Blas {
    handle: sys::cublasHandle_t,
    scratch: Region,
}

// SAFETY: a handle may be used by any thread, one at a time, which the lock around it ensures.
unsafe impl Send for Blas {}

/// `out = x * weights^T + keep * out`: fp16 operands, sums in `f32`, no padding between rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub(super) x: u64,
    pub(super) weights: u64,
    pub(super) out: u64,
    pub(super) rows: usize,
    /// Outputs that are computed.
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// From one row of `out` to the next.
    pub(super) stride: usize,
    /// Whether `out` is fp32.
    pub(super) wide: bool,
    /// Whether what `out` holds is added.
    pub(super) keep: bool,
}

impl Blas {
    /// A handle for the current context; `None` where the library is missing.
    pub(super) fn new(scratch: Region) -> Result<Option<Self>, CudaError> {
        // SAFETY: it only tries to open the library.
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        let mut handle = ptr::null_mut();
        // SAFETY: the handle is written where it may be.
        check("start", unsafe { sys::cublasCreate_v2(&raw mut handle) })?;
        Ok(Some(Self { handle, scratch }))
    }

    /// Queues a product on a stream.
    pub(super) fn multiply(&self, stream: Stream, product: Product) -> Result<(), CudaError> {
        use sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
        use sys::cudaDataType_t::{CUDA_R_16F, CUDA_R_32F};
        let Product { x, weights, out, rows, outputs, inputs, stride, wide, keep } = product;
        let size = |size: usize| {
            let what = "a product";
            i32::try_from(size).map_err(|_| crate::ShapeError::TooLarge { what })
        };
        let (rows, outputs) = (size(rows)?, size(outputs)?);
        let (inputs, stride) = (size(inputs)?, size(stride)?);
        let (one, beta) = (1.0_f32, if keep { 1.0_f32 } else { 0.0 });
        // SAFETY: the handle is alive. Choosing a stream makes cuBLAS forget its scratch, so that is
        // given each time.
        unsafe {
            check("take a stream", sys::cublasSetStream_v2(self.handle, stream.cast()))?;
            let (scratch, bytes) = (self.scratch.address(), self.scratch.bytes());
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            let scratch = ptr::without_provenance_mut(usize::try_from(scratch).unwrap_or(0));
            check("take scratch", sys::cublasSetWorkspace_v2(self.handle, scratch, bytes))?;
        }
        let pointer =
            |address: u64| ptr::without_provenance_mut(usize::try_from(address).unwrap_or(0));
        let out_type = if wide { CUDA_R_32F } else { CUDA_R_16F };
        // SAFETY: the caller checked that all three hold what the shapes call for. cuBLAS counts
        // columns first, so rows of ours are columns of its, and it computes out^T = weights * x^T.
        let status = unsafe {
            sys::cublasGemmEx(
                self.handle,
                CUBLAS_OP_T,
                CUBLAS_OP_N,
                outputs,
                rows,
                inputs,
                ptr::from_ref(&one).cast(),
                pointer(weights),
                CUDA_R_16F,
                inputs,
                pointer(x),
                CUDA_R_16F,
                inputs,
                ptr::from_ref(&beta).cast(),
                pointer(out),
                out_type,
                stride,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        check("multiply", status)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: the handle is alive and not used any more.
        let _ = unsafe { sys::cublasDestroy_v2(self.handle) };
    }
}

fn check(operation: &'static str, status: cublasStatus_t) -> Result<(), CudaError> {
    if status == cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        Ok(())
    } else {
        Err(CudaError::Blas { operation, code: format!("{status:?}") })
    }
}
