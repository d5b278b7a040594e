//! The profiles that ship with the program.

use super::Machine;
use crate::diagnostic::Document;

/// Name and text of each profile, the default first.
const MACHINES: &[(&str, &str)] = &[
    ("rtx3060-laptop", include_str!("../../catalog/machines/rtx3060-laptop.toml")),
    ("t4-flexgen", include_str!("../../catalog/machines/t4-flexgen.toml")),
    ("rtx4090-pcie4", include_str!("../../catalog/machines/rtx4090-pcie4.toml")),
    ("rtx4090-headinfer", include_str!("../../catalog/machines/rtx4090-headinfer.toml")),
    ("rtx4080-endor", include_str!("../../catalog/machines/rtx4080-endor.toml")),
    ("a100-40g", include_str!("../../catalog/machines/a100-40g.toml")),
    ("a100-80g", include_str!("../../catalog/machines/a100-80g.toml")),
    ("h200", include_str!("../../catalog/machines/h200.toml")),
];

/// What a machine without a GPU plans for.
pub const DEFAULT: &str = "rtx3060-laptop";

/// The names, the default first.
pub fn names() -> impl Iterator<Item = &'static str> {
    MACHINES.iter().map(|&(name, _)| name)
}

/// The text of a profile, comments included.
pub fn document(name: &str) -> Option<Document> {
    let (name, text) = MACHINES.iter().find(|&&(known, _)| known == name)?;
    Some(Document::new(format!("catalogue machine {name}"), *text))
}

/// The machine of that name.
pub fn find(name: &str) -> Option<Machine> {
    Machine::from_toml(&document(name)?).ok() // a test reads them all
}

/// The name that was probably meant: one that starts like it, or else one that is spelled much like it.
pub fn nearest(name: &str) -> Option<&'static str> {
    if name.len() > 1
        && let Some(known) = names().find(|known| known.starts_with(name))
    {
        return Some(known);
    }
    let typed: Vec<char> = name.chars().take(64).flat_map(char::to_lowercase).collect();
    names()
        .map(|known| (edits(&typed, &known.chars().collect::<Vec<_>>()), known))
        .min_by_key(|&(distance, _)| distance)
        .filter(|&(distance, known)| distance <= known.len() / 2)
        .map(|(_, known)| known)
}

/// Insertions, deletions and replacements between two texts (Levenshtein), one row at a time.
fn edits(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
