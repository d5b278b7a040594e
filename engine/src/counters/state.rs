//! What a GPU is at when it is measured: a figure holds for a clock and a link, and a card changes both.

use std::fmt;

use nvml_wrapper::enum_wrappers::device::Clock;

use super::with_nvml;

/// One look at a GPU. What NVML does not say is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    /// Clock of the multiprocessors.
    pub clock_mhz: Option<u32>,
    /// Power drawn.
    pub power_mw: Option<u32>,
    /// Generation of PCIe that the link to the host runs at now, which is a lower one while it is idle.
    pub generation: Option<u32>,
    /// Lanes of that link in use.
    pub width: Option<u32>,
}

impl State {
    /// The first GPU's; none where NVML is not there.
    pub fn now() -> Option<Self> {
        with_nvml(|nvml| {
            let device = nvml.device_by_index(0).ok()?;
            Some(Self {
                clock_mhz: device.clock_info(Clock::SM).ok(),
                power_mw: device.power_usage().ok(),
                generation: device.current_pcie_link_gen().ok(),
                width: device.current_pcie_link_width().ok(),
            })
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let parts = [
            self.clock_mhz.map(|clock| format!("{clock} MHz")),
            self.power_mw.map(|power| format!("{:.0} W", f64::from(power) / 1e3)),
            self.generation.map(|generation| format!("PCIe {generation}")),
            self.width.map(|width| format!("{width} lanes")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() { f.write_str("unknown") } else { f.write_str(&parts.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_left_out() {
        let (clock_mhz, power_mw) = (Some(1980), Some(126_400));
        let all = State { clock_mhz, power_mw, generation: Some(5), width: Some(16) };
        assert_eq!(all.to_string(), "1980 MHz, 126 W, PCIe 5, 16 lanes");
        let some = State { power_mw: None, width: None, ..all };
        assert_eq!(some.to_string(), "1980 MHz, PCIe 5");
        assert_eq!(State::default().to_string(), "unknown");
    }
}
