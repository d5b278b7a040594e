//! Why a run ended early.

use pipo_plan::schedule::OpId;

/// Why an operation could not be done, in the backend's words: what, both values, the next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

/// Why a run ended early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecutionError {
    /// An operation failed.
    #[error("{operation}: {fault}")]
    Failed {
        /// Its lane, kind, unit and pass.
        operation: String,
        /// Why.
        fault: Fault,
    },
    /// The backend panicked: an error in the engine.
    #[error(
        "{operation}: the backend panicked ({message}); this is an error in pipo, please report it"
    )]
    Panicked {
        /// The operation under way.
        operation: String,
        /// What the panic said.
        message: String,
    },
    /// A lane has no thread.
    #[error(
        "the system has no thread for a lane ({why}); raise the limit of processes (ulimit -u, or that of the container)"
    )]
    NoThread {
        /// The system's reason.
        why: String,
    },
    /// Nothing runs and nothing can start.
    #[error("the schedule is stuck: nothing runs and nothing can start\n  {}", .waiting.join("\n  "))]
    Stuck {
        /// The head of every queue, with what it waits for.
        waiting: Vec<String>,
    },
    /// The schedule breaks a rule that every schedule must keep.
    #[error("operation {}: {what}; the lowering that made this schedule is wrong", .op.0)]
    Invalid {
        /// The operation.
        op: OpId,
        /// The rule.
        what: &'static str,
    },
    /// The schedule's fixed part breaks a rule.
    #[error("{what}; the lowering that made this schedule is wrong")]
    Layout {
        /// The rule.
        what: &'static str,
    },
    /// The caller asked for it.
    #[error("cancelled")]
    Cancelled,
}
