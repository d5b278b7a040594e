//! The critical path: the chain of operations that decided when the run ended.

use pipo_plan::schedule::{LaneKind, OpKind};
use pipo_plan::timeline::Timeline;
use pipo_plan::units::Nanos;

/// A stretch of the critical path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Index of the span that ran; none where nothing on the path ran, as in a measured timeline.
    pub span: Option<usize>,
    /// Where the stretch begins.
    pub from: Nanos,
    /// Where it ends: the beginning of the next.
    pub to: Nanos,
}

/// The chain of operations that decided when the run ended, in order of time.
///
/// Its segments tile the run from zero to its end, so shares of it are shares of the whole time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CriticalPath {
    /// The stretches, in order.
    pub segments: Vec<Segment>,
    /// Time on the path by kind of lane, in the order of [`LaneKind::ALL`].
    pub by_lane: [Nanos; LaneKind::ALL.len()],
    /// Time on the path by kind of operation, in the order of [`OpKind::ALL`].
    pub by_kind: [Nanos; OpKind::ALL.len()],
    /// Time in which nothing on the path ran: in a simulation, what handing over between a GPU and threads of
    /// the host takes.
    pub idle: Nanos,
}

/// Walks the blames back from the operation that ended last.
///
/// Of several that ended last, the last in program order is taken. A measured timeline may have gaps
/// and overlaps between an operation and the one it blames: gaps become idle segments, and of an
/// overlap each instant is given to the later operation.
pub fn critical_path(timeline: &Timeline) -> CriticalPath {
    let index = index_by_op(timeline);
    let spans = &timeline.spans;
    let mut path = CriticalPath {
        segments: Vec::new(),
        by_lane: [Nanos::ZERO; LaneKind::ALL.len()],
        by_kind: [Nanos::ZERO; OpKind::ALL.len()],
        idle: Nanos::ZERO,
    };
    let mut at = (0..spans.len()).max_by_key(|&s| (spans[s].end, spans[s].op));
    let mut cursor = timeline.end;
    // A chain without a repetition has at most as many links as there are spans.
    for _ in 0..spans.len() {
        let Some(this) = at else { break };
        let span = &spans[this];
        path.push(timeline, None, span.end.min(cursor), cursor);
        cursor = cursor.min(span.end);
        path.push(timeline, Some(this), span.start.min(cursor), cursor);
        cursor = cursor.min(span.start);
        at = span.blame.op().and_then(|op| *index.get(op.0 as usize)?);
    }
    path.push(timeline, None, Nanos::ZERO, cursor);
    path.segments.reverse();
    path
}

impl CriticalPath {
    /// Time on the path by kind of lane.
    pub fn on_lane(&self, kind: LaneKind) -> Nanos {
        self.by_lane[kind.index()]
    }

    /// Time on the path by kind of operation.
    pub fn on_kind(&self, kind: OpKind) -> Nanos {
        self.by_kind[kind as usize]
    }

    fn push(&mut self, timeline: &Timeline, span: Option<usize>, from: Nanos, to: Nanos) {
        let length = to.saturating_sub(from);
        if length == Nanos::ZERO {
            return;
        }
        self.segments.push(Segment { span, from, to });
        match span.map(|s| &timeline.spans[s]) {
            Some(span) => {
                let lane = timeline.layout.lanes.get(usize::from(span.lane.0));
                if let Some(lane) = lane {
                    self.by_lane[lane.kind.index()] += length;
                }
                self.by_kind[span.kind as usize] += length;
            }
            None => self.idle += length,
        }
    }
}

/// Position in `spans` of each operation id; none for ids that did not run.
fn index_by_op(timeline: &Timeline) -> Vec<Option<usize>> {
    // A measured timeline may lack operations, but ids far beyond the spans are no ids: bounding the
    // table keeps a damaged file from allocating without limit.
    let most = timeline.spans.len().saturating_mul(4);
    let ids = timeline.spans.iter().map(|s| s.op.0 as usize).filter(|&id| id < most);
    let mut index = vec![None; ids.clone().max().map_or(0, |id| id + 1)];
    for (at, span) in timeline.spans.iter().enumerate() {
        if let Some(entry) = index.get_mut(span.op.0 as usize) {
            *entry = Some(at);
        }
    }
    index
}
