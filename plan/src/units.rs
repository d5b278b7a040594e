//! Bytes, nanoseconds and rates: integers inside, exact units outside.
//!
//! `GB` is 10^9 bytes and `GiB` is 2^30, spelled exactly so; `6g` and `6gb` are refused, because a
//! "6 GB" card has 6144 MiB and guessing is how budgets get overrun. Everything is printed in both.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Sub};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a quantity could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The text does not start with a plain decimal number.
    #[error("`{text}` does not start with a number; write one such as `{example}`")]
    NotANumber {
        /// What was given.
        text: String,
        /// A value of the right form.
        example: &'static str,
    },
    /// A minus sign: no quantity here can be negative.
    #[error("`{text}` is negative; write a value of zero or more, such as `{example}`")]
    Negative {
        /// What was given.
        text: String,
        /// A value of the right form.
        example: &'static str,
    },
    /// The number is fine, the unit is not.
    #[error("`{text}` has the unit `{unit}`; use one of {allowed} (GB is 10^9, GiB is 2^30)")]
    UnknownUnit {
        /// What was given.
        text: String,
        /// The unit part of it.
        unit: String,
        /// The units that are understood.
        allowed: String,
    },
    /// More than 64 bits can hold.
    #[error("`{text}` is larger than any machine: the limit is {limit}")]
    TooLarge {
        /// What was given.
        text: String,
        /// The largest value, in its own unit.
        limit: String,
    },
}

/// The largest quantity believed: 2^60 of anything. Sums of a few stay inside 64 bits.
pub const LIMIT: u64 = 1 << 60;

/// Reads `<decimal><unit>` exactly, without a detour through floating point.
fn parse_scaled(
    text: &str,
    units: &[(&str, u64)],
    example: &'static str,
) -> Result<u64, UnitError> {
    let trimmed = text.trim();
    if trimmed.starts_with('-') {
        return Err(UnitError::Negative { text: text.into(), example });
    }
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let unit = unit.trim_start();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || (number.contains('.') && fraction.is_empty()) {
        return Err(UnitError::NotANumber { text: text.into(), example });
    }
    let Some(&(_, scale)) = units.iter().find(|(name, _)| *name == unit) else {
        let allowed = units.iter().map(|(n, _)| format!("`{n}`")).collect::<Vec<_>>().join(", ");
        return Err(UnitError::UnknownUnit { text: text.into(), unit: unit.into(), allowed });
    };
    let too_large =
        || UnitError::TooLarge { text: text.into(), limit: format!("2^60 {}", units[0].0) };
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    // Twelve decimals are finer than a byte of a terabyte; further digits cannot matter.
    let fraction = &fraction[..fraction.len().min(12)];
    let denominator = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let numerator: u128 = if fraction.is_empty() { 0 } else { fraction.parse().unwrap_or(0) };
    let scaled = whole
        .checked_mul(u128::from(scale))
        .and_then(|w| w.checked_add(numerator * u128::from(scale) / denominator))
        .ok_or_else(too_large)?;
    u64::try_from(scaled).ok().filter(|&v| v <= LIMIT).ok_or_else(too_large)
}

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident, $example:literal, $units:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// Nothing of it.
            pub const ZERO: Self = Self(0);

            /// The value as a float, exact below 2^53.
            pub fn as_f64(self) -> f64 {
                self.0 as f64
            }

            /// Difference, or zero where the other is larger.
            #[must_use]
            pub fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
        }

        impl FromStr for $name {
            type Err = UnitError;
            fn from_str(text: &str) -> Result<Self, UnitError> {
                parse_scaled(text, $units, $example).map(Self)
            }
        }

        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }

        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                *self = *self + other;
            }
        }

        impl Sub for $name {
            type Output = Self;
            /// Saturates: a negative quantity has no meaning here.
            fn sub(self, other: Self) -> Self {
                self.saturating_sub(other)
            }
        }

        impl Mul<u64> for $name {
            type Output = Self;
            fn mul(self, factor: u64) -> Self {
                Self(self.0.saturating_mul(factor))
            }
        }

        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
                iter.fold(Self::ZERO, Add::add)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.exact())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                        write!(f, "a quantity with its unit, such as {:?}", $example)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Visitor)
            }
        }
    };
}

const BYTE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

const TIME_UNITS: &[(&str, u64)] =
    &[("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000)];

const BANDWIDTH_UNITS: &[(&str, u64)] = &[
    ("B/s", 1),
    ("kB/s", 1_000),
    ("MB/s", 1_000_000),
    ("GB/s", 1_000_000_000),
    ("TB/s", 1_000_000_000_000),
    ("KiB/s", 1 << 10),
    ("MiB/s", 1 << 20),
    ("GiB/s", 1 << 30),
];

const FLOP_UNITS: &[(&str, u64)] = &[
    ("FLOP/s", 1),
    ("MFLOP/s", 1_000_000),
    ("GFLOP/s", 1_000_000_000),
    ("TFLOP/s", 1_000_000_000_000),
    ("PFLOP/s", 1_000_000_000_000_000),
];

quantity!(
    /// A number of bytes.
    Bytes, "6GB", BYTE_UNITS
);
quantity!(
    /// A time or a duration in nanoseconds of virtual or real time.
    Nanos, "10us", TIME_UNITS
);
quantity!(
    /// A bandwidth in bytes per second.
    Bandwidth, "12GB/s", BANDWIDTH_UNITS
);
quantity!(
    /// An arithmetic rate in floating-point operations per second.
    FlopRate, "22TFLOP/s", FLOP_UNITS
);

/// The largest unit that divides `value` with at most three decimals, so that a round trip is exact.
fn exact_in(value: u64, units: &[(&str, u64)]) -> String {
    let mut best: Option<(String, &str)> = None;
    for &(name, scale) in units {
        if value < scale || !u128::from(value).wrapping_mul(1000).is_multiple_of(u128::from(scale))
        {
            continue;
        }
        let milli = u128::from(value) * 1000 / u128::from(scale);
        let text = format!("{}.{:03}", milli / 1000, milli % 1000);
        let text = text.trim_end_matches('0').trim_end_matches('.').to_owned();
        // Between spellings of one length the larger unit reads better.
        if best.as_ref().is_none_or(|(b, _)| text.len() <= b.len()) {
            best = Some((text, name));
        }
    }
    best.map_or_else(|| format!("{value}{}", units[0].0), |(text, name)| format!("{text}{name}"))
}

impl Bytes {
    /// The shortest spelling that parses back to exactly this value.
    pub fn exact(self) -> String {
        exact_in(self.0, BYTE_UNITS)
    }

    /// `1.50 GB (1.40 GiB)`: both readings, three significant figures.
    pub fn both(self) -> String {
        format!("{self} ({})", self.binary())
    }

    /// In powers of 1024: `1.40 GiB`.
    pub fn binary(self) -> String {
        scaled(
            self.as_f64(),
            &[(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")],
            "B",
        )
    }
}

impl Nanos {
    /// The shortest spelling that parses back to exactly this value.
    pub fn exact(self) -> String {
        exact_in(self.0, TIME_UNITS)
    }

    /// Seconds, as a float.
    pub fn seconds(self) -> f64 {
        self.as_f64() / 1e9
    }

    /// Rounds a float of nanoseconds up to the next integer; negative and NaN become zero.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 0..=LIMIT on the line itself"
    )]
    pub fn ceil(nanos: f64) -> Self {
        Self(nanos.ceil().clamp(0.0, LIMIT as f64) as u64)
    }
}

impl Bandwidth {
    /// The shortest spelling that parses back to exactly this value.
    pub fn exact(self) -> String {
        exact_in(self.0, BANDWIDTH_UNITS)
    }

    /// The rate at which `bytes` take `time`, rounded down and at least one byte per second.
    pub fn of(bytes: Bytes, time: Nanos) -> Self {
        let per_second = u128::from(bytes.0) * 1_000_000_000 / u128::from(time.0.max(1));
        Self(u64::try_from(per_second).unwrap_or(u64::MAX).max(1))
    }

    /// Time to move `bytes` at this rate, rounded up; zero bandwidth takes [`LIMIT`].
    pub fn time(self, bytes: Bytes) -> Nanos {
        if bytes.0 == 0 {
            return Nanos::ZERO;
        }
        let nanos = (u128::from(bytes.0) * 1_000_000_000).div_ceil(u128::from(self.0.max(1)));
        Nanos(u64::try_from(nanos).unwrap_or(LIMIT).min(LIMIT))
    }

    /// Bytes per nanosecond, the simulator's inner unit.
    pub fn per_nano(self) -> f64 {
        self.as_f64() / 1e9
    }
}

impl FlopRate {
    /// The shortest spelling that parses back to exactly this value.
    pub fn exact(self) -> String {
        exact_in(self.0, FLOP_UNITS)
    }
}

fn scaled(value: f64, units: &[(u64, &str)], smallest: &str) -> String {
    for &(scale, name) in units {
        let v = value / scale as f64;
        if v >= 1.0 {
            let decimals = if v >= 99.95 { 0 } else { usize::from(v < 9.995) + 1 };
            return format!("{v:.decimals$} {name}");
        }
    }
    format!("{value:.0} {smallest}")
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let units =
            [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "kB")];
        f.pad(&scaled(self.as_f64(), &units, "B"))
    }
}

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(&scaled(
            self.as_f64(),
            &[(1_000_000_000, "s"), (1_000_000, "ms"), (1000, "us")],
            "ns",
        ))
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let units = [
            (1_000_000_000_000, "TB/s"),
            (1_000_000_000, "GB/s"),
            (1_000_000, "MB/s"),
            (1000, "kB/s"),
        ];
        f.pad(&scaled(self.as_f64(), &units, "B/s"))
    }
}

impl fmt::Display for FlopRate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let units = [
            (1_000_000_000_000_000, "PFLOP/s"),
            (1_000_000_000_000, "TFLOP/s"),
            (1_000_000_000, "GFLOP/s"),
            (1_000_000, "MFLOP/s"),
        ];
        f.pad(&scaled(self.as_f64(), &units, "FLOP/s"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn gigabytes_and_gibibytes_are_different_things() {
        assert_eq!("6GB".parse(), Ok(Bytes(6_000_000_000)));
        assert_eq!("6 GiB".parse(), Ok(Bytes(6_442_450_944)));
        assert_eq!("1.5MiB".parse(), Ok(Bytes(1_572_864)));
        assert_eq!("0B".parse(), Ok(Bytes(0)));
        assert_eq!("12GB/s".parse(), Ok(Bandwidth(12_000_000_000)));
        assert_eq!("6.1us".parse(), Ok(Nanos(6100)));
    }

    #[test]
    fn sloppy_quantities_are_refused_with_the_next_step() {
        let message = |text: &str| text.parse::<Bytes>().unwrap_err().to_string();
        insta::assert_snapshot!(message("6g"), @"`6g` has the unit `g`; use one of `B`, `kB`, `MB`, `GB`, `TB`, `KiB`, `MiB`, `GiB`, `TiB` (GB is 10^9, GiB is 2^30)");
        insta::assert_snapshot!(message("-1GB"), @"`-1GB` is negative; write a value of zero or more, such as `6GB`");
        insta::assert_snapshot!(message("1e99GB"), @"`1e99GB` has the unit `e99GB`; use one of `B`, `kB`, `MB`, `GB`, `TB`, `KiB`, `MiB`, `GiB`, `TiB` (GB is 10^9, GiB is 2^30)");
        insta::assert_snapshot!(message("99999999999999TB"), @"`99999999999999TB` is larger than any machine: the limit is 2^60 B");
        insta::assert_snapshot!(message("lots"), @"`lots` does not start with a number; write one such as `6GB`");
        assert!(".5GB".parse::<Bytes>().is_err() && "5.GB".parse::<Bytes>().is_err());
        assert!("6".parse::<Bytes>().is_err(), "a bare number has no unit");
    }

    #[test]
    fn transfer_time_rounds_up() {
        assert_eq!(Bandwidth(3_000_000_000).time(Bytes(10)), Nanos(4));
        assert_eq!(Bandwidth(0).time(Bytes(0)), Nanos(0));
        assert_eq!(Bandwidth(0).time(Bytes(LIMIT)), Nanos(LIMIT));
    }

    #[test]
    fn people_read_three_figures_in_both_systems() {
        assert_eq!(Bytes(6_442_450_944).both(), "6.44 GB (6.00 GiB)");
        assert_eq!(Bytes(999).to_string(), "999 B");
        assert_eq!(Bytes(123_456_789).to_string(), "123 MB");
        assert_eq!(Nanos(1_234_567).to_string(), "1.23 ms");
    }

    proptest! {
        #[test]
        fn exact_spelling_round_trips(value in 0..=LIMIT) {
            prop_assert_eq!(Bytes(value).exact().parse(), Ok(Bytes(value)));
            prop_assert_eq!(Nanos(value).exact().parse(), Ok(Nanos(value)));
            prop_assert_eq!(Bandwidth(value).exact().parse(), Ok(Bandwidth(value)));
            prop_assert_eq!(FlopRate(value).exact().parse(), Ok(FlopRate(value)));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,24}") {
            let _ = text.parse::<Bytes>();
            let _ = text.parse::<Nanos>();
        }
    }
}
