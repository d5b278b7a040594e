//! GPU architectures that kernels are compiled for.

use std::fmt;

use super::CudaError;

/// A GPU architecture. Machine code of one runs on later ones of the same first figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Architecture {
    /// Turing.
    Sm75,
    /// A100.
    Sm80,
    /// Other Ampere.
    Sm86,
    /// Ada.
    Sm89,
    /// Hopper.
    Sm90,
    /// Blackwell of data centres.
    Sm100,
    /// Blackwell of desktops and laptops.
    Sm120,
}

impl Architecture {
    /// All of them, oldest first.
    pub const ALL: [Self; 7] =
        [Self::Sm75, Self::Sm80, Self::Sm86, Self::Sm89, Self::Sm90, Self::Sm100, Self::Sm120];

    /// The one for a device of compute capability `major.minor`.
    pub fn of(major: u32, minor: u32) -> Result<Self, CudaError> {
        let fits = |a: &&Self| a.capability().0 == major && a.capability().1 <= minor;
        let missing = CudaError::Architecture { major, minor };
        Self::ALL.iter().rev().find(fits).copied().ok_or(missing)
    }

    /// Compute capability.
    pub fn capability(self) -> (u32, u32) {
        match self {
            Self::Sm75 => (7, 5),
            Self::Sm80 => (8, 0),
            Self::Sm86 => (8, 6),
            Self::Sm89 => (8, 9),
            Self::Sm90 => (9, 0),
            Self::Sm100 => (10, 0),
            Self::Sm120 => (12, 0),
        }
    }

    /// Whether a kernel may start while the one before it in a stream still runs, and wait for it later
    /// (programmatic dependent launch). Kernels are compiled for that by the same condition.
    pub(super) fn starts_early(self) -> bool {
        self >= Self::Sm90
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (major, minor) = self.capability();
        write!(f, "sm_{major}{minor}")
    }
}

#[cfg(test)]
mod tests {
    use super::Architecture;

    #[test]
    fn a_device_gets_the_newest_code_it_can_run() {
        assert_eq!(Architecture::of(8, 7).unwrap(), Architecture::Sm86);
        assert_eq!(Architecture::of(12, 1).unwrap(), Architecture::Sm120);
        assert!(Architecture::of(7, 0).is_err());
        assert_eq!(Architecture::Sm100.to_string(), "sm_100");
    }
}
