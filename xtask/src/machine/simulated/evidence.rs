//! What a boot is to tell besides its times: the files by which the simulator is asked, and in which it answers.

use crate::machine::qemu_args::in_option;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A request for evidence. It costs no virtual time: `selfcheck` proves it.
#[derive(Clone, Debug)]
pub struct Evidence {
    symbols: PathBuf,
    stacks: PathBuf,
    period_ns: Option<u64>,
}

impl Evidence {
    /// Asks for evidence of a kernel with these symbols (text as in simulator/src/symbols.rs), and for a stack of each CPU each `period_ns`
    /// that it is awake. The files are put into `dir`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn new(dir: &Path, symbols: &str, period_ns: Option<u64>) -> Result<Evidence> {
        let evidence = Evidence { symbols: dir.join("symbols.txt"), stacks: dir.join("stacks.folded"), period_ns };
        fs::write(&evidence.symbols, symbols)
            .with_context(|| format!("cannot write {}", evidence.symbols.display()))?;
        Ok(evidence)
    }

    /// The simulator's arguments for it, beginning with a comma.
    pub fn arguments(&self, mips: u64) -> String {
        let stacks = self.period_ns.map(|ns| {
            let period = (ns * mips / 1000).max(1);
            format!(",profile={},period={period}", in_option(&self.stacks))
        });
        format!(",symbols={}{}", in_option(&self.symbols), stacks.unwrap_or_default())
    }

    /// The stacks of a boot that has ended, as the simulator folded them.
    ///
    /// # Errors
    /// There are none.
    pub fn stacks(&self) -> Result<String> {
        fs::read_to_string(&self.stacks)
            .with_context(|| format!("the simulator has left no stacks in {}", self.stacks.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_is_in_instructions_for_the_simulator() {
        let dir = tempfile::tempdir().unwrap();
        let evidence = Evidence::new(dir.path(), "entry 1\n", Some(5000)).unwrap();
        assert!(evidence.arguments(2000).ends_with("stacks.folded,period=10000"), "{}", evidence.arguments(2000));
        assert!(evidence.stacks().is_err());
        let without = Evidence::new(dir.path(), "", None).unwrap();
        assert!(!without.arguments(1000).contains("profile="));
    }
}
