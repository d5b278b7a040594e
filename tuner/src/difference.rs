//! How one plan differs from another, in words.

use pipo_plan::plan::Plan;

/// What `other` has instead of what `plan` has: "`gpu_slots` 3 instead of 2, block 8MiB instead of 32MiB".
///
/// The two texts are compared, so that no knob can be forgotten.
pub(crate) fn difference(plan: &Plan, other: &Plan) -> String {
    let (mine, theirs) = (settings(plan), settings(other));
    let mut said: Vec<String> = Vec::new();
    if plan.strategy.name() != other.strategy.name() {
        said.push(format!("{} instead of {}", other.strategy.name(), plan.strategy.name()));
    }
    let same_strategy = said.is_empty();
    for (key, value) in &theirs {
        match mine.iter().find(|(other, _)| other == key) {
            Some((_, old)) if old != value => said.push(format!("{key} {value} instead of {old}")),
            Some(_) => {}
            None if same_strategy => said.push(format!("{key} {value} instead of none")),
            None => said.push(format!("{key} {value}")),
        }
    }
    let gone = mine.iter().filter(|(key, _)| !theirs.iter().any(|(k, _)| k == key));
    if same_strategy {
        said.extend(gone.map(|(key, value)| format!("no {key} instead of {value}")));
    }
    said.join(", ")
}

/// The lines of a plan's batch and of its strategy's table, as keys and values.
fn settings(plan: &Plan) -> Vec<(String, String)> {
    let text = plan.to_toml();
    let strategy = format!("[{}]", plan.strategy.name());
    let mut wanted = false;
    let mut all = Vec::new();
    for line in text.lines() {
        if line.starts_with('[') {
            wanted = line == "[batch]" || line == strategy;
        } else if let Some((key, value)) = line.split_once(" = ").filter(|_| wanted) {
            all.push((key.to_owned(), value.trim_matches('"').to_owned()));
        }
    }
    all
}
