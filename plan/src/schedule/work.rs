//! What an operation costs, stated without a machine: bytes, shapes and ways of moving.

use std::collections::BTreeMap;

use crate::model::Precision;
use crate::units::Bytes;

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiskIo {
    /// `O_DIRECT`: past the page cache, at the depth the profile was measured with.
    Direct,
    /// Ordinary reads through the page cache.
    Buffered,
    /// The same by two threads that take blocks of one file in turn.
    BufferedPair,
    /// The same by more than two.
    BufferedInTurn,
    /// A memory map touched page by page by one thread.
    PageFault,
}

impl DiskIo {
    /// Every way.
    pub const ALL: [Self; 5] =
        [Self::Direct, Self::Buffered, Self::BufferedPair, Self::BufferedInTurn, Self::PageFault];
}

/// A read is checked against checksums in pieces of so many bytes, each while the next one is read: whole
/// requests, and as many of them as one checksum covers (4 MiB), so that handing a piece on costs little
/// beside it.
pub fn checked_at_once(request: Bytes) -> Bytes {
    const COVERED: u64 = 4 << 20;
    Bytes(request.0.saturating_mul((COVERED / request.0.max(1)).max(1)))
}

/// What kind of host memory a copy engine meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostMemory {
    /// Page-locked: one asynchronous transfer.
    Pinned,
    /// Ordinary: the driver stages it through a small pinned buffer, synchronously.
    Pageable,
}

/// A matrix product `rows x inputs` by `inputs x outputs`, `copies` of them (experts).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Linear {
    /// Rows of the activation, for each copy.
    pub rows: u64,
    /// Output features.
    pub outputs: u64,
    /// Input features.
    pub inputs: u64,
    /// Independent products of this shape.
    pub copies: u32,
    /// Rows of each copy where every expert works on every row, as on pipo's CUDA backend.
    pub all_rows: u64,
    /// And the copies there.
    pub all_copies: u32,
    /// How the weights are stored.
    pub precision: Precision,
    /// Whether dequantisation happens inside the product; where not, a 16-bit copy is written first.
    pub fused: bool,
    /// Whether pipo's CUDA backend computes few rows of it in one launch with the product before.
    pub joined: bool,
    /// Numbers beside each row of the result that the same backend may overwrite meanwhile.
    pub beside: u64,
}

/// How pipo's CUDA backend computes a product (`kernels/src/cuda/linear.rs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Weights are decoded in registers, for so many rows at a time as that is made for.
    InRegisters,
    /// By cuBLAS, so many outputs at a time: as there is room for when they are decoded.
    Tiles(u64),
}

/// Outputs of a tile, and results of it, that are worth a product of its own.
const TILE: u64 = 256;
const RESULTS: u64 = 1 << 19;

impl Linear {
    /// What pipo's CUDA backend computes: which rows go to which expert is known on the device alone, so each
    /// expert works on all of them (`engine/src/cuda/mixture.rs`).
    #[must_use]
    pub fn on_all_rows(&self) -> Self {
        Self { rows: self.all_rows, copies: self.all_copies, ..*self }
    }

    /// Rows for which weights are best decoded in registers.
    pub fn few(precision: Precision) -> u64 {
        match precision {
            Precision::Fp16 => 16,
            Precision::Bf16 => 48,
            Precision::Int8 | Precision::Int4 => 64,
        }
    }

    /// How pipo's CUDA backend computes it where weights are stored like this.
    pub fn way(&self, precision: Precision) -> Way {
        let whole = self.inputs.is_multiple_of(8) && self.outputs.is_multiple_of(8);
        if self.rows <= Self::few(precision) || !whole {
            return Way::InRegisters;
        }
        let room = self.rows.saturating_mul(self.beside) / self.inputs.max(1) / 128 * 128;
        if precision == Precision::Fp16 || room >= self.outputs {
            return Way::Tiles(self.outputs);
        }
        let worth = room >= TILE && room.saturating_mul(self.rows) >= RESULTS;
        if worth { Way::Tiles(room) } else { Way::InRegisters }
    }

    /// How it is multiplied there: decoded weights are 16 bits where that is not part of the product.
    pub fn way_as_planned(&self) -> Way {
        self.way(if self.fused { self.precision } else { Precision::Fp16 })
    }

    /// Launches that it is there, but for what follows its result.
    pub fn launches(&self) -> u32 {
        let decodes = u32::from(self.precision.is_quantised());
        let one = match self.way_as_planned() {
            // A decoded copy is overwritten by the next: those products stay apart.
            _ if !self.fused => 1 + decodes,
            Way::InRegisters => u32::from(!self.joined),
            Way::Tiles(outputs) => {
                let tiles = self.outputs.div_ceil(outputs.max(1));
                u32::try_from(tiles).unwrap_or(u32::MAX).saturating_mul(1 + decodes)
            }
        };
        one.saturating_mul(self.copies)
    }
}

/// Causal attention of `rows` new positions of each sequence over `context` positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attention {
    /// Sequences in the micro-batch.
    pub sequences: u64,
    /// New positions of each sequence.
    pub rows: u64,
    /// Positions attended to by any of the rows, the last row included.
    pub context: u64,
    /// Positions that one row sees at most, itself included; all up to it where there is no window.
    pub window: Option<u64>,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Features of one head.
    pub head_dim: u64,
    /// How the cache is stored.
    pub precision: Precision,
    /// Whether a quantised cache is read directly; where not, a 16-bit copy is written first.
    pub fused: bool,
}

impl Attention {
    /// Query-key pairs: row `i` of `rows` sees `context - rows + i + 1` positions, or its window.
    pub fn pairs(&self) -> u64 {
        let before = self.context.saturating_sub(self.rows);
        let window = self.window.unwrap_or(u64::MAX);
        // The first rows see one more position each, until they see all of the window.
        let growing = window.saturating_sub(before).min(self.rows);
        let triangle = growing.saturating_mul(growing.saturating_add(1)) / 2;
        let seen = growing.saturating_mul(before).saturating_add(triangle);
        let full = (self.rows - growing).saturating_mul(window);
        self.sequences.saturating_mul(seen.saturating_add(full))
    }

    /// Two products (scores, values) of two operations for each pair and feature.
    pub fn flops(&self) -> u64 {
        let features = self.heads.saturating_mul(self.head_dim).saturating_mul(4);
        features.saturating_mul(self.pairs())
    }

    /// Cache bytes read: every position once for each sequence.
    pub fn cache_bytes(&self) -> Bytes {
        let positions = self.sequences.saturating_mul(self.context);
        let vectors = self.kv_heads.saturating_mul(positions).saturating_mul(2);
        self.precision.matrix_bytes(vectors, self.head_dim)
    }
}

/// The arithmetic of one unit for one micro-batch (and one chunk of its prompt).
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Compute {
    /// Matrix products, in order.
    pub linears: Vec<Linear>,
    /// Attention over the cache, where the unit has it.
    pub attention: Option<Attention>,
    /// Bytes moved by norms, residuals, rotary embedding and lookups, of about one pass over each product.
    pub elementwise: Bytes,
    /// The same on pipo's CUDA backend, as its kernels move them.
    pub passes: Bytes,
    /// Bytes of host memory that kernels read across the link.
    pub mapped: Bytes,
    /// Kernels launched by a system that launches one for each operation.
    pub launches: u32,
    /// Launches of pipo's CUDA backend, which joins some.
    pub joined_launches: u32,
}

/// One thing to be paid for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Work {
    /// Read `bytes` of a file in requests of `request` bytes.
    DiskRead {
        /// Bytes read.
        bytes: Bytes,
        /// Size of one request.
        request: Bytes,
        /// How.
        io: DiskIo,
        /// Whether it begins where the read before it in the file did not end. What a page cache reads ahead is then
        /// of no use, and reading ahead begins anew.
        jumps: bool,
    },
    /// Write `bytes` to a file in requests of `request` bytes.
    DiskWrite {
        /// Bytes written.
        bytes: Bytes,
        /// Size of one request.
        request: Bytes,
    },
    /// Copy within host memory by one thread.
    HostCopy {
        /// Bytes copied.
        bytes: Bytes,
    },
    /// Copy to the GPU.
    H2d {
        /// Bytes copied.
        bytes: Bytes,
        /// From what memory.
        memory: HostMemory,
    },
    /// Copy from the GPU.
    D2h {
        /// Bytes copied.
        bytes: Bytes,
        /// To what memory.
        memory: HostMemory,
    },
    /// Read a file into GPU memory without a host buffer.
    DiskToGpu {
        /// Bytes read.
        bytes: Bytes,
    },
    /// Expand compressed weights on the GPU.
    Decompress {
        /// Bytes read.
        compressed: Bytes,
        /// Bytes written.
        dense: Bytes,
    },
    /// Arithmetic on the GPU.
    Gpu(Compute),
    /// Arithmetic on the CPU.
    Cpu(Compute),
    /// Look up embedding rows on the CPU.
    Gather {
        /// Bytes of the rows.
        bytes: Bytes,
    },
    /// A global synchronisation.
    Barrier,
}

impl Work {
    /// Bytes moved between tiers, or zero for arithmetic.
    pub fn bytes(&self) -> Bytes {
        match self {
            Self::DiskRead { bytes, .. }
            | Self::DiskWrite { bytes, .. }
            | Self::HostCopy { bytes }
            | Self::H2d { bytes, .. }
            | Self::D2h { bytes, .. }
            | Self::DiskToGpu { bytes }
            | Self::Gather { bytes } => *bytes,
            Self::Decompress { dense, .. } => *dense,
            Self::Gpu(_) | Self::Cpu(_) | Self::Barrier => Bytes::ZERO,
        }
    }
}

/// Index into a [`WorkTable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkId(pub u32);

/// Distinct works, each stored and costed once however many operations share it.
#[derive(Debug, Clone, Default)]
pub struct WorkTable {
    works: Vec<Work>,
    ids: BTreeMap<Work, WorkId>,
}

impl WorkTable {
    /// The id of a work, new or known.
    pub fn intern(&mut self, work: Work) -> WorkId {
        if let Some(&id) = self.ids.get(&work) {
            return id;
        }
        let id = WorkId(u32::try_from(self.works.len()).unwrap_or(u32::MAX));
        self.works.push(work.clone());
        self.ids.insert(work, id);
        id
    }

    /// The works in order of their ids.
    pub fn as_slice(&self) -> &[Work] {
        &self.works
    }
}

impl std::ops::Index<WorkId> for WorkTable {
    type Output = Work;
    fn index(&self, id: WorkId) -> &Work {
        &self.works[id.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_sees_all_up_to_it_or_its_window() {
        for window in [None, Some(1), Some(5), Some(16), Some(40)] {
            let seen = |position: u64| position.min(window.unwrap_or(position));
            for (rows, context) in [(1, 1), (1, 30), (7, 30), (30, 30), (12, 13)] {
                // What lies before all of the rows' windows is left out of what they attend to.
                let touched = window.map_or(context, |window| context.min(window + rows - 1));
                let attention = Attention {
                    sequences: 3,
                    rows,
                    context: touched,
                    window,
                    heads: 1,
                    kv_heads: 1,
                    head_dim: 1,
                    precision: Precision::Fp16,
                    fused: true,
                };
                let pairs: u64 = (context - rows + 1..=context).map(seen).sum();
                assert_eq!(attention.pairs(), 3 * pairs, "{rows} of {context}, {window:?}");
            }
        }
    }
}
