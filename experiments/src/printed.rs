//! A number as a paper prints it.

use serde::Deserialize;

/// The digits as printed, which say how far the number was rounded.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Printed {
    /// The number.
    pub(crate) value: f64,
    /// The interval that rounds to it.
    pub(crate) rounding: (f64, f64),
}

impl TryFrom<String> for Printed {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let value: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
        let decimals = text.split_once('.').map_or(0, |(_, decimals)| decimals.len());
        let half = 0.5 * 0.1_f64.powi(i32::try_from(decimals).unwrap_or(i32::MAX));
        Ok(Self { value, rounding: (value - half, value + half) })
    }
}
