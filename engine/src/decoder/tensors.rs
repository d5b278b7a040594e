//! The tensors of a store by name, wherever their bytes are.

use std::collections::BTreeMap;
use std::ops::Range;

use pipo_kernels::Format;
use pipo_plan::model::{Model, Part, Precision};

use crate::executor::Fault;
use crate::store::{Layout, Placed, in_memory};

/// Bytes that can be cut: in the host's memory, or in a device's.
pub trait Bytes: Copy {
    /// Some of them; nothing where they are not all there.
    fn cut(self, range: Range<usize>) -> Option<Self>;
}

impl Bytes for &[u8] {
    fn cut(self, range: Range<usize>) -> Option<Self> {
        self.get(range)
    }
}

/// The bytes of a part's run, or of those of its tensors that are there.
#[derive(Debug, Clone)]
pub struct Run<B> {
    /// Where each stretch begins in the run, and its bytes.
    stretches: Vec<(u64, B)>,
}

impl<B> Default for Run<B> {
    fn default() -> Self {
        Self { stretches: Vec::new() }
    }
}

impl<'a> From<&'a [u8]> for Run<&'a [u8]> {
    /// All of it.
    fn from(bytes: &'a [u8]) -> Self {
        Self { stretches: vec![(0, bytes)] }
    }
}

impl<B> FromIterator<(u64, B)> for Run<B> {
    fn from_iter<I: IntoIterator<Item = (u64, B)>>(stretches: I) -> Self {
        Self { stretches: stretches.into_iter().collect() }
    }
}

impl<B: Bytes> Run<B> {
    fn get(&self, placed: &Placed) -> Option<B> {
        self.stretches.iter().find_map(|&(start, bytes)| {
            let from = in_memory(placed.offset.checked_sub(start)?);
            bytes.cut(from..from.checked_add(in_memory(placed.length))?)
        })
    }
}

/// Whose tensors are meant: a part's own, or those of one of its experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The part.
    pub part: Part,
    /// Which expert, in a mixture.
    pub expert: Option<u32>,
}

/// A tensor with its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Stored<B> {
    /// How it is stored.
    pub format: Format,
    /// Rows of a matrix, or numbers of a vector.
    pub outputs: usize,
    /// Columns of a matrix.
    pub inputs: usize,
    /// Its bytes.
    pub bytes: B,
}

/// The tensors of a store.
#[derive(Debug, Clone)]
pub struct Tensors {
    layout: Layout,
    of_part: BTreeMap<Part, Vec<Placed>>,
}

impl Tensors {
    /// Those of a store with this layout.
    pub fn new(layout: &Layout) -> Self {
        let of_part = |part| (part, layout.tensors(part).collect());
        Self { layout: layout.clone(), of_part: Part::ALL.into_iter().map(of_part).collect() }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        self.layout.model()
    }

    /// Whether the model has such a tensor, and its bytes are there.
    pub fn has<B: Bytes>(&self, owner: Owner, run: &Run<B>, name: &str) -> bool {
        self.find(owner, name).is_some_and(|placed| run.get(placed).is_some())
    }

    /// A tensor that must be there.
    pub fn get<B: Bytes>(
        &self,
        owner: Owner,
        run: &Run<B>,
        name: &str,
    ) -> Result<Stored<B>, Fault> {
        let missing = |what: &str| Fault(format!("the {} has no {what} `{name}`", owner.part));
        let placed = self.find(owner, name).ok_or_else(|| missing("tensor"))?;
        let bytes = run.get(placed).ok_or_else(|| missing("bytes for"))?;
        let format = format(self.layout.precision_of(&placed.tensor));
        let (outputs, inputs) = (placed.tensor.outputs, placed.tensor.inputs);
        Ok(Stored { format, outputs: in_memory(outputs), inputs: in_memory(inputs), bytes })
    }

    /// Rows of a matrix of the model, or numbers of a vector, whether or not its bytes are there.
    pub fn outputs(&self, owner: Owner, name: &str) -> Option<usize> {
        self.find(owner, name).map(|placed| in_memory(placed.tensor.outputs))
    }

    fn find(&self, owner: Owner, name: &str) -> Option<&Placed> {
        let tensors = self.of_part.get(&owner.part)?;
        tensors.iter().find(|t| t.tensor.name == name && t.expert == owner.expert)
    }
}

/// How the kernels call a precision of the store.
pub fn format(precision: Precision) -> Format {
    match precision {
        Precision::Fp16 => Format::Fp16,
        Precision::Bf16 => Format::Bf16,
        Precision::Int8 => Format::Int8,
        Precision::Int4 => Format::Int4,
    }
}
