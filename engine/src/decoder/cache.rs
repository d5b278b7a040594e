//! Keys and values of one sequence in one layer, in single precision.

use pipo_kernels::{Format, Matrix, ShapeError};

/// Keys and values of one sequence in one layer.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    keys: Vec<u8>,
    values: Vec<u8>,
    /// Numbers of one position: kv heads times head dimension.
    width: usize,
    positions: usize,
}

impl Cache {
    /// An empty cache of `width` numbers a position.
    pub fn new(width: usize) -> Self {
        Self { width, ..Self::default() }
    }

    /// How many positions it holds.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Adds positions: both are rows of the cache's width.
    pub fn append(&mut self, keys: &[f32], values: &[f32]) {
        let bytes =
            |numbers: &[f32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>();
        self.keys.extend(bytes(keys));
        self.values.extend(bytes(values));
        self.positions += keys.len() / self.width.max(1);
    }

    /// Keys and values, a row for each of the `heads` of a position.
    pub fn matrices(&self, heads: usize) -> Result<(Matrix<'_>, Matrix<'_>), ShapeError> {
        let (rows, width) = (self.positions * heads, self.width / heads.max(1));
        let matrix = |bytes| Matrix::new(Format::Fp32, rows, width, bytes);
        Ok((matrix(&self.keys)?, matrix(&self.values)?))
    }
}
