//! Attention over a cache in host memory, by the CPU.

use pipo_kernels::Matrix;
use pipo_kernels::format::Layout;

use super::Host;
use crate::decoder::Decoder;
use crate::executor::Fault;
use crate::half;

impl Host<'_> {
    /// Attention of rows from position `first` on, of every sequence over its part of a buffer. What was
    /// attended is rounded, because it may have to travel.
    pub(crate) fn attend(
        &self,
        decoder: &Decoder,
        queries: &[f32],
        buffer: &[u8],
        first: usize,
    ) -> Result<Vec<f32>, Fault> {
        let shape = self.shape(buffer.len())?;
        let Layout { format, outputs, inputs, .. } = shape.plane;
        let each = (queries.len() / self.micro()).max(1);
        let mut attended = Vec::with_capacity(queries.len());
        let buffers = buffer.chunks_exact(2 * shape.plane());
        for (queries, buffer) in queries.chunks(each).zip(buffers) {
            let (keys, values) = buffer.split_at(shape.plane());
            let keys = Matrix::new(format, outputs, inputs, keys)?;
            let values = Matrix::new(format, outputs, inputs, values)?;
            attended.extend(decoder.attend(queries, first, &keys, &values)?);
        }
        half::round(&mut attended);
        Ok(attended)
    }
}
