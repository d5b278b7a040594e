//! What the fast versions run on: a set of vector instructions and a pool of threads.

use crate::pool::Pool;
use crate::simd::portable::Portable;
use crate::simd::{Job, Simd};
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx2::Avx2, avx512::Avx512};

/// A set of vector instructions. Results are the same in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// What every machine has. Slow where a fused multiply-add is not in hardware.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512F.
    Avx512,
}

/// The same, with the proof that this machine has it.
#[derive(Debug, Clone, Copy)]
enum Proved {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Proved {
    fn new(level: Level) -> Option<Self> {
        match level {
            Level::Portable => Some(Self::Portable(Portable)),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Avx2::detect().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => Avx512::detect().map(Self::Avx512),
            #[cfg(not(target_arch = "x86_64"))]
            _ => None,
        }
    }
}

/// What the fast versions run on.
#[derive(Debug)]
pub struct Cpu {
    proved: Proved,
    pool: Pool,
}

impl Cpu {
    /// The widest vectors of this machine, and a pool of `threads` threads, the caller's included.
    pub fn new(threads: usize) -> Self {
        let widest = [Level::Avx512, Level::Avx2].into_iter().find_map(Proved::new);
        let proved = widest.unwrap_or(Proved::Portable(Portable));
        Self { proved, pool: Pool::new(threads) }
    }

    /// Chosen vectors; `None` where this machine has not got them.
    pub fn with_level(level: Level, threads: usize) -> Option<Self> {
        Some(Self { proved: Proved::new(level)?, pool: Pool::new(threads) })
    }

    /// The vectors in use.
    pub fn level(&self) -> Level {
        match self.proved {
            Proved::Portable(_) => Level::Portable,
            #[cfg(target_arch = "x86_64")]
            Proved::Avx2(_) => Level::Avx2,
            #[cfg(target_arch = "x86_64")]
            Proved::Avx512(_) => Level::Avx512,
        }
    }

    /// The threads in use.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Runs a job on the calling thread, compiled for this machine.
    pub(crate) fn run<J: Job>(&self, job: J) -> J::Out {
        match self.proved {
            Proved::Portable(simd) => simd.enter(job),
            #[cfg(target_arch = "x86_64")]
            Proved::Avx2(simd) => simd.enter(job),
            #[cfg(target_arch = "x86_64")]
            Proved::Avx512(simd) => simd.enter(job),
        }
    }
}
