//! A Hugging Face checkpoint: a folder with config.json and one or more safetensors files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pipo_plan::diagnostic::Document;
use pipo_plan::model::Model;
use rayon::prelude::*;
use serde::Deserialize;

use super::header::{self, Entry, LONGEST_HEADER};
use super::source::{Rows, Wanted};
use super::{ImportError, names};
use crate::arithmetic::Arithmetic;
use crate::store::{Layout, TOKENIZER, in_memory};
use crate::tokenizer::{self, Tokenizer};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
const MOST_SHARDS: usize = 512;

/// An open checkpoint whose headers were checked.
#[derive(Debug)]
pub(super) struct Checkpoint {
    folder: PathBuf,
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, (usize, Entry)>,
    prefix: &'static str,
    model: Model,
    arithmetic: Arithmetic,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    pub(super) fn open(folder: &Path) -> Result<Self, ImportError> {
        let config = folder.join("config.json");
        let config = text(&config)?;
        let mut model = Model::from_config(&config)?;
        let arithmetic = Arithmetic::from_config(&config, model.family)?;
        // Where the folder lies is nobody's business but its owner's, and must not change a byte.
        model.source = "config.json".into();
        let mut checkpoint = Self {
            folder: folder.to_owned(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            prefix: names::prefixes(model.family)[0],
            model,
            arithmetic,
        };
        let index = folder.join(INDEX);
        if index.is_file() {
            checkpoint.open_sharded(&index)?;
        } else {
            let mut limit = LONGEST_HEADER;
            let path = single(folder)?;
            let entries = checkpoint.open_file(path, &mut limit)?;
            checkpoint.tensors = entries.into_iter().map(|(name, e)| (name, (0, e))).collect();
        }
        let has = |prefix: &&str| {
            checkpoint.tensors.contains_key(&format!("{prefix}{}", names::LANDMARK))
        };
        let prefixes = names::prefixes(checkpoint.model.family);
        checkpoint.prefix = prefixes.into_iter().find(has).unwrap_or(prefixes[0]);
        Ok(checkpoint)
    }

    pub(super) fn model(&self) -> &Model {
        &self.model
    }

    pub(super) fn arithmetic(&self) -> &Arithmetic {
        &self.arithmetic
    }

    /// The bytes of tokenizer.json, where there is one, after a look whether it can be used.
    pub(super) fn tokenizer(&self) -> Result<Option<Vec<u8>>, ImportError> {
        let path = self.folder.join(TOKENIZER);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = whole(&path, tokenizer::LARGEST)?;
        Tokenizer::parse(&bytes, path.display().to_string(), self.model.vocab)?;
        Ok(Some(bytes))
    }

    /// Whether every tensor of the store is there in the right shape, and none besides that should
    /// not be. Returns what is left unused.
    pub(super) fn check(&self, layout: &Layout) -> Result<Vec<String>, ImportError> {
        let mut unused: BTreeSet<&str> = self.tensors.keys().map(String::as_str).collect();
        for place in layout.places() {
            for placed in layout.tensors(place.part) {
                let wanted = Wanted { place, placed };
                let (name, _, _) = self.entry(&wanted)?;
                unused.remove(name.as_str());
            }
        }
        let unexpected = unused.iter().find(|name| !names::harmless(name, layout.tied()));
        if let Some(&tensor) = unexpected {
            let file = self.tensors.get(tensor).map_or(0, |(file, _)| *file);
            let path = self.files.get(file).map_or(&self.folder, |(path, _)| path).clone();
            return Err(ImportError::UnexpectedTensor { path, tensor: tensor.into() });
        }
        Ok(unused.into_iter().map(str::to_owned).collect())
    }

    /// A tensor's name, header entry and file.
    fn entry(&self, wanted: &Wanted) -> Result<(String, &Entry, &(PathBuf, File)), ImportError> {
        let missing = |tensor: String| ImportError::MissingTensor {
            path: self.folder.clone(),
            tensor,
            what: wanted.to_string(),
        };
        let name = names::name(self.model.family, self.prefix, wanted.place, &wanted.placed);
        let name = name.ok_or_else(|| missing(wanted.placed.tensor.name.into()))?;
        let found = self.tensors.get(&name);
        let found = found.and_then(|(file, entry)| Some((entry, self.files.get(*file)?)));
        let (entry, file) = found.ok_or_else(|| missing(name.clone()))?;

        let tensor = wanted.placed.tensor;
        let expected = match tensor.inputs {
            1 => vec![tensor.outputs],
            inputs => vec![tensor.outputs, inputs],
        };
        // A matrix of one column keeps both sizes.
        let column = tensor.inputs == 1 && entry.shape == [tensor.outputs, 1];
        if entry.shape != expected && !column {
            let (path, found) = (file.0.clone(), entry.shape.clone());
            return Err(ImportError::Shape { path, tensor: name, found, expected });
        }
        if !matches!(entry.dtype.as_str(), "F32" | "F16" | "BF16") {
            let (path, found) = (file.0.clone(), entry.dtype.clone());
            return Err(ImportError::Dtype { path, tensor: name, found });
        }
        Ok((name, entry, file))
    }

    fn open_sharded(&mut self, path: &Path) -> Result<(), ImportError> {
        let Index { weight_map } = text(path)?.parse_json()?;
        let index = || path.to_owned();
        let shards: BTreeMap<&str, &str> =
            weight_map.iter().map(|(tensor, shard)| (shard.as_str(), tensor.as_str())).collect();
        if shards.len() > MOST_SHARDS {
            let (found, limit) = (shards.len(), MOST_SHARDS);
            return Err(ImportError::TooManyShards { index: index(), found, limit });
        }
        let mut limit = 2 * LONGEST_HEADER;
        let mut listed: BTreeMap<&str, (usize, BTreeMap<String, Entry>)> = BTreeMap::new();
        for (&shard, &tensor) in &shards {
            // Links are fine: the Hub's own cache consists of them. Names that lead elsewhere are not.
            let mut parts = Path::new(shard).components();
            let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
            if !plain || shard.contains(['/', '\\', '\0']) {
                let (tensor, shard) = (tensor.into(), shard.into());
                return Err(ImportError::OutsideFolder { index: index(), tensor, shard });
            }
            let file = self.folder.join(shard);
            if !file.is_file() {
                return Err(ImportError::MissingShard { index: index(), shard: shard.into() });
            }
            let number = self.files.len();
            listed.insert(shard, (number, self.open_file(file, &mut limit)?));
        }
        for (tensor, shard) in &weight_map {
            let found = listed.get_mut(shard.as_str());
            let found = found.and_then(|(file, entries)| Some((*file, entries.remove(tensor)?)));
            let Some(entry) = found else {
                let (tensor, shard) = (tensor.clone(), shard.clone());
                return Err(ImportError::NotInShard { index: index(), tensor, shard });
            };
            self.tensors.insert(tensor.clone(), entry);
        }
        Ok(())
    }

    /// Opens a file and reads its header; `limit` is what headers may still take in all.
    fn open_file(
        &mut self,
        path: PathBuf,
        limit: &mut u64,
    ) -> Result<BTreeMap<String, Entry>, ImportError> {
        let file = File::open(&path).map_err(ImportError::io("open", &path))?;
        let length = file.metadata().map_err(ImportError::io("inspect", &path))?.len();
        let flawed = |flaw| ImportError::Header { path: path.clone(), flaw };
        let entries = header::read(&file, length, LONGEST_HEADER.min(*limit)).map_err(flawed)?;
        let data = entries.values().map(|e| e.bytes.start).min().unwrap_or(0);
        *limit = limit.saturating_sub(data);
        self.files.push((path, file));
        Ok(entries)
    }
}

impl Rows for Checkpoint {
    fn read(&mut self, wanted: &Wanted, first: u64, into: &mut [f32]) -> Result<(), ImportError> {
        let (_, entry, (path, file)) = self.entry(wanted)?;
        let width = header::width(&entry.dtype).unwrap_or(0);
        // Inside the file: the header was checked, and the shape with it.
        let offset = entry.bytes.start + first * wanted.placed.tensor.inputs * width;
        let mut bytes = vec![0; into.len() * in_memory(width)];
        file.read_exact_at(&mut bytes, offset).map_err(ImportError::io("read", path))?;
        widen(&entry.dtype, &bytes, into);
        Ok(())
    }
}

/// Numbers of a file as floats.
fn widen(dtype: &str, bytes: &[u8], into: &mut [f32]) {
    const CHUNK: usize = 1 << 14;
    let halves = |bytes: &[u8], into: &mut [f32], brain: bool| {
        let bits = bytes.as_chunks::<2>().0.iter().map(|&pair| u16::from_le_bytes(pair));
        if brain {
            bits.map(bf16::from_bits).collect::<Vec<_>>().convert_to_f32_slice(into);
        } else {
            bits.map(f16::from_bits).collect::<Vec<_>>().convert_to_f32_slice(into);
        }
    };
    match dtype {
        "F32" => {
            for (number, &bytes) in into.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *number = f32::from_le_bytes(bytes);
            }
        }
        _ => into
            .par_chunks_mut(CHUNK)
            .zip(bytes.par_chunks(2 * CHUNK))
            .for_each(|(into, bytes)| halves(bytes, into, dtype == "BF16")),
    }
}

/// The one file of a checkpoint without index.
fn single(folder: &Path) -> Result<PathBuf, ImportError> {
    let usual = folder.join(SINGLE);
    if usual.is_file() {
        return Ok(usual);
    }
    let mut found = Vec::new();
    let failed = || ImportError::io("list", folder);
    for entry in std::fs::read_dir(folder).map_err(failed())? {
        let path = entry.map_err(failed())?.path();
        if path.extension().is_some_and(|e| e == "safetensors") && path.is_file() {
            found.push(path);
        }
    }
    match found.pop() {
        Some(path) if found.is_empty() => Ok(path),
        // Several without an index: which tensor is meant where two have it cannot be known.
        _ => Err(ImportError::NoWeights { path: folder.to_owned() }),
    }
}

/// A text file of the checkpoint.
fn text(path: &Path) -> Result<Document, ImportError> {
    let text = String::from_utf8(whole(path, LONGEST_HEADER)?);
    let text = text.map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error));
    let text = text.map_err(ImportError::io("read as text", path))?;
    Ok(Document::new(path.display().to_string(), text))
}

/// A small file of the checkpoint, if it is no larger than is believed.
fn whole(path: &Path, limit: u64) -> Result<Vec<u8>, ImportError> {
    let file = File::open(path).map_err(ImportError::io("open", path))?;
    let mut bytes = Vec::new();
    let read = file.take(limit + 1).read_to_end(&mut bytes);
    let found = read.map_err(ImportError::io("read", path))? as u64;
    if found > limit {
        let found = path.metadata().map_or(found, |m| m.len());
        return Err(ImportError::TooLarge { path: path.to_owned(), found, limit });
    }
    Ok(bytes)
}
