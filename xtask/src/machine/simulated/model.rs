//! The model's parameters, `vm-configs/simulated/model.toml`, and the simulator's arguments that come of them.

use crate::failure::{Exit, Failure};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

/// What the machine is besides its parameters, by a number: raised when a run would come out otherwise with the same ones.
///
/// 1. Spinlocks went to whoever was first; a CPU that had waited long in one loop looked late in the next, and one that spun on a semaphore held
///    by readers could see it late.
/// 2. The kernel finds no hypervisor, so that spinlocks queue; each loop is a wait of its own; a CPU is only parked by all that it looks at.
pub const REVISION: u32 = 2;

/// What the simulated CPUs are. Sources of the figures are in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Million instructions a second of each CPU.
    pub mips: u64,
    /// Window in which CPUs run one after the other, in instructions.
    pub quantum_insns: u64,
    /// Time of a PAUSE, in instructions.
    pub pause_insns: u64,
    /// Longest time after which a spinning CPU looks again, in instructions.
    pub spin_insns: u64,
}

impl Model {
    /// Reads the file of the checkout.
    ///
    /// # Errors
    /// It is missing, or is no model.
    pub fn load() -> Result<Model> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vm-configs/simulated/model.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Model::parse(&text).map_err(|error| Failure::error(Exit::Usage, format!("{}: {error:#}", path.display())))
    }

    fn parse(text: &str) -> Result<Model> {
        let model: Model = toml::from_str(text)?;
        ensure!(model.mips > 0 && model.quantum_insns > 0, "mips and quantum_insns must be above 0");
        Ok(model)
    }

    /// The simulator's arguments, as QEMU takes them behind `-plugin FILE,`.
    pub fn arguments(&self) -> String {
        let Model { mips, quantum_insns, pause_insns, spin_insns } = self;
        format!("mips={mips},quantum={quantum_insns},pause={pause_insns},spin={spin_insns}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_loads_and_becomes_arguments() {
        let model = Model::load().unwrap();
        assert_eq!((model.mips, model.pause_insns), (1000, 45));
        assert_eq!(model.arguments(), format!("mips=1000,quantum={},pause=45,spin=10000", model.quantum_insns));
    }

    #[test]
    fn a_clock_that_stands_is_refused() {
        let text = "mips = 0\nquantum_insns = 100\npause_insns = 45\nspin_insns = 1000\n";
        assert!(Model::parse(text).unwrap_err().to_string().contains("mips"));
        assert!(Model::parse("mips = 1").is_err());
    }
}
