//! The file format of a timeline, which `pipo plot` reads back.
//!
//! ```json
//! {"format":"pipo-timeline","version":1,
//! "layout":{"lanes":["disk read","H2D"],"queues":[0,1],"rings":[...],"units":["layer 0 MLP"],...},
//! "passes":[{"phase":"prefill","end_ns":148000000}],
//! "end_ns":148000000,
//! "columns":["op","lane","kind","pass",...],
//! "spans":[
//! [0,0,"read weights",0,0,0,0,0,10800000,72000000,0,"start",null],
//! ...
//! ]}
//! ```
//!
//! One span is one line. Kinds, lanes and tiers go by the names they are printed with; all numbers are
//! integers. A run that was measured on a GPU also has `readings` of its counters, behind `end_ns`.
//! A file comes from anywhere: every index and time is checked before a [`Timeline`] exists.

use std::fmt::Write;

use pipo_plan::diagnostic::{Diagnostic, Document};
use pipo_plan::schedule::{Allocation, LaneId, LaneKind, Layout, OpId, OpKind, Phase, Ring, Tier};
use pipo_plan::timeline::{Blame, PassEnd, Reading, Span, Timeline};
use pipo_plan::units::{Bandwidth, Bytes, LIMIT, Nanos};
use serde::{Deserialize, Serialize};

use crate::csv::blame;

const FORMAT: &str = "pipo-timeline";
const VERSION: u32 = 1;
/// Operation numbers have 32 bits, but nobody draws more spans than this.
const MAX_SPANS: usize = 50_000_000;
const HELP: &str = "write the file anew with `--timeline`, or take an unchanged copy";

/// Columns of a span, in order.
const COLUMNS: [&str; 13] = [
    "op",
    "lane",
    "kind",
    "pass",
    "unit",
    "micro",
    "block",
    "start_ns",
    "end_ns",
    "bytes",
    "gpu_permille",
    "blame",
    "blame_op",
];

/// The part that every version has: read first, so that a newer file is named as such.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    version: u32,
    layout: FileLayout,
    passes: Vec<FilePass>,
    end_ns: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    readings: Vec<FileReading>,
    columns: Vec<String>,
    spans: Vec<FileSpan>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLayout {
    lanes: Vec<String>,
    queues: Vec<u8>,
    rings: Vec<FileRing>,
    allocations: Vec<FileAllocation>,
    units: Vec<String>,
    extents: Vec<u64>,
    marks: usize,
    window: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRing {
    name: String,
    tier: String,
    slots: u16,
    slot_bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileAllocation {
    name: String,
    tier: String,
    bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePass {
    phase: String,
    end_ns: u64,
}

/// What the GPU did not say is left out.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileReading {
    at_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    nvml_permille: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_permille: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sm_permille: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to_device_bytes_per_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_device_bytes_per_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clock_mhz: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    power_mw: Option<u32>,
}

/// In the order of [`COLUMNS`].
type FileSpan = (u32, u8, String, u32, u16, u16, u16, u64, u64, u64, u16, String, Option<u32>);

/// Writes a timeline.
pub fn write(timeline: &Timeline) -> String {
    let head = File {
        format: FORMAT.to_owned(),
        version: VERSION,
        layout: write_layout(&timeline.layout),
        passes: timeline
            .passes
            .iter()
            .map(|p| FilePass { phase: phase_name(p.phase).to_owned(), end_ns: p.end.0 })
            .collect(),
        end_ns: timeline.end.0,
        readings: timeline.readings.iter().map(write_reading).collect(),
        columns: COLUMNS.map(str::to_owned).to_vec(),
        spans: Vec::new(),
    };
    // Plain structs of numbers and text always serialise.
    let mut text = serde_json::to_string(&head).unwrap_or_default();
    text.truncate(text.len().saturating_sub(2));
    for (i, span) in timeline.spans.iter().enumerate() {
        let (why, by) = blame(span.blame);
        let by = by.map_or("null".to_owned(), |op| op.to_string());
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "{}[{},{},\"{}\",{},{},{},{},{},{},{},{},\"{why}\",{by}]",
            if i == 0 { "\n" } else { ",\n" },
            span.op.0,
            span.lane.0,
            span.kind.name(),
            span.pass,
            span.unit,
            span.micro,
            span.block,
            span.start.0,
            span.end.0,
            span.bytes.0,
            span.gpu_permille,
        );
    }
    text.push_str("\n]}\n");
    text
}

fn write_reading(reading: &Reading) -> FileReading {
    FileReading {
        at_ns: reading.at.0,
        nvml_permille: reading.nvml_permille,
        kernel_permille: reading.kernel_permille,
        sm_permille: reading.sm_permille,
        to_device_bytes_per_s: reading.to_device.map(|rate| rate.0),
        from_device_bytes_per_s: reading.from_device.map(|rate| rate.0),
        clock_mhz: reading.clock_mhz,
        power_mw: reading.power_mw,
    }
}

fn write_layout(layout: &Layout) -> FileLayout {
    let tier = |tier: Tier| tier.name().to_owned();
    FileLayout {
        lanes: layout.lanes.iter().map(|lane| lane.kind.name().to_owned()).collect(),
        queues: layout.queues.iter().map(|lane| lane.0).collect(),
        rings: layout
            .rings
            .iter()
            .map(|r| FileRing {
                name: r.name.clone(),
                tier: tier(r.tier),
                slots: r.slots,
                slot_bytes: r.slot_bytes.0,
            })
            .collect(),
        allocations: layout
            .allocations
            .iter()
            .map(|a| FileAllocation { name: a.name.clone(), tier: tier(a.tier), bytes: a.bytes.0 })
            .collect(),
        units: layout.units.clone(),
        extents: layout.extents.iter().map(|e| e.0).collect(),
        marks: layout.marks,
        window: layout.window,
    }
}

/// Reads a timeline and checks all of it.
pub fn read(document: &Document) -> Result<Timeline, Box<Diagnostic>> {
    let head: Head = document.parse_json()?;
    if head.format != FORMAT {
        let message = format!("format is `{}`, expected `{FORMAT}`", head.format);
        return Err(document.at_path("format", message, "give a file that pipo wrote"));
    }
    if head.version != VERSION {
        let message = format!("version is {}, this program reads {VERSION}", head.version);
        return Err(document.at_path("version", message, "use the version of pipo that wrote it"));
    }
    let file: File = document.parse_json()?;
    let fault = |path: &'static str| move |message: String| document.at_path(path, message, HELP);
    if file.columns != COLUMNS {
        return Err(fault("columns")(format!("columns must be {}", COLUMNS.join(", "))));
    }
    let layout = read_layout(file.layout).map_err(fault("layout"))?;
    let end = time(file.end_ns, "end_ns").map_err(fault("end_ns"))?;
    let passes = file.passes.iter().map(|pass| read_pass(pass, end)).collect::<Result<_, _>>();
    let passes = passes.map_err(fault("passes"))?;
    let readings = read_readings(file.readings).map_err(fault("readings"))?;
    let spans = read_spans(file.spans, &layout, end).map_err(fault("spans"))?;
    Ok(Timeline { layout, spans, passes, end, readings })
}

fn read_layout(file: FileLayout) -> Result<Layout, String> {
    for (what, count, limit) in [
        ("lanes", file.lanes.len(), 255),
        ("queues", file.queues.len(), 255),
        ("rings", file.rings.len(), 255),
        ("units", file.units.len(), 1 << 16),
    ] {
        if count > limit {
            return Err(format!("{count} {what}, the limit is {limit}"));
        }
    }
    let mut layout = Layout { marks: file.marks, window: file.window, ..Layout::default() };
    for name in &file.lanes {
        let kind = LaneKind::ALL.into_iter().find(|kind| kind.name() == name);
        layout.lane(kind.ok_or_else(|| format!("no kind of lane is called `{name}`"))?);
    }
    if let Some(lane) = file.queues.iter().find(|&&lane| usize::from(lane) >= layout.lanes.len()) {
        return Err(format!("a queue is on lane {lane} of {}", layout.lanes.len()));
    }
    layout.queues = file.queues.into_iter().map(LaneId).collect();
    for ring in file.rings {
        let (tier, slot_bytes) = (read_tier(&ring.tier)?, bytes(ring.slot_bytes)?);
        layout.rings.push(Ring { name: ring.name, tier, slots: ring.slots, slot_bytes });
    }
    for one in file.allocations {
        let (tier, bytes) = (read_tier(&one.tier)?, bytes(one.bytes)?);
        layout.allocations.push(Allocation { name: one.name, tier, bytes });
    }
    layout.extents = file.extents.into_iter().map(bytes).collect::<Result<_, _>>()?;
    layout.units = file.units;
    Ok(layout)
}

fn read_tier(name: &str) -> Result<Tier, String> {
    let all = [Tier::Gpu, Tier::Pinned, Tier::Pageable, Tier::Disk];
    let found = all.into_iter().find(|tier| tier.name() == name);
    found.ok_or_else(|| format!("no tier is called `{name}`"))
}

fn read_pass(pass: &FilePass, last: Nanos) -> Result<PassEnd, String> {
    let phases = [Phase::Prefill, Phase::Decode];
    let phase = phases.into_iter().find(|&p| phase_name(p) == pass.phase);
    let phase = phase.ok_or_else(|| format!("no phase is called `{}`", pass.phase))?;
    let end = time(pass.end_ns, "end_ns")?;
    if end > last {
        return Err(format!("a pass ends at {} ns, after the run's end at {} ns", end.0, last.0));
    }
    Ok(PassEnd { phase, end })
}

/// The last one may be from after the end: a counter is read at its own pace.
fn read_readings(readings: Vec<FileReading>) -> Result<Vec<Reading>, String> {
    let mut read: Vec<Reading> = Vec::with_capacity(readings.len());
    for (number, reading) in (1..).zip(readings) {
        let reading = read_reading(&reading).map_err(|e| format!("reading {number}: {e}"))?;
        if read.last().is_some_and(|last| last.at >= reading.at) {
            return Err(format!("reading {number}: readings must rise by at_ns"));
        }
        read.push(reading);
    }
    Ok(read)
}

fn read_reading(file: &FileReading) -> Result<Reading, String> {
    let shares = [file.nvml_permille, file.kernel_permille, file.sm_permille];
    if let Some(share) = shares.into_iter().flatten().find(|&share| share > 1000) {
        return Err(format!("a share is {share} thousandths, at most 1000 are possible"));
    }
    let rate = |rate: Option<u64>| {
        let valid = rate.is_none_or(|rate| rate <= LIMIT).then(|| rate.map(Bandwidth));
        valid.ok_or_else(|| "a rate is above 2^60 bytes a second".to_owned())
    };
    Ok(Reading {
        at: time(file.at_ns, "at_ns")?,
        nvml_permille: file.nvml_permille,
        kernel_permille: file.kernel_permille,
        sm_permille: file.sm_permille,
        to_device: rate(file.to_device_bytes_per_s)?,
        from_device: rate(file.from_device_bytes_per_s)?,
        clock_mhz: file.clock_mhz,
        power_mw: file.power_mw,
    })
}

fn read_spans(spans: Vec<FileSpan>, layout: &Layout, end: Nanos) -> Result<Vec<Span>, String> {
    if spans.len() > MAX_SPANS {
        return Err(format!("{} spans, the limit is {MAX_SPANS}", spans.len()));
    }
    let mut read: Vec<Span> = Vec::with_capacity(spans.len());
    for (number, span) in (1..).zip(spans) {
        let span = read_span(span, layout, end).map_err(|e| format!("span {number}: {e}"))?;
        if read.last().is_some_and(|last| (last.start, last.op) >= (span.start, span.op)) {
            return Err(format!("span {number}: spans must rise by start_ns and then by op"));
        }
        read.push(span);
    }
    Ok(read)
}

fn read_span(span: FileSpan, layout: &Layout, last: Nanos) -> Result<Span, String> {
    let (op, lane, kind, pass, unit, micro, block, start, end, moved, gpu_permille, why, by) = span;
    if usize::from(lane) >= layout.lanes.len() {
        return Err(format!("lane {lane}, but there are {}", layout.lanes.len()));
    }
    // Without names of units every operation belongs to unit 0.
    if usize::from(unit) >= layout.units.len().max(1) {
        return Err(format!("unit {unit}, but there are {}", layout.units.len()));
    }
    let found = OpKind::ALL.into_iter().find(|k| k.name() == kind);
    let kind = found.ok_or_else(|| format!("no kind of operation is called `{kind}`"))?;
    if start > end || end > last.0 {
        return Err(format!("runs from {start} to {end} ns in a run of {} ns", last.0));
    }
    if gpu_permille > 1000 {
        return Err(format!("gpu_permille is {gpu_permille}, at most 1000 is possible"));
    }
    let blame = match (why.as_str(), by.map(OpId)) {
        ("start", None) => Blame::Start,
        ("wait", Some(op)) => Blame::Wait(op),
        ("slot", Some(op)) => Blame::Slot(op),
        ("lane", Some(op)) => Blame::Lane(op),
        ("window", Some(op)) => Blame::Window(op),
        _ => return Err(format!("blame `{why}` does not go with its blame_op")),
    };
    Ok(Span {
        op: OpId(op),
        lane: LaneId(lane),
        kind,
        pass,
        unit,
        micro,
        block,
        start: Nanos(start),
        end: Nanos(end),
        bytes: bytes(moved)?,
        gpu_permille,
        blame,
    })
}

fn time(nanos: u64, what: &str) -> Result<Nanos, String> {
    let valid = (nanos <= LIMIT).then_some(Nanos(nanos));
    valid.ok_or_else(|| format!("{what} is {nanos}, the limit is 2^60"))
}

fn bytes(bytes: u64) -> Result<Bytes, String> {
    let valid = (bytes <= LIMIT).then_some(Bytes(bytes));
    valid.ok_or_else(|| format!("{bytes} bytes, the limit is 2^60"))
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Prefill => "prefill",
        Phase::Decode => "decode",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use proptest::prelude::*;

    fn read_text(text: &str) -> Result<Timeline, Box<Diagnostic>> {
        read(&Document::new("timeline.json", text))
    }

    #[test]
    fn the_format() {
        let text = write(&sample::two_tokens());
        insta::assert_snapshot!(text.lines().take(4).collect::<Vec<_>>().join("\n"), @r#"
        {"format":"pipo-timeline","version":1,"layout":{"lanes":["disk read","H2D","D2H","GPU","host"],"queues":[0,1,2,3,4],"rings":[{"name":"GPU weights","tier":"GPU","slots":2,"slot_bytes":220000000},{"name":"pinned weights","tier":"host, pinned","slots":2,"slot_bytes":220000000}],"allocations":[{"name":"KV cache","tier":"host, pinned","bytes":1073741824}],"units":["layer 0 attention","layer 0 MLP","layer 1 attention","layer 1 MLP"],"extents":[],"marks":0,"window":2},"passes":[{"phase":"prefill","end_ns":147989394},{"phase":"decode","end_ns":218329598}],"end_ns":218329598,"columns":["op","lane","kind","pass","unit","micro","block","start_ns","end_ns","bytes","gpu_permille","blame","blame_op"],"spans":[
        [0,0,"read weights",0,0,0,0,0,10800000,72000000,0,"start",null],
        [1,1,"load weights",0,0,0,0,10800000,17297658,37998000,950,"wait",0],
        [4,0,"read weights",0,1,0,0,10800000,34704000,144000000,0,"lane",0],
        "#);
    }

    #[test]
    fn what_a_gpu_said_is_in_the_file_and_is_checked() {
        let text = write(&sample::watched());
        let readings = text.split("\"readings\":").nth(1).unwrap();
        insta::assert_snapshot!(readings.split(']').next().unwrap().replace("},", "},\n"), @r#"
        [{"at_ns":100000000,"nvml_permille":1000,"kernel_permille":204,"sm_permille":31,"to_device_bytes_per_s":55000000000,"from_device_bytes_per_s":1250000000,"clock_mhz":1980,"power_mw":126400},
        {"at_ns":200000000,"nvml_permille":480}
        "#);
        assert_eq!(read_text(&text).unwrap(), sample::watched());
        let error = |from: &str, to: &str| {
            assert!(text.contains(from));
            read_text(&text.replacen(from, to, 1)).unwrap_err().message
        };
        let errors = [
            error("\"at_ns\":200000000", "\"at_ns\":100000000"),
            error("\"nvml_permille\":480", "\"nvml_permille\":1001"),
            error("\"power_mw\":", "\"power_w\":"),
            error("55000000000", "1152921504606846977"),
        ];
        insta::assert_snapshot!(errors.join("\n"), @"
        reading 2: readings must rise by at_ns
        reading 2: a share is 1001 thousandths, at most 1000 are possible
        unknown field `power_w`, expected one of `at_ns`, `nvml_permille`, `kernel_permille`, `sm_permille`, `to_device_bytes_per_s`, `from_device_bytes_per_s`, `clock_mhz`, `power_mw`
        reading 1: a rate is above 2^60 bytes a second
        ");
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let text = write(&sample::two_tokens());
        let error = |from: &str, to: &str| {
            assert!(text.contains(from));
            read_text(&text.replacen(from, to, 1)).unwrap_err().message
        };
        let errors = [
            error("\"version\":1", "\"version\":2"),
            error("pipo-timeline", "chrome"),
            error("[0,0,\"read weights\"", "[0,9,\"read weights\""),
            error("read weights", "eat weights"),
            error("\"start\",null", "\"slot\",null"),
            error("0,10800000,72000000", "10800001,10800000,72000000"),
            error("\n[0,0,", "\n[0,-1,"),
        ];
        insta::assert_snapshot!(errors.join("\n"), @"
        version is 2, this program reads 1
        format is `chrome`, expected `pipo-timeline`
        span 1: lane 9, but there are 5
        span 1: no kind of operation is called `eat weights`
        span 1: blame `slot` does not go with its blame_op
        span 1: runs from 10800001 to 10800000 ns in a run of 218329598 ns
        invalid value: integer `-1`, expected u8
        ");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_written_is_read_back(timeline in sample::any_timeline()) {
            let text = write(&timeline);
            prop_assert_eq!(read_text(&text).unwrap(), timeline);
        }

        #[test]
        fn no_text_panics(
            timeline in sample::any_timeline(), cut in 0_usize..4000, at in 0_usize..4000,
            with in "[0-9\\[\\]{},\":a-z-]{0,3}",
        ) {
            let text = write(&timeline);
            let cut = text.floor_char_boundary(cut);
            prop_assert!(cut + 2 >= text.len() || read_text(&text[..cut]).is_err());
            let at = text.floor_char_boundary(at.min(text.len() - 1));
            let mutated = format!("{}{with}{}", &text[..at], &text[at + 1..]);
            if let Ok(read) = read_text(&mutated) {
                // What passes the checks can be drawn and written.
                prop_assert!(write(&read).len() > 2);
            }
        }
    }
}
