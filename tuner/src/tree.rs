//! The search tree down to its nodes, and why it is empty if it is.

use pipo_plan::plan::Batching;
use pipo_plan::strategy::pipo::Pipo;
use pipo_plan::strategy::{Processor, Strategy};
use pipo_simulator::Unsupported;
use rayon::prelude::*;

use crate::base::{Base, Needs, Refusal, Tried, bases};
use crate::error::{Tiers, TuneError};
use crate::node::{Node, Stand};
use crate::problem::Problem;
use crate::shape::{Cut, Shape};

/// Everything above the nodes.
#[derive(Debug)]
pub(crate) struct Tree {
    cuts: Vec<Cut>,
    shapes: Vec<Shape>,
    bases: Vec<Base>,
    /// Settings that do not fit before any weight is placed.
    too_large: u64,
    /// What the one of them that comes nearest needs, weights included.
    nearest: Option<Needs>,
    /// Why the first setting that is impossible is.
    refused: Option<TuneError>,
}

impl Tree {
    pub(crate) fn new(problem: &Problem) -> Result<Self, TuneError> {
        let cuts = cuts(problem);
        let shapes = shapes(problem, &cuts)?;
        let tried: Vec<Tried> = shapes
            .par_iter()
            .enumerate()
            .flat_map_iter(|(index, shape)| bases(problem, &cuts[shape.cut], shape, index))
            .collect();
        let (bases, too_large, nearest, refused) = (Vec::new(), 0, None, None);
        let mut tree = Self { cuts, shapes, bases, too_large, nearest, refused };
        for one in tried {
            match one {
                Tried::Base(base) => tree.bases.push(*base),
                Tried::TooLarge(needs) => {
                    tree.too_large += 1;
                    let known = tree.nearest.unwrap_or(needs);
                    tree.nearest = Some(nearer(problem, known, needs));
                }
                Tried::Impossible(refusal) => {
                    tree.refused.get_or_insert(match refusal {
                        Refusal::Lower(error) => TuneError::Request(error),
                        Refusal::Unsupported(error) => TuneError::Unsupported(error),
                    });
                }
            }
        }
        Ok(tree)
    }

    /// The bases, each with what it stands on.
    pub(crate) fn stands<'a>(&'a self, problem: &'a Problem) -> Vec<Stand<'a>> {
        let stand = |(index, base): (usize, &'a Base)| {
            let shape = &self.shapes[base.shape];
            Stand { problem, cut: &self.cuts[shape.cut], shape, base, index }
        };
        self.bases.iter().enumerate().map(stand).collect()
    }

    /// All nodes, and how many settings do not fit.
    pub(crate) fn nodes(&self, stands: &[Stand]) -> (Vec<Node>, u64) {
        let of_stands: Vec<(Vec<Node>, u64)> = stands.par_iter().map(Stand::nodes).collect();
        let too_large: u64 = of_stands.iter().map(|(_, too_large)| too_large).sum();
        let nodes = of_stands.into_iter().flat_map(|(nodes, _)| nodes).collect();
        (nodes, self.too_large + too_large)
    }

    /// Why there are no nodes.
    pub(crate) fn why_empty(&self, problem: &Problem, stands: &[Stand]) -> Option<TuneError> {
        let smallest = stands.iter().map(|stand| stand.base.smallest);
        let nearest = smallest.chain(self.nearest).reduce(|a, b| nearer(problem, a, b));
        let budget = &problem.request.budget;
        let too_large = nearest.map(|needs| TuneError::NothingFits {
            needs: Tiers { gpu: needs.gpu, host: needs.host },
            budget: Tiers { gpu: budget.gpu, host: budget.host },
        });
        too_large.or_else(|| self.refused.clone())
    }
}

/// Of two needs, the one that exceeds the budgets by less; the first of equals.
fn nearer(problem: &Problem, one: Needs, other: Needs) -> Needs {
    let budget = &problem.request.budget;
    let excess = |n: &Needs| (n.gpu - budget.gpu) + (n.host - budget.host);
    if excess(&other) < excess(&one) { other } else { one }
}

fn cuts(problem: &Problem) -> Vec<Cut> {
    let plan = problem.plan(Batching::single(1), Strategy::Pipo(Pipo::default()));
    let granularities = problem.request.space.granularity.par_iter();
    granularities.map(|&granularity| Cut::new(&plan, granularity)).collect()
}

fn shapes(problem: &Problem, cuts: &[Cut]) -> Result<Vec<Shape>, Unsupported> {
    let space = &problem.request.space;
    let split = space.attention.contains(&Processor::Cpu);
    let batchings = space.batchings(&problem.request.workload);
    let of_cut = |cut: usize| batchings.iter().map(move |&batch| (cut, batch));
    let all: Vec<(usize, Batching)> = (0..cuts.len()).flat_map(of_cut).collect();
    let shape = |(cut, batch)| Shape::new(&cuts[cut], cut, problem, batch, split);
    all.into_par_iter().map(shape).collect()
}
