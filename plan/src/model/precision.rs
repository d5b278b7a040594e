//! How numbers are stored, and what that costs to the byte.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::units::Bytes;

/// Inputs that share one scale and one minimum in [`Precision::Int4`].
const GROUP: u64 = 64;

/// How a matrix or a cache is stored.
///
/// The rule is applied to matrices, the token embedding and the head among them, as FlexGen does.
/// Norms, biases, the learned position table and the router of a mixture of experts stay in 16 bits:
/// they are a thousandth of the bytes, and an error in a position or a routing decision is not an
/// error in one term of a sum but a different token or a different expert. (FlexGen quantises the
/// position table; llama.cpp and GPTQ leave the router alone, as is done here.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// IEEE half precision.
    Fp16,
    /// The upper half of a float.
    Bf16,
    /// 8 bits, symmetric, with one 16-bit scale a row.
    Int8,
    /// 4 bits in groups of 64 inputs, each group with a 16-bit scale and a 16-bit minimum: 4.5 bits
    /// a weight. Where the inputs are no multiple of 64, the last group of each row is padded.
    Int4,
}

impl Precision {
    /// Every precision, from the widest down.
    pub const ALL: [Self; 4] = [Self::Fp16, Self::Bf16, Self::Int8, Self::Int4];

    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Whether a weight must be expanded before it can be multiplied.
    pub fn is_quantised(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4)
    }

    /// Bits a weight in a wide matrix: for headlines. Sizes come from [`Precision::matrix_bytes`].
    pub fn bits(self) -> f64 {
        match self {
            Self::Fp16 | Self::Bf16 => 16.0,
            Self::Int8 => 8.0,
            Self::Int4 => 4.5,
        }
    }

    /// Exact size of a matrix with `outputs` rows of `inputs` numbers, scales and padding included.
    pub fn matrix_bytes(self, outputs: u64, inputs: u64) -> Bytes {
        let row = match self {
            Self::Fp16 | Self::Bf16 => inputs.saturating_mul(2),
            Self::Int8 => inputs.saturating_add(2),
            Self::Int4 => inputs.div_ceil(GROUP).saturating_mul(GROUP / 2 + 4),
        };
        Bytes(row) * outputs
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.name())
    }
}
