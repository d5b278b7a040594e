//! What is compiled together.

use std::fmt;

use super::CudaError;
use crate::error::ShapeError;
use crate::format::Format;

/// Kernels that are compiled together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    /// Functions between products.
    Activation,
    /// Writing to the cache.
    Append,
    /// Adding up the parts of a split attention.
    Combine,
    /// Copies by multiprocessors.
    Copy,
    /// Stored numbers to fp16.
    Dequantise,
    /// Tokens and positions to rows.
    Embedding,
    /// Norms.
    Norm,
    /// Sums of rows.
    Residual,
    /// Rotation of heads.
    Rotary,
    /// The choice of experts.
    Router,
    /// The most likely token.
    Sample,
    /// Products with a matrix of a format.
    Linear(Format),
    /// Attention over a cache of a format.
    Attention {
        /// Of the cache.
        format: Format,
        /// The head dimension that there is room for.
        width: usize,
        /// Whether every row of the cache starts at a multiple of 16 bytes.
        aligned: bool,
    },
}

/// What every source may use.
const PRELUDE: &str = include_str!("prelude.cu");

/// The largest head dimension.
pub(super) const WIDEST: usize = 256;

impl Unit {
    /// Those without a format, which compile fast.
    pub const SMALL: [Self; 11] = [
        Self::Activation,
        Self::Append,
        Self::Combine,
        Self::Copy,
        Self::Dequantise,
        Self::Embedding,
        Self::Norm,
        Self::Residual,
        Self::Rotary,
        Self::Router,
        Self::Sample,
    ];

    /// Formats that kernels read.
    pub const FORMATS: [Format; 4] = [Format::Fp16, Format::Bf16, Format::Int8, Format::Int4];

    /// Every one that any model can use.
    pub fn all() -> Vec<Self> {
        let mut units = Self::SMALL.to_vec();
        for format in Self::FORMATS {
            units.push(Self::Linear(format));
            units.extend([64, 128, WIDEST].map(|width| Self::Attention {
                format,
                width,
                aligned: true,
            }));
            units.push(Self::Attention { format, width: WIDEST, aligned: false });
        }
        units
    }

    /// Attention for a head dimension. Rows that do not start at multiples of 16 share one wide unit:
    /// the sums are the same, and speed matters little in the small models that have such rows.
    pub(super) fn attention(
        format: Format,
        head_dim: usize,
        aligned: bool,
    ) -> Result<Self, ShapeError> {
        if head_dim == 0 || head_dim > WIDEST {
            let what = "the head dimension";
            return Err(ShapeError::Rule { what, found: head_dim, rule: "from 1 to 256" });
        }
        let width = if aligned { head_dim.next_power_of_two().max(64) } else { WIDEST };
        Ok(Self::Attention { format, width, aligned })
    }

    /// What is compiled.
    pub(super) fn source(self) -> String {
        let body = match self {
            Self::Activation => include_str!("../activation.cu"),
            Self::Append => include_str!("../format/quantise.cu"),
            Self::Combine => include_str!("../attention/combine.cu"),
            Self::Copy => include_str!("../copy.cu"),
            Self::Dequantise => include_str!("../format/dequantise.cu"),
            Self::Embedding => include_str!("../embedding.cu"),
            Self::Norm => include_str!("../norm.cu"),
            Self::Residual => include_str!("../residual.cu"),
            Self::Rotary => include_str!("../rotary.cu"),
            Self::Router => include_str!("../router.cu"),
            Self::Sample => include_str!("../sample.cu"),
            Self::Linear(_) => include_str!("../linear.cu"),
            Self::Attention { .. } => concat!(
                include_str!("../attention.cu"),
                include_str!("../attention/few.cu"),
                include_str!("../attention/few_int4.cu"),
                include_str!("../attention/few_sources.cu"),
                include_str!("../attention/split_few.cu"),
            ),
        };
        format!("{PRELUDE}\n{body}")
    }

    /// Macros that choose what is compiled.
    pub(super) fn defines(self) -> Vec<String> {
        match self {
            Self::Linear(format) => vec![format!("-DFORMAT={}", code(format))],
            Self::Attention { format, width, aligned } => vec![
                format!("-DFORMAT={}", code(format)),
                format!("-DWIDTH={width}"),
                format!("-DALIGNED={}", u8::from(aligned)),
            ],
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Linear(format) => write!(f, "linear-{format}"),
            Self::Attention { format, width, aligned } => {
                let end = if *aligned { "" } else { "-unaligned" };
                write!(f, "attention-{format}-{width}{end}")
            }
            small => write!(f, "{}", format!("{small:?}").to_lowercase()),
        }
    }
}

/// The number of a format in the kernels.
pub(super) fn code(format: Format) -> u64 {
    match format {
        Format::Fp32 | Format::Fp16 => 0,
        Format::Bf16 => 1,
        Format::Int8 => 2,
        Format::Int4 => 3,
    }
}

/// A size as a kernel's `int`.
pub(super) fn int(what: &'static str, size: usize) -> Result<u64, CudaError> {
    let too_large = ShapeError::TooLarge { what };
    Ok(u64::from(i32::try_from(size).map_err(|_| too_large)?.cast_unsigned()))
}
