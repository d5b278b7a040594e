//! Tables for other tools: the spans, and utilisation over time.

use ::csv::Writer;
use pipo_plan::schedule::LaneKind;
use pipo_plan::timeline::{Blame, Timeline};

use crate::busy::Window;
use crate::trace::lane_name;
use crate::utilisation::{Meter, Meters};

/// Header of [`spans`]: columns are only ever added, at the end.
///
/// Times are nanoseconds from the start of the run. `blame` is why the operation did not start earlier
/// (`start`, `wait`, `slot`, `lane` or `window`) and `blame_op` the operation behind it, empty for
/// `start`.
pub const SPANS_HEADER: [&str; 14] = [
    "op",
    "lane",
    "kind",
    "pass",
    "unit",
    "unit_index",
    "micro",
    "block",
    "start_ns",
    "end_ns",
    "bytes",
    "gpu_permille",
    "blame",
    "blame_op",
];

/// Header of [`utilisation`]: columns are only ever added, at the end.
///
/// After `nvidia-smi dmon -s ut`, whose `sm`, `rxpci` and `txpci` are `nvml_pct`, `h2d_mb_s` and
/// `d2h_mb_s` here. Shares are percent of the row's time, rates 10^6 bytes per second over it.
pub const UTILISATION_HEADER: [&str; 10] = [
    "start_s",
    "end_s",
    "nvml_pct",
    "kernel_pct",
    "link_pct",
    "disk_pct",
    "h2d_mb_s",
    "d2h_mb_s",
    "disk_read_mb_s",
    "disk_write_mb_s",
];

/// One row for each span, in the timeline's order.
pub fn spans(timeline: &Timeline) -> String {
    let layout = &timeline.layout;
    table(
        &SPANS_HEADER,
        timeline.spans.iter().map(|span| {
            let (blame, by) = blame(span.blame);
            vec![
                span.op.0.to_string(),
                lane_name(layout, span.lane),
                span.kind.name().to_owned(),
                span.pass.to_string(),
                layout.units.get(usize::from(span.unit)).cloned().unwrap_or_default(),
                span.unit.to_string(),
                span.micro.to_string(),
                span.block.to_string(),
                span.start.0.to_string(),
                span.end.0.to_string(),
                span.bytes.0.to_string(),
                span.gpu_permille.to_string(),
                blame.to_owned(),
                by.map(|op| op.to_string()).unwrap_or_default(),
            ]
        }),
    )
}

/// Utilisation and rates over equal parts of a window.
pub fn utilisation(timeline: &Timeline, window: Window, bins: usize) -> String {
    let curve = Meters::of(timeline).curve(window, bins);
    let rates = [LaneKind::H2d, LaneKind::D2h, LaneKind::DiskRead, LaneKind::DiskWrite]
        .map(|kind| moved(timeline, kind, window, bins));
    table(
        &UTILISATION_HEADER,
        curve.into_iter().enumerate().map(|(i, (bin, shares))| {
            let mut row =
                vec![format!("{:.6}", bin.start.seconds()), format!("{:.6}", bin.end.seconds())];
            row.extend(Meter::ALL.map(|meter| format!("{:.2}", shares.get(meter) * 100.0)));
            // Bytes per nanosecond are thousands of 10^6 bytes per second.
            let length = bin.length().as_f64().max(1.0);
            row.extend(rates.iter().map(|bytes| format!("{:.1}", bytes[i] / length * 1e3)));
            row
        }),
    )
}

/// Bytes moved in each bin by the lanes of one kind, a span's bytes spread evenly over its time.
fn moved(timeline: &Timeline, kind: LaneKind, window: Window, bins: usize) -> Vec<f64> {
    let parts: Vec<Window> = window.bins(bins).collect();
    let mut bytes = vec![0.0; bins];
    for span in &timeline.spans {
        let lane = timeline.layout.lanes.get(usize::from(span.lane.0));
        if lane.is_none_or(|lane| lane.kind != kind) || span.start == span.end {
            continue;
        }
        let whole = Window::new(span.start, span.end);
        let first = parts.partition_point(|part| part.end <= span.start);
        for (part, sum) in parts.iter().zip(&mut bytes).skip(first) {
            if part.start >= span.end {
                break;
            }
            let share = part.overlap(whole).length().as_f64() / whole.length().as_f64();
            *sum += span.bytes.as_f64() * share;
        }
    }
    bytes
}

/// The reason's word and the operation behind it.
pub(crate) fn blame(blame: Blame) -> (&'static str, Option<u32>) {
    let word = match blame {
        Blame::Start => "start",
        Blame::Wait(_) => "wait",
        Blame::Slot(_) => "slot",
        Blame::Lane(_) => "lane",
        Blame::Window(_) => "window",
    };
    (word, blame.op().map(|op| op.0))
}

fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut writer = Writer::from_writer(Vec::new());
    // Writing to memory cannot fail, and every row has the header's length.
    let _ = writer.write_record(header);
    for row in rows {
        let _ = writer.write_record(row);
    }
    String::from_utf8(writer.into_inner().unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{sample, utilisation::whole};

    #[test]
    fn the_first_spans() {
        let text = spans(&sample::two_tokens());
        insta::assert_snapshot!(text.lines().take(6).collect::<Vec<_>>().join("\n"), @"
        op,lane,kind,pass,unit,unit_index,micro,block,start_ns,end_ns,bytes,gpu_permille,blame,blame_op
        0,disk read,read weights,0,layer 0 attention,0,0,0,0,10800000,72000000,0,start,
        1,H2D,load weights,0,layer 0 attention,0,0,0,10800000,17297658,37998000,950,wait,0
        4,disk read,read weights,0,layer 0 MLP,1,0,0,10800000,34704000,144000000,0,lane,0
        2,GPU,compute,0,layer 0 attention,0,0,0,17297658,36889026,0,1000,wait,1
        5,H2D,load weights,0,layer 0 MLP,1,0,0,34704000,46331388,75996000,950,wait,4
        ");
        assert_eq!(text.lines().next().unwrap(), SPANS_HEADER.join(","));
    }

    #[test]
    fn utilisation_over_time() {
        let timeline = sample::two_tokens();
        let text = utilisation(&timeline, whole(&timeline), 4);
        insta::assert_snapshot!(text, @"
        start_s,end_s,nvml_pct,kernel_pct,link_pct,disk_pct,h2d_mb_s,d2h_mb_s,disk_read_mb_s,disk_write_mb_s
        0.000000,0.054582,78.75,51.01,45.89,99.94,2784.6,87.1,6129.7,0.0
        0.054582,0.109165,100.00,100.00,22.86,65.75,1392.3,0.0,3913.5,0.0
        0.109165,0.163747,99.54,90.86,45.78,53.73,2537.2,174.1,3356.5,0.0
        0.163747,0.218330,99.24,84.82,38.66,38.96,2162.1,87.1,2429.7,0.0
        ");
        assert_eq!(text.lines().next().unwrap(), UTILISATION_HEADER.join(","));
    }

    #[test]
    fn a_unit_name_with_a_comma_is_quoted() {
        let mut timeline = sample::two_tokens();
        timeline.layout.units[0] = "layer 0, \"attention\"".into();
        assert!(spans(&timeline).contains("\"layer 0, \"\"attention\"\"\""));
    }
}
