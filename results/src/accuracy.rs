//! A measured timeline beside the predicted one.
//!
//! Both are the same type, so that every figure is read off both in the same way and an error is a
//! quotient.

use pipo_plan::plan::Plan;
use pipo_plan::schedule::{LaneKind, OpKind, Phase};
use pipo_plan::timeline::{Timeline, Times};
use pipo_plan::units::Nanos;
use serde::{Serialize, Serializer};

use crate::busy::{Busy, Window};
use crate::utilisation::{Meter, Meters, Utilisation, phase, whole};

/// What a person asks of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Until the last token of every sequence.
    #[serde(rename = "request_ns", serialize_with = "integer")]
    pub request: Nanos,
    /// Until the first new token of every sequence.
    #[serde(rename = "prefill_ns", serialize_with = "integer")]
    pub prefill: Nanos,
    /// The median decode step; zero where there is none.
    #[serde(rename = "step_ns", serialize_with = "integer")]
    pub step: Nanos,
    /// New tokens a second over the whole request.
    pub tokens_per_second: f64,
    /// New tokens a second in decode alone; zero where there is none.
    pub decode_tokens_per_second: f64,
    /// Prompt tokens a second in prefill.
    pub prefill_tokens_per_second: f64,
    /// How long the busiest lane of each kind was busy, for the kinds that did anything.
    pub busy: Vec<LaneBusy>,
    /// Busy time of all lanes together over the time from start to end: 1 where nothing overlaps.
    pub overlap: f64,
    /// The utilisations.
    pub utilisation: Utilisation,
    /// The same of decode alone: zeros where there is none.
    pub decode_utilisation: Utilisation,
    /// Share of decode in which cores beside the GPU computed, 0 to 1.
    pub decode_cpu: f64,
}

/// How long a kind of lane was busy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LaneBusy {
    /// The kind, as printed.
    pub lane: &'static str,
    /// The busiest of the kind.
    #[serde(rename = "busy_ns", serialize_with = "integer")]
    pub busy: Nanos,
}

impl Figures {
    /// Reads them off the timeline of a plan's run.
    pub fn of(timeline: &Timeline, plan: &Plan) -> Self {
        let Times { request, prefill, step } = Times::of(&timeline.passes);
        let decodes = timeline.passes.iter().filter(|pass| pass.phase == Phase::Decode);
        let steps = decodes.count() as u64;
        let sequences = plan.batch.sequences();
        let per_second = |tokens: u64, time: Nanos| {
            if time == Nanos::ZERO { 0.0 } else { tokens as f64 / time.seconds() }
        };
        let lanes = busy(timeline);
        let all: Nanos = lanes.iter().map(|&(_, time)| time).sum();
        let kinds = LaneKind::ALL.into_iter().filter_map(|kind| {
            let busiest =
                lanes.iter().filter(|(of, _)| *of == kind).map(|&(_, time)| time).max()?;
            (busiest > Nanos::ZERO).then_some(LaneBusy { lane: kind.name(), busy: busiest })
        });
        let meters = Meters::of(timeline);
        let decode = phase(timeline, Phase::Decode);
        Self {
            request,
            prefill,
            step,
            tokens_per_second: per_second(sequences * plan.workload.new_tokens, request),
            decode_tokens_per_second: per_second(sequences * steps, request - prefill),
            prefill_tokens_per_second: per_second(sequences * plan.workload.prompt, prefill),
            busy: kinds.collect(),
            overlap: all.as_f64() / timeline.end.as_f64().max(1.0),
            utilisation: meters.over(whole(timeline)),
            decode_utilisation: decode.map(|window| meters.over(window)).unwrap_or_default(),
            decode_cpu: decode.map(|window| computing(timeline).share(window)).unwrap_or_default(),
        }
    }

    /// How long the busiest lane of a kind was busy.
    pub fn busy_of(&self, lane: &str) -> Nanos {
        let found = self.busy.iter().find(|busy| busy.lane == lane);
        found.map_or(Nanos::ZERO, |busy| busy.busy)
    }
}

/// One figure, predicted and measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// What.
    pub figure: String,
    /// In nanoseconds, or without unit.
    pub predicted: f64,
    /// The same.
    pub measured: f64,
    /// Whether it is a time.
    pub is_time: bool,
}

impl Line {
    /// How far the prediction is from what was measured, as a share of it; none of nothing.
    pub fn error(&self) -> Option<f64> {
        (self.measured > 0.0).then(|| self.predicted / self.measured - 1.0)
    }
}

/// Figure by figure.
pub fn lines(predicted: &Figures, measured: &Figures) -> Vec<Line> {
    let time = |figure: &str, of: &dyn Fn(&Figures) -> Nanos| Line {
        figure: figure.into(),
        predicted: of(predicted).as_f64(),
        measured: of(measured).as_f64(),
        is_time: true,
    };
    let number = |figure: &str, of: &dyn Fn(&Figures) -> f64| Line {
        figure: figure.into(),
        predicted: of(predicted),
        measured: of(measured),
        is_time: false,
    };
    let mut all = vec![
        time("request", &|f| f.request),
        time("prefill", &|f| f.prefill),
        time("decode step", &|f| f.step),
        number("tokens/s", &|f| f.tokens_per_second),
    ];
    let busy = LaneKind::ALL.into_iter().map(LaneKind::name).filter(|name| {
        predicted.busy_of(name) > Nanos::ZERO || measured.busy_of(name) > Nanos::ZERO
    });
    all.extend(busy.map(|name| time(&format!("busy: {name}"), &|f| f.busy_of(name))));
    all.push(number("overlap", &|f| f.overlap));
    all.push(number("nvml, %", &|f| 100.0 * f.utilisation.get(Meter::Nvml)));
    all.push(number("kernel, %", &|f| 100.0 * f.utilisation.get(Meter::Kernel)));
    for meter in [Meter::Kernel, Meter::Link, Meter::Disk] {
        let share = |f: &Figures| 100.0 * f.decode_utilisation.get(meter);
        if share(predicted) > 0.0 || share(measured) > 0.0 {
            all.push(number(&format!("decode: {}, %", meter.name()), &share));
        }
    }
    if predicted.decode_cpu > 0.0 || measured.decode_cpu > 0.0 {
        all.push(number("decode: CPU, %", &|f| 100.0 * f.decode_cpu));
    }
    all
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn integer<S: Serializer>(time: &Nanos, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(time.0)
}

/// Busy time of each lane.
fn busy(timeline: &Timeline) -> Vec<(LaneKind, Nanos)> {
    let mut lanes: Vec<(LaneKind, Nanos)> =
        timeline.layout.lanes.iter().map(|lane| (lane.kind, Nanos::ZERO)).collect();
    for span in &timeline.spans {
        if let Some((_, busy)) = lanes.get_mut(usize::from(span.lane.0)) {
            *busy += span.end - span.start;
        }
    }
    lanes
}

/// When cores beside the GPU computed.
fn computing(timeline: &Timeline) -> Busy {
    let spans = timeline.spans.iter().filter(|span| span.kind == OpKind::CpuCompute);
    Busy::union(spans.map(|span| (Window::new(span.start, span.end), 1000)))
}

#[cfg(test)]
mod tests {
    use pipo_plan::diagnostic::Document;
    use pipo_plan::plan::Plan;
    use pipo_plan::timeline::Span;

    use super::*;
    use crate::sample::{LAPTOP, pipeline};

    /// Any plan of so many sequences and tokens: only those are looked at.
    fn plan() -> Plan {
        let text = include_str!("accuracy/plan.toml");
        Plan::from_toml(&Document::new("plan.toml", text)).unwrap()
    }

    #[test]
    fn figures_are_read_off_the_ends_of_passes_and_the_lanes() {
        let (timeline, plan) = (pipeline(LAPTOP), plan());
        let figures = Figures::of(&timeline, &plan);
        let ends: Vec<Nanos> = timeline.passes.iter().map(|pass| pass.end).collect();
        assert_eq!(figures.prefill, ends[0]);
        assert_eq!(figures.request, *ends.last().unwrap());
        let sequences = plan.batch.sequences() as f64;
        let steps = (ends.len() - 1) as f64;
        let decode = (figures.request - figures.prefill).seconds();
        assert!((figures.decode_tokens_per_second - sequences * steps / decode).abs() < 1e-9);
        let gpu = timeline
            .spans
            .iter()
            .filter(|span| timeline.layout.lanes[usize::from(span.lane.0)].kind == LaneKind::Gpu);
        let gpu: Nanos = gpu.map(|span| span.end - span.start).sum();
        assert_eq!(figures.busy_of("GPU"), gpu);
        let meters = Meters::of(&timeline);
        let after_the_first_token = Window::new(figures.prefill, figures.request);
        assert_eq!(figures.decode_utilisation, meters.over(after_the_first_token));
        // Several lanes work at once, none more than all the time.
        assert!(figures.overlap > 1.0 && figures.overlap < timeline.layout.lanes.len() as f64);
    }

    #[test]
    fn cores_that_compute_beside_the_gpu_are_shown_where_there_are_any() {
        let (mut timeline, plan) = (pipeline(LAPTOP), plan());
        let shown = |figures: &Figures| {
            let lines = lines(figures, figures);
            lines.into_iter().find(|line| line.figure == "decode: CPU, %").map(|line| line.measured)
        };
        assert_eq!(shown(&Figures::of(&timeline, &plan)), None);
        // The last quarter of decode, and something of the prefill, which does not count.
        let (begin, end) = (timeline.passes[0].end, timeline.passes.last().unwrap().end);
        let quarter = Nanos((end - begin).0 / 4);
        for (start, end) in [(end - quarter, end), (Nanos::ZERO, begin)] {
            let kind = OpKind::CpuCompute;
            let span = Span { kind, start, end, ..timeline.spans[0] };
            timeline.spans.push(span);
        }
        let share = shown(&Figures::of(&timeline, &plan)).unwrap();
        assert!((share - 25.0).abs() < 1e-3, "{share}");
    }

    #[test]
    fn an_error_is_a_share_of_what_was_measured() {
        let figures = Figures::of(&pipeline(LAPTOP), &plan());
        let same = lines(&figures, &figures);
        assert!(same.iter().all(|line| line.error() == Some(0.0)), "{same:?}");
        let mut slower = figures.clone();
        slower.request = Nanos(figures.request.0 * 2);
        let request = &lines(&figures, &slower)[0];
        assert_eq!((request.figure.as_str(), request.error()), ("request", Some(-0.5)));
        let nothing = Line { measured: 0.0, ..request.clone() };
        assert_eq!(nothing.error(), None);
    }
}
