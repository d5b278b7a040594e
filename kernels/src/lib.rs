//! Every operation of a decoder, once as a reference that is easy to believe and, where it pays, once
//! as a fast version for the CPU.
//!
//! The GPU's version is the `.cu` file beside a reference, and is launched through [`cuda`].
//!
//! This crate holds no policy: it knows neither models nor plans. On the CPU numbers between operations are `f32`;
//! weights and caches are stored in a [`format::Format`].
//!
//! # The order of sums
//!
//! An offloaded run must equal a resident one bit for bit, however its weights were cut into tiles and
//! however many threads computed them. So a sum never depends on the number of rows, on threads, or on
//! how a matrix is split by outputs:
//!
//! - A dot product keeps sixteen partial sums. Term `i` is added to partial sum `i % 16`, in rising
//!   order of `i`, by one fused multiply-add. The sixteen are then added in a fixed tree:
//!   `s[i] + s[i + 8]`, then `+ 4`, `+ 2`, `+ 1`.
//! - Attention visits positions in rising order, in blocks that start at multiples of a fixed number
//!   of positions counted from the start of the sequence.
//!
//! A fused multiply-add is rounded once wherever it is computed, so the portable, AVX2 and AVX-512
//! versions agree in every bit; tests hold them to it. The exponential function is our own for the same
//! reason; sines and cosines of the rotation come from the system's mathematics library.
//!
//! # Tolerance
//!
//! Against sums in `f64`, a dot product of `n` terms is off by at most
//! `(n / 16 + 8) * 2^-24 * sum |x[i] * w[i]|`: `n / 16` roundings in a partial sum, four in the tree, and
//! the rest for scale, bias and the tail.

pub mod activation;
pub mod attention;
pub mod cpu;
pub mod cuda;
pub mod embedding;
pub mod error;
mod exponential;
pub mod format;
pub mod linear;
pub mod norm;
pub mod pool;
pub mod residual;
pub mod rotary;
pub mod router;
pub mod sample;
mod simd;

pub use cpu::{Cpu, Level};
pub use error::ShapeError;
pub use format::{Format, Matrix};
