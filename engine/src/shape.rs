//! A device made smaller, to stand in for another: fewer multiprocessors, a slower link, a slower disk, less memory.
//!
//! Multiprocessors are really fewer: kernels run in a green context that has no others. Link and disk are
//! held back by the host, operation by operation: each is done as fast as it goes, and counts as done no
//! earlier than the slower device would have done it. Never by a kernel that spins, which would count as work.
//! Memory is what a profile says, and what no plan's budget may exceed.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pipo_plan::units::{Bandwidth, Bytes};

/// What a device is made of; nothing is as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    /// Multiprocessors.
    pub sms: Option<u32>,
    /// Each way of the link.
    pub link: Option<Bandwidth>,
    /// All reads from the disk together.
    pub disk: Option<Bandwidth>,
    /// Memory of the GPU.
    pub gpu_mem: Option<Bytes>,
}

/// How one is written.
const EXAMPLE: &str = "sms=8,link=12GB/s,disk=3GB/s,gpu-mem=6GB";

impl FromStr for Shape {
    type Err = String;

    /// Reads `sms=8,link=12GB/s,disk=3GB/s,gpu-mem=6GB`, each of them once at most.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut shape = Self::default();
        for part in text.split(',') {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let wrong = |what: &str| format!("`{part}`: {what}; write {EXAMPLE}");
            let rate = || {
                let rate = value.parse::<Bandwidth>().ok().filter(|rate| rate.0 > 0);
                rate.ok_or_else(|| wrong("this is no rate above zero"))
            };
            let twice = match key.trim() {
                "sms" => {
                    let sms = value.parse().ok().filter(|&sms| sms > 0);
                    shape
                        .sms
                        .replace(sms.ok_or_else(|| wrong("this is no number above zero"))?)
                        .is_some()
                }
                "link" => shape.link.replace(rate()?).is_some(),
                "disk" => shape.disk.replace(rate()?).is_some(),
                "gpu-mem" => {
                    let size = value.parse::<Bytes>().ok().filter(|size| size.0 > 0);
                    let size = size.ok_or_else(|| wrong("this is no size above zero"))?;
                    shape.gpu_mem.replace(size).is_some()
                }
                _ => return Err(wrong("a shape has sms, link, disk and gpu-mem")),
            };
            if twice {
                return Err(wrong("this is said twice"));
            }
        }
        Ok(shape)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let parts = [
            self.sms.map(|sms| format!("{sms} SMs")),
            self.link.map(|rate| format!("a link of {rate} each way")),
            self.disk.map(|rate| format!("a disk of {rate}")),
            self.gpu_mem.map(|size| format!("{size} of memory")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        f.pad(&parts.join(", "))
    }
}

impl Shape {
    /// A device's name with what was made of it, for every output.
    pub fn name(&self, device: &str) -> String {
        if *self == Self::default() { device.into() } else { format!("{device} shaped to {self}") }
    }
}

/// What lets bytes through no faster than at a rate.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: Bandwidth,
    /// When all that was let through so far has passed.
    free: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(rate: Bandwidth) -> Self {
        Self { rate, free: Mutex::default() }
    }

    /// Does `work`, and returns when as many bytes have passed, behind all that came before.
    pub(crate) fn pass<T, E>(
        &self,
        bytes: Bytes,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let took = Duration::from_nanos(self.rate.time(bytes).0);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let end = free.map_or(now, |free| free.max(now)) + took;
        *free = Some(end);
        drop(free);
        let result = work()?;
        until(end);
        Ok(result)
    }
}

/// How much longer a thread may sleep than it asked for.
const OVERSLEPT: Duration = Duration::from_micros(150);

/// Waits until a time, to the microsecond where a core is free: sleeping alone would lose a tenth of a
/// millisecond with each operation.
pub(crate) fn until(end: Instant) {
    let left = || end.saturating_duration_since(Instant::now());
    std::thread::sleep(left().saturating_sub(OVERSLEPT));
    while left() > Duration::ZERO {
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_read_as_it_is_written() {
        let shape: Shape = "sms=8,link=12GB/s".parse().unwrap();
        assert_eq!((shape.sms, shape.disk), (Some(8), None));
        assert_eq!(shape.link, Some(Bandwidth(12_000_000_000)));
        insta::assert_snapshot!(shape.name("NVIDIA H200"), @"NVIDIA H200 shaped to 8 SMs, a link of 12.0 GB/s each way");
        assert_eq!(Shape::default().name("NVIDIA H200"), "NVIDIA H200");
        let small: Shape = "gpu-mem=6GB,disk=1GB/s".parse().unwrap();
        insta::assert_snapshot!(small.to_string(), @"a disk of 1.00 GB/s, 6.00 GB of memory");
    }

    #[test]
    fn what_is_no_shape_is_said() {
        for text in [
            "",
            "sms",
            "sms=0",
            "sms=-1",
            "link=fast",
            "link=0B/s",
            "tensor=1",
            "sms=8,sms=9",
            "gpu-mem=6g",
            "gpu-mem=0B",
        ] {
            let error = text.parse::<Shape>().unwrap_err();
            assert!(error.contains(&format!("write {EXAMPLE}")), "{text}: {error}");
        }
        assert!(EXAMPLE.parse::<Shape>().is_ok());
    }

    #[test]
    fn bytes_pass_one_after_another() {
        // A thousand bytes a second: the second read has to wait for the first one's ten milliseconds.
        let pace = Pace::new(Bandwidth(1000));
        let begin = Instant::now();
        let work = || Ok::<(), ()>(());
        std::thread::scope(|scope| {
            scope.spawn(|| pace.pass(Bytes(10), work));
            scope.spawn(|| pace.pass(Bytes(10), work));
        });
        assert!(begin.elapsed() >= Duration::from_millis(20));
    }
}
