//! What a language model is made of.
use crate::units::Bytes;
/// Precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Precision {
    Fp16,
    Bf16,
    Int8,
    Int4,
}
impl Precision {
    /// Bytes.
    pub fn matrix_bytes(self, outputs: u64, inputs: u64) -> Bytes {
        Bytes(match self {
            Self::Fp16 | Self::Bf16 => 2 * outputs * inputs,
            Self::Int8 => outputs * inputs,
            Self::Int4 => outputs * inputs * 9 / 16,
        })
    }
}
