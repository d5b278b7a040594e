//! The models that ship with pipo, each with the address its figures come from.

use std::sync::LazyLock;

use serde::Deserialize;

use super::Model;

/// One file for a family, in the order in which models are listed.
const FILES: [&str; 6] = [
    include_str!("../../catalog/models/opt.toml"),
    include_str!("../../catalog/models/llama.toml"),
    include_str!("../../catalog/models/mistral.toml"),
    include_str!("../../catalog/models/mixtral.toml"),
    include_str!("../../catalog/models/qwen2.toml"),
    include_str!("../../catalog/models/qwen3.toml"),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model: Vec<Model>,
}

/// A file that does not parse cannot ship: the tests parse each. Skipping it keeps the promise that
/// nothing here panics.
static MODELS: LazyLock<Vec<Model>> = LazyLock::new(|| {
    FILES
        .iter()
        .filter_map(|text| toml::from_str::<File>(text).ok())
        .flat_map(|f| f.model)
        .collect()
});

/// The names, in a fixed order: by family, then by size.
pub fn names() -> Vec<&'static str> {
    MODELS.iter().map(|model| model.name.as_str()).collect()
}

/// The model of that name; upper and lower case are the same.
pub fn find(name: &str) -> Option<Model> {
    MODELS.iter().find(|model| model.name.eq_ignore_ascii_case(name)).cloned()
}

/// The name that was probably meant, for a "did you mean".
///
/// A Hub name such as `meta-llama/Llama-2-7b-hf` is understood by its last part. Nothing is returned
/// where more than a third of the letters would have to change. Of equally near names, the first wins.
pub fn nearest(name: &str) -> Option<&'static str> {
    let wanted = name.rsplit('/').next()?.to_ascii_lowercase();
    if wanted.len() > 64 {
        return None;
    }
    let prefixed = names().into_iter().find(|known| wanted.starts_with(&format!("{known}-")));
    prefixed.or_else(|| {
        let (edits, known) = names()
            .into_iter()
            .map(|known| (distance(&wanted, known), known))
            .min_by_key(|&(edits, _)| edits)?;
        (edits * 3 <= known.len()).then_some(known)
    })
}

/// Letters to insert, delete or replace between two short names (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_parses_and_every_model_passes_its_check() {
        for text in FILES {
            let file: File = toml::from_str(text).unwrap();
            for model in file.model {
                model.check().unwrap();
                assert!(model.source.starts_with("https://"), "{} has no source", model.name);
                assert_eq!(find(&model.name), Some(model));
            }
        }
    }

    #[test]
    fn a_near_miss_is_understood_and_nonsense_is_not() {
        assert_eq!(nearest("opt-6.7"), Some("opt-6.7b"));
        assert_eq!(nearest("Llama3.1-8b"), Some("llama-3.1-8b"));
        assert_eq!(nearest("meta-llama/Llama-2-70b-hf"), Some("llama-2-70b"));
        assert_eq!(nearest("mixtral"), None);
        assert_eq!(nearest("gpt-4"), None);
        assert_eq!(nearest(""), None);
        assert_eq!(nearest(&"x".repeat(1 << 20)), None);
    }

    #[test]
    fn edit_distance_counts_edits() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
