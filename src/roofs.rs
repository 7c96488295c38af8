//! What a device can do at most, and which of its limits a problem meets first.

use crate::cost::Cost;
use crate::device::DeviceClass;
use std::fmt;

/// The two roofs of the [roofline model](https://doi.org/10.1145/1498765.1498785).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Roofs {
    /// Floating-point operations a second; a multiply-add is two.
    pub flops_per_s: f64,
    /// Bytes a second between the device and its memory.
    pub bytes_per_s: f64,
}

/// Which roof a problem is under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bottleneck {
    /// Operations take longer than moving the bytes.
    Compute,
    /// Moving the bytes takes longer.
    Memory,
}

impl Roofs {
    /// Measured roofs, or those of a data sheet.
    pub const fn new(flops_per_s: f64, bytes_per_s: f64) -> Self {
        Self { flops_per_s, bytes_per_s }
    }

    /// Of one well-known device of the class, by its data sheet, in f32: devices of a class differ a hundredfold in
    /// their roofs, but little in the ratio of the two.
    pub const fn typical(class: DeviceClass) -> Self {
        match class {
            // M1: 2.6 TFLOP/s, LPDDR4X of 68 GB/s.
            DeviceClass::Apple => Self::new(2.6e12, 68e9),
            // Eight cores of two 8-wide FMA units at 3 GHz, two channels of DDR4-3200.
            DeviceClass::Software => Self::new(768e9, 51.2e9),
            // Radeon RX 7600: 21.75 TFLOP/s, GDDR6 of 288 GB/s.
            DeviceClass::AmdRdna => Self::new(21.75e12, 288e9),
            // Radeon RX Vega 56: 10.5 TFLOP/s, HBM2 of 410 GB/s.
            DeviceClass::AmdGcn => Self::new(10.5e12, 410e9),
            // GeForce RTX 4060: 15.1 TFLOP/s, GDDR6 of 272 GB/s.
            _ => Self::new(15.1e12, 272e9),
        }
    }

    /// FLOP per byte at which the two roofs meet.
    pub fn ridge(&self) -> f64 {
        self.flops_per_s / self.bytes_per_s
    }

    /// Which of the two takes longer.
    pub fn bottleneck(&self, cost: Cost) -> Bottleneck {
        if cost.flops as f64 / self.flops_per_s < cost.bytes as f64 / self.bytes_per_s {
            Bottleneck::Memory
        } else {
            Bottleneck::Compute
        }
    }

    /// The least time that work of this cost takes, in seconds.
    pub fn least_seconds(&self, cost: Cost) -> f64 {
        (cost.flops as f64 / self.flops_per_s).max(cost.bytes as f64 / self.bytes_per_s)
    }
}

impl fmt::Display for Bottleneck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compute => "compute",
            Self::Memory => "memory",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ridge_parts_the_bottlenecks() {
        let roofs = Roofs::new(100.0, 10.0);
        assert_eq!(roofs.ridge(), 10.0);
        for (flops, bytes, bottleneck, seconds) in [
            (1000, 100, Bottleneck::Compute, 10.0),
            (999, 100, Bottleneck::Memory, 10.0),
            (2000, 100, Bottleneck::Compute, 20.0),
            (0, 70, Bottleneck::Memory, 7.0),
            (0, 0, Bottleneck::Compute, 0.0),
        ] {
            let cost = Cost { flops, bytes };
            assert_eq!(roofs.bottleneck(cost), bottleneck, "{cost:?}");
            assert_eq!(roofs.least_seconds(cost), seconds, "{cost:?}");
        }
    }
}
