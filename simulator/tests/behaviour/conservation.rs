//! What every run keeps, whatever the schedule.

use pipo_plan::schedule::{LaneKind, Slot};
use pipo_plan::timeline::{Span, Timeline};
use pipo_plan::units::{Bytes, Nanos};
use pipo_simulator::{Options, Resource, critical_path, lower_bound, phase_bounds};
use proptest::prelude::*;

use crate::random::script;
use crate::script::{RECORD, Script};

/// Spans by operation id.
fn by_op(timeline: &Timeline) -> Vec<Span> {
    let mut spans = timeline.spans.clone();
    spans.sort_by_key(|s| s.op);
    spans
}

/// Every slot, with the intervals in which it was held.
fn holdings(script: &Script, spans: &[Span]) -> Vec<(Slot, Vec<(Nanos, Nanos)>)> {
    let slots = script.layout.rings.iter().zip(0..).flat_map(|(ring, id)| {
        (0..ring.slots).map(move |index| Slot { ring: pipo_plan::schedule::RingId(id), index })
    });
    let held = |slot: Slot| {
        let mut taken: Vec<Nanos> = Vec::new();
        let mut freed: Vec<Nanos> = Vec::new();
        for (item, span) in script.items().zip(spans) {
            if item.takes == Some(slot) {
                taken.push(span.start);
            }
            if item.frees.contains(&Some(slot)) {
                freed.push(span.end);
            }
        }
        let freed = freed.into_iter().chain(std::iter::repeat(Nanos(u64::MAX)));
        taken.into_iter().zip(freed).collect()
    };
    slots.map(|slot| (slot, held(slot))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_promise_is_broken(script in script()) {
        let outcome = script.simulate(&RECORD).unwrap();
        let timeline = outcome.timeline.unwrap();
        let spans = by_op(&timeline);
        let items: Vec<_> = script.items().collect();
        prop_assert_eq!(spans.len(), items.len());

        for (item, span) in items.iter().zip(&spans) {
            let solo = script.prices[item.price].cost.nanos;
            prop_assert!(span.end >= span.start + solo, "faster than alone");
            for &on in &item.waits {
                prop_assert!(spans[on as usize].end <= span.start, "a wait was ignored");
            }
        }
        for lane in 0..script.layout.lanes.len() {
            let on_lane: Vec<&Span> =
                timeline.spans.iter().filter(|s| usize::from(s.lane.0) == lane).collect();
            for pair in on_lane.windows(2) {
                // Equal starts are sorted by id, which need not be the order in which operations of
                // no duration ran.
                let tied = pair[0].start == pair[1].start;
                prop_assert!(tied || pair[0].end <= pair[1].start, "two at once on a lane");
            }
        }
        for queue in 0..script.layout.queues.len() {
            let line = items.iter().zip(&spans).filter(|(i, _)| usize::from(i.queue) == queue);
            let line: Vec<&Span> = line.map(|(_, span)| span).collect();
            for pair in line.windows(2) {
                prop_assert!(pair[0].end <= pair[1].start, "a queue was reordered");
            }
        }
        for (slot, held) in holdings(&script, &spans) {
            for pair in held.windows(2) {
                prop_assert!(pair[0].1 <= pair[1].0, "{slot:?} was held twice at once");
            }
        }
        let order: Vec<_> = timeline.spans.iter().map(|s| (s.start, s.op)).collect();
        prop_assert!(order.is_sorted(), "spans are not in order");
    }

    #[test]
    fn nothing_is_lost_or_made_up(script in script()) {
        let summary = script.simulate(&RECORD).unwrap().summary;
        prop_assert_eq!(summary.ops, script.items().count() as u64);
        for kind in LaneKind::ALL {
            let here = script.items().filter(|item| {
                let lane = script.layout.queues[usize::from(item.queue)];
                script.layout.lanes[usize::from(lane.0)].kind == kind
            });
            let bytes: Bytes = here.map(|item| script.prices[item.price].bytes).sum();
            prop_assert_eq!(summary.moved(kind), bytes);
        }
        for resource in Resource::ALL {
            let drawn = script.items().map(|i| script.prices[i.price].cost.drawn()[resource as usize]);
            let drawn: f64 = drawn.sum();
            let error = (summary.drawn(resource).as_f64() - drawn).abs();
            prop_assert!(error <= 300.0, "{resource:?} is off by {error}");
        }
        prop_assert!(summary.kernel_busy <= summary.nvml_busy && summary.nvml_busy <= summary.end);
        prop_assert_eq!(summary.passes.len(), script.passes.len());
        for (used, ring) in summary.slot_high_water.iter().zip(&script.layout.rings) {
            prop_assert!(*used <= ring.slots);
        }
    }

    #[test]
    fn nothing_ends_before_the_bound(script in script()) {
        let bound = lower_bound(&script.schedule(), &script, &RECORD).unwrap();
        let end = script.simulate(&RECORD).unwrap().summary.end;
        prop_assert!(end >= bound.total(), "{end:?} is before {bound:?}");
    }

    #[test]
    fn no_last_token_is_before_the_bounds_of_the_phases(script in script()) {
        let bounds = phase_bounds(&script.schedule(), &script, &RECORD).unwrap();
        let passes = script.simulate(&RECORD).unwrap().summary.passes;
        let end = passes.iter().map(|pass| pass.end).max().unwrap();
        prop_assert!(end >= bounds.request(), "{end:?} is before {bounds:?}");
        if bounds.decode.total() > Nanos::ZERO {
            prop_assert!(passes[0].end >= bounds.prefill.total(), "{passes:?} {bounds:?}");
        }
        let all = lower_bound(&script.schedule(), &script, &RECORD).unwrap();
        prop_assert!(bounds.request.total() <= all.total());
    }

    #[test]
    fn the_same_run_gives_the_same_outcome_and_recording_changes_nothing(script in script()) {
        let first = script.simulate(&RECORD).unwrap();
        prop_assert_eq!(&first, &script.simulate(&RECORD).unwrap());
        let bare = script.simulate(&Options { record: false, ..RECORD }).unwrap();
        prop_assert_eq!(&bare.summary, &first.summary);
        prop_assert!(bare.timeline.is_none());
    }

    #[test]
    fn the_critical_path_tiles_the_run(script in script()) {
        let timeline = script.simulate(&RECORD).unwrap().timeline.unwrap();
        let spans = by_op(&timeline);
        let crossing = script.crossings[0].max(script.crossings[1]);
        for span in &spans {
            let since = span.blame.op().map_or(Nanos::ZERO, |op| spans[op.0 as usize].end);
            let late = span.start.saturating_sub(since);
            prop_assert!(since <= span.start && late <= crossing, "{span:?} leaves a gap");
        }
        let path = critical_path(&timeline);
        let mut at = Nanos::ZERO;
        for segment in &path.segments {
            prop_assert_eq!(segment.from, at);
            at = segment.to;
        }
        prop_assert_eq!(at, timeline.end);
        prop_assert_eq!(path.by_lane.iter().copied().sum::<Nanos>() + path.idle, timeline.end);
        prop_assert_eq!(path.by_kind.iter().copied().sum::<Nanos>() + path.idle, timeline.end);
        prop_assert!(path.idle == Nanos::ZERO || crossing > Nanos::ZERO);
    }
}
