//! What can be wrong with a checkpoint.

use std::io;
use std::path::{Path, PathBuf};

use pipo_plan::diagnostic::Diagnostic;

use crate::store::StoreError;
use crate::tokenizer::TokenizerError;

/// A failure to import. The target is not there beside one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// `config.json` or the index cannot be believed.
    #[error(transparent)]
    Document(#[from] Box<Diagnostic>),
    /// The store could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The system refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: `open`, `read`.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The folder has none of the files that a checkpoint consists of.
    #[error(
        "{} has neither `model.safetensors.index.json` nor `model.safetensors` nor one other \
         `.safetensors` file; name the folder of a Hugging Face model, converted to safetensors",
        path.display()
    )]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// A file of the checkpoint is larger than is believed.
    #[error("{} has {found} bytes, more than the {limit} believed here; is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// A shard that the index names does not exist.
    #[error("{} names the shard `{shard}`, which is not there; download it", index.display())]
    MissingShard {
        /// The index.
        index: PathBuf,
        /// The shard's name in it.
        shard: String,
    },
    /// A shard's name is not the name of a file in the folder.
    #[error(
        "{} places `{tensor}` in `{shard}`, which is not a file of the same folder; \
         do not use this checkpoint unless you know who made it",
        index.display()
    )]
    OutsideFolder {
        /// The index.
        index: PathBuf,
        /// A tensor mapped to it.
        tensor: String,
        /// The name.
        shard: String,
    },
    /// The index names more shards than any checkpoint has.
    #[error("{} names {found} shards, more than the {limit} believed here", index.display())]
    TooManyShards {
        /// The index.
        index: PathBuf,
        /// Shards named.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The index places a tensor in a shard that does not have it.
    #[error(
        "{} places `{tensor}` in `{shard}`, whose header does not list it; download both again",
        index.display()
    )]
    NotInShard {
        /// The index.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// A safetensors file is malformed.
    #[error("{}: {flaw}; download the file again", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        flaw: super::HeaderFlaw,
    },
    /// The model needs a tensor that the checkpoint lacks.
    #[error(
        "{} has no tensor `{tensor}` ({what}); is config.json that of these weights, and are they \
         unquantised?",
        path.display()
    )]
    MissingTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor's usual name.
        tensor: String,
        /// What it is in the store.
        what: String,
    },
    /// The checkpoint has a tensor that the model does not use.
    #[error(
        "{}: `{tensor}` belongs to nothing in the model that config.json describes; \
         is config.json that of these weights?",
        path.display()
    )]
    UnexpectedTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape than config.json says.
    #[error(
        "{}: `{tensor}` has the shape {found:?}, config.json makes it {expected:?}; \
         is config.json that of these weights?",
        path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<u64>,
        /// The shape that the model says.
        expected: Vec<u64>,
    },
    /// A tensor is stored in numbers that cannot be imported.
    #[error(
        "{}: `{tensor}` has the dtype `{found}`, F32, F16 and BF16 can be imported; \
         use an unquantised checkpoint",
        path.display()
    )]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        found: String,
    },
    /// A number that is not finite, or too large for the format.
    #[error("`{tensor}` holds {value} at row {row}, column {column}, which {precision} cannot store; {}", help(*value))]
    Unrepresentable {
        /// The tensor.
        tensor: String,
        /// Its row.
        row: u64,
        /// Its column.
        column: u64,
        /// The number.
        value: f32,
        /// The format.
        precision: pipo_plan::model::Precision,
    },
    /// A tensor of a shape that cannot be addressed.
    #[error("`{tensor}`: {error}; import it on a machine with wider addresses")]
    Unaddressable {
        /// The tensor.
        tensor: String,
        /// What is too large.
        error: pipo_kernels::ShapeError,
    },
}

fn help(value: f32) -> &'static str {
    if value.is_finite() {
        "bf16 can"
    } else {
        "the checkpoint is damaged or was never trained to the end"
    }
}

impl ImportError {
    /// Turns a system error into one that names the file.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
