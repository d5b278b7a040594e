//! Why a simulation has no outcome.

use std::fmt;

use pipo_plan::schedule::{OpId, Slot};
use pipo_plan::units::Nanos;

/// Why a simulation has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SimulationError {
    /// Nothing runs and nothing can start, but operations are left.
    #[error("{}", stuck(*.at, .waiting))]
    Stuck {
        /// When the last operation ended.
        at: Nanos,
        /// The head of every queue that is not empty, in queue order.
        waiting: Vec<Waiting>,
    },
    /// The schedule needs hardware that the machine profile does not have.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The schedule contradicts itself: a mistake of the program that emitted it.
    #[error("the schedule is invalid: {0}")]
    Invalid(#[from] Invalid),
    /// Virtual time would pass 2^62 nanoseconds.
    #[error("operation {} would end after 146 years: check the machine's bandwidths for a wrong unit", .op.0)]
    TooLong {
        /// The operation that would end there.
        op: OpId,
    },
}

/// The schedule needs something that the machine does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {next_step}")]
pub struct Unsupported {
    /// What is needed and missing.
    pub what: String,
    /// What to do about it.
    pub next_step: String,
}

/// How a schedule can contradict itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A queue that belongs to no lane.
    #[error("queue {queue} belongs to lane {lane}, but there are {lanes} lanes")]
    QueueWithoutLane {
        /// The queue.
        queue: usize,
        /// Its lane.
        lane: u8,
        /// Lanes in the layout.
        lanes: usize,
    },
    /// A window of zero passes releases nothing.
    #[error("the window is 0 passes; it must be at least 1")]
    EmptyWindow,
    /// A ring without slots.
    #[error("ring {0} has no slots; it must have at least 1")]
    EmptyRing(usize),
    /// More operations than ids.
    #[error(
        "pass {0} does not continue the numbering of operations; a run has at most 2^32 of them"
    )]
    Numbering(u32),
    /// An operation names something that does not exist.
    #[error("operation {} names {what} {index}, but there are {count}, numbered from 0", .op.0)]
    Unknown {
        /// The operation.
        op: OpId,
        /// What kind of thing.
        what: &'static str,
        /// Its index.
        index: u32,
        /// How many exist.
        count: usize,
    },
    /// An operation waits for itself or a later one.
    #[error("operation {} waits for operation {}, which is not before it", .op.0, .on.0)]
    WaitsForward {
        /// The operation.
        op: OpId,
        /// What it waits for.
        on: OpId,
    },
    /// An operation frees a slot that nothing holds.
    #[error("operation {} frees slot {} of ring {}, which nothing holds", .op.0, .slot.index, .slot.ring.0)]
    FreesFreeSlot {
        /// The operation.
        op: OpId,
        /// The slot.
        slot: Slot,
    },
}

/// One operation that cannot start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The operation.
    pub op: OpId,
    /// Its lane, kind, unit and pass, for a person.
    pub description: String,
    /// What it waits for.
    pub on: Blocker,
}

/// What keeps an operation from starting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocker {
    /// An operation that has not ended.
    Op {
        /// The operation.
        op: OpId,
        /// For a person.
        description: String,
    },
    /// A slot that is held.
    Held {
        /// Name of the ring.
        ring: String,
        /// Index of the slot.
        index: u16,
        /// The operation that took it.
        by: OpId,
        /// For a person.
        description: String,
    },
    /// A slot that is free, but which an earlier operation must take first.
    Turn {
        /// Name of the ring.
        ring: String,
        /// Index of the slot.
        index: u16,
    },
    /// Its lane, which is idle only because of an error in the simulator.
    Lane,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "operation {} ({}) waits for {}", self.op.0, self.description, self.on)
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Op { op, description } => write!(f, "operation {} ({description})", op.0),
            Self::Held { ring, index, by, description } => {
                write!(f, "slot {index} of {ring}, held by operation {} ({description})", by.0)
            }
            Self::Turn { ring, index } => {
                write!(f, "slot {index} of {ring}, which an earlier operation takes first")
            }
            Self::Lane => f.write_str("its lane"),
        }
    }
}

fn stuck(at: Nanos, waiting: &[Waiting]) -> String {
    let mut text = format!("the schedule is stuck at {at}: nothing runs and nothing can start");
    for one in waiting {
        text.push_str("\n  ");
        text.push_str(&one.to_string());
    }
    text.push_str(
        "\nA slot must be freed by an operation that comes before the next one to take it;",
    );
    text.push_str(" otherwise the ring needs more slots.");
    text
}
