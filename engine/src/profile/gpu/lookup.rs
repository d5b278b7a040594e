//! Lookups of embedded rows by the host, on their way to a GPU.

use std::time::{Duration, Instant};

use pipo_kernels::{Format, Matrix, embedding, format::matrix_bytes};
use pipo_plan::units::Bytes;
use rayon::prelude::*;

use super::super::ProfileError;
use super::super::sampling::{Middle, Sampler};
use crate::disk::AlignedBuf;
use crate::store::in_memory;

/// How long cores are left alone before they have to look something up: longer than they stay awake for
/// more, about a step of decode.
const ASLEEP: Duration = Duration::from_millis(4);

/// Rows of a 4-bit embedding that lie far apart, by all cores in pieces: many of them, and a few.
pub(super) fn gather(sampler: &mut Sampler) -> Result<((Bytes, Middle), Middle), ProfileError> {
    let (rows, outputs, inputs) = (4096_u32, 50_272_u32, 4096);
    let bytes = matrix_bytes(Format::Int4, u64::from(outputs), inputs as u64).unwrap_or(u64::MAX);
    let bytes = in_memory(bytes);
    let mut table = AlignedBuf::zeroed(bytes).ok_or(ProfileError::Memory(bytes))?;
    table.fill(0x20);
    let table = Matrix::new(Format::Int4, outputs as usize, inputs, &table)?;
    let tokens: Vec<u32> = (0..rows).map(|row| row * 1571 % outputs).collect();
    let mut stored = vec![0; 2 * inputs * tokens.len()];
    let mut look_up = |count: usize, piece: usize| {
        let pieces = tokens[..count].par_chunks(piece);
        pieces.zip(stored.par_chunks_mut(piece * 2 * inputs)).try_for_each(|(tokens, stored)| {
            let mut rows = vec![0.0; tokens.len() * inputs];
            embedding::lookup(&table, tokens, &mut rows)?;
            crate::half::round(&mut rows);
            crate::half::store(&rows, stored);
            Ok::<(), ProfileError>(())
        })
    };
    let size = format!("{rows} x {inputs} on all cores");
    let many = sampler.time("host.gather", &size, || look_up(tokens.len(), 64))?;
    let few = sampler.measure("software.lookup", &format!("8 x {inputs} on all cores"), || {
        std::thread::sleep(ASLEEP);
        let start = Instant::now();
        look_up(8, 1)?;
        Ok::<_, ProfileError>(start.elapsed())
    })?;
    Ok(((Bytes(2 * u64::from(rows) * inputs as u64), many), few))
}
