//! A plan to lower, and its operations to look at.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use pipo_plan::model::{Precision, catalog};
use pipo_plan::plan::{Batching, Plan, Precisions};
use pipo_plan::schedule::{Builder, Layout, OpKind, Pass, Work, WorkTable};
use pipo_plan::strategy::{Strategy, lower};
use pipo_plan::units::Bytes;
use pipo_plan::workload::{Budget, Objective, Workload};
use proptest::test_runner::TestCaseError;

/// 512 prompt tokens and 8 new ones in 16 bits, with memory for anything.
pub(crate) fn plan(model: &str, micro: u64, count: u64, strategy: Strategy) -> Plan {
    Plan {
        machine: String::new(),
        profile: String::new(),
        seed: 0,
        workload: Workload {
            prompt: 512,
            new_tokens: 8,
            batch: None,
            objective: Objective::Throughput,
            token_within: None,
        },
        budget: Budget { gpu: Bytes(1 << 50), host: Bytes(1 << 50), disk: Bytes(1 << 50) },
        precision: Precisions { weights: Precision::Fp16, kv: Precision::Fp16 },
        batch: Batching { micro, count, prefill_chunk: None },
        strategy,
        model: catalog::find(model).unwrap(),
        prediction: None,
        runners_up: Vec::new(),
    }
}

/// Operations of one kind in a pass.
pub(crate) fn count(pass: &Pass, kind: OpKind) -> usize {
    pass.ops.iter().filter(|op| op.kind == kind).count()
}

/// Every operation of a plan.
pub(crate) struct Emitted {
    pub(crate) layout: Layout,
    pub(crate) passes: Vec<Pass>,
    pub(crate) table: WorkTable,
}

impl Emitted {
    pub(crate) fn new(plan: &Plan) -> Self {
        let schedule = lower(plan).unwrap();
        let mut out = Builder::new(&schedule.layout);
        let mut passes = Vec::new();
        for pass in 0..schedule.program.passes() {
            schedule.program.emit(pass, &mut out);
            passes.push(out.finish(Pass::default()));
        }
        Self { layout: schedule.layout, passes, table: out.works }
    }

    /// The works of one kind of operation in a pass.
    pub(crate) fn works(&self, pass: &Pass, kind: OpKind) -> Vec<Work> {
        let of_kind = pass.ops.iter().filter(|op| op.kind == kind);
        of_kind.map(|op| self.table[op.work].clone()).collect()
    }

    /// Bytes moved by one kind of operation in all passes.
    pub(crate) fn moved(&self, kind: OpKind) -> Bytes {
        let ops = self.passes.iter().flat_map(|p| &p.ops);
        ops.filter(|op| op.kind == kind).map(|op| self.table[op.work].bytes()).sum()
    }

    /// In program order a slot is taken only while it is free, freed only while it is taken, and free
    /// at the end; an operation waits only for earlier ones.
    pub(crate) fn check_slots(&self) -> Result<(), TestCaseError> {
        let mut held: Vec<Vec<bool>> =
            self.layout.rings.iter().map(|r| vec![false; usize::from(r.slots)]).collect();
        for pass in &self.passes {
            for (index, op) in pass.ops.iter().enumerate() {
                let id = pass.first + u32::try_from(index).unwrap();
                if let Some(wait) = pass.waits(op).iter().find(|w| w.0 >= id) {
                    return Err(TestCaseError::fail(format!("{op:?} waits for {wait:?}")));
                }
                let takes = op.takes.map(|slot| (slot, true));
                let frees = op.frees.iter().flatten().map(|&slot| (slot, false));
                for (slot, taking) in takes.into_iter().chain(frees) {
                    let at = &mut held[usize::from(slot.ring.0)][usize::from(slot.index)];
                    if *at == taking {
                        return Err(TestCaseError::fail(format!("slot out of turn: {op:?}")));
                    }
                    *at = taking;
                }
            }
        }
        let left = held.iter().flatten().filter(|&&h| h).count();
        if left > 0 {
            return Err(TestCaseError::fail(format!("{left} slots are never freed")));
        }
        Ok(())
    }
}
