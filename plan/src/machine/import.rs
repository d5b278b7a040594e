//! Figures measured by tools that people already trust: NVIDIA's `nvbandwidth` and `fio`.

use super::{Curve, Figure, Machine};
use crate::diagnostic::{Diagnostic, Document};
use crate::units::{Bandwidth, Bytes};

pub use super::fio::fio;
pub use super::nvbandwidth::nvbandwidth;

/// A figure of a profile that an importer can supply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// `link.h2d`
    HostToDevice,
    /// `link.d2h`
    DeviceToHost,
    /// `link.duplex`
    Duplex,
    /// `gpu.memory_bandwidth`
    GpuMemory,
    /// `disk.read`
    DiskRead,
    /// `disk.write`
    DiskWrite,
    /// `disk.buffered_read`
    DiskBufferedRead,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Measured {
    /// One bandwidth, at a size large enough that fixed costs vanish.
    Rate(Bandwidth),
    /// Bandwidths by size.
    Points(Vec<(Bytes, Bandwidth)>),
}

/// One measured figure on its way into a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The figure it replaces.
    pub target: Target,
    /// Its new value.
    pub measured: Measured,
    /// Tool and file, as the profile will cite them.
    pub source: String,
}

impl Machine {
    /// This machine with measured figures in place of its own, checked again as a whole.
    ///
    /// Points of one curve may come from several files; where two measured the same size, the faster
    /// stands. A single rate keeps the profile's fixed cost per transfer, and the source says so.
    pub fn with_imported(&self, imported: &[Imported]) -> Result<Self, Box<Diagnostic>> {
        let mut machine = self.clone();
        let mut ordered: Vec<&Imported> = imported.iter().collect();
        ordered.sort_by_key(|i| i.target);
        for figures in ordered.chunk_by(|a, b| a.target == b.target) {
            machine.replace(figures)?;
        }
        let name = format!("{} with imported figures", self.name);
        machine.check(&Document::new(name, machine.to_toml()))?;
        Ok(machine)
    }

    fn replace(&mut self, figures: &[&Imported]) -> Result<(), Box<Diagnostic>> {
        let Some(first) = figures.first() else { return Ok(()) };
        let mut cited: Vec<&str> = figures.iter().map(|i| i.source.as_str()).collect();
        cited.dedup();
        let mut source = cited.join("; ");
        let rates = figures.iter().filter_map(|i| match i.measured {
            Measured::Rate(rate) => Some(rate),
            Measured::Points(_) => None,
        });
        let rate = rates.max().unwrap_or_default();
        match first.target {
            // A copy engine's copy reads and writes each byte. It is a lower bound on what kernels
            // reach, far below it on some cards, so it may only raise the figure.
            Target::GpuMemory => {
                if rate * 2 > self.gpu.memory_bandwidth.value {
                    let key = self.cite(&source);
                    self.gpu.memory_bandwidth = Figure::new(rate * 2, key);
                }
                return Ok(());
            }
            Target::Duplex => {
                let key = self.cite(&source);
                self.link.duplex = Figure::new(rate, key);
                return Ok(());
            }
            _ => {}
        }
        let Some(old) = self.curve(first.target).cloned() else {
            return Err(Document::new(self.name.as_str(), self.to_toml()).whole(
                format!("{source} measured a disk, but the machine `{}` has none", self.name),
                "add a [disk] table to the profile first; one in the catalogue shows its figures",
            ));
        };
        let points = merged(figures);
        let curve = if points.is_empty() {
            if old.flat_rate().is_none() {
                source = format!("{source}; fixed cost per transfer as in `{}`", old.source);
            }
            old.with_rate(rate)
        } else {
            Curve::new(points).map_err(|error| {
                Document::new(source.as_str(), "").whole(
                    error.to_string(),
                    "measure again with nothing else running, or leave the odd file out",
                )
            })?
        };
        let key = self.cite(&source);
        if let Some(figure) = self.curve(first.target) {
            *figure = Figure::new(curve, key);
        }
        Ok(())
    }

    fn curve(&mut self, target: Target) -> Option<&mut Figure<Curve>> {
        let disk = self.disk.as_mut();
        match target {
            Target::HostToDevice => Some(&mut self.link.h2d),
            Target::DeviceToHost => Some(&mut self.link.d2h),
            Target::DiskRead => disk.map(|d| &mut d.read),
            Target::DiskWrite => disk.map(|d| &mut d.write),
            Target::DiskBufferedRead => disk.map(|d| &mut d.buffered_read),
            Target::Duplex | Target::GpuMemory => None,
        }
    }

    /// The key of a source, added to `[sources]` where it is new.
    fn cite(&mut self, source: &str) -> String {
        if let Some((key, _)) = self.sources.iter().find(|(_, text)| *text == source) {
            return key.clone();
        }
        let tool = source.split([' ', ',']).next().unwrap_or("measured");
        let mut key = tool.to_owned();
        let mut number = 1_u64;
        while self.sources.contains_key(&key) {
            number += 1;
            key = format!("{tool}-{number}");
        }
        self.sources.insert(key.clone(), source.to_owned());
        key
    }
}

/// All points by rising size, the fastest of each size.
fn merged(figures: &[&Imported]) -> Vec<(Bytes, Bandwidth)> {
    let mut points: Vec<(Bytes, Bandwidth)> = figures
        .iter()
        .flat_map(|i| match &i.measured {
            Measured::Rate(_) => &[],
            Measured::Points(points) => points.as_slice(),
        })
        .copied()
        .collect();
    points.sort_by_key(|&(size, rate)| (size, std::cmp::Reverse(rate)));
    points.dedup_by_key(|&mut (size, _)| size);
    points
}
