//! A number and where it comes from.

use std::ops::Deref;

use serde::{Deserialize, Serialize};

use super::Curve;
use crate::units::{Bandwidth, Bytes, FlopRate, Nanos};

/// A number of a machine profile, with its source.
///
/// In TOML: `memory = { value = "6GiB", source = "datasheet" }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a figure with its source, such as { value = \"6GiB\", source = \"datasheet\" }"
)]
pub struct Figure<T> {
    /// The number.
    pub value: T,
    /// A key of the profile's `[sources]`.
    pub source: String,
    /// For a fitted number, the measurements or published cells that it was fitted to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fitted_to: Option<String>,
    /// For a measured number, half the distance between the quartiles of its samples as a share of the
    /// median; of a curve, the widest of its points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<f64>,
}

impl<T> Figure<T> {
    /// A figure that was not fitted.
    pub fn new(value: T, source: impl Into<String>) -> Self {
        Self { value, source: source.into(), fitted_to: None, spread: None }
    }
}

impl<T> Deref for Figure<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// One figure of a profile, as a table of provenance shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry<'a> {
    /// Where it stands in the profile, such as `link.h2d`.
    pub path: &'static str,
    /// The value as TOML.
    pub value: String,
    /// A key of the profile's `[sources]`.
    pub source: &'a str,
    /// What it was fitted to, if it was.
    pub fitted_to: Option<&'a str>,
    /// How far its samples lie apart, if it was measured: see [`Figure::spread`].
    pub spread: Option<f64>,
    /// Why the value alone, whatever it stands for, cannot be right.
    pub(super) fault: Option<&'static str>,
}

pub(super) fn entry<'a, T: Leaf>(path: &'static str, figure: &'a Figure<T>) -> Entry<'a> {
    Entry {
        path,
        value: figure.value.toml(),
        source: &figure.source,
        fitted_to: figure.fitted_to.as_deref(),
        spread: figure.spread,
        fault: figure.value.fault().or(figure.spread.and_then(spread_fault)),
    }
}

fn spread_fault(spread: f64) -> Option<&'static str> {
    let sane = spread.is_finite() && spread >= 0.0;
    (!sane).then_some("a spread must be a share of the median, not below 0")
}

/// What a figure's value can be.
pub(super) trait Leaf {
    /// The value as TOML.
    fn toml(&self) -> String;
    /// Why no machine can have this value.
    fn fault(&self) -> Option<&'static str>;
}

/// Sizes and times may be zero: nothing reserved, no cost.
macro_rules! leaf_that_may_be_zero {
    ($($quantity:ty),*) => {$(
        impl Leaf for $quantity {
            fn toml(&self) -> String {
                format!("\"{}\"", self.exact())
            }
            fn fault(&self) -> Option<&'static str> {
                None
            }
        }
    )*};
}
leaf_that_may_be_zero!(Bytes, Nanos);

/// A rate of zero would take for ever; leave out what the machine cannot do.
macro_rules! leaf_that_is_a_rate {
    ($($quantity:ty),*) => {$(
        impl Leaf for $quantity {
            fn toml(&self) -> String {
                format!("\"{}\"", self.exact())
            }
            fn fault(&self) -> Option<&'static str> {
                (self.0 == 0).then_some("a rate of zero never ends")
            }
        }
    )*};
}
leaf_that_is_a_rate!(Bandwidth, FlopRate);

impl Leaf for u32 {
    fn toml(&self) -> String {
        self.to_string()
    }
    fn fault(&self) -> Option<&'static str> {
        (!(1..=65_536).contains(self)).then_some("a count must be from 1 to 65536")
    }
}

impl Leaf for f64 {
    fn toml(&self) -> String {
        toml::Value::Float(*self).to_string()
    }
    fn fault(&self) -> Option<&'static str> {
        (!(0.0..=1.0).contains(self)).then_some("a share must be from 0 to 1")
    }
}

impl Leaf for Curve {
    fn toml(&self) -> String {
        if let Some(rate) = self.flat_rate() {
            return rate.toml();
        }
        let row = |(size, rate): &(Bytes, Bandwidth)| [size.toml(), rate.toml()].join(", ");
        let rows: Vec<String> = self.points().iter().map(row).collect();
        format!("[\n    [{}],\n]", rows.join("],\n    ["))
    }
    fn fault(&self) -> Option<&'static str> {
        None // its constructor refuses what cannot be
    }
}
