//! The counters of a GPU while something runs: NVML's, and GPM's where the card has them (Hopper and newer).
//!
//! They say the same three things apart that a timeline does: `nvml`, some engine was busy, copies
//! included; `kernel`, kernels ran (GPM's graphics utilisation); `sm`, how many multiprocessors had work.
//! A counter that is not there is absent, and never a reason to fail.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::gpm::{GpmSample, gpm_metrics_get};
use nvml_wrapper::{Device, Nvml};
use pipo_plan::timeline::Reading;
use pipo_plan::units::{Bandwidth, Bytes, Nanos};

mod state;

pub use state::State;

/// Between two readings: GPM needs 100 ms to be trusted, and NVML is refreshed about every 200 ms.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// How often the end is looked for in between.
const PATIENCE: Duration = Duration::from_millis(5);

/// Readings in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counters {
    /// One each [`INTERVAL`].
    pub readings: Vec<Reading>,
    /// Energy from beginning to end, in joules.
    pub energy: Option<f64>,
    /// What the device's memory in use grew by, from before anything of the run was there to its end: what
    /// the run allocated, and what the driver holds for it. Others' allocations meanwhile are in it, too.
    pub memory: Option<Bytes>,
}

impl Counters {
    /// The mean of a counter over the readings that have it.
    pub fn mean(&self, of: impl Fn(&Reading) -> Option<f64>) -> Option<f64> {
        let values: Vec<f64> = self.readings.iter().filter_map(of).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    /// Every reading, as lines of `header` and comma-separated values; empty where a counter is absent.
    pub fn csv(&self) -> String {
        let mut text = String::from(
            "seconds,nvml_percent,kernel_percent,sm_percent,to_device_bytes_per_s,from_device_bytes_per_s,sm_clock_mhz,power_w\n",
        );
        let cell = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.1}"));
        let percent = |permille: Option<u16>| cell(permille.map(|value| f64::from(value) / 10.0));
        let rate = |rate: Option<Bandwidth>| rate.map_or(String::new(), |rate| rate.0.to_string());
        for r in &self.readings {
            let clock = r.clock_mhz.map_or(String::new(), |clock| clock.to_string());
            // Writing to a text cannot fail.
            let _ = writeln!(
                text,
                "{:.3},{},{},{},{},{},{clock},{}",
                r.at.as_f64() / 1e9,
                percent(r.nvml_permille),
                percent(r.kernel_permille),
                percent(r.sm_permille),
                rate(r.to_device),
                rate(r.from_device),
                cell(r.power_mw.map(|power| f64::from(power) / 1e3))
            );
        }
        text
    }
}

/// Calls the library, one thread at a time and with nothing else to begin or end it: GPM crashes where two
/// threads compute metrics at once (driver 580).
fn with_nvml<T>(call: impl FnOnce(&'static Nvml) -> Option<T>) -> Option<T> {
    static LIBRARY: OnceLock<Option<Nvml>> = OnceLock::new();
    static CALLS: Mutex<()> = Mutex::new(());
    let _alone = CALLS.lock().unwrap_or_else(PoisonError::into_inner);
    call(LIBRARY.get_or_init(|| Nvml::init().ok()).as_ref()?)
}

/// Memory in use on the first GPU, by anybody; none where NVML is not there.
pub fn memory_in_use() -> Option<Bytes> {
    with_nvml(|nvml| used(&nvml.device_by_index(0).ok()?))
}

/// The same when it was first asked for: before this process had anything there, if that was so. A driver
/// keeps a part of a context that is given back.
pub fn memory_at_first() -> Option<Bytes> {
    static FIRST: OnceLock<Option<Bytes>> = OnceLock::new();
    *FIRST.get_or_init(memory_in_use)
}

fn used(device: &Device) -> Option<Bytes> {
    device.memory_info().ok().map(|memory| Bytes(memory.used))
}

/// Reads the counters of the first GPU while `work` runs, where so much memory was in use `before` anything
/// of it was there; none where NVML is not there.
pub fn watch<T>(before: Option<Bytes>, work: impl FnOnce() -> T) -> (T, Option<Counters>) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| read_until(&stop));
        let result = work();
        stop.store(true, Ordering::Relaxed);
        let counters = watcher.join().ok().flatten().map(|mut counters: Counters| {
            counters.memory = before.zip(counters.memory).map(|(before, after)| after - before);
            counters
        });
        (result, counters)
    })
}

/// What the next reading is taken against.
struct Watched {
    device: Device<'static>,
    last: Option<GpmSample<'static>>,
}

/// Reads until told to stop.
fn read_until(stop: &AtomicBool) -> Option<Counters> {
    let begin = Instant::now();
    let (mut watched, before) = with_nvml(|nvml| {
        let device = nvml.device_by_index(0).ok()?;
        let (last, energy) = (device.gpm_sample().ok(), device.total_energy_consumption().ok());
        Some((Watched { device, last }, energy))
    })?;
    let mut readings = Vec::new();
    loop {
        let next = begin + INTERVAL * u32::try_from(readings.len() + 1).unwrap_or(u32::MAX);
        while Instant::now() < next && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(PATIENCE);
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let reading = with_nvml(|nvml| Some(watched.read(nvml)))?;
        let at = Nanos(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
        readings.push(Reading { at, ..reading });
    }
    with_nvml(|_| {
        let after = watched.device.total_energy_consumption().ok();
        let spent = before.zip(after).map(|(before, after)| after.saturating_sub(before) as f64);
        let (energy, memory) = (spent.map(|millijoules| millijoules / 1e3), used(&watched.device));
        // The sample is given back here, because that is a call as well.
        drop(watched);
        Some(Counters { readings, energy, memory })
    })
}

impl Watched {
    fn read(&mut self, nvml: &Nvml) -> Reading {
        let sample = self.device.gpm_sample().ok();
        let [kernel, sm, to_device, from_device] = match (&self.last, &sample) {
            (Some(last), Some(sample)) => between(nvml, last, sample),
            _ => [None; 4],
        };
        self.last = sample;
        let device = &self.device;
        Reading {
            at: Nanos::ZERO,
            nvml_permille: device.utilization_rates().ok().map(|r| permille(f64::from(r.gpu))),
            kernel_permille: kernel.map(permille),
            sm_permille: sm.map(permille),
            to_device: to_device.map(megabytes),
            from_device: from_device.map(megabytes),
            clock_mhz: device.clock_info(Clock::SM).ok(),
            power_mw: device.power_usage().ok(),
        }
    }
}

/// Of a percentage, which a counter may put a little above a hundred.
fn permille(percent: f64) -> u16 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1000")]
    let permille = (10.0 * percent).round().clamp(0.0, 1000.0) as u16;
    permille
}

/// GPM's rates come in MiB a second.
fn megabytes(rate: f64) -> Bandwidth {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate of a bus, far below 2^63"
    )]
    let rate = (rate.max(0.0) * f64::from(1 << 20)) as u64;
    Bandwidth(rate)
}

/// What GPM says of the time between two samples.
fn between(nvml: &Nvml, last: &GpmSample, sample: &GpmSample) -> [Option<f64>; 4] {
    let wanted = [
        GpmMetricId::GraphicsUtil,
        GpmMetricId::SmUtil,
        GpmMetricId::PcieRxPerSec,
        GpmMetricId::PcieTxPerSec,
    ];
    let Ok(values) = gpm_metrics_get(nvml, last, sample, &wanted) else { return [None; 4] };
    let mut values = values.into_iter().map(|value| value.ok().map(|value| value.value));
    std::array::from_fn(|_| values.next().flatten().filter(|value| value.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_is_not_there_is_an_empty_cell_and_no_part_of_a_mean() {
        let with =
            Reading { at: Nanos(100_000_000), nvml_permille: Some(900), ..Reading::default() };
        let rate = Some(Bandwidth(55_000_000_000));
        let other = Reading { at: Nanos(200_000_000), to_device: rate, ..Reading::default() };
        let counters = Counters { readings: vec![with, other], ..Counters::default() };
        assert_eq!(counters.mean(|r| r.nvml_permille.map(f64::from)), Some(900.0));
        assert_eq!(counters.mean(|r| r.sm_permille.map(f64::from)), None);
        insta::assert_snapshot!(counters.csv(), @r"
        seconds,nvml_percent,kernel_percent,sm_percent,to_device_bytes_per_s,from_device_bytes_per_s,sm_clock_mhz,power_w
        0.100,90.0,,,,,,
        0.200,,,,55000000000,,,
        ");
    }

    #[test]
    fn shares_are_thousandths_of_no_more_than_all() {
        assert_eq!(
            [0.04, 0.06, 20.44, 100.0, 100.3, -1.0].map(permille),
            [0, 1, 204, 1000, 1000, 0]
        );
    }

    #[test]
    fn work_is_done_with_and_without_counters() {
        let (result, counters) = watch(memory_in_use(), || 7);
        assert_eq!(result, 7);
        assert!(counters.is_none_or(|counters| counters.readings.len() <= 1));
    }
}
