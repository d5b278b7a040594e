//! The same operations on a GPU, compiled for it when they are first used.
//!
//! Rows of activations are fp16 between operations; every sum is kept in `f32`; logits are `f32`.
//! Weights and caches are stored as on the CPU, in every format but fp32.
//!
//! Launches are asynchronous and allocate nothing: what an operation needs beside its operands is its
//! `spare` memory, and a function ending in `_spare` says how much. Operands may lie at any address; those
//! at multiples of 16 are read fastest.
//!
//! # The order of sums
//!
//! It depends on shapes, formats and the size of the spare memory, never on timing: no sum is made by
//! atomic additions. The same operation on the same numbers gives the same bits, wherever the operands
//! lie. Products of many rows are the exception to the last point: cuBLAS is asked only where every
//! operand lies at a multiple of 16.
//!
//! # Threads and streams
//!
//! The context that [`Kernels::load`] found current must be current on every thread that launches.
//! Products of many rows share cuBLAS's scratch, so they must not overlap on two streams.
//!
//! From Hopper on a kernel starts while the one before it in the stream ends, and a product of few rows reads
//! its first weights before it waits for that. So weights come from a copy, or from a kernel that something
//! other than a kernel follows in the stream.

#![allow(unsafe_code, reason = "the driver, NVRTC and cuBLAS are C interfaces")]

mod activation;
mod architecture;
mod attention;
mod blas;
mod compile;
mod copy;
mod embedding;
mod error;
mod launch;
mod linear;
mod norm;
mod operand;
mod router;
mod sample;
mod unit;

use std::collections::BTreeMap;
use std::sync::Mutex;

pub use activation::Activation;
pub use architecture::Architecture;
pub use attention::{Append, Attention};
pub use compile::{Compiled, compile};
pub use error::CudaError;
pub use launch::MOST_ACROSS;
pub use linear::{Linear, Out, Then};
pub use norm::Turn;
pub use operand::{DeviceCache, DeviceMatrix, DeviceVector, Region};
pub use unit::Unit;

use crate::format::Format;

/// A stream of the driver. Raw, because streams of green contexts have no safe type.
pub type Stream = cudarc::driver::sys::CUstream;

/// The kernels of one context, and the cuBLAS handle where there is one.
#[derive(Debug)]
pub struct Kernels {
    architecture: Architecture,
    multiprocessors: u32,
    loaded: Mutex<BTreeMap<Unit, launch::Loaded>>,
    blas: Option<Mutex<blas::Blas>>,
}

impl Kernels {
    /// Kernels for the context that is current on this thread.
    ///
    /// `multiprocessors` are those that kernels run on, all of the device's or fewer: products are cut into blocks
    /// that keep them busy. No result depends on them.
    ///
    /// `scratch_for_cublas` is all the memory that cuBLAS may use; 32 MiB is what it wants on recent
    /// GPUs, and it must not be freed before the kernels are. Nothing is compiled yet: the first use of
    /// each kernel does that, or [`Kernels::prepare`].
    pub fn load(
        architecture: Architecture,
        multiprocessors: u32,
        scratch_for_cublas: Region,
    ) -> Result<Self, CudaError> {
        launch::driver_present()?;
        compile::nvrtc_present()?;
        let blas = blas::Blas::new(scratch_for_cublas)?.map(Mutex::new);
        Ok(Self { architecture, multiprocessors, loaded: Mutex::default(), blas })
    }

    /// Compiles and loads everything that a model with such weights, cache and heads may use, so that no
    /// launch has to. What was compiled before comes from the disk.
    pub fn prepare(
        &self,
        weights: &[Format],
        cache: Format,
        head_dim: usize,
    ) -> Result<(), CudaError> {
        let units = Unit::SMALL.into_iter().chain(weights.iter().map(|&f| Unit::Linear(f)));
        let wide = Unit::attention(cache, head_dim, true)?;
        let narrow = Unit::attention(cache, head_dim, false)?;
        units.chain([wide, narrow]).try_for_each(|unit| self.load_unit(unit))
    }

    /// Whether products of many rows can use cuBLAS.
    pub fn has_cublas(&self) -> bool {
        self.blas.is_some()
    }
}
