//! Memory accounting: one auditable table, from the same layout that both executors allocate by.

use crate::machine::Machine;
use crate::plan::Plan;
use crate::schedule::{Layout, Tier};
use crate::strategy::LowerError;
use crate::units::Bytes;

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Where.
    pub tier: Tier,
    /// What.
    pub name: String,
    /// Number and size of buffers, for a ring.
    pub slots: Option<(u16, Bytes)>,
    /// How much.
    pub bytes: Bytes,
    /// Whether it is there before a plan allocates anything.
    pub overhead: bool,
}

/// What a plan holds at every tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryTable {
    /// Lines, by tier.
    pub rows: Vec<Row>,
}

/// What is in memory before a plan allocates anything.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Overheads {
    /// Driver and context on the GPU.
    pub gpu_context: Bytes,
    /// Operating system and runtime on the host.
    pub host_reserved: Bytes,
    /// Bytes on the GPU for each byte of pinned host memory.
    pub page_tables: f64,
}

impl Overheads {
    /// What a machine has.
    pub fn of(machine: &Machine) -> Self {
        Self {
            gpu_context: *machine.gpu.context,
            host_reserved: *machine.host.reserved,
            page_tables: machine.gpu.page_tables.as_ref().map_or(0.0, |share| share.value),
        }
    }

    /// What the GPU needs to find so much pinned memory.
    pub fn tables_of(&self, pinned: Bytes) -> Bytes {
        // Whole bytes of a share from 0 to 1, rounded up.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative, and not more than the size it is a share of"
        )]
        Bytes((pinned.as_f64() * self.page_tables).ceil() as u64)
    }
}

/// One budget: its path, its name, what is needed, what is allowed, the tiers it covers.
type Side = (&'static str, &'static str, Bytes, Bytes, fn(Tier) -> bool);

impl MemoryTable {
    /// The table of a layout; overheads are listed apart.
    pub fn new(layout: &Layout, overheads: Overheads) -> Self {
        let fixed = layout.allocations.iter().map(|a| Row {
            tier: a.tier,
            name: a.name.clone(),
            slots: None,
            bytes: a.bytes,
            overhead: false,
        });
        let rings = layout.rings.iter().filter(|r| r.slot_bytes > Bytes::ZERO).map(|r| Row {
            tier: r.tier,
            name: r.name.clone(),
            slots: Some((r.slots, r.slot_bytes)),
            bytes: r.slot_bytes * u64::from(r.slots),
            overhead: false,
        });
        let tables = overheads.tables_of(layout.bytes(Tier::Pinned));
        let apart = [
            (Tier::Gpu, "driver and context", overheads.gpu_context),
            (Tier::Gpu, "page tables of pinned memory", tables),
            (Tier::Pageable, "operating system and runtime", overheads.host_reserved),
        ];
        let apart = apart.into_iter().filter(|(_, _, bytes)| *bytes > Bytes::ZERO).map(
            |(tier, name, bytes)| Row {
                tier,
                name: name.into(),
                slots: None,
                bytes,
                overhead: true,
            },
        );
        let mut rows: Vec<Row> = fixed.chain(rings).chain(apart).collect();
        // A stable sort keeps the strategy's own order within a tier.
        rows.sort_by_key(|r| r.tier);
        Self { rows }
    }

    fn sum(&self, wanted: impl Fn(Tier) -> bool) -> Bytes {
        self.rows.iter().filter(|r| wanted(r.tier)).map(|r| r.bytes).sum()
    }

    /// All of the GPU's.
    pub fn gpu(&self) -> Bytes {
        self.sum(|t| t == Tier::Gpu)
    }

    /// All of the host's, pinned or not.
    pub fn host(&self) -> Bytes {
        self.sum(|t| matches!(t, Tier::Pinned | Tier::Pageable))
    }

    /// All on disk.
    pub fn disk(&self) -> Bytes {
        self.sum(|t| t == Tier::Disk)
    }

    /// Refuses a plan that does not fit its budget, naming what is largest.
    pub fn check(&self, plan: &Plan) -> Result<(), LowerError> {
        let sides: [Side; 3] = [
            ("budget.gpu", "GPU memory", self.gpu(), plan.budget.gpu, |t| t == Tier::Gpu),
            ("budget.host", "host memory", self.host(), plan.budget.host, |t| {
                matches!(t, Tier::Pinned | Tier::Pageable)
            }),
            ("budget.disk", "disk space", self.disk(), plan.budget.disk, |t| t == Tier::Disk),
        ];
        for (path, what, needed, budget, of_side) in sides {
            if needed <= budget {
                continue;
            }
            let largest = self.rows.iter().filter(|r| of_side(r.tier)).max_by_key(|r| r.bytes);
            let largest = largest
                .map_or(String::new(), |r| format!(" (largest: {}, {})", r.name, r.bytes.both()));
            let message = format!(
                "the plan needs {} of {what}{largest}, the budget is {}: {} too much",
                needed.both(),
                budget.both(),
                (needed - budget).both()
            );
            return Err(LowerError::new(
                path,
                message,
                "raise the budget, or keep less there and tune again",
            ));
        }
        Ok(())
    }
}
