//! Chrome trace JSON, which <https://ui.perfetto.dev> and `chrome://tracing` open.
//!
//! Each timeline is a process, each lane a thread, each span a complete event (`X`); the utilisation
//! curves are counters (`C`). Times are microseconds with nanoseconds as decimals, as the format
//! wants. The text is written as it goes: a run of 300,000 spans never exists as a tree.

use std::fmt::{self, Write};

use pipo_plan::schedule::{LaneId, Layout, OpId};
use pipo_plan::timeline::{Blame, Span, Timeline};
use pipo_plan::units::{Bandwidth, Nanos};

use crate::csv::blame;
use crate::utilisation::{Meter, Meters, whole};

/// Steps of a counter's curve over the whole run: fine enough to zoom, small beside the spans.
const COUNTER_STEPS: usize = 1000;

/// One timeline under the name it gets in the viewer, such as `predicted`.
#[derive(Debug, Clone, Copy)]
pub struct Process<'a> {
    /// Name of the process.
    pub name: &'a str,
    /// What ran.
    pub timeline: &'a Timeline,
}

/// The trace as one text.
pub fn chrome(processes: &[Process]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_chrome(&mut text, processes);
    text
}

/// Writes the trace piece by piece, for runs too long to hold as text.
pub fn write_chrome(out: &mut impl Write, processes: &[Process]) -> fmt::Result {
    out.write_str("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[")?;
    let mut events = Events { out, first: true };
    for (process, pid) in processes.iter().zip(1..) {
        events.process(pid, *process)?;
    }
    out.write_str("\n]}\n")
}

/// A lane as readers know it; the first of its kind needs no number.
pub(crate) fn lane_name(layout: &Layout, lane: LaneId) -> String {
    match layout.lanes.get(usize::from(lane.0)) {
        Some(lane) if lane.index == 0 => lane.kind.name().to_owned(),
        Some(lane) => format!("{} {}", lane.kind.name(), lane.index + 1),
        None => format!("lane {}", lane.0),
    }
}

/// Lanes in the order in which they are drawn: along the way of the weights, then by number.
pub(crate) fn lanes_in_order(layout: &Layout) -> Vec<LaneId> {
    let mut lanes: Vec<LaneId> = (0..=u8::MAX).zip(&layout.lanes).map(|(i, _)| LaneId(i)).collect();
    lanes.sort_by_key(|id| {
        let lane = layout.lanes[usize::from(id.0)];
        (lane.kind.index(), lane.index)
    });
    lanes
}

struct Events<'a, W> {
    out: &'a mut W,
    first: bool,
}

impl<W: Write> Events<'_, W> {
    fn process(&mut self, pid: u32, process: Process) -> fmt::Result {
        let timeline = process.timeline;
        self.metadata(pid, 0, "process_name", &format!("\"name\":{}", quoted(process.name)))?;
        self.metadata(pid, 0, "process_sort_index", &format!("\"sort_index\":{pid}"))?;
        for (lane, rank) in lanes_in_order(&timeline.layout).into_iter().zip(0_u32..) {
            let tid = u32::from(lane.0) + 1;
            let name = quoted(&lane_name(&timeline.layout, lane));
            self.metadata(pid, tid, "thread_name", &format!("\"name\":{name}"))?;
            self.metadata(pid, tid, "thread_sort_index", &format!("\"sort_index\":{rank}"))?;
        }
        let by_op = ByOp::of(timeline);
        for span in &timeline.spans {
            self.span(pid, timeline, span, &by_op)?;
        }
        self.counters(pid, timeline)?;
        self.readings(pid, timeline)
    }

    /// One event a line, so that a trace can be searched and compared as text.
    fn event(&mut self, body: fmt::Arguments) -> fmt::Result {
        let separator = if std::mem::take(&mut self.first) { "\n" } else { ",\n" };
        self.out.write_str(separator)?;
        self.out.write_fmt(body)
    }

    fn metadata(&mut self, pid: u32, tid: u32, name: &str, args: &str) -> fmt::Result {
        self.event(format_args!(
            "{{\"ph\":\"M\",\"pid\":{pid},\"tid\":{tid},\"name\":\"{name}\",\"args\":{{{args}}}}}"
        ))
    }

    fn span(&mut self, pid: u32, timeline: &Timeline, span: &Span, by_op: &ByOp) -> fmt::Result {
        let tid = u32::from(span.lane.0) + 1;
        let kind = span.kind.name();
        let unit = unit_name(timeline, span);
        self.event(format_args!(
            "{{\"ph\":\"X\",\"pid\":{pid},\"tid\":{tid},\"ts\":{},\"dur\":{},\"name\":{},\
             \"cat\":\"{kind}\",\"args\":{{\"op\":{},\"unit\":{},\"pass\":{},\"micro\":{},\
             \"block\":{},\"bytes\":{},\"waited for\":{}}}}}",
            Micros(span.start),
            Micros(span.end - span.start),
            quoted(&format!("{unit}: {kind}")),
            span.op.0,
            quoted(unit),
            span.pass,
            span.micro,
            span.block,
            span.bytes.0,
            quoted(&by_op.describe(timeline, span.blame)),
        ))
    }

    /// A counter holds its value until the next, so each bin is written once, at its start.
    fn counters(&mut self, pid: u32, timeline: &Timeline) -> fmt::Result {
        let curve = Meters::of(timeline).curve(whole(timeline), COUNTER_STEPS);
        for meter in Meter::ALL {
            let name = (meter.name(), "%");
            let mut last = None;
            for (bin, shares) in &curve {
                let percent = format!("{:.1}", shares.get(meter) * 100.0);
                if last.as_ref() != Some(&percent) {
                    self.counter(pid, name, bin.start, &percent)?;
                    last = Some(percent);
                }
            }
            self.counter(pid, name, timeline.end, "0")?;
        }
        Ok(())
    }

    /// What a GPU said of itself. A reading is of the time since the one before it, where it is drawn from.
    fn readings(&mut self, pid: u32, timeline: &Timeline) -> fmt::Result {
        let mut since = Nanos::ZERO;
        for reading in &timeline.readings {
            let share = |permille: Option<u16>| permille.map(|value| f64::from(value) / 10.0);
            let rate = |rate: Option<Bandwidth>| rate.map(|rate| rate.as_f64() / 1e9);
            let values = [
                ("NVML", "%", share(reading.nvml_permille)),
                ("GPM kernel", "%", share(reading.kernel_permille)),
                ("GPM SM", "%", share(reading.sm_permille)),
                ("to the device", "GB/s", rate(reading.to_device)),
                ("from the device", "GB/s", rate(reading.from_device)),
                ("SM clock", "MHz", reading.clock_mhz.map(f64::from)),
                ("power", "W", reading.power_mw.map(|power| f64::from(power) / 1e3)),
            ];
            for (name, unit, value) in values {
                if let Some(value) = value {
                    self.counter(pid, (name, unit), since, &format!("{value:.1}"))?;
                }
            }
            since = reading.at;
        }
        Ok(())
    }

    fn counter(
        &mut self,
        pid: u32,
        (name, unit): (&str, &str),
        at: Nanos,
        value: &str,
    ) -> fmt::Result {
        self.event(format_args!(
            "{{\"ph\":\"C\",\"pid\":{pid},\"ts\":{},\"name\":\"{name} {unit}\",\
             \"args\":{{\"{name}\":{value}}}}}",
            Micros(at)
        ))
    }
}

fn unit_name<'a>(timeline: &'a Timeline, span: &Span) -> &'a str {
    timeline.layout.units.get(usize::from(span.unit)).map_or("", String::as_str)
}

/// Finds spans by operation; a timeline is ordered by time, so this is an index.
pub(crate) struct ByOp(Vec<(OpId, u32)>);

impl ByOp {
    /// Indexes a timeline.
    pub(crate) fn of(timeline: &Timeline) -> Self {
        let mut index: Vec<_> = timeline.spans.iter().map(|s| s.op).zip(0..).collect();
        index.sort_unstable();
        Self(index)
    }

    /// `slot freed by op 12 (layer 0 MLP: compute)`.
    pub(crate) fn describe(&self, timeline: &Timeline, why: Blame) -> String {
        let how = match why {
            Blame::Start => return "nothing".to_owned(),
            Blame::Wait(_) => "the result of",
            Blame::Slot(_) => "the slot freed by",
            Blame::Lane(_) => "the lane held by",
            Blame::Window(_) => "the end of the pass at",
        };
        let op = blame(why).1.unwrap_or_default();
        let found = self.0.binary_search_by_key(&op, |entry| entry.0.0).ok();
        let span = found.and_then(|i| timeline.spans.get(self.0[i].1 as usize));
        let what = span.map(|s| format!(" ({}: {})", unit_name(timeline, s), s.kind.name()));
        format!("{how} op {op}{}", what.unwrap_or_default())
    }
}

/// Nanoseconds written as microseconds, exactly.
struct Micros(Nanos);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}.{:03}", self.0.0 / 1000, self.0.0 % 1000)
    }
}

/// A JSON string with its quotes.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use proptest::prelude::*;
    use serde_json::Value;

    fn parsed(processes: &[Process]) -> Vec<Value> {
        let trace: Value = serde_json::from_str(&chrome(processes)).unwrap();
        trace["traceEvents"].as_array().unwrap().clone()
    }

    #[test]
    fn one_line_of_each_kind() {
        let timeline = sample::two_tokens();
        let text = chrome(&[Process { name: "predicted \"A\"", timeline: &timeline }]);
        let first = |ph: &str| text.lines().find(|l| l.starts_with(ph)).unwrap();
        let slot = text.lines().find(|l| l.contains("slot freed")).unwrap();
        let lines = [first(r#"{"ph":"M""#), first(r#"{"ph":"X""#), slot, first(r#"{"ph":"C""#)];
        insta::assert_snapshot!(lines.join("\n"), @r#"
        {"ph":"M","pid":1,"tid":0,"name":"process_name","args":{"name":"predicted \"A\""}},
        {"ph":"X","pid":1,"tid":1,"ts":0.000,"dur":10800.000,"name":"layer 0 attention: read weights","cat":"read weights","args":{"op":0,"unit":"layer 0 attention","pass":0,"micro":0,"block":0,"bytes":72000000,"waited for":"nothing"}},
        {"ph":"X","pid":1,"tid":1,"ts":46331.388,"dur":25512.000,"name":"layer 1 MLP: read weights","cat":"read weights","args":{"op":11,"unit":"layer 1 MLP","pass":0,"micro":0,"block":0,"bytes":144000000,"waited for":"the slot freed by op 5 (layer 0 MLP: load weights)"}},
        {"ph":"C","pid":1,"ts":0.000,"name":"nvml %","args":{"nvml":0.0}},
        "#);
    }

    #[test]
    fn what_a_gpu_said_is_drawn_from_the_reading_before() {
        let timeline = sample::watched();
        let text = chrome(&[Process { name: "measured", timeline: &timeline }]);
        let own = ["NVML", "GPM", "the device", "clock", "power"];
        let lines: Vec<&str> =
            text.lines().filter(|line| own.iter().any(|name| line.contains(name))).collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        {"ph":"C","pid":1,"ts":0.000,"name":"NVML %","args":{"NVML":100.0}},
        {"ph":"C","pid":1,"ts":0.000,"name":"GPM kernel %","args":{"GPM kernel":20.4}},
        {"ph":"C","pid":1,"ts":0.000,"name":"GPM SM %","args":{"GPM SM":3.1}},
        {"ph":"C","pid":1,"ts":0.000,"name":"to the device GB/s","args":{"to the device":55.0}},
        {"ph":"C","pid":1,"ts":0.000,"name":"from the device GB/s","args":{"from the device":1.2}},
        {"ph":"C","pid":1,"ts":0.000,"name":"SM clock MHz","args":{"SM clock":1980.0}},
        {"ph":"C","pid":1,"ts":0.000,"name":"power W","args":{"power":126.4}},
        {"ph":"C","pid":1,"ts":100000.000,"name":"NVML %","args":{"NVML":48.0}}
        "#);
    }

    #[test]
    fn two_timelines_are_two_processes_of_one_file() {
        let timeline = sample::two_tokens();
        let both = ["predicted", "measured"].map(|name| Process { name, timeline: &timeline });
        let events = parsed(&both);
        let spans = |pid: u64| {
            events.iter().filter(|e| e["ph"] == "X" && e["pid"].as_u64() == Some(pid)).count()
        };
        assert_eq!((spans(1), spans(2)), (timeline.spans.len(), timeline.spans.len()));
        assert!(parsed(&[]).is_empty());
    }

    #[test]
    fn threads_stand_in_lane_order() {
        let mut timeline = sample::two_tokens();
        timeline.layout.lanes.reverse();
        let order = lanes_in_order(&timeline.layout);
        let names: Vec<_> = order.iter().map(|&l| lane_name(&timeline.layout, l)).collect();
        assert_eq!(names, ["disk read", "H2D", "D2H", "GPU", "host"]);
    }

    proptest! {
        #[test]
        fn every_trace_is_valid_json_with_every_span(
            timeline in sample::any_timeline(), name in "\\PC{0,12}",
        ) {
            let events = parsed(&[Process { name: &name, timeline: &timeline }]);
            let count = events.iter().filter(|e| e["ph"] == "X").count();
            prop_assert_eq!(count, timeline.spans.len());
        }
    }
}
