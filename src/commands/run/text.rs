//! New tokens as a person reads them: text, or ids where there is no tokenizer.

use std::sync::mpsc::Receiver;

use pipo_engine::run::NewToken;
use pipo_engine::tokenizer::{TextStream, Tokenizer, TokenizerError};

use crate::output::Printer;

/// How tokens are shown.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    /// Absent where the store has none.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Tokens that end a text.
    pub ends: &'a [u32],
}

impl Reader<'_> {
    /// The tokens before the first that ends the text, and whether one did.
    pub fn until_end<'t>(&self, tokens: &'t [u32]) -> (&'t [u32], bool) {
        let end = tokens.iter().position(|token| self.ends.contains(token));
        (&tokens[..end.unwrap_or(tokens.len())], end.is_some())
    }

    /// A whole sequence.
    pub fn text(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        let (tokens, _) = self.until_end(tokens);
        match self.tokenizer {
            Some(tokenizer) => tokenizer.decode(tokens),
            None => Ok(tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")),
        }
    }

    /// Prints one sequence while it is made, until it ends or the sender is gone.
    pub fn speak(&self, new: &Receiver<NewToken>, printer: &Printer) -> Result<(), TokenizerError> {
        let mut stream = self.tokenizer.map(TextStream::new);
        let tokens = new.iter().map(|new| new.token);
        for token in tokens.take_while(|token| !self.ends.contains(token)) {
            match &mut stream {
                Some(stream) => printer.piece(&stream.push(token)?),
                None => printer.piece(&format!("{token} ")),
            }
        }
        if let Some(stream) = stream {
            printer.piece(&stream.finish()?);
        }
        printer.piece("\n");
        Ok(())
    }
}
