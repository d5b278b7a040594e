//! Is this a machine? What a profile may not say, found before anything is simulated with it.

use std::collections::BTreeSet;

use super::{AttentionTime, Figure, Machine};
use crate::diagnostic::{Diagnostic, Document};
use crate::units::Bytes;

type Checked = Result<(), Box<Diagnostic>>;

/// Rows of a kernel table that are believed.
const MOST_KERNELS: usize = 100_000;
/// Rows, outputs and inputs of a kernel that are believed.
const LARGEST_SHAPE: u64 = 1 << 40;
/// Rows, positions, heads and features of an attention that are believed.
const LARGEST_ATTENTION: u64 = 1 << 24;

impl Machine {
    /// Refuses what no machine can be; `document` is the text that the profile was read from.
    pub fn check(&self, document: &Document) -> Checked {
        self.check_texts(document)?;
        for entry in self.figures() {
            if !self.sources.contains_key(entry.source) {
                let known = self.sources.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>();
                return Err(document.at_path(
                    &format!("{}.source", entry.path),
                    format!(
                        "{} has the source `{}`, which [sources] does not have",
                        entry.path, entry.source
                    ),
                    &if known.is_empty() {
                        format!("add [sources] with `{} = \"where it comes from\"`", entry.source)
                    } else {
                        format!("use one of {}, or add it to [sources]", known.join(", "))
                    },
                ));
            }
            if let Some(fault) = entry.fault {
                return Err(document.at_path(
                    &format!("{}.value", entry.path),
                    format!("{} is {}: {fault}", entry.path, entry.value),
                    "give what was measured, or leave the figure out if it is optional",
                ));
            }
        }
        self.check_kernels(document)?;
        check_attentions(document, "gpu.attentions", &self.gpu.attentions)?;
        check_attentions(document, "host.attentions", &self.host.attentions)?;
        self.check_relations(document)
    }

    fn check_texts(&self, document: &Document) -> Checked {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(plain) {
            return Err(document.at_path(
                "name",
                "the name must be 1 to 64 lower-case letters, digits, `-`, `.` or `_`",
                "choose a name such as `rtx3060-laptop`",
            ));
        }
        for (key, source) in &self.sources {
            if key.is_empty() || key.len() > 64 || !key.chars().all(plain) {
                return Err(document.at_path(
                    "sources",
                    format!("the source key `{}` is not a plain word", key.escape_debug()),
                    "use 1 to 64 lower-case letters, digits, `-`, `.` or `_`",
                ));
            }
            if source.trim().is_empty() {
                return Err(document.at_path(
                    &format!("sources.{key}"),
                    format!("the source `{key}` is empty"),
                    "say in a sentence where its figures come from, or that they are estimates",
                ));
            }
        }
        if self.gpu.is_on_host() {
            return Ok(());
        }
        let digits = self.gpu.architecture.strip_prefix("sm_").unwrap_or_default();
        let digits = digits.strip_suffix(['a', 'f']).unwrap_or(digits);
        if !(2..=3).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(document.at_path(
                "gpu.architecture",
                format!("gpu.architecture is `{}`", self.gpu.architecture.escape_debug()),
                "write the compute capability as a target, such as `sm_86` for 8.6, or `cpu`",
            ));
        }
        Ok(())
    }

    fn check_kernels(&self, document: &Document) -> Checked {
        let kernels = &self.gpu.kernels;
        if kernels.len() > MOST_KERNELS {
            return Err(document.at_path(
                "gpu.kernels",
                format!("gpu.kernels has {} rows, at most {MOST_KERNELS} are read", kernels.len()),
                "keep the shapes of the models you run",
            ));
        }
        let mut seen = BTreeSet::new();
        let bad = |n: u64| !(1..=LARGEST_SHAPE).contains(&n);
        for (index, kernel) in kernels.iter().enumerate() {
            let shape = format!("{} x {} x {}", kernel.rows, kernel.outputs, kernel.inputs);
            if bad(kernel.rows) || bad(kernel.outputs) || bad(kernel.inputs) {
                return Err(document.at_path(
                    "gpu.kernels",
                    format!("row {} of gpu.kernels has the shape {shape}", index + 1),
                    "rows, outputs and inputs must be from 1 to 2^40",
                ));
            }
            if kernel.time.0 == 0 || kernel.precision.is_empty() || kernel.precision.len() > 32 {
                return Err(document.at_path(
                    "gpu.kernels",
                    format!(
                        "row {} of gpu.kernels ({shape}) has no time or no precision",
                        index + 1
                    ),
                    "measure it again, or leave the row out",
                ));
            }
            if !seen.insert((&kernel.precision, kernel.rows, kernel.outputs, kernel.inputs)) {
                return Err(document.at_path(
                    "gpu.kernels",
                    format!(
                        "row {} of gpu.kernels times {} at {shape} again",
                        index + 1,
                        kernel.precision.escape_debug()
                    ),
                    "keep one time for each shape, the median of several",
                ));
            }
        }
        Ok(())
    }

    /// Pairs of figures that contradict each other.
    fn check_relations(&self, document: &Document) -> Checked {
        let Self { gpu, link, host, .. } = self;
        below(document, ("gpu.context", &gpu.context), ("gpu.memory", &gpu.memory))?;
        below(document, ("host.reserved", &host.reserved), ("host.memory", &host.memory))?;
        if let Some(disk) = &self.disk
            && disk.capacity.0 == 0
        {
            return Err(document.at_path(
                "disk.capacity.value",
                "disk.capacity is 0B",
                "give the free space, or leave the [disk] table out",
            ));
        }
        let (h2d, d2h) = (link.h2d.best(), link.d2h.best());
        let (name, fastest) = if h2d >= d2h { ("link.h2d", h2d) } else { ("link.d2h", d2h) };
        if link.duplex.value < fastest {
            return Err(document.at_path(
                "link.duplex.value",
                format!(
                    "link.duplex is {}, less than {name} reaches alone ({})",
                    link.duplex.exact(),
                    fastest.exact()
                ),
                "duplex is the sum of both directions at once; measure copies both ways",
            ));
        }
        let memory = host.memory_bandwidth.value;
        let draws = [("host.copy", host.copy.value, 2), ("host.weights", host.weights.value, 1)];
        for (path, rate, times) in draws {
            if rate * times > memory {
                return Err(document.at_path(
                    &format!("{path}.value"),
                    format!(
                        "{path} is {}, which draws {} on a host.memory_bandwidth of {}",
                        rate.exact(),
                        (rate * times).exact(),
                        memory.exact()
                    ),
                    "host.memory_bandwidth counts reads and writes together; measure it with all \
                     cores",
                ));
            }
        }
        Ok(())
    }
}

/// The table of attentions called `path`.
fn check_attentions(document: &Document, path: &str, attentions: &[AttentionTime]) -> Checked {
    if attentions.len() > MOST_KERNELS {
        let count = attentions.len();
        return Err(document.at_path(
            path,
            format!("{path} has {count} rows, at most {MOST_KERNELS} are read"),
            "keep the shapes of the models you run",
        ));
    }
    for (index, a) in attentions.iter().enumerate() {
        let together = a.sequences.unwrap_or(1);
        let sizes = [a.rows, a.context, a.heads, a.kv_heads, a.head_dim, together];
        let sane = sizes.iter().all(|n| (1..=LARGEST_ATTENTION).contains(n));
        let grouped = sane && a.heads.is_multiple_of(a.kv_heads) && a.rows <= a.context;
        if !grouped || a.time.0 == 0 || a.precision.is_empty() || a.precision.len() > 32 {
            return Err(document.at_path(
                path,
                format!(
                    "row {} of {path} is no attention: {} rows of {} positions, {} heads in groups of {}, {} features, {}",
                    index + 1,
                    a.rows,
                    a.context,
                    a.heads,
                    a.kv_heads,
                    a.head_dim,
                    a.time.value
                ),
                "sizes must be from 1 to 2^24, kv_heads divide heads, rows be at most the context, and the time not zero",
            ));
        }
    }
    Ok(())
}

fn below(
    document: &Document,
    (part, value): (&str, &Figure<Bytes>),
    (whole, limit): (&str, &Figure<Bytes>),
) -> Checked {
    if value.value < limit.value {
        return Ok(());
    }
    Err(document.at_path(
        &format!("{part}.value"),
        format!("{part} is {}, but {whole} is only {}", value.both(), limit.both()),
        &format!("nothing would be left; check the units, and make {part} the smaller"),
    ))
}
