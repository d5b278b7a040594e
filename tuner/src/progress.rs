//! What a search says while it runs.

/// How far a search has come. Most candidates are excluded by a bound and count as done at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Candidates dealt with.
    pub done: u64,
    /// Candidates in the space.
    pub total: u64,
}
