//! A report in Markdown: figures first, tables after, the manifest last.
//!
//! The caller formats its numbers; this lays them out, and escapes what would break a table.

use minijinja::Environment;
use serde::Serialize;

/// The page's layout.
const TEMPLATE: &str = include_str!("report.md");

/// A whole report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Heading of the page.
    pub title: String,
    /// The result in a few sentences.
    pub summary: String,
    /// Key figures, memory, time by resource, what-ifs, runners-up: in the caller's order.
    pub sections: Vec<Section>,
    /// The manifest as JSON; empty for none.
    pub manifest: String,
}

/// A part of the report: text, then a table, then figures, each where it has some.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Section {
    /// Heading.
    pub title: String,
    /// A paragraph.
    pub text: String,
    /// A table; without columns there is none.
    pub table: Table,
    /// Pictures.
    pub figures: Vec<Figure>,
}

/// Formatted cells: the first column is text, the others are figures and stand to the right.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Rows with as many cells.
    pub rows: Vec<Vec<String>>,
}

/// A picture by its path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Figure {
    /// What it shows.
    pub caption: String,
    /// Where it is, relative to the report.
    pub path: String,
}

impl Section {
    /// A section of one table.
    pub fn table(title: &str, columns: &[&str], rows: Vec<Vec<String>>) -> Self {
        let columns = columns.iter().map(|&c| c.to_owned()).collect();
        Self { title: title.to_owned(), table: Table { columns, rows }, ..Self::default() }
    }
}

/// Lays the report out. The template is part of the program, so an error is a fault in it.
pub fn markdown(report: &Report) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.add_filter("cell", |text: String| cell(&text));
    environment.add_filter("text", |text: String| text.replace('<', "&lt;"));
    environment.add_filter("link", |text: String| link(&text));
    let mut text = environment.render_str(TEMPLATE, minijinja::value::Serde(report))?;
    text.truncate(text.trim_end().len());
    text.push('\n');
    Ok(text)
}

/// Text inside a table: on one line, and without what would end the cell or begin HTML.
fn cell(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A path as the target of a link.
fn link(text: &str) -> String {
    text.replace(' ', "%20").replace('(', "%28").replace(')', "%29")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_as_written() {
        let row = |cells: &[&str]| cells.iter().map(|&c| c.to_owned()).collect();
        let report = Report {
            title: "A plan for 6 GB".into(),
            summary: "The disk binds: 0.85 tokens/s of at most 0.86.".into(),
            sections: vec![
                Section::table(
                    "Key figures",
                    &["figure", "prefill", "decode"],
                    vec![row(&["kernel busy", "99 %", "79 %"]), row(&["a|b", "1\n2", "<3"])],
                ),
                Section {
                    title: "Timeline".into(),
                    text: "Predicted.".into(),
                    figures: vec![Figure {
                        caption: "one decode pass".into(),
                        path: "time line.svg".into(),
                    }],
                    ..Section::default()
                },
            ],
            manifest: "{\n  \"seed\": 7\n}\n".into(),
        };
        insta::assert_snapshot!(markdown(&report).unwrap(), @r#"
        # A plan for 6 GB

        The disk binds: 0.85 tokens/s of at most 0.86.

        ## Key figures

        | figure | prefill | decode |
        | --- | ---: | ---: |
        | kernel busy | 99 % | 79 % |
        | a\|b | 1 2 | &lt;3 |

        ## Timeline

        Predicted.

        ![one decode pass](time%20line.svg)

        ## How to make this again

        ```json
        {
          "seed": 7
        }
        ```
        "#);
    }

    #[test]
    fn an_empty_report_is_a_title() {
        let report = Report { title: "Nothing".into(), ..Report::default() };
        assert_eq!(markdown(&report).unwrap(), "# Nothing\n");
    }
}
