//! Text to tokens and back, as the model's own `tokenizer.json` says.
//!
//! The file is untrusted: what it says about padding and truncation is ignored, because either could
//! ask for any amount of memory or drop a part of a prompt in silence, and ids that the model does not
//! know are refused.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use serde::de::IgnoredAny;

use crate::store::{Store, StoreError};

/// The largest file believed; the largest of known models has half of it.
pub const LARGEST: u64 = 64 << 20;

/// What a decoder puts where bytes are no character, or not yet.
const INCOMPLETE: char = char::REPLACEMENT_CHARACTER;

/// Why text and tokens could not be turned into each other.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The store was made without one.
    #[error(
        "{} is not there: the store has no tokenizer; give token ids with --tokens, or import again \
         from a folder that has tokenizer.json",
        path.display()
    )]
    Missing {
        /// Where it would be.
        path: PathBuf,
    },
    /// The store's copy cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file is not one.
    #[error(
        "{name} is no tokenizer that can be used: {reason}; download the file again, or move it away to import without it"
    )]
    Malformed {
        /// The file.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// It is the tokenizer of another model.
    #[error(
        "{name} makes the token {token} of the text, the model's vocabulary has {vocabulary}; \
         import again with the tokenizer.json of this model"
    )]
    Vocabulary {
        /// The file.
        name: String,
        /// The token.
        token: u32,
        /// Tokens that the model knows.
        vocabulary: u64,
    },
    /// A rule of the tokenizer failed on a text.
    #[error("{name} fails on this text: {reason}; give token ids with --tokens")]
    Text {
        /// The file.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    name: String,
    vocabulary: u64,
}

impl Tokenizer {
    /// The tokenizer of a store's model.
    pub fn of(store: &Store) -> Result<Self, TokenizerError> {
        let path = store.tokenizer_path();
        match store.tokenizer()? {
            Some(bytes) => Self::parse(&bytes, path.display().to_string(), store.model().vocab),
            None => Err(TokenizerError::Missing { path }),
        }
    }

    /// Reads the bytes of a `tokenizer.json`; `name` stands for the file in errors.
    pub fn parse(bytes: &[u8], name: String, vocabulary: u64) -> Result<Self, TokenizerError> {
        let read = || {
            serde_json::from_slice::<IgnoredAny>(bytes)?;
            let mut inner = tokenizers::Tokenizer::from_bytes(bytes)?;
            inner.with_padding(None);
            inner.with_truncation(None)?;
            Ok(inner)
        };
        match guarded(read) {
            Ok(inner) => Ok(Self { inner, name, vocabulary }),
            Err(reason) => Err(TokenizerError::Malformed { name, reason }),
        }
    }

    /// The tokens of a text, with the model's begin token where the file adds one.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = guarded(|| self.inner.encode_fast(text, true));
        let encoding = encoding.map_err(|reason| self.failed(reason))?;
        let tokens = encoding.get_ids();
        match tokens.iter().find(|&&token| u64::from(token) >= self.vocabulary) {
            Some(&token) => {
                let (name, vocabulary) = (self.name.clone(), self.vocabulary);
                Err(TokenizerError::Vocabulary { name, token, vocabulary })
            }
            None => Ok(tokens.to_vec()),
        }
    }

    /// The text of tokens, without special ones. Tokens without a text of their own have none: the
    /// vocabulary of a model may be padded.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        guarded(|| self.inner.decode(tokens, true)).map_err(|reason| self.failed(reason))
    }

    fn failed(&self, reason: String) -> TokenizerError {
        TokenizerError::Text { name: self.name.clone(), reason }
    }
}

/// The library panics on some files that are JSON but no tokenizer. Nothing of it that could be half
/// changed outlives the panic: what is read is dropped, and encoding and decoding change nothing.
fn guarded<T>(call: impl FnOnce() -> Result<T, tokenizers::Error>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("a rule of it is malformed".into()),
    }
}

/// The text of a sequence as it grows.
///
/// A token alone has no text: some decoders treat the first one apart, and a character's bytes may lie
/// in several. So the new text is what the latest tokens have more than those before them, and it is
/// held back while it ends within a character.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// From the start of the last piece on.
    tokens: Vec<u32>,
    /// How many of them have been shown.
    shown: usize,
}

impl<'a> TextStream<'a> {
    /// Nothing yet.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, tokens: Vec::new(), shown: 0 }
    }

    /// Takes the next token and returns the text that is now certain, which may be none.
    pub fn push(&mut self, token: u32) -> Result<String, TokenizerError> {
        self.tokens.push(token);
        let text = self.new_text()?;
        if text.is_empty() || text.ends_with(INCOMPLETE) {
            return Ok(String::new());
        }
        self.tokens.drain(..self.shown);
        self.shown = self.tokens.len();
        Ok(text)
    }

    /// What was held back, at the end.
    pub fn finish(self) -> Result<String, TokenizerError> {
        self.new_text()
    }

    fn new_text(&self) -> Result<String, TokenizerError> {
        let before = self.tokenizer.decode(&self.tokens[..self.shown])?;
        let all = self.tokenizer.decode(&self.tokens)?;
        Ok(all.get(before.len()..).unwrap_or_default().to_owned())
    }
}
