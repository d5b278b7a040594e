//! Timelines for tests: a weight-streaming pipeline scheduled greedily, and arbitrary ones.

use pipo_plan::schedule::{Lane, LaneId, LaneKind, Layout, OpId, OpKind, Phase, Tier};
use pipo_plan::timeline::{Blame, PassEnd, Reading, Span, Timeline};
use pipo_plan::units::{Bandwidth, Bytes, Nanos};
use proptest::prelude::*;

use crate::chart::{Bar, BarChart, Group, Line, LineChart, Point, Scale};

/// Sizes and times of a pipeline; times in microseconds.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) layers: u16,
    pub(crate) decode_passes: u32,
    pub(crate) micros: u16,
    pub(crate) read: u64,
    pub(crate) load: u64,
    pub(crate) prefill: u64,
    pub(crate) decode: u64,
    /// GPU buffers for weights.
    pub(crate) slots: usize,
}

/// About the proportions of an 8-billion-parameter model in 4 bits on a laptop.
pub(crate) const LAPTOP: Shape = Shape {
    layers: 32,
    decode_passes: 31,
    micros: 1,
    read: 18_000,
    load: 9_500,
    prefill: 31_000,
    decode: 14_500,
    slots: 2,
};

const DISK: u8 = 0;
const H2D: u8 = 1;
const D2H: u8 = 2;
const GPU: u8 = 3;
const HOST: u8 = 4;

struct Greedy {
    free: [(Nanos, Blame); 5],
    spans: Vec<Span>,
}

impl Greedy {
    /// Runs an operation once its lane is free and every wait has ended.
    fn run(
        &mut self,
        at: (u8, OpKind),
        unit: u16,
        micro: u16,
        us: u64,
        waits: &[(Nanos, Blame)],
    ) -> (Nanos, OpId) {
        let (lane, kind) = at;
        let op = OpId(u32::try_from(self.spans.len()).unwrap());
        let jitter = u64::from(op.0.wrapping_mul(2_654_435_761) >> 22);
        let own = self.free[usize::from(lane)];
        let (start, blame) = waits.iter().copied().fold(own, |a, b| if b.0 > a.0 { b } else { a });
        let end = start + Nanos(us * (900 + jitter / 5));
        self.free[usize::from(lane)] = (end, Blame::Lane(op));
        self.spans.push(Span {
            op,
            lane: LaneId(lane),
            kind,
            pass: 0,
            unit,
            micro,
            block: 0,
            start,
            end,
            bytes: Bytes(if matches!(lane, DISK | H2D | D2H) { us * 6_000 } else { 0 }),
            gpu_permille: match lane {
                GPU => 1000,
                H2D | D2H => 950,
                _ => 0,
            },
            blame,
        });
        (end, op)
    }
}

/// Schedules the pipeline.
pub(crate) fn pipeline(shape: Shape) -> Timeline {
    let mut layout = Layout { window: 2, ..Layout::default() };
    for kind in [LaneKind::DiskRead, LaneKind::H2d, LaneKind::D2h, LaneKind::Gpu, LaneKind::Host] {
        layout.lane_queue(kind);
    }
    layout.ring("GPU weights", Tier::Gpu, 2, Bytes(220_000_000));
    layout.ring("pinned weights", Tier::Pinned, 2, Bytes(220_000_000));
    layout.allocate("KV cache", Tier::Pinned, Bytes(1 << 30));
    layout.units = (0..shape.layers)
        .flat_map(|l| [format!("layer {l} attention"), format!("layer {l} MLP")])
        .collect();
    let start = (Nanos::ZERO, Blame::Start);
    let mut run = Greedy { free: [start; 5], spans: Vec::new() };
    let mut passes = Vec::new();
    let (mut loaded, mut computed) = (Vec::new(), Vec::new());
    for pass in 0..=shape.decode_passes {
        let first = run.spans.len();
        let compute = if pass == 0 { shape.prefill } else { shape.decode };
        for unit in 0..shape.layers * 2 {
            // The MLP has about two thirds of a layer's weights.
            let part = |us: u64| us * if unit % 2 == 0 { 2 } else { 4 } / 3;
            let slot = |ends: &[(Nanos, OpId)]| match ends.len().checked_sub(shape.slots) {
                Some(i) => (ends[i].0, Blame::Slot(ends[i].1)),
                None => start,
            };
            let wait = |(end, op): (Nanos, OpId)| (end, Blame::Wait(op));
            let read =
                run.run((DISK, OpKind::ReadWeights), unit, 0, part(shape.read), &[slot(&loaded)]);
            let load = run.run(
                (H2D, OpKind::LoadWeights),
                unit,
                0,
                part(shape.load),
                &[wait(read), slot(&computed)],
            );
            loaded.push(load);
            let mut last = load;
            for micro in 0..shape.micros {
                let mut ready = vec![wait(load)];
                if unit % 2 == 0 && pass > 0 {
                    let us = shape.load / 4 + 1;
                    ready.push(wait(run.run((H2D, OpKind::LoadCache), unit, micro, us, &[])));
                }
                let us = part(compute) / u64::from(shape.micros);
                last = run.run((GPU, OpKind::Compute), unit, micro, us, &ready);
                if unit % 2 == 0 {
                    let us = shape.load / 12 + 1;
                    run.run((D2H, OpKind::SaveCache), unit, micro, us, &[wait(last)]);
                }
            }
            computed.push(last);
        }
        let last = *computed.last().unwrap();
        run.run((HOST, OpKind::Barrier), 0, 0, 0, &[(last.0, Blame::Wait(last.1))]);
        run.spans[first..].iter_mut().for_each(|s| s.pass = pass);
        let phase = if pass == 0 { Phase::Prefill } else { Phase::Decode };
        passes.push(PassEnd { phase, end: last.0 });
    }
    let end = run.spans.iter().map(|s| s.end).max().unwrap();
    run.spans.sort_by_key(|s| (s.start, s.op));
    Timeline { layout, spans: run.spans, passes, end, readings: Vec::new() }
}

/// Two tokens of two layers.
pub(crate) fn two_tokens() -> Timeline {
    pipeline(Shape { layers: 2, decode_passes: 1, ..LAPTOP })
}

/// Two tokens with what a GPU said meanwhile: all of it once, and only a part of it the second time.
pub(crate) fn watched() -> Timeline {
    let all = Reading {
        at: Nanos(100_000_000),
        nvml_permille: Some(1000),
        kernel_permille: Some(204),
        sm_permille: Some(31),
        to_device: Some(Bandwidth(55_000_000_000)),
        from_device: Some(Bandwidth(1_250_000_000)),
        clock_mhz: Some(1980),
        power_mw: Some(126_400),
    };
    let some = Reading { at: Nanos(200_000_000), nvml_permille: Some(480), ..Reading::default() };
    Timeline { readings: vec![all, some], ..two_tokens() }
}

/// Readings anywhere, one after another, of which parts are absent.
fn any_readings() -> impl Strategy<Value = Vec<Reading>> {
    use proptest::option::of;
    let shares = (of(0_u16..=1000), of(0_u16..=1000), of(0_u16..=1000));
    let rates = (of(1_u64..1 << 40), of(1_u64..1 << 40));
    let reading = (1_u64..1 << 30, shares, rates, of(0_u32..4000), of(0_u32..1_000_000));
    proptest::collection::vec(reading, 0..4).prop_map(|readings| {
        let mut at = 0;
        let one = |(after, (nvml, kernel, sm), (to, from), clock_mhz, power_mw)| {
            at += after;
            Reading {
                at: Nanos(at),
                nvml_permille: nvml,
                kernel_permille: kernel,
                sm_permille: sm,
                to_device: Option::map(to, Bandwidth),
                from_device: Option::map(from, Bandwidth),
                clock_mhz,
                power_mw,
            }
        };
        readings.into_iter().map(one).collect()
    })
}

/// Spans anywhere on every kind of lane, overlapping as they like.
pub(crate) fn any_timeline() -> impl Strategy<Value = Timeline> {
    let span = (0_u8..9, 0_usize..14, 0_u32..3, 0_u64..10_000, 0_u64..3_000, 0_u16..=1000, 0_u8..5);
    let spans = proptest::collection::vec(span, 0..40);
    (spans, any_readings()).prop_map(|(spans, readings)| {
        let mut layout = Layout { units: vec!["unit <&\"> 0".into()], ..Layout::default() };
        layout.lanes = LaneKind::ALL.map(|kind| Lane { kind, index: 0 }).to_vec();
        let mut spans: Vec<Span> = spans
            .into_iter()
            .zip(0..)
            .map(|((lane, kind, pass, start, length, gpu_permille, blame), op)| Span {
                op: OpId(op),
                lane: LaneId(lane),
                kind: OpKind::ALL[kind],
                pass,
                unit: 0,
                micro: 1,
                block: 2,
                start: Nanos(start),
                end: Nanos(start + length),
                bytes: Bytes(length * 7),
                gpu_permille,
                blame: [
                    Blame::Start,
                    Blame::Wait(OpId(op / 2)),
                    Blame::Slot(OpId(op / 3)),
                    Blame::Lane(OpId(0)),
                    Blame::Window(OpId(op)),
                ][usize::from(blame)],
            })
            .collect();
        spans.sort_by_key(|s| (s.start, s.op));
        let end = spans.iter().map(|s| s.end).max().unwrap_or_default();
        let passes = (0..3)
            .map(|p| {
                let ends = spans.iter().filter(|s| s.pass == p).map(|s| s.end);
                let phase = if p == 0 { Phase::Prefill } else { Phase::Decode };
                PassEnd { phase, end: ends.max().unwrap_or_default() }
            })
            .collect();
        Timeline { layout, spans, passes, end, readings }
    })
}

/// Throughput of three models, one held out, one that did not run.
pub(crate) fn bars(scale: Scale) -> BarChart {
    let bar = |series, value: f64, half: f64| Bar {
        series,
        value,
        low: value - half,
        high: value + half,
    };
    let group = |label: &str, note: &str, held_out, bars| Group {
        label: label.into(),
        note: note.into(),
        held_out,
        bars,
    };
    BarChart {
        title: "Generation throughput, prompt 512, 32 new tokens".into(),
        subtitle: "T4, 16 GB; one link rate was fitted to the first group".into(),
        y_label: "tokens/s".into(),
        scale,
        series: ["paper", "simulated"].map(String::from).to_vec(),
        groups: vec![
            group("OPT-6.7B", "batch 2", false, vec![bar(0, 25.26, 0.005), bar(1, 24.9, 0.0)]),
            group(
                "OPT-30B",
                "batch 48 x 3, CPU",
                true,
                vec![bar(0, 7.32, 0.25), bar(1, 6.91, 0.0)],
            ),
            group(
                "OPT-30B with DeepSpeed",
                "batch 8",
                true,
                vec![bar(0, 0.6, 0.05), bar(1, 0.66, 0.0)],
            ),
            group("OPT-175B", "out of memory", true, vec![bar(1, 0.69, 0.0)]),
        ],
    }
}

/// Two series over batch sizes.
pub(crate) fn lines() -> LineChart {
    let line = |name: &str, rate: f64, points: &[(f64, f64)]| Line {
        name: name.into(),
        line: (0..=8)
            .map(|i| f64::from(1 << i))
            .map(|b| (b, rate * b / (1.0 + b / 90.0)))
            .collect(),
        points: points.iter().map(|&(x, y)| Point { x, y, low: y * 0.9, high: y * 1.1 }).collect(),
    };
    LineChart {
        title: "Throughput by batch size".into(),
        subtitle: "weights in host memory, KV cache on the GPU".into(),
        x_label: "batch size".into(),
        y_label: "tokens/s".into(),
        x_scale: Scale::Log,
        y_scale: Scale::Log,
        points: "measured".into(),
        lines: "simulated".into(),
        series: vec![
            line("fp16", 3.8, &[(4.0, 15.1), (8.0, 30.3), (16.0, 60.9)]),
            line("int4", 7.4, &[(8.0, 58.5), (16.0, 128.0)]),
            line("int4, 8 layers kept on the GPU", 8.0, &[(8.0, 64.0)]),
        ],
    }
}
