//! The model cut into units: what is loaded, held and computed as one.

use serde::{Deserialize, Serialize};

use crate::model::{Model, Part, Precision, Tensor, TensorKind};
use crate::units::Bytes;

/// How finely the model is cut.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Granularity {
    /// A whole layer.
    Layer,
    /// Attention and MLP apart: PIPO's stages.
    #[default]
    Part,
    /// Each matrix apart, with the vectors before it.
    Tensor,
}

/// One unit, in order of use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// As printed, such as `layer 7 MLP`.
    pub name: String,
    /// Part of the model; a whole layer counts as [`Part::Attention`].
    pub part: Part,
    /// Layer, or 0 for embedding and head.
    pub layer: u32,
    /// Its tensors with the part each belongs to.
    pub tensors: Vec<(Part, Tensor)>,
    /// Stored size.
    pub bytes: Bytes,
    /// Whether attention over the cache happens in this unit.
    pub attends: bool,
}

impl Unit {
    fn new(name: String, layer: u32, tensors: Vec<(Part, Tensor)>, precision: Precision) -> Self {
        let bytes = tensors.iter().map(|(_, t)| t.bytes(precision)).sum();
        let attends = tensors.iter().any(|(p, t)| is_output_projection(*p, t));
        let part = tensors.first().map_or(Part::Embedding, |&(p, _)| p);
        Self { name, part, layer, tensors, bytes, attends }
    }

    /// Whether the unit holds experts.
    pub fn has_experts(&self) -> bool {
        self.tensors.iter().any(|(_, t)| t.copies > 1)
    }

    /// Bytes of the experts alone.
    pub fn expert_bytes(&self, precision: Precision) -> Bytes {
        self.tensors.iter().filter(|(_, t)| t.copies > 1).map(|(_, t)| t.bytes(precision)).sum()
    }
}

/// Attention over the cache happens just before the output projection.
pub(super) fn is_output_projection(part: Part, tensor: &Tensor) -> bool {
    part == Part::Attention && tensor.kind == TensorKind::Matrix && tensor.name == "o"
}

/// Cuts a model into units, from the embedding to the head.
pub fn cut(model: &Model, precision: Precision, granularity: Granularity) -> Vec<Unit> {
    let tagged = |part: Part| model.tensors(part).into_iter().map(move |t| (part, t));
    let mut units =
        vec![Unit::new("embedding".into(), 0, tagged(Part::Embedding).collect(), precision)];
    for layer in 0..model.layers {
        let attention = tagged(Part::Attention).collect::<Vec<_>>();
        let mlp = tagged(Part::Mlp).collect::<Vec<_>>();
        match granularity {
            Granularity::Layer => {
                let all = [attention, mlp].concat();
                units.push(Unit::new(format!("layer {layer}"), layer, all, precision));
            }
            Granularity::Part => {
                units.push(Unit::new(
                    format!("layer {layer} attention"),
                    layer,
                    attention,
                    precision,
                ));
                units.push(Unit::new(format!("layer {layer} MLP"), layer, mlp, precision));
            }
            Granularity::Tensor => {
                for group in [attention, mlp].into_iter().flat_map(by_matrix) {
                    let matrix = group.iter().find(|(_, t)| t.kind == TensorKind::Matrix);
                    let name = matrix.map_or("vectors", |(_, t)| t.name);
                    units.push(Unit::new(format!("layer {layer} {name}"), layer, group, precision));
                }
            }
        }
    }
    units.push(Unit::new("head".into(), 0, tagged(Part::Head).collect(), precision));
    units
}

/// Groups tensors so that each group holds one matrix, the vectors before it, and, for the last group,
/// the vectors after it.
fn by_matrix(tensors: Vec<(Part, Tensor)>) -> Vec<Vec<(Part, Tensor)>> {
    let mut groups: Vec<Vec<(Part, Tensor)>> = Vec::new();
    let mut open = Vec::new();
    for (part, tensor) in tensors {
        let is_matrix = tensor.kind == TensorKind::Matrix;
        open.push((part, tensor));
        if is_matrix {
            groups.push(std::mem::take(&mut open));
        }
    }
    match groups.last_mut() {
        Some(last) => last.append(&mut open),
        None => groups.push(open),
    }
    groups
}
