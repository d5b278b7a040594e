//! The header of a safetensors file: 8 bytes of length, then JSON that names every tensor.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::ops::Range;

use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The longest header believed. Those of real shards stay under a few megabytes; reading one takes a
/// few times its length in memory.
pub const LONGEST_HEADER: u64 = 32 << 20;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// How its numbers are stored, as the file spells it.
    pub dtype: String,
    /// Its sizes, the slowest first.
    pub shape: Vec<u64>,
    /// Its bytes in the file.
    pub bytes: Range<u64>,
}

/// What is wrong with a header.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderFlaw {
    /// It could not be read.
    #[error("cannot read the header: {0}")]
    Io(#[from] io::Error),
    /// The file is too short to be one.
    #[error("the file has {found} bytes, a header alone needs {needed}")]
    Short {
        /// The file's length.
        found: u64,
        /// The least it must have.
        needed: u64,
    },
    /// The header claims to be longer than is believed.
    #[error("the header claims {found} bytes, more than the {limit} believed here")]
    Long {
        /// The claim.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// It is no JSON of the right form.
    #[error("the header is malformed: {0}")]
    Json(#[from] serde_json::Error),
    /// A tensor lies outside the file.
    #[error("`{tensor}` lies at bytes {} to {} of the data, which has {data}", offsets[0], offsets[1])]
    OutOfFile {
        /// The tensor.
        tensor: String,
        /// Its start and end.
        offsets: [u64; 2],
        /// Bytes after the header.
        data: u64,
    },
    /// A tensor's bytes are not as many as its shape needs.
    #[error(
        "`{tensor}` has {found} bytes, its shape {shape:?} in {dtype} needs {}",
        needed.map_or("more than any file has".to_owned(), |n| n.to_string())
    )]
    Size {
        /// The tensor.
        tensor: String,
        /// Its bytes.
        found: u64,
        /// Its shape.
        shape: Vec<u64>,
        /// Its dtype.
        dtype: String,
        /// What the shape needs; `None` beyond 64 bits.
        needed: Option<u64>,
    },
    /// Two tensors share bytes.
    #[error("`{first}` ends at byte {end} of the file, `{second}` begins at {start} already")]
    Overlap {
        /// The tensor that begins first.
        first: String,
        /// Where it ends.
        end: u64,
        /// The one that begins before that.
        second: String,
        /// Where it begins.
        start: u64,
    },
}

/// Reads and checks the header of a file of `length` bytes: afterwards every tensor lies inside the
/// file, is as long as its shape says, and shares no byte with another.
pub fn read(
    file: impl Read,
    length: u64,
    limit: u64,
) -> Result<BTreeMap<String, Entry>, HeaderFlaw> {
    let mut file = file.take(length);
    if length < 8 {
        return Err(HeaderFlaw::Short { found: length, needed: 8 });
    }
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix)?;
    let header = u64::from_le_bytes(prefix);
    if header > limit {
        return Err(HeaderFlaw::Long { found: header, limit });
    }
    let start = 8 + header;
    if start > length {
        return Err(HeaderFlaw::Short { found: length, needed: start });
    }
    let mut text = vec![0; crate::store::in_memory(header)];
    file.read_exact(&mut text)?;
    let Raw(raw) = serde_json::from_slice(&text)?;
    drop(text);

    let data = length - start;
    let mut entries = BTreeMap::new();
    for (tensor, RawEntry { dtype, shape, data_offsets: [from, to] }) in raw {
        if from > to || to > data {
            return Err(HeaderFlaw::OutOfFile { tensor, offsets: [from, to], data });
        }
        if let Some(width) = width(&dtype) {
            let needed = shape.iter().try_fold(width, |bytes, &size| bytes.checked_mul(size));
            if needed != Some(to - from) {
                return Err(HeaderFlaw::Size { tensor, found: to - from, shape, dtype, needed });
            }
        }
        entries.insert(tensor, Entry { dtype, shape, bytes: start + from..start + to });
    }
    check_overlap(&entries)?;
    Ok(entries)
}

fn check_overlap(entries: &BTreeMap<String, Entry>) -> Result<(), HeaderFlaw> {
    let mut order: Vec<_> = entries.iter().filter(|(_, e)| !e.bytes.is_empty()).collect();
    order.sort_by_key(|(_, entry)| entry.bytes.start);
    for pair in order.windows(2) {
        let [(first, a), (second, b)] = pair else { continue };
        if b.bytes.start < a.bytes.end {
            return Err(HeaderFlaw::Overlap {
                first: (*first).clone(),
                end: a.bytes.end,
                second: (*second).clone(),
                start: b.bytes.start,
            });
        }
    }
    Ok(())
}

/// Bytes of a number; `None` for a dtype that is not known, whose tensors can only be left alone.
pub(super) fn width(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" => 1,
        "F16" | "BF16" | "I16" | "U16" => 2,
        "F32" | "I32" | "U32" => 4,
        "F64" | "I64" | "U64" => 8,
        _ => return None,
    })
}

/// The tensors as the file lists them.
struct Raw(BTreeMap<String, RawEntry>);

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object that names tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut tensors = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let entry = map.next_value()?;
                    // Which of two was meant cannot be known, and readers differ.
                    if tensors.insert(name.clone(), entry).is_some() {
                        return Err(A::Error::custom(format!("`{name}` is listed twice")));
                    }
                }
                Ok(Raw(tensors))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}
