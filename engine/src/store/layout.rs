//! Where everything lies: a pure function of the model and the precision.

use std::fmt;
use std::ops::Range;

use pipo_plan::model::{Flaw, Model, Part, Precision, Tensor, TensorKind};
use serde::{Deserialize, Serialize};

use crate::disk::PAGE;

/// Runs start at multiples of this many bytes: direct reads need it.
pub const ALIGNMENT: u64 = PAGE as u64;

/// Which run: a part of the model and, for attention and MLP, the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The part.
    pub part: Part,
    /// The layer; 0 for the embedding and the head.
    pub layer: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.part {
            Part::Embedding | Part::Head => write!(f, "{}", self.part),
            Part::Attention | Part::Mlp => write!(f, "layer {} {}", self.layer, self.part),
        }
    }
}

/// One matrix or vector of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// What it is; its `copies` are those of the model.
    pub tensor: Tensor,
    /// Which copy, where the tensor belongs to an expert.
    pub expert: Option<u32>,
    /// Its first byte within the run.
    pub offset: u64,
    /// Its length.
    pub length: u64,
}

/// The runs of a store, in the order in which they lie in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    model: Model,
    precision: Precision,
    lengths: [u64; 4],
}

impl Layout {
    /// The layout of a model that passes [`Model::check`]; the bounds checked there keep every offset
    /// far inside 64 bits.
    pub fn new(model: &Model, precision: Precision) -> Result<Self, Flaw> {
        model.check()?;
        let mut layout = Self { model: model.clone(), precision, lengths: [0; 4] };
        layout.lengths =
            Part::ALL.map(|part| layout.stored(part).iter().map(|t| t.bytes(precision).0).sum());
        Ok(layout)
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// How its matrices are stored.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// How a tensor is stored: matrices as the store says, the rest in 16 bits, of the kind that the
    /// store's own 16-bit matrices would have.
    pub fn precision_of(&self, tensor: &Tensor) -> Precision {
        match (tensor.kind, self.precision) {
            (TensorKind::Matrix, precision) => precision,
            (TensorKind::Vector, Precision::Bf16) => Precision::Bf16,
            (TensorKind::Vector, _) => Precision::Fp16,
        }
    }

    /// Every run in file order: the order of the computation.
    pub fn places(&self) -> impl Iterator<Item = Place> + use<> {
        let layers = (0..self.model.layers)
            .flat_map(|layer| [Part::Attention, Part::Mlp].map(|part| Place { part, layer }));
        let alone = |part| std::iter::once(Place { part, layer: 0 });
        alone(Part::Embedding).chain(layers).chain(alone(Part::Head))
    }

    /// Length of a part's run. The head's is without its matrix where that is the token embedding.
    pub fn length(&self, part: Part) -> u64 {
        match part {
            Part::Embedding => self.lengths[0],
            Part::Attention => self.lengths[1],
            Part::Mlp => self.lengths[2],
            Part::Head => self.lengths[3],
        }
    }

    /// Where a run lies in the data file; `None` where the model has no such run.
    pub fn range(&self, place: Place) -> Option<Range<u64>> {
        let [embedding, attention, mlp] =
            [Part::Embedding, Part::Attention, Part::Mlp].map(|part| align(self.length(part)));
        let layer = attention + mlp;
        let valid = match place.part {
            Part::Embedding | Part::Head => place.layer == 0,
            Part::Attention | Part::Mlp => place.layer < self.model.layers,
        };
        let start = match place.part {
            Part::Embedding => 0,
            Part::Attention => embedding + layer * u64::from(place.layer),
            Part::Mlp => embedding + layer * u64::from(place.layer) + attention,
            Part::Head => embedding + layer * u64::from(self.model.layers),
        };
        valid.then(|| start..start + self.length(place.part))
    }

    /// Length of the data file: the end of the last run, without padding after it.
    pub fn file_length(&self) -> u64 {
        self.range(Place { part: Part::Head, layer: 0 }).map_or(0, |range| range.end)
    }

    /// Whether the head's matrix is the token embedding, which is stored once.
    pub fn tied(&self) -> bool {
        self.model.tied_embeddings
    }

    /// The tensors of a part's run in the order in which they lie there: those that all tokens use,
    /// then expert by expert, so that one expert is one contiguous read.
    pub fn tensors(&self, part: Part) -> impl Iterator<Item = Placed> + use<> {
        let precision = self.precision;
        let experts = if part == Part::Mlp { self.model.experts.map_or(0, |e| e.count) } else { 0 };
        let (routed, dense): (Vec<Tensor>, Vec<Tensor>) =
            self.stored(part).into_iter().partition(|t| experts > 0 && is_routed(t));
        let dense = dense.into_iter().map(|tensor| (tensor, None));
        let routed = (0..experts)
            .flat_map(move |expert| routed.clone().into_iter().map(move |t| (t, Some(expert))));
        dense.chain(routed).scan(0, move |offset, (tensor, expert)| {
            let length = Tensor { copies: 1, ..tensor }.bytes(precision).0;
            let placed = Placed { tensor, expert, offset: *offset, length };
            *offset += length;
            Some(placed)
        })
    }

    /// The run and the place in it of a tensor by its name in the model; a tied head is found in the
    /// embedding's run.
    pub fn find(&self, place: Place, name: &str, expert: Option<u32>) -> Option<(Place, Placed)> {
        self.range(place)?;
        if self.tied() && place.part == Part::Head && name == "head" {
            let embedding = Place { part: Part::Embedding, layer: 0 };
            return self.find(embedding, "tokens", expert);
        }
        let placed =
            self.tensors(place.part).find(|p| p.tensor.name == name && p.expert == expert)?;
        Some((place, placed))
    }

    /// The tensors of a part without the matrix that a tied head borrows.
    fn stored(&self, part: Part) -> Vec<Tensor> {
        let mut tensors = self.model.tensors(part);
        if part == Part::Head && self.tied() {
            tensors.retain(|tensor| tensor.name != "head");
        }
        tensors
    }
}

/// Whether a tensor of a mixture's MLP belongs to an expert: everything but the norm and the router,
/// which are the parts in 16 bits. A mixture of one expert has `copies` of 1, so those cannot tell.
fn is_routed(tensor: &Tensor) -> bool {
    tensor.kind == TensorKind::Matrix
}

fn align(length: u64) -> u64 {
    length.next_multiple_of(ALIGNMENT)
}
