//! The space of plans: which values each knob may take.
//!
//! The knobs are searched together, because they compete for the same bytes: a third buffer is a
//! resident layer less. What is not a free choice is not a dimension: resident weights always fill what
//! the other knobs leave, and a knob without effect (a disk thread where nothing is on disk) keeps its
//! first value, so that no two candidates are the same plan in other words.

use pipo_plan::machine::Machine;
use pipo_plan::plan::Batching;
use pipo_plan::strategy::pipo::{Embedding, ExpertLoads, FileReads, HostWeights};
use pipo_plan::strategy::{Granularity, KvTier, Order, Processor};
use pipo_plan::units::Bytes;
use pipo_plan::workload::{Objective, Workload};

/// Where weights that are not on the GPU wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostChoice {
    /// In page-locked memory as far as the budget goes, the rest on disk.
    Pinned,
    /// In pageable memory as far as the budget goes, the rest on disk.
    Pageable,
    /// All on disk; host memory is left to the page cache.
    Disk,
}

impl HostChoice {
    /// The knob that says so; the kind of memory does not matter where there is none.
    pub(crate) fn memory(self) -> HostWeights {
        match self {
            Self::Pinned | Self::Disk => HostWeights::Pinned,
            Self::Pageable => HostWeights::Pageable,
        }
    }
}

/// The values that each knob of PIPO may take. The first of each list is the one kept where the knob has
/// no effect. An empty list means that there is no plan at all.
#[derive(Debug, Clone, PartialEq)]
pub struct Space {
    /// Sequences in one micro-batch, where the workload leaves the batch free.
    pub micro: Vec<u64>,
    /// Micro-batches that share each load of the weights.
    pub count: Vec<u64>,
    /// Most sequences, where the workload leaves the batch free.
    pub most_sequences: u64,
    /// Prompt positions worked on at once, beside the whole prompt.
    pub prefill_chunk: Vec<u64>,
    /// What is loaded and computed as one.
    pub granularity: Vec<Granularity>,
    /// GPU buffers for streamed units.
    pub gpu_slots: Vec<u32>,
    /// Host buffers of one block each.
    pub host_slots: Vec<u32>,
    /// Bytes moved by one transfer.
    pub block: Vec<Bytes>,
    /// Most blocks of one unit: smaller blocks are left out, because a unit in so many pieces overlaps
    /// its reads and its copies almost entirely already, and each piece costs a simulated operation.
    pub most_blocks: u64,
    /// Bytes of one disk request.
    pub read_block: Vec<Bytes>,
    /// Threads that read.
    pub disk_threads: Vec<u32>,
    /// How the weight file is read.
    pub reads: Vec<FileReads>,
    /// Which units stay first.
    pub order: Vec<Order>,
    /// Where the other weights wait.
    pub host: Vec<HostChoice>,
    /// Where the embedding is looked up.
    pub embedding: Vec<Embedding>,
    /// Where the cache lives.
    pub kv: Vec<KvTier>,
    /// Quarters of the layers whose cache would fit on the GPU that keep it there although the others'
    /// is elsewhere.
    pub kv_gpu_quarters: Vec<u32>,
    /// Where decode attention over a cache in host memory is computed.
    pub attention: Vec<Processor>,
    /// Where hidden states wait between units.
    pub hidden: Vec<Processor>,
    /// Which experts are loaded, for models that have them.
    pub experts: Vec<ExpertLoads>,
}

const MIB: u64 = 1 << 20;

impl Default for Space {
    fn default() -> Self {
        Self {
            micro: (0..=8).map(|power| 1 << power).collect(),
            count: vec![1, 2, 4, 8],
            most_sequences: 512,
            prefill_chunk: vec![512, 128],
            granularity: vec![Granularity::Part, Granularity::Layer, Granularity::Tensor],
            gpu_slots: vec![2, 1, 3, 4],
            host_slots: vec![4, 2, 8],
            block: [32, 4, 8, 16, 64].map(|m| Bytes(m * MIB)).to_vec(),
            most_blocks: 32,
            read_block: [8, 1].map(|m| Bytes(m * MIB)).to_vec(),
            disk_threads: vec![1, 2, 4],
            reads: vec![FileReads::Direct, FileReads::Buffered],
            order: vec![Order::Spread, Order::Head, Order::First],
            host: vec![HostChoice::Pinned, HostChoice::Pageable, HostChoice::Disk],
            embedding: vec![Embedding::Host],
            kv: vec![KvTier::Gpu, KvTier::Host, KvTier::Disk],
            kv_gpu_quarters: vec![0, 2, 4],
            attention: vec![Processor::Gpu, Processor::Cpu],
            hidden: vec![Processor::Gpu, Processor::Cpu],
            experts: vec![ExpertLoads::All, ExpertLoads::Routed],
        }
    }
}

impl Space {
    /// What is worth trying on a machine: a lookup that leaves the host out only where it is known what it
    /// takes to bring the host in. Anywhere else the two differ by nothing that a search could see.
    pub fn of(machine: &Machine) -> Self {
        let known = machine.software.notice.is_some();
        let embedding = [Embedding::Mapped, Embedding::Host];
        Self { embedding: embedding[usize::from(!known)..].to_vec(), ..Self::default() }
    }

    /// The first knob that has no value.
    pub(crate) fn empty_knob(&self) -> Option<&'static str> {
        let knobs = [
            ("micro", self.micro.is_empty()),
            ("count", self.count.is_empty()),
            ("granularity", self.granularity.is_empty()),
            ("gpu_slots", self.gpu_slots.is_empty()),
            ("host_slots", self.host_slots.is_empty()),
            ("block", self.block.is_empty()),
            ("read_block", self.read_block.is_empty()),
            ("disk_threads", self.disk_threads.is_empty()),
            ("reads", self.reads.is_empty()),
            ("order", self.order.is_empty()),
            ("host", self.host.is_empty()),
            ("embedding", self.embedding.is_empty()),
            ("kv", self.kv.is_empty()),
            ("kv_gpu_quarters", self.kv_gpu_quarters.is_empty()),
            ("attention", self.attention.is_empty()),
            ("hidden", self.hidden.is_empty()),
            ("experts", self.experts.is_empty()),
        ];
        knobs.into_iter().find(|(_, empty)| *empty).map(|(name, _)| name)
    }

    /// The ways to group sequences for a workload.
    ///
    /// A workload with a given batch is only divided. A free batch is one sequence where time is judged,
    /// because another sequence never makes the first one faster, and anything up to the limit where
    /// throughput is.
    pub fn batchings(&self, workload: &Workload) -> Vec<Batching> {
        let groups: Vec<(u64, u64)> = match (workload.batch, workload.objective) {
            (Some(batch), _) => {
                let counts = self.count.iter().filter(|&&c| c > 0 && batch % c == 0);
                counts.map(|&count| (batch / count, count)).collect()
            }
            (None, Objective::Throughput) => {
                let all = self.count.iter().flat_map(|&c| self.micro.iter().map(move |&m| (m, c)));
                all.filter(|&(m, c)| m.saturating_mul(c) <= self.most_sequences).collect()
            }
            (None, Objective::Latency | Objective::FirstToken) => vec![(1, 1)],
        };
        let chunks = self.prefill_chunk.iter().filter(|&&c| c > 0 && c < workload.prompt);
        let chunks: Vec<Option<u64>> =
            std::iter::once(None).chain(chunks.map(|&c| Some(c))).collect();
        let group = |&(micro, count): &(u64, u64)| {
            chunks.iter().map(move |&prefill_chunk| Batching { micro, count, prefill_chunk })
        };
        groups.iter().flat_map(group).collect()
    }
}
