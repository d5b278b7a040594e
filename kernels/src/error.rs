//! What can be wrong with the arguments of an operation.

use thiserror::Error;

use crate::format::Format;

/// Arguments that do not fit each other. Checked once, at the entry of every operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ShapeError {
    /// A slice has another length than the shapes call for.
    #[error("{what} has {found} elements where the shapes call for {expected}")]
    Length {
        /// The argument.
        what: &'static str,
        /// What the shapes call for.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// The bytes of a matrix are more or fewer than its format and shape take.
    #[error(
        "a {format} matrix of {outputs} x {inputs} takes {expected} bytes, but {found} were given"
    )]
    MatrixBytes {
        /// How it is stored.
        format: Format,
        /// Its rows.
        outputs: usize,
        /// Its columns.
        inputs: usize,
        /// What it takes.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// A size that no machine can address.
    #[error("{what} is too large to be addressed")]
    TooLarge {
        /// The size.
        what: &'static str,
    },
    /// An index beyond the end.
    #[error("{what} is {index}, but there are only {limit}")]
    Index {
        /// What is counted.
        what: &'static str,
        /// What was asked for.
        index: usize,
        /// How many there are.
        limit: usize,
    },
    /// A size that must not be zero, or must divide another.
    #[error("{what} is {found}, but must be {rule}")]
    Rule {
        /// The size.
        what: &'static str,
        /// What was given.
        found: usize,
        /// What it must be.
        rule: &'static str,
    },
}

/// Checks a length.
pub(crate) fn length(what: &'static str, found: usize, expected: usize) -> Result<(), ShapeError> {
    if found == expected { Ok(()) } else { Err(ShapeError::Length { what, expected, found }) }
}

/// Checks an index.
pub(crate) fn index(what: &'static str, index: usize, limit: usize) -> Result<(), ShapeError> {
    if index < limit { Ok(()) } else { Err(ShapeError::Index { what, index, limit }) }
}

/// A product of sizes that must be addressable.
pub(crate) fn product(what: &'static str, factors: &[usize]) -> Result<usize, ShapeError> {
    factors.iter().try_fold(1_usize, |a, &b| a.checked_mul(b)).ok_or(ShapeError::TooLarge { what })
}
