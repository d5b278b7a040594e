//! Where numbers come from: a checkpoint or a generator.

use super::ImportError;
use crate::store::{Place, Placed};

/// A tensor of the store that is to be filled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) place: Place,
    pub(super) placed: Placed,
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} {}", self.place, self.placed.tensor.name)?;
        match self.placed.expert {
            Some(expert) => write!(f, " of expert {expert}"),
            None => Ok(()),
        }
    }
}

/// Gives the rows of tensors.
pub(super) trait Rows {
    /// Fills `into` with whole rows of a tensor from row `first` on.
    fn read(&mut self, wanted: &Wanted, first: u64, into: &mut [f32]) -> Result<(), ImportError>;
}
