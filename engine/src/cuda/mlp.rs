//! The MLP part on the device: two matrices, three with a gate, or experts of three.

use pipo_kernels::cuda::{Activation, Region, Then};

use super::arithmetic::{Step, span};
use crate::executor::Fault;

impl Step<'_> {
    /// What is there of the part.
    pub(super) fn mlp(&self) -> Result<(), Fault> {
        if let Some(experts) = self.arithmetic().tensors.model().experts {
            self.mixture(experts)
        } else if self.arithmetic().tensors.model().family.gated_mlp() {
            self.gated()
        } else {
            self.plain()
        }
    }

    fn gated(&self) -> Result<(), Fault> {
        let input = self.input("gate")?;
        let [gate, up, down] = self.results(["gate", "up", "down"])?;
        let products = [("gate", gate, span(up, down)), ("up", up, down)];
        self.advance(input, &products, Then::Store)?;
        if !self.has("down") {
            return Ok(());
        }
        let count = numbers(gate);
        self.kernels().gated_silu(self.stream.raw(), gate, up, count)?;
        self.close("down", gate, span(up, down))
    }

    fn plain(&self) -> Result<(), Fault> {
        let input = self.input("fc1")?;
        let [inner, out] = self.results(["fc1", "fc2"])?;
        // With both matrices here, everything between them follows the first at once.
        let at_once = self.has("fc1") && self.has("fc2");
        let then = if at_once { Then::Activate(Activation::Relu) } else { Then::Store };
        self.advance(input, &[("fc1", inner, out)], then)?;
        if !self.has("fc2") {
            return Ok(());
        }
        if !at_once {
            let count = numbers(inner);
            self.kernels().activate(self.stream.raw(), Activation::Relu, inner, count)?;
        }
        self.close("fc2", inner, out)
    }
}

/// 16-bit numbers in a region.
pub(super) fn numbers(region: Region) -> usize {
    crate::store::in_memory(region.bytes() / 2)
}
