//! What stands between products, number by number.

use super::launch::Launch;
use super::operand::{DeviceVector, Region};
use super::unit::{Unit, int};
use super::{CudaError, Kernels, Stream};

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// [`crate::activation::relu`].
    Relu,
    /// [`crate::activation::gelu_tanh`].
    GeluTanh,
}

impl Activation {
    /// Its number in the kernels.
    pub(super) fn code(self) -> i32 {
        match self {
            Self::Relu => 1,
            Self::GeluTanh => 2,
        }
    }
}

/// Blocks of a kernel whose threads have eight columns each, and four rows as long as there are not too many.
pub(super) fn by_columns(rows: usize, width: usize) -> [usize; 3] {
    [width.div_ceil(2048), rows.div_ceil(4).min(65535), 1]
}

impl Kernels {
    /// Applies a function to `count` fp16 numbers in place.
    pub fn activate(
        &self,
        stream: Stream,
        kind: Activation,
        x: Region,
        count: usize,
    ) -> Result<(), CudaError> {
        x.holds("x", &[count], 2)?;
        let name = match kind {
            Activation::Relu => "relu",
            Activation::GeluTanh => "gelu_tanh",
        };
        self.each(stream, Unit::Activation, name, count, &[x.address(), count as u64])
    }

    /// [`crate::activation::silu_gated`] of `count` fp16 numbers, in place in `gate`.
    pub fn gated_silu(
        &self,
        stream: Stream,
        gate: Region,
        up: Region,
        count: usize,
    ) -> Result<(), CudaError> {
        gate.holds("the gate", &[count], 2)?;
        up.holds("up", &[count], 2)?;
        let arguments = [gate.address(), up.address(), count as u64];
        self.each(stream, Unit::Activation, "silu_gated", count, &arguments)
    }

    /// `a += b` for `count` fp16 numbers.
    pub fn add(&self, stream: Stream, a: Region, b: Region, count: usize) -> Result<(), CudaError> {
        a.holds("a", &[count], 2)?;
        b.holds("b", &[count], 2)?;
        let arguments = [a.address(), b.address(), count as u64];
        self.each(stream, Unit::Residual, "add", count, &arguments)
    }

    /// Adds a bias to every row of `x`, fp16, rows x the bias's length, in place.
    pub fn add_bias(
        &self,
        stream: Stream,
        x: Region,
        rows: usize,
        bias: &DeviceVector,
    ) -> Result<(), CudaError> {
        self.add_bias_then(stream, x, rows, bias, None)
    }

    /// The same, and a function of the sum, rounded between.
    pub(super) fn add_bias_then(
        &self,
        stream: Stream,
        x: Region,
        rows: usize,
        bias: &DeviceVector,
        then: Option<Activation>,
    ) -> Result<(), CudaError> {
        let width = bias.length();
        x.holds("x", &[rows, width], 2)?;
        let grid = by_columns(rows, width);
        let launch = Launch { unit: Unit::Residual, name: "add_bias", grid, threads: 256 };
        let arguments = [
            x.address(),
            bias.region().address(),
            bias.kind(),
            int("the rows", rows)?,
            int("the width", width)?,
            u64::from(then.map_or(0, Activation::code).cast_unsigned()),
        ];
        self.launch(stream, launch, &arguments)
    }

    /// Eight numbers a thread.
    fn each(
        &self,
        stream: Stream,
        unit: Unit,
        name: &'static str,
        count: usize,
        arguments: &[u64],
    ) -> Result<(), CudaError> {
        let launch = Launch { unit, name, grid: [count.div_ceil(2048), 1, 1], threads: 256 };
        self.launch(stream, launch, arguments)
    }
}
