//! Bandwidth by the size of a transfer.

use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::units::{Bandwidth, Bytes, LIMIT, Nanos};

/// Bandwidth measured at a few transfer sizes, and the time of any other size.
///
/// Between two points the *time* is linear in the size, which is exact for a fixed cost plus a rate;
/// below the first point it is the first point's time, because small transfers cost their latency;
/// above the last it goes on at the last point's bandwidth. More bytes never take less time: points
/// that say otherwise are refused.
///
/// In TOML: `"12GB/s"`, the same at every size, or `[["4KiB", "500MB/s"], ["1MiB", "11GB/s"]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Curve {
    points: Vec<(Bytes, Bandwidth)>,
}

/// Why points do not make a curve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CurveError {
    /// No point at all.
    #[error(
        "a curve needs at least one point; write a bandwidth such as \"12GB/s\" for all sizes, or \
         pairs such as [\"1MiB\", \"11GB/s\"]"
    )]
    Empty,
    /// More points than anybody measures.
    #[error("a curve has {count} points, at most {limit} are read; keep one per power of two")]
    TooMany {
        /// Points given.
        count: usize,
        /// Points allowed.
        limit: usize,
    },
    /// A size or a bandwidth of zero.
    #[error("the point [\"{}\", \"{}\"] has a zero; leave it out", size.exact(), rate.exact())]
    Zero {
        /// Transfer size.
        size: Bytes,
        /// Bandwidth at that size.
        rate: Bandwidth,
    },
    /// Sizes out of order, or one of them twice.
    #[error("the size {} follows {}; sort the points by size, each once", next.exact(), previous.exact())]
    Unsorted {
        /// Size of a point.
        previous: Bytes,
        /// Size of the point after it.
        next: Bytes,
    },
    /// A larger transfer that would take less time than a smaller one.
    #[error(
        "{} at {} takes {slower}, but {} at {} takes only {faster}; more bytes cannot take less \
         time, so measure the two again",
        smaller.0.exact(), smaller.1, larger.0.exact(), larger.1
    )]
    Decreasing {
        /// Size and bandwidth of the smaller transfer.
        smaller: (Bytes, Bandwidth),
        /// Size and bandwidth of the larger transfer.
        larger: (Bytes, Bandwidth),
        /// Time of the smaller transfer.
        slower: Nanos,
        /// Time of the larger transfer.
        faster: Nanos,
    },
}

impl Curve {
    /// Points that one curve may have.
    pub const MOST_POINTS: usize = 1024;

    /// Checks and keeps the points, which must be sorted by size.
    pub fn new(points: Vec<(Bytes, Bandwidth)>) -> Result<Self, CurveError> {
        if points.is_empty() {
            return Err(CurveError::Empty);
        }
        if points.len() > Self::MOST_POINTS {
            return Err(CurveError::TooMany { count: points.len(), limit: Self::MOST_POINTS });
        }
        if let Some(&(size, rate)) = points.iter().find(|(size, rate)| size.0 == 0 || rate.0 == 0) {
            return Err(CurveError::Zero { size, rate });
        }
        for pair in points.windows(2) {
            let (smaller, larger) = (pair[0], pair[1]);
            if smaller.0 >= larger.0 {
                return Err(CurveError::Unsorted { previous: smaller.0, next: larger.0 });
            }
            let (slower, faster) = (smaller.1.time(smaller.0), larger.1.time(larger.0));
            if slower > faster {
                return Err(CurveError::Decreasing { smaller, larger, slower, faster });
            }
        }
        Ok(Self { points })
    }

    /// The same bandwidth at every size; a rate of zero becomes one byte per second.
    pub fn flat(rate: Bandwidth) -> Self {
        Self { points: vec![(Bytes(1), Bandwidth(rate.0.max(1)))] }
    }

    /// The points, by rising size.
    pub fn points(&self) -> &[(Bytes, Bandwidth)] {
        &self.points
    }

    /// The bandwidth, if it is the same at every size.
    pub fn flat_rate(&self) -> Option<Bandwidth> {
        match self.points[..] {
            [(Bytes(1), rate)] => Some(rate),
            _ => None,
        }
    }

    /// Time of one transfer of `bytes`, rounded up; nothing takes no time.
    pub fn time(&self, bytes: Bytes) -> Nanos {
        if bytes.0 == 0 {
            return Nanos::ZERO;
        }
        let after = self.points.partition_point(|&(size, _)| size < bytes);
        let Some(&(size, rate)) = self.points.get(after) else {
            return self.last().time(bytes);
        };
        let end = rate.time(size);
        let Some(&(start_size, start_rate)) = after.checked_sub(1).map(|i| &self.points[i]) else {
            return end;
        };
        let start = start_rate.time(start_size);
        // No factor exceeds 2^60, so the product fits.
        let rise = u128::from((end - start).0) * u128::from((bytes - start_size).0);
        let rise = rise.div_ceil(u128::from((size - start_size).0.max(1)));
        start + Nanos(u64::try_from(rise).unwrap_or(u64::MAX))
    }

    /// What one transfer of `bytes` achieves.
    pub fn bandwidth(&self, bytes: Bytes) -> Bandwidth {
        let (first_size, first_rate) = self.points[0];
        if bytes.0 == 0 || bytes == first_size {
            return first_rate;
        }
        let last_size = self.points[self.points.len() - 1].0;
        if bytes >= last_size {
            return self.last();
        }
        per_second(bytes, self.time(bytes)).min(self.best())
    }

    /// The best of any size, so that `best().time(bytes)` is a lower bound on [`Self::time`].
    ///
    /// It is one of the points': a time that is linear in size has its best rate at an end.
    pub fn best(&self) -> Bandwidth {
        self.points.iter().map(|&(_, rate)| rate).max().unwrap_or_default()
    }

    /// The same fixed cost per transfer on a link of another rate.
    ///
    /// The cost is what each point takes beyond its size at the last point's bandwidth. This is what a
    /// measurement at one large size, or a throttled link, leaves of a curve.
    #[must_use]
    pub fn with_rate(&self, rate: Bandwidth) -> Self {
        let rate = Bandwidth(rate.0.max(1));
        let mut points: Vec<(Bytes, Bandwidth)> = Vec::with_capacity(self.points.len());
        for &(size, old) in &self.points {
            let cost = old.time(size) - self.last().time(size);
            let achieved = match cost {
                Nanos::ZERO => rate,
                cost => per_second(size, rate.time(size) + cost),
            };
            // On a much faster link a cost that falls with size could make a larger transfer the
            // quicker one: then the smaller one's point is forgotten.
            let time = achieved.time(size);
            while points.last().is_some_and(|(size, rate)| rate.time(*size) > time) {
                points.pop();
            }
            points.push((size, achieved));
        }
        Self { points }
    }

    fn last(&self) -> Bandwidth {
        self.points[self.points.len() - 1].1
    }
}

/// The rate at which `bytes` take `time`, and no more than a profile may say.
fn per_second(bytes: Bytes, time: Nanos) -> Bandwidth {
    Bandwidth::of(bytes, time).min(Bandwidth(LIMIT))
}

impl Serialize for Curve {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.flat_rate() {
            Some(rate) => rate.serialize(serializer),
            None => self.points.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Curve {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Curve;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a bandwidth such as \"12GB/s\", or pairs [size, bandwidth]")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Curve, E> {
                match text.parse().map_err(E::custom)? {
                    Bandwidth::ZERO => {
                        Err(E::custom("a rate of zero never ends; give what was measured"))
                    }
                    rate => Ok(Curve::flat(rate)),
                }
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<Curve, A::Error> {
                let points = Vec::deserialize(SeqAccessDeserializer::new(seq))?;
                Curve::new(points).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
