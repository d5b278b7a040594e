//! Prompts of one length, with the plan that runs them.

use std::collections::BTreeMap;

use anyhow::anyhow;
use pipo_engine::adapt::{Wanted, adapt};
use pipo_plan::diagnostic::Document;
use pipo_plan::plan::Plan;

/// What one run of the engine does.
#[derive(Debug)]
pub struct Job {
    /// The plan, adapted.
    pub plan: Plan,
    /// The places of its sequences among all prompts.
    pub places: Vec<usize>,
    /// The prompts: those of the places, and what fills up the last micro-batch.
    pub prompts: Vec<Vec<u32>>,
    /// How the plan was changed, for the user to know.
    pub note: Option<String>,
}

/// One job for each length of prompts, the shortest first.
pub fn jobs(
    plan: &Plan,
    document: &Document,
    prompts: &[Vec<u32>],
    new_tokens: Option<u64>,
) -> anyhow::Result<Vec<Job>> {
    let mut lengths: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (place, prompt) in prompts.iter().enumerate() {
        lengths.entry(prompt.len()).or_default().push(place);
    }
    let new_tokens = new_tokens.unwrap_or(plan.workload.new_tokens);
    let job = |places: Vec<usize>| {
        let all = places.iter().filter_map(|&place| prompts.get(place).cloned());
        job(plan, document, all.collect(), places, new_tokens)
    };
    lengths.into_values().map(job).collect()
}

fn job(
    plan: &Plan,
    document: &Document,
    mut prompts: Vec<Vec<u32>>,
    places: Vec<usize>,
    new_tokens: u64,
) -> anyhow::Result<Job> {
    let sequences = prompts.len() as u64;
    let prompt = prompts.first().map_or(0, Vec::len) as u64;
    let wanted = Wanted { prompt, sequences, new_tokens };
    let theirs = Wanted {
        prompt: plan.workload.prompt,
        sequences: plan.batch.sequences(),
        new_tokens: plan.workload.new_tokens,
    };
    let changed = wanted != theirs;
    let adapted = adapt(plan, wanted).map_err(|error| {
        if changed {
            let (name, wanted) = (&document.name, text(wanted));
            anyhow!("{name}, adapted to {wanted}: {}: {error}", error.path)
        } else {
            error.in_document(document).into()
        }
    })?;
    let missing = adapted.batch.sequences().saturating_sub(sequences);
    let filler = prompts.last().cloned().unwrap_or_default();
    prompts.extend((0..missing).map(|_| filler.clone()));
    let note = changed.then(|| {
        let filled = match missing {
            0 => String::new(),
            _ => format!("; {missing} more fill up the last micro-batch and are not shown"),
        };
        format!("the plan is for {}; it was adapted to {}{filled}", text(theirs), text(wanted))
    });
    Ok(Job { plan: adapted, places, prompts, note })
}

fn text(wanted: Wanted) -> String {
    let Wanted { prompt, sequences, new_tokens } = wanted;
    format!("{sequences} x {prompt} tokens and {new_tokens} new ones")
}
