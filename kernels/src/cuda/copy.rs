//! Bytes that are copied without a copy engine.

use super::launch::Launch;
use super::operand::Region;
use super::unit::Unit;
use super::{CudaError, Kernels, Stream};

impl Kernels {
    /// Copies all of `from` to the begin of `to`, which do not overlap. Either may be pinned memory of the host
    /// that the device has mapped.
    ///
    /// The multiprocessors do it: it does not wait for what copy engines were given before, and on a link that
    /// they keep busy it has its share.
    pub fn copy(&self, stream: Stream, from: Region, to: Region) -> Result<(), CudaError> {
        let bytes = usize::try_from(from.bytes()).unwrap_or(usize::MAX);
        to.holds("the copy", &[bytes], 1)?;
        let grid = [bytes.div_ceil(4096), 1, 1];
        let launch = Launch { unit: Unit::Copy, name: "copied", grid, threads: 256 };
        self.launch(stream, launch, &[to.address(), from.address(), from.bytes()])
    }
}
