//! What operations work on: memory of the device, with or without a shape.

use super::CudaError;
use crate::error::{self, ShapeError};
use crate::format::{Format, Layout};

/// Memory of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    address: u64,
    bytes: u64,
}

impl Region {
    /// No memory at all.
    pub const EMPTY: Self = Self { address: 0, bytes: 0 };

    /// Memory from `address` on.
    ///
    /// # Safety
    ///
    /// It must be memory of the device, of the context that launches, until every launch that was given
    /// it has ended; and what one launch writes, no other work may use without waiting for it.
    pub const unsafe fn new(address: u64, bytes: u64) -> Self {
        Self { address, bytes }
    }

    /// Its first byte.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Its length.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A part of it.
    pub fn slice(&self, offset: u64, bytes: u64) -> Result<Self, CudaError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(Self { address: self.address + offset, bytes }),
            needed => {
                let needed = needed.unwrap_or(u64::MAX);
                Err(CudaError::Small { what: "the region", needed, found: self.bytes })
            }
        }
    }

    /// Checks that it holds `factors` multiplied elements of `size` bytes.
    pub(super) fn holds(
        &self,
        what: &'static str,
        factors: &[usize],
        size: usize,
    ) -> Result<(), CudaError> {
        let needed = error::product(what, factors)?;
        let needed = error::product(what, &[needed, size])? as u64;
        if needed <= self.bytes {
            Ok(())
        } else {
            Err(CudaError::Small { what, needed, found: self.bytes })
        }
    }

    /// Whether it starts at a multiple of 16 bytes.
    pub(super) fn aligned(&self) -> bool {
        self.address.is_multiple_of(16)
    }
}

/// A stored matrix on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMatrix {
    layout: Layout,
    region: Region,
    made_by_kernel: bool,
}

impl DeviceMatrix {
    /// Reads a region as a matrix; an error unless it has exactly the bytes that one takes. They come from a copy,
    /// which the stream waits for.
    pub fn new(
        format: Format,
        outputs: usize,
        inputs: usize,
        region: Region,
    ) -> Result<Self, CudaError> {
        let layout = Layout::new(format, outputs, inputs)?;
        let (needed, found) = (layout.bytes() as u64, region.bytes);
        if found < needed {
            return Err(CudaError::Small { what: "the matrix", needed, found });
        }
        error::length(
            "the bytes of the matrix",
            found.try_into().unwrap_or(usize::MAX),
            layout.bytes(),
        )?;
        device_format("the matrix", format)?;
        Ok(Self { layout, region, made_by_kernel: false })
    }

    /// The same, made by a kernel of the stream that reads it: [`Kernels::dequantise`](super::Kernels::dequantise)
    /// says so itself. Products read other matrices before earlier kernels have ended.
    #[must_use]
    pub fn made_by_kernel(self) -> Self {
        Self { made_by_kernel: true, ..self }
    }

    /// Whether it is.
    pub(super) fn is_made_by_kernel(&self) -> bool {
        self.made_by_kernel
    }

    /// Where its rows lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its memory.
    pub fn region(&self) -> Region {
        self.region
    }

    /// The address of its second plane.
    pub(super) fn scales(&self) -> u64 {
        self.region.address + (self.layout.weights_row * self.layout.outputs) as u64
    }
}

/// A vector of 16-bit numbers on the device: the weight of a norm, a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceVector {
    format: Format,
    length: usize,
    region: Region,
}

impl DeviceVector {
    /// Reads a region as a vector in fp16 or bf16.
    pub fn new(format: Format, length: usize, region: Region) -> Result<Self, CudaError> {
        if !matches!(format, Format::Fp16 | Format::Bf16) {
            let (what, rule) = ("the width of a vector's numbers in bits", "16: fp16 or bf16");
            let found = if format == Format::Fp32 { 32 } else { 8 };
            return Err(ShapeError::Rule { what, found, rule }.into());
        }
        region.holds("the vector", &[length], 2)?;
        Ok(Self { format, length, region })
    }

    /// How its numbers are stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Its numbers.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Its memory.
    pub fn region(&self) -> Region {
        self.region
    }

    /// 1 for bf16, as kernels take it.
    pub(super) fn kind(&self) -> u64 {
        u64::from(self.format == Format::Bf16)
    }
}

/// The cache of one layer for some sequences: for each sequence all keys, then all values, each a matrix
/// of (capacity x kv heads) x head dimension with its scales behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceCache {
    pub(super) plane: Layout,
    pub(super) sequences: usize,
    pub(super) capacity: usize,
    pub(super) kv_heads: usize,
    pub(super) region: Region,
}

impl DeviceCache {
    /// Reads the start of a region as a cache with room for `capacity` positions of each sequence.
    pub fn new(
        format: Format,
        sequences: usize,
        capacity: usize,
        kv_heads: usize,
        head_dim: usize,
        region: Region,
    ) -> Result<Self, CudaError> {
        device_format("the cache", format)?;
        let rows = error::product("the cache", &[capacity, kv_heads])?;
        let plane = Layout::new(format, rows, head_dim)?;
        region.holds("the cache", &[sequences, 2, plane.bytes()], 1)?;
        Ok(Self { plane, sequences, capacity, kv_heads, region })
    }

    /// Positions that it has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Its memory.
    pub fn region(&self) -> Region {
        self.region
    }
}

/// Fp32 is for checks on the CPU: no kernel reads it.
fn device_format(what: &'static str, format: Format) -> Result<(), ShapeError> {
    let rule = "at most 16 bits a number: fp16, bf16, int8 or int4";
    if format == Format::Fp32 { Err(ShapeError::Rule { what, found: 32, rule }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::{DeviceCache, DeviceMatrix, DeviceVector, Region};
    use crate::Format;

    #[test]
    fn sizes_are_checked() {
        // SAFETY: nothing is launched.
        let region = unsafe { Region::new(4096, 100) };
        assert_eq!(region.slice(40, 60).unwrap().address(), 4136);
        assert!(region.slice(41, 60).is_err());
        assert!(region.slice(u64::MAX, 2).is_err());
        assert!(DeviceMatrix::new(Format::Fp16, 10, 5, region).is_ok());
        assert!(DeviceMatrix::new(Format::Fp16, 10, 6, region).is_err());
        assert!(DeviceMatrix::new(Format::Fp16, 10, 4, region).is_err());
        assert!(DeviceMatrix::new(Format::Fp32, 5, 5, region).is_err());
        assert!(DeviceVector::new(Format::Bf16, 50, region).is_ok());
        assert!(DeviceVector::new(Format::Bf16, 51, region).is_err());
        assert!(DeviceVector::new(Format::Int8, 5, region).is_err());
        assert!(DeviceCache::new(Format::Int8, 1, 5, 1, 8, region).is_ok());
        assert!(DeviceCache::new(Format::Int8, 1, 5, 1, 9, region).is_err());
        assert!(DeviceCache::new(Format::Int4, usize::MAX, 5, 1, 9, region).is_err());
    }
}
