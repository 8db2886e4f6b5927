//! Which machine the user asks for, as written after `--machine`.

use super::mock::Script;
use crate::failure::{Exit, Failure};
use anyhow::Result;

/// What stands after `--machine`, for help texts and errors.
const SPELLINGS: &str = "auto, simulated, kvm, tcg, virtme, host, mock[:SCRIPT]";

/// A kind of machine.
#[derive(Clone, Debug, PartialEq)]
pub enum MachineKind {
    /// KVM if a guest boots under it and the host has the CPUs, else the simulated machine (or TCG, where nothing is timed).
    Auto,
    /// Many CPUs on one host core and a virtual clock.
    Simulated,
    /// QEMU with hardware virtualisation.
    Kvm,
    /// QEMU's emulator.
    Tcg,
    /// virtme-ng.
    Virtme,
    /// The running kernel.
    Host,
    /// A scripted guest, for tests of everything after the machine.
    Mock(Script),
}

impl MachineKind {
    /// Reads a word of the command line.
    ///
    /// # Errors
    /// Usage for an unknown word, unavailable for a machine of a later version.
    pub fn parse(word: &str) -> Result<MachineKind> {
        match word {
            "auto" => Ok(MachineKind::Auto),
            "simulated" => Ok(MachineKind::Simulated),
            "kvm" => Ok(MachineKind::Kvm),
            "tcg" => Ok(MachineKind::Tcg),
            "virtme" => Ok(MachineKind::Virtme),
            "host" => Ok(MachineKind::Host),
            "mock" => Ok(MachineKind::Mock(Script::default())),
            _ => MachineKind::parse_with_argument(word),
        }
    }

    fn parse_with_argument(word: &str) -> Result<MachineKind> {
        if let Some(script) = word.strip_prefix("mock:") {
            return Ok(MachineKind::Mock(Script::parse(script)?));
        }
        if word == "metal" || word.starts_with("metal:") {
            let message = format!("the machine '{word}' is not in this version; there are: {SPELLINGS}");
            return Err(Failure::error(Exit::Unavailable, message));
        }
        Err(Failure::error(Exit::Usage, format!("no machine is called '{word}'; there are: {SPELLINGS}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;

    #[test]
    fn known_words_parse() {
        assert_eq!(MachineKind::parse("simulated").unwrap(), MachineKind::Simulated);
        assert_eq!(MachineKind::parse("kvm").unwrap(), MachineKind::Kvm);
        assert_eq!(MachineKind::parse("mock").unwrap(), MachineKind::Mock(Script::default()));
        assert!(matches!(MachineKind::parse("mock:panic").unwrap(), MachineKind::Mock(_)));
    }

    #[test]
    fn other_words_fail_in_their_own_way() {
        let exit = |word| exit_code(&MachineKind::parse(word).unwrap_err());
        assert_eq!(exit("bochs"), Exit::Usage);
        assert_eq!(exit("mock:earthquake"), Exit::Usage);
        assert_eq!(exit("metal:lab7"), Exit::Unavailable);
    }
}
