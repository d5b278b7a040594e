//! Words that the host and streams both see.

use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys;

use super::{Pin, Stream, checked, mapped};
use crate::executor::Fault;

/// One page of the host, so that nobody else's memory is pinned with it.
#[derive(Debug)]
#[repr(align(4096))]
struct Page([AtomicU32; 1024]);

/// Two counters in pinned memory that go up, and wrap around: one that a stream sets and the host reads,
/// one that the host sets and a stream waits for.
#[derive(Debug)]
pub(crate) struct Words {
    _pin: Option<Pin>,
    page: Box<Page>,
    /// Where the page begins for the device.
    address: sys::CUdeviceptr,
}

impl Words {
    /// Words apart by a cache line: each is written by one side alone.
    const APART: usize = 32;

    pub(crate) fn new() -> Result<Self, Fault> {
        let page = Box::new(Page([const { AtomicU32::new(0) }; 1024]));
        let bytes = std::ptr::from_ref(&*page).cast::<u8>();
        // SAFETY: the page is that long, and nobody writes it before this call is over. It does not move,
        // and the pin is dropped before it.
        let (pin, region) = unsafe {
            let bytes = std::slice::from_raw_parts(bytes, size_of::<Page>());
            (Pin::new(bytes)?, mapped(bytes)?)
        };
        Ok(Self { _pin: pin, page, address: region.address() })
    }

    /// What the stream has set last.
    pub(crate) fn reached(&self) -> u32 {
        self.page.0[0].load(Ordering::Acquire)
    }

    /// Lets streams past that wait for `value` or less.
    pub(crate) fn admit(&self, value: u32) {
        self.page.0[Self::APART].store(value, Ordering::Release);
    }
}

impl Stream {
    /// Sets the word that the host reads when the stream gets here.
    pub(crate) fn reach(&self, words: &Words, value: u32) -> Result<(), Fault> {
        let flags = sys::CUstreamWriteValue_flags_enum::CU_STREAM_WRITE_VALUE_DEFAULT as u32;
        // SAFETY: the word is in mapped memory, which the caller keeps while the stream has work.
        let result =
            unsafe { sys::cuStreamWriteValue32_v2(self.0, words.address, value, flags) }.result();
        checked("let a stream set a word", result)
    }

    /// Lets the stream wait here until the host admits `value`, or more as far as that can be told.
    pub(crate) fn wait_for_admission(&self, words: &Words, value: u32) -> Result<(), Fault> {
        let flags = sys::CUstreamWaitValue_flags_enum::CU_STREAM_WAIT_VALUE_GEQ as u32;
        let word = words.address + (Words::APART * size_of::<u32>()) as u64;
        // SAFETY: as above.
        let result = unsafe { sys::cuStreamWaitValue32_v2(self.0, word, value, flags) }.result();
        checked("let a stream wait for a word", result)
    }
}
