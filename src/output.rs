//! Printing and writing: text for people or JSON for programs, files whole or not at all.

use std::io::{IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, bail};
use comfy_table::{CellAlignment, Table};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Where a command's words go.
#[derive(Debug)]
pub struct Printer {
    json: bool,
}

impl Printer {
    /// For people, or for programs.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints a line for people; nothing where a program reads.
    pub fn line(&self, text: impl AsRef<str>) {
        if !self.json {
            self.raw(text.as_ref());
        }
    }

    /// Prints a heading and what stands under it.
    pub fn section(&self, title: &str) {
        self.line(format!("\n{title}"));
    }

    /// Prints a line on standard output whoever reads. A reader that has gone away is not an error.
    #[allow(clippy::unused_self, reason = "the printer is the one place that writes")]
    pub fn raw(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{}", text.trim_end_matches('\n'));
    }

    /// Prints a piece of a line for people at once.
    pub fn piece(&self, text: &str) {
        if !self.json && !text.is_empty() {
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        }
    }

    /// Prints a line about the result rather than of it, on standard error; nothing where a program
    /// reads.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.json {
            let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
        }
    }

    /// Whether a program reads.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints the JSON document of a command; nothing for people.
    pub fn document(&self, value: &impl Serialize) -> anyhow::Result<()> {
        if self.json {
            self.raw(&serde_json::to_string_pretty(value)?);
        }
        Ok(())
    }

    /// Prints an error on standard error, as text or as JSON.
    pub fn error(&self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        // A diagnostic brings its own `error:`.
        let text = if text.starts_with("error") { text } else { format!("error: {text}") };
        let text = if self.json { serde_json::json!({ "error": text }).to_string() } else { text };
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    /// A progress bar on a terminal's standard error; hidden elsewhere.
    pub fn progress(&self, message: &'static str) -> ProgressBar {
        let bar = ProgressBar::no_length().with_message(message);
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        if self.json || !std::io::stderr().is_terminal() {
            bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        bar
    }

    /// Prints rows in columns: aligned on a terminal, separated by tabs when piped.
    pub fn table(&self, header: &[&str], rows: &[Vec<String>]) {
        if self.json {
            return;
        }
        if !std::io::stdout().is_terminal() {
            self.raw(&header.join("\t"));
            for row in rows {
                self.raw(&row.join("\t"));
            }
            return;
        }
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(header.iter().copied());
        for row in rows {
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        self.raw(&table.to_string());
    }
}

/// Fails where [`write()`] would: asked before what takes long.
pub fn expect(path: &Path) -> anyhow::Result<()> {
    if path.is_dir() {
        bail!("cannot write {}: it is a folder; name a file in it", path.display());
    }
    temporary(path).map(drop)
}

/// Writes a file under a temporary name and renames it, so that no reader ever sees half of it.
pub fn write(path: &Path, contents: &str) -> anyhow::Result<()> {
    let mut file = temporary(path)?;
    file.write_all(contents.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    set_readable(&file);
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// An empty file in the folder that a file is to be in.
fn temporary(path: &Path) -> anyhow::Result<tempfile::NamedTempFile> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("cannot write in {}", folder.display()))
}

/// Temporary files are private; results are for everyone the user's umask allows.
fn set_readable(file: &tempfile::NamedTempFile) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let _ = file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644));
    }
    #[cfg(not(unix))]
    let _ = file;
}
