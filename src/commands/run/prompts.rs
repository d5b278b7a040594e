//! The prompts of a run, from wherever the user has them, as tokens.

use std::path::Path;

use anyhow::{Context, bail};
use pipo_engine::run::random_prompts;
use pipo_engine::store::Store;
use pipo_engine::tokenizer::{Tokenizer, TokenizerError};
use pipo_plan::plan::Plan;

use crate::cli::Prompts;
use crate::input;

/// Random tokens are held in memory, four bytes each.
const MOST_RANDOM: u64 = 1 << 28;

/// Prompts as tokens, and what turns tokens into text, where the store has it.
#[derive(Debug)]
pub struct Tokenized {
    /// At least one prompt, and no empty one.
    pub prompts: Vec<Vec<u32>>,
    /// The store's.
    pub tokenizer: Option<Tokenizer>,
}

/// Reads them. Token ids need no tokenizer, texts do.
pub fn read(args: &Prompts, plan: &Plan, store: &Store, seed: u64) -> anyhow::Result<Tokenized> {
    let (texts, ids) = (texts(args)?, ids(args)?);
    let tokenizer = match Tokenizer::of(store) {
        Ok(tokenizer) => Some(tokenizer),
        Err(TokenizerError::Missing { .. }) if texts.is_empty() => None,
        Err(error) => return Err(error.into()),
    };
    let mut prompts = Vec::new();
    if args.random_prompt {
        prompts = random(plan, seed)?;
    }
    for (place, ids) in ids {
        prompts.push(tokens(&ids).with_context(|| place)?);
    }
    if let Some(tokenizer) = &tokenizer {
        for text in texts {
            prompts.push(tokenizer.encode(&text)?);
        }
    }
    if let Some(empty) = prompts.iter().position(Vec::is_empty) {
        bail!("prompt {} has no tokens; give it at least one", empty + 1);
    }
    Ok(Tokenized { prompts, tokenizer })
}

fn texts(args: &Prompts) -> anyhow::Result<Vec<String>> {
    match &args.prompt_file {
        Some(path) => Ok(lines(path)?.into_iter().map(|(_, line)| line).collect()),
        None => Ok(args.prompt.clone()),
    }
}

/// Lists of token ids, with where each was found.
fn ids(args: &Prompts) -> anyhow::Result<Vec<(String, String)>> {
    match &args.tokens_file {
        Some(path) => lines(path),
        None => Ok(args.tokens.iter().map(|ids| ("--tokens".into(), ids.clone())).collect()),
    }
}

/// The lines of a file that are not empty, with where each was found.
fn lines(path: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let document = input::document(path)?;
    let lines = (1..).zip(document.text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let lines: Vec<(String, String)> = lines
        .map(|(number, line): (u64, _)| (format!("{}:{number}", document.name), line.to_owned()))
        .collect();
    if lines.is_empty() {
        bail!("{} has no prompts; write one in each line", document.name);
    }
    Ok(lines)
}

fn tokens(ids: &str) -> anyhow::Result<Vec<u32>> {
    let token = |id: &str| {
        let help = || format!("`{id}` is no token id; write ids such as 1,15043,3186");
        id.trim().parse().with_context(help)
    };
    ids.split(',').map(token).collect()
}

/// Prompts of random tokens, in the number and length of the plan.
pub fn random(plan: &Plan, seed: u64) -> anyhow::Result<Vec<Vec<u32>>> {
    let (sequences, length) = (plan.batch.sequences(), plan.workload.prompt);
    if sequences.saturating_mul(length) > MOST_RANDOM {
        bail!(
            "the plan has {sequences} sequences of {length} tokens, more than the {MOST_RANDOM} tokens \
             drawn here; tune with a smaller --batch or --prompt"
        );
    }
    Ok(random_prompts(plan.model.vocab, sequences, length, seed))
}
