//! `store.json`: what a store says about itself.

use std::path::Path;

use pipo_plan::diagnostic::{Diagnostic, Document};
use pipo_plan::model::{Model, Part, Precision};
use serde::{Deserialize, Serialize};

use super::{Layout, StoreError};
use crate::arithmetic::Arithmetic;

/// Bytes that one checksum covers; the last block of a run is shorter.
///
/// A multiple of the alignment, large enough that the table stays small and small enough that a block
/// is a sensible read.
pub const BLOCK: u64 = 4 << 20;

/// The largest table believed. It lists the blocks of 24 TB of weights.
pub(super) const LARGEST_TABLE: u64 = 64 << 20;
/// Blocks that fit into such a table, at 11 bytes a checksum.
pub(super) const MOST_BLOCKS: u64 = 5_500_000;

const VERSION: u32 = 1;
const HELP: &str = "import the model again; a store is not edited by hand";

/// Where the weights came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Origin {
    /// A Hugging Face checkpoint.
    Safetensors,
    /// Random numbers of the right shapes: for measuring, not for talking.
    Random {
        /// The seed they were drawn with.
        seed: u64,
    },
}

/// The table as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    version: u32,
    /// CRC-32 of this table as it is written, with this field at 0.
    checksum: u32,
    origin: Origin,
    pub(super) precision: Precision,
    block: u64,
    length: u64,
    pub(super) model: Model,
    pub(super) arithmetic: Arithmetic,
    /// Where the store has a tokenizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) tokenizer: Option<Attached>,
    runs: Vec<Run>,
}

/// A small file beside the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Attached {
    pub(super) length: u64,
    pub(super) checksum: u32,
}

impl Attached {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self { length: bytes.len() as u64, checksum: crc32fast::hash(bytes) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    part: Part,
    layer: u32,
    offset: u64,
    length: u64,
    /// The head's matrix is the token table of the embedding's run and is not stored a second time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    tied: bool,
    blocks: Vec<u32>,
}

impl Table {
    /// The table of a finished store; `blocks` in the order of the layout's places.
    pub(super) fn new(
        layout: &Layout,
        arithmetic: Arithmetic,
        origin: Origin,
        tokenizer: Option<Attached>,
        blocks: Vec<Vec<u32>>,
    ) -> Self {
        let runs = layout.places().zip(blocks).map(|(place, blocks)| {
            let range = layout.range(place).unwrap_or_default();
            Run {
                part: place.part,
                layer: place.layer,
                offset: range.start,
                length: range.end - range.start,
                tied: layout.tied() && place.part == Part::Head,
                blocks,
            }
        });
        let mut table = Self {
            version: VERSION,
            checksum: 0,
            origin,
            precision: layout.precision(),
            block: BLOCK,
            length: layout.file_length(),
            model: layout.model().clone(),
            arithmetic,
            tokenizer,
            runs: runs.collect(),
        };
        table.checksum = table.digest();
        table
    }

    /// The text of `store.json`: a line for each field and each run, so that an error can show its
    /// line and two stores can be compared.
    pub(super) fn to_json(&self) -> String {
        let runs: Vec<String> = self.runs.iter().map(json).collect();
        let tokenizer = self.tokenizer.map(|file| format!("\"tokenizer\":{},\n", json(&file)));
        format!(
            "{{\n\"version\":{},\n\"checksum\":{},\n\"origin\":{},\n\"precision\":{},\n\"block\":{},\n\
             \"length\":{},\n\"model\":{},\n\"arithmetic\":{},\n{}\"runs\":[\n{}\n]\n}}\n",
            self.version,
            self.checksum,
            json(&self.origin),
            json(&self.precision),
            self.block,
            self.length,
            json(&self.model),
            json(&self.arithmetic),
            tokenizer.unwrap_or_default(),
            runs.join(",\n")
        )
    }

    /// Believes a table whose every field follows from its model and precision.
    pub(super) fn parse(document: &Document) -> Result<(Self, Layout), Box<Diagnostic>> {
        let table: Self = document.parse_json()?;
        let wrong =
            |field: &str, found: &dyn std::fmt::Display, expected: &dyn std::fmt::Display| {
                let message = format!("`{field}` is {found}, {expected} is expected");
                document.at_path(field, message, HELP)
            };
        if table.version != VERSION {
            return Err(wrong("version", &table.version, &VERSION));
        }
        let digest = table.digest();
        if table.checksum != digest {
            return Err(wrong("checksum", &table.checksum, &digest));
        }
        if table.block != BLOCK {
            return Err(wrong("block", &table.block, &BLOCK));
        }
        let layout = Layout::new(&table.model, table.precision)
            .map_err(|flaw| flaw.in_document(document, "model"))?;
        if table.length != layout.file_length() {
            return Err(wrong("length", &table.length, &layout.file_length()));
        }
        let runs = layout.places().count();
        if table.runs.len() != runs {
            return Err(wrong("runs", &format_args!("{} runs", table.runs.len()), &runs));
        }
        for (place, run) in layout.places().zip(&table.runs) {
            let range = layout.range(place).unwrap_or_default();
            let length = range.end - range.start;
            let tied = layout.tied() && place.part == Part::Head;
            let found = [u64::from(run.layer), run.offset, run.length, run.blocks.len() as u64];
            let expected = [u64::from(place.layer), range.start, length, length.div_ceil(BLOCK)];
            if run.part != place.part || run.tied != tied || found != expected {
                let show = |part: Part, [layer, offset, length, blocks]: [u64; 4], tied: bool| {
                    format!(
                        "{part} of layer {layer} at {offset}, {length} bytes in {blocks} blocks{}",
                        if tied { ", tied" } else { "" }
                    )
                };
                let message = format!(
                    "the run `{place}` is {}; the model says {}",
                    show(run.part, found, run.tied),
                    show(place.part, expected, tied)
                );
                return Err(document.at_path("runs", message, HELP));
            }
        }
        Ok((table, layout))
    }

    /// Where the weights came from.
    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The checksums of a run, by its place in the order of the layout.
    pub(super) fn blocks(&self, run: usize) -> &[u32] {
        self.runs.get(run).map_or(&[], |run| &run.blocks)
    }

    fn digest(&self) -> u32 {
        let bare = Self { checksum: 0, ..self.clone() };
        crc32fast::hash(bare.to_json().as_bytes())
    }
}

/// Names and numbers: nothing in a table can fail to become JSON.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Reads the text of a table, no more than is believed.
pub(super) fn document(path: &Path) -> Result<Document, StoreError> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(StoreError::io("open", path))?;
    let mut text = String::new();
    let read = file.take(LARGEST_TABLE + 1).read_to_string(&mut text);
    let read = read.map_err(StoreError::io("read as text", path))? as u64;
    let name = path.display().to_string();
    if read > LARGEST_TABLE {
        let message = format!("the table has more than the {LARGEST_TABLE} bytes believed here");
        return Err(Document::new(name, "").whole(message, HELP).into());
    }
    Ok(Document::new(name, text))
}
