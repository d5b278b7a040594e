//! Random numbers for a GPU to work on while it is measured.

#![allow(unsafe_code, reason = "copies to a GPU are calls of a C interface")]

use pipo_kernels::cuda::Region;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;

use super::super::ProfileError;
use crate::cuda::driver::Stream;
use crate::disk::AlignedBuf;
use crate::executor::Fault;
use crate::store::in_memory;

/// Bytes of which what is filled is copies.
const PIECE: usize = 64 << 20;

/// Fills memory with random numbers: every 16 bits are a normal number between 2^-5 and 2^-1 of either sign,
/// whose products are those of real weights. On equal numbers a GPU draws less power, and is a sixth faster.
pub(super) fn scatter(stream: &Stream, region: Region) -> Result<(), ProfileError> {
    let mut piece = AlignedBuf::zeroed(PIECE).ok_or(ProfileError::Memory(PIECE))?;
    let mut random = Pcg64::seed_from_u64(0);
    for number in piece.as_chunks_mut::<2>().0 {
        let bits = random.next_u32();
        let exponent = 10 + (bits >> 16) % 4;
        let [low, high, ..] = (bits & 0x83ff | exponent << 10).to_le_bytes();
        *number = [low, high];
    }
    let mut at = 0;
    while at < region.bytes() {
        let now = (region.bytes() - at).min(PIECE as u64);
        let to = region.slice(at, now).map_err(Fault::from)?;
        // SAFETY: the piece outlives the copies, which are waited for below; where one cannot be queued, the
        // driver has copied such memory before the call before it returned.
        unsafe { stream.upload(&piece[..in_memory(now)], to) }?;
        at += now;
    }
    Ok(stream.synchronise()?)
}
