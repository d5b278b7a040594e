//! Attention over a cache in host memory, by the CPU.

use pipo_kernels::attention::caches;

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
        let mut attended = vec![0.0; queries.len()];
        self.attend_into(decoder, queries, buffer, first, &mut attended)?;
        half::round(&mut attended);
        Ok(attended)
    }

    /// The same as it is, into memory that is there.
    pub(crate) fn attend_into(
        &self,
        decoder: &Decoder,
        queries: &[f32],
        buffer: &[u8],
        first: usize,
        out: &mut [f32],
    ) -> Result<(), Fault> {
        let shape = self.shape(buffer.len())?;
        let caches = caches(&shape.plane, buffer)?;
        decoder.attend(queries, first, &caches, out)
    }
}
