//! To be written.

use serde::{Deserialize, Serialize};

use super::LowerError;
use crate::plan::Plan;
use crate::schedule::Schedule;

/// The knobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endor {}

/// Lowers a plan.
pub fn lower(_plan: &Plan, _knobs: &Endor) -> Result<Schedule, LowerError> {
    Err(LowerError::new("strategy", "not yet", "use another"))
}
