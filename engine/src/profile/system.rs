//! What the operating system says of the machine.

use std::fs;

use pipo_plan::units::Bytes;

/// A machine, as Linux describes it.
pub(super) struct System {
    /// The processor's name.
    pub(super) processor: String,
    /// Cores that this process may use.
    pub(super) cores: u32,
    /// Memory installed.
    pub(super) memory: Bytes,
    /// Memory that nobody uses, page cache included.
    pub(super) available: Bytes,
}

/// Where the system does not say, a processor without a name and 4 GiB stand in.
pub(super) fn describe() -> System {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let (processors, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let processor = value(&processors, "model name").unwrap_or("unnamed processor").to_owned();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let total = kilobytes(&memory, "MemTotal").unwrap_or(Bytes(4 << 30));
    System {
        processor,
        cores: u32::try_from(cores).unwrap_or(u32::MAX),
        memory: total,
        available: kilobytes(&memory, "MemAvailable").unwrap_or(total),
    }
}

fn value<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let mut values = lines.filter(|(name, _)| name.trim() == key).map(|(_, value)| value.trim());
    values.next()
}

fn kilobytes(text: &str, key: &str) -> Option<Bytes> {
    let number = value(text, key)?.strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    number.checked_mul(1024).map(Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_names_are_read_as_linux_writes_them() {
        let text = "MemTotal:       24689680 kB\nMemFree:  1 kB\nMemAvailable:   23000000 kB\n";
        assert_eq!(kilobytes(text, "MemAvailable"), Some(Bytes(23_552_000_000)));
        assert_eq!(kilobytes(text, "MemSwap"), None);
        assert_eq!(kilobytes("MemTotal: many kB", "MemTotal"), None);
        assert_eq!(value("model name\t: A B @ 2 GHz\n", "model name"), Some("A B @ 2 GHz"));
    }
}
