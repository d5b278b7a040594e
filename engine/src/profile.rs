//! Measures this machine: what each kind of operation takes, when it runs alone.
//!
//! The result is a [`Machine`] like those of the catalogue, in which the host's cores and memory play the
//! GPU's. Each figure is the median of repeated samples, taken after a warm-up, and carries its spread;
//! every sample is returned beside it.
//!
//! Nothing here is fitted to a run of a plan. What operations do to each other (cores, memory and disk
//! that they share) is the simulator's business.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pipo_plan::machine::Machine;
use pipo_plan::units::Bytes;

use crate::counters::State;
use crate::disk::{NotDirect, ReadError};
use crate::executor::{ExecutionError, Fault};
use crate::run::Device;
use crate::shape::Shape;

mod cores;
mod disk;
mod gpu;
mod kernels;
mod lanes;
mod machine;
mod memory;
mod probe;
mod sampling;
mod system;
mod walk;

pub use sampling::Sample;
use sampling::Sampler;

/// What is measured, and how long.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Threads of one computation.
    pub threads: usize,
    /// A folder on the disk that weights are read from: a scratch file is written there and removed.
    pub folder: PathBuf,
    /// Size of the scratch file.
    pub file: u64,
    /// At least so many samples of each figure.
    pub samples: usize,
    /// No further sample of a figure after this, beyond the least number.
    pub patience: Duration,
    /// How often everything but the disk is gone through, each time for a part of the samples: what disturbs a
    /// machine for a second then meets few of any figure.
    pub passes: usize,
    /// Largest matrix whose products are measured, in weights.
    pub largest: usize,
    /// Most rows of a product that are measured.
    pub most_rows: usize,
    /// What plays the GPU.
    pub device: Device,
    /// What it is made of, to stand in for a smaller one.
    pub shape: Shape,
}

impl Settings {
    /// What takes a minute or two: a scratch file of 1 GiB in `folder`.
    pub fn new(threads: usize, folder: &Path) -> Self {
        Self {
            threads,
            folder: folder.into(),
            file: 1 << 30,
            samples: 7,
            patience: Duration::from_millis(150),
            passes: 4,
            largest: usize::MAX,
            most_rows: usize::MAX,
            device: Device::Cpu,
            shape: Shape::default(),
        }
    }

    /// What takes less than a minute for the host, right before what matters: fewer samples.
    #[must_use]
    pub fn brief(self) -> Self {
        Self {
            patience: self.patience.min(Duration::from_millis(50)),
            passes: self.passes.min(3),
            ..self
        }
    }

    /// What takes ten to thirty seconds, for a first look: fewer samples, small matrices, few rows.
    #[must_use]
    pub fn quick(self) -> Self {
        let file = self.file.min(256 << 20);
        let (samples, patience, passes) = (3, Duration::from_millis(5), 1);
        Self { file, samples, patience, passes, largest: 1 << 22, most_rows: 64, ..self }
    }
}

/// What was measured.
#[derive(Debug, Clone)]
pub struct Profile {
    /// The machine.
    pub machine: Machine,
    /// Every sample, in the order in which it was taken.
    pub samples: Vec<Sample>,
    /// What a reader should know: what could not be measured, and what stands for it.
    pub notes: Vec<String>,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The scratch file could not be written.
    #[error("cannot {action} {}: {source}; name another folder with --folder", path.display())]
    Scratch {
        /// What was tried.
        action: &'static str,
        /// The folder or file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is too short to be read again and again.
    #[error(
        "{}: it has {length}, reading is measured on {least} or more; name a larger file with --file, or leave it out",
        path.display()
    )]
    Short {
        /// The file.
        path: PathBuf,
        /// How long it is.
        length: Bytes,
        /// How long it must be.
        least: Bytes,
    },
    /// Writing was not measured, and nothing stands for it.
    #[error(
        "`{machine}` has no disk whose writing could stand for this one's; leave --file out, so that writing is measured too"
    )]
    NotWritten {
        /// The base.
        machine: String,
    },
    /// Figures of two machines would be one's.
    #[error(
        "`{machine}` is no profile of this machine: its figures are {there}, and would stand beside some that are `{here}`; measure without --only, or name a profile from here with --base"
    )]
    Elsewhere {
        /// The base.
        machine: String,
        /// How its figures were measured.
        there: String,
        /// How they are here.
        here: String,
    },
    /// The scratch file could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// There is not enough memory for the buffers.
    #[error("{0} bytes of memory for measuring could not be allocated; close other programs")]
    Memory(usize),
    /// Arithmetic that is measured failed.
    #[error(transparent)]
    Arithmetic(#[from] Fault),
    /// Lanes that are measured did not run.
    #[error(transparent)]
    Lanes(#[from] ExecutionError),
    /// The figures do not make a machine.
    #[error("what was measured contradicts itself: {0}; measure again on a quieter machine")]
    Implausible(String),
}

impl From<pipo_kernels::ShapeError> for ProfileError {
    fn from(error: pipo_kernels::ShapeError) -> Self {
        Self::Arithmetic(error.into())
    }
}

/// Measures everything; `progress` is told how many parts of it are done, and of how many.
pub fn profile(
    settings: &Settings,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Profile, ProfileError> {
    let Settings { samples, patience, passes, .. } = *settings;
    let mut sampler = Sampler::new(samples, patience, passes);
    let mut card = card(settings)?;
    let state = |card: &Option<gpu::Card>| card.as_ref().and_then(|_| State::now());
    let before = state(&card);
    let mut done = 0;
    let mut next = || {
        // The disk is a part, too.
        progress(done, passes + 1);
        done += 1;
    };
    let (host, gpu) = sampler.in_passes(|sampler| {
        next();
        let host = on_host(sampler, settings, card.as_mut())?;
        let gpu = card.as_mut().map(|card| card.measure(sampler, settings)).transpose()?;
        Ok::<_, ProfileError>((host, gpu))
    })?;
    let after = state(&card);
    // Its buffers are not what others have reserved of the host.
    drop(card);
    next();
    let mut of_disk = Sampler::new(samples, patience, 1);
    let mut notes = Vec::new();
    let disk = disk::measure(&mut of_disk, &settings.folder, settings.file, &mut notes)?;
    let disk = disk.shaped(&settings.shape);
    let mut machine = machine::assemble(host, gpu, &disk, settings.threads)?;
    if settings.shape.disk.is_some() {
        machine::without_page_cache(&mut machine);
    }
    if let Some((before, after)) = before.zip(after) {
        let what = &machine.description;
        machine.description = format!("{what}; {before} before it was measured, {after} after");
    }
    let samples = [sampler, of_disk].into_iter().flat_map(Sampler::into_samples).collect();
    Ok(Profile { machine, samples, notes })
}

/// Measures the disk alone, and takes every other figure from `base`.
///
/// A disk that others use too is not equally fast at all times.
/// With a `file`, that is read and nothing is written: what a disk still has to do with a scratch file
/// would slow its reads, and another file may lie elsewhere on it. Writing is then the base's as well.
pub fn profile_disk(
    settings: &Settings,
    base: Machine,
    file: Option<&Path>,
) -> Result<Profile, ProfileError> {
    let mut sampler = Sampler::new(settings.samples, settings.patience, 1);
    let mut notes = Vec::new();
    let disk = match file {
        Some(file) => disk::measure_file(&mut sampler, file, &mut notes)?,
        None => disk::measure(&mut sampler, &settings.folder, settings.file, &mut notes)?,
    };
    let disk = disk.shaped(&settings.shape);
    let mut machine = machine::with_disk(base, &disk)?;
    if settings.shape.disk.is_some() {
        machine::without_page_cache(&mut machine);
    }
    Ok(Profile { machine, samples: sampler.into_samples(), notes })
}

/// Measures the host alone, which is its cores, its memory and what passes between it and a GPU, and takes every
/// other figure from `base`, which was measured on this machine. Where host cores play the GPU, that is all but the
/// disk.
///
/// Other guests of a host use its memory, too, and come and go.
pub fn profile_host(settings: &Settings, base: Machine) -> Result<Profile, ProfileError> {
    let mut sampler = Sampler::new(settings.samples, settings.patience, settings.passes);
    let mut card = card(settings)?;
    let name = card.as_ref().map(|card| card.name(settings)).transpose()?;
    machine::check_measured_here(&base, name.as_deref())?;
    let (host, across) = sampler.in_passes(|sampler| {
        let host = on_host(sampler, settings, card.as_mut())?;
        let across = card.as_mut().map(|card| card.across(sampler, settings)).transpose()?;
        Ok::<_, ProfileError>((host, across))
    })?;
    drop(card);
    let machine = machine::with_host(base, host, across.as_ref(), settings.threads)?;
    Ok(Profile { machine, samples: sampler.into_samples(), notes: Vec::new() })
}

/// A GPU, where one is to be measured.
fn card(settings: &Settings) -> Result<Option<gpu::Card>, ProfileError> {
    match settings.device {
        Device::Cpu => Ok(None),
        Device::Cuda => gpu::Card::open(settings).map(Some),
    }
}

/// One pass over what the host's cores and memory take. What a link has of the memory, cores do not have: what they
/// do beside a card in a run is measured while its link is busy. One that is held back leaves the memory to them.
fn on_host(
    sampler: &mut Sampler,
    settings: &Settings,
    card: Option<&mut gpu::Card>,
) -> Result<machine::OnHost, ProfileError> {
    let mut beside = card.filter(|_| settings.shape.link.is_none());
    Ok(machine::OnHost {
        memory: memory::measure(sampler, settings, beside.as_deref_mut())?,
        handover: lanes::handover(sampler)?,
        kernels: kernels::measure(sampler, settings, beside)?,
    })
}

/// A note that direct reads were not measured.
fn not_direct(folder: &Path, why: &NotDirect) -> String {
    format!("{}: {why}; disk.read is measured through the page cache instead", folder.display())
}
