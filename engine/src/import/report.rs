//! What rounding did to the weights.

use std::collections::BTreeMap;

use pipo_plan::model::Precision;

use super::quantise::Squares;
use crate::store::Place;

/// One tensor's error: all experts of a layer together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TensorError {
    /// Its run.
    pub place: Place,
    /// Its name within the part.
    pub name: &'static str,
    /// How it is stored.
    pub precision: Precision,
    /// Its numbers.
    pub parameters: u64,
    /// ||w - stored|| / ||w||.
    pub relative: f64,
}

/// One kind of tensor over all layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KindError {
    /// The worst of its tensors.
    pub worst: TensorError,
    /// How many layers have it.
    pub tensors: u64,
    /// The error of all of them together.
    pub relative: f64,
}

/// What an import did.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Bytes of the data file.
    pub bytes: u64,
    /// Every tensor in the order of the store.
    pub tensors: Vec<TensorError>,
    /// Kinds of tensors in the order in which they first occur.
    pub kinds: Vec<KindError>,
    /// The error of all weights together.
    pub relative: f64,
    /// Tensors of the checkpoint that the model does not use, such as rotary frequencies.
    pub unused: Vec<String>,
    /// Whether the checkpoint had a tokenizer, which is then in the store.
    pub tokenizer: bool,
}

impl Report {
    /// The tensors with the largest errors, the largest first.
    pub fn worst(&self, count: usize) -> Vec<TensorError> {
        let mut tensors = self.tensors.clone();
        tensors.sort_by(|a, b| b.relative.total_cmp(&a.relative).then(a.place.cmp(&b.place)));
        tensors.truncate(count);
        tensors
    }
}

/// Sums errors while tensors pass by.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    tensors: Vec<(TensorError, Squares)>,
}

impl Ledger {
    /// Adds a tensor, or one more expert's copy of it. The experts of one layer follow one another,
    /// so that only the latest few entries can be the same tensor.
    pub(super) fn note(&mut self, tensor: TensorError, squares: Squares) {
        let latest = self.tensors.iter_mut().rev().take(16);
        for (known, sum) in latest {
            if known.place == tensor.place && known.name == tensor.name {
                known.parameters += tensor.parameters;
                sum.add(squares);
                return;
            }
        }
        self.tensors.push((tensor, squares));
    }

    pub(super) fn report(self, bytes: u64, unused: Vec<String>, tokenizer: bool) -> Report {
        let mut all = Squares::default();
        let mut order = Vec::new();
        let mut kinds: BTreeMap<_, (KindError, Squares)> = BTreeMap::new();
        let mut tensors = Vec::with_capacity(self.tensors.len());
        for (mut tensor, squares) in self.tensors {
            tensor.relative = squares.relative();
            tensors.push(tensor);
            all.add(squares);
            let key = (tensor.place.part, tensor.name);
            let (kind, sum) = kinds.entry(key).or_insert_with(|| {
                order.push(key);
                let kind = KindError { worst: tensor, tensors: 0, relative: 0.0 };
                (kind, Squares::default())
            });
            kind.tensors += 1;
            sum.add(squares);
            kind.relative = sum.relative();
            if tensor.relative > kind.worst.relative {
                kind.worst = tensor;
            }
        }
        let kinds = order.iter().filter_map(|key| kinds.get(key)).map(|(kind, _)| *kind).collect();
        Report { bytes, tensors, kinds, relative: all.relative(), unused, tokenizer }
    }
}
