//! What a GPU is at when it is measured: a figure holds for a clock and a link, and a card changes both.

use std::fmt;

use nvml_wrapper::enum_wrappers::device::Clock;

use super::with_nvml;

/// One look at a GPU. What NVML does not say is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct State {
    /// Clock of the multiprocessors, in MHz.
    pub clock: Option<u32>,
    /// Power drawn, in watts.
    pub power: Option<f64>,
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
                clock: device.clock_info(Clock::SM).ok(),
                power: device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1e3),
                generation: device.current_pcie_link_gen().ok(),
                width: device.current_pcie_link_width().ok(),
            })
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let parts = [
            self.clock.map(|clock| format!("{clock} MHz")),
            self.power.map(|power| format!("{power:.0} W")),
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
        let all =
            State { clock: Some(1980), power: Some(126.4), generation: Some(5), width: Some(16) };
        assert_eq!(all.to_string(), "1980 MHz, 126 W, PCIe 5, 16 lanes");
        let some = State { power: None, width: None, ..all };
        assert_eq!(some.to_string(), "1980 MHz, PCIe 5");
        assert_eq!(State::default().to_string(), "unknown");
    }
}
