//! Errors in files that people write: the file, the line and column, both values, the next step.
//!
//! Typed parsing (serde) finds what is malformed and brings its own position. What is well-formed but
//! wrong is found later by checks that know a *path* such as `pipo.gpu_slots`; [`Document`] turns such
//! a path back into the place in the text.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::de::DeserializeOwned;

/// A text together with the name under which a person knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// File name, or a description such as `catalogue machine rtx3060-laptop`.
    pub name: String,
    /// The whole text.
    pub text: String,
}

/// One thing wrong in a document, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Name of the document.
    pub name: String,
    /// One-based line and column, where the place is known.
    pub position: Option<(usize, usize)>,
    /// What is wrong, with both values.
    pub message: String,
    /// What to do next.
    pub help: Option<String>,
    rendered: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.rendered)
    }
}

impl std::error::Error for Diagnostic {}

impl Document {
    /// Names a text.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into() }
    }

    /// Parses TOML into a typed value; a failure points at its place.
    pub fn parse_toml<T: DeserializeOwned>(&self) -> Result<T, Box<Diagnostic>> {
        toml::from_str(&self.text)
            .map_err(|error| self.at_span(error.span(), error.message().to_owned(), None))
    }

    /// Parses JSON into a typed value; a failure points at its place.
    pub fn parse_json<T: DeserializeOwned>(&self) -> Result<T, Box<Diagnostic>> {
        serde_json::from_str(&self.text).map_err(|error| {
            let full = error.to_string();
            let message =
                full.rsplit_once(" at line ").map_or(full.as_str(), |(m, _)| m).to_owned();
            self.at_span(self.offset(error.line(), error.column()), message, None)
        })
    }

    /// A diagnostic at a dotted path of a TOML document, or of a JSON object's top-level key.
    pub fn at_path(&self, path: &str, message: impl Into<String>, help: &str) -> Box<Diagnostic> {
        let span = self.toml_span(path).or_else(|| self.json_span(path));
        self.at_span(span, message.into(), Some(help.to_owned()))
    }

    /// A diagnostic about the document as a whole.
    pub fn whole(&self, message: impl Into<String>, help: &str) -> Box<Diagnostic> {
        self.at_span(None, message.into(), Some(help.to_owned()))
    }

    fn at_span(
        &self,
        span: Option<Range<usize>>,
        message: String,
        help: Option<String>,
    ) -> Box<Diagnostic> {
        let span = span.map(|s| self.clamp(s));
        let position = span.as_ref().map(|s| self.line_column(s.start));
        let mut report = Vec::new();
        let title = Level::ERROR.primary_title(message.as_str());
        let group = match &span {
            Some(span) => title.element(
                Snippet::source(self.text.as_str())
                    .path(self.name.as_str())
                    .annotation(AnnotationKind::Primary.span(span.clone())),
            ),
            None => title.element(annotate_snippets::Origin::path(self.name.as_str())),
        };
        report.push(match &help {
            Some(help) => group.element(Level::HELP.message(help.as_str())),
            None => group,
        });
        let rendered = Renderer::plain().render(&report);
        Box::new(Diagnostic { name: self.name.clone(), position, message, help, rendered })
    }

    /// Spans from parsers may touch the end of the text or split a character; rendering may not.
    fn clamp(&self, span: Range<usize>) -> Range<usize> {
        let floor = |mut at: usize| {
            at = at.min(self.text.len());
            while !self.text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let start = floor(span.start);
        start..floor(span.end).max(start)
    }

    fn line_column(&self, offset: usize) -> (usize, usize) {
        let before = &self.text[..offset];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    fn offset(&self, line: usize, column: usize) -> Option<Range<usize>> {
        let start: usize =
            self.text.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
        let at = start + column.saturating_sub(1);
        Some(at..at + 1)
    }

    fn toml_span(&self, path: &str) -> Option<Range<usize>> {
        let root = toml::de::DeTable::parse(&self.text).ok()?;
        let mut table = root.get_ref();
        let mut span = None;
        for key in path.split('.') {
            let value = table.get(key)?;
            span = Some(value.span());
            match value.get_ref() {
                toml::de::DeValue::Table(inner) => table = inner,
                _ => break,
            }
        }
        span
    }

    /// The value behind `"key":`, found textually; enough to point at a line of a config.json.
    fn json_span(&self, key: &str) -> Option<Range<usize>> {
        let quoted = format!("\"{key}\"");
        let key_at = self.text.find(&quoted)?;
        let after = key_at + quoted.len();
        let rest = &self.text[after..];
        let value_at = after + rest.find(|c: char| c != ':' && !c.is_whitespace())?;
        let length =
            self.text[value_at..].find([',', '\n', '}']).unwrap_or(self.text.len() - value_at);
        Some(value_at..value_at + length.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only parsing is tested")]
    struct Small {
        slots: u32,
    }

    #[test]
    fn an_unknown_key_is_shown_where_it_stands() {
        let document = Document::new("plan.toml", "slots = 2\nslotz = 3\n");
        let error = document.parse_toml::<Small>().unwrap_err();
        assert_eq!(error.position, Some((2, 1)));
        insta::assert_snapshot!(error, @"
        error: unknown field `slotz`, expected `slots`
         --> plan.toml:2:1
          |
        2 | slotz = 3
          | ^^^^^
        ");
    }

    #[test]
    fn a_later_check_points_at_the_value() {
        let document = Document::new("plan.toml", "[pipo]\ngpu_slots = 0\n");
        let error = document.at_path(
            "pipo.gpu_slots",
            "gpu_slots is 0, at least 1 is needed",
            "set it to 2",
        );
        insta::assert_snapshot!(error, @"
        error: gpu_slots is 0, at least 1 is needed
         --> plan.toml:2:13
          |
        2 | gpu_slots = 0
          |             ^
          |
          = help: set it to 2
        ");
    }

    #[test]
    fn truncated_json_points_at_its_end() {
        let document = Document::new("config.json", "{\n  \"slots\": ");
        let error = document.parse_json::<Small>().unwrap_err();
        assert_eq!(error.position.map(|p| p.0), Some(2));
    }
}
