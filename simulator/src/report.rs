//! The summary: one JSON object, written at the end of each region and when QEMU ends.

use crate::options::Options;
use crate::region::Region;
use serde::Serialize;

/// Version of the summary's form.
pub const SCHEMA: u32 = 1;

/// What the machine could not keep in its own hands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Times that nothing could go on without the outside world.
    pub outside_waits: u64,
}

impl Losses {
    /// Nothing lost.
    pub const fn none() -> Losses {
        Losses { outside_waits: 0 }
    }
}

/// The summary.
#[derive(Debug, Serialize)]
pub struct Summary<'a> {
    schema: u32,
    quantum_insns: u64,
    mips: u64,
    pause_insns: u64,
    seed: u64,
    vcpus: usize,
    /// Virtual time since QEMU started.
    virtual_ns: u64,
    /// The host's time since then.
    host_ns: u64,
    regions: &'a [Region],
}

impl<'a> Summary<'a> {
    /// Of a machine with these options and vCPUs after so much time.
    pub fn new(options: &Options, vcpus: usize, virtual_ns: u64, host_ns: u64, regions: &'a [Region]) -> Summary<'a> {
        Summary {
            schema: SCHEMA,
            quantum_insns: options.quantum,
            mips: options.mips,
            pause_insns: options.pause,
            seed: options.seed,
            vcpus,
            virtual_ns,
            host_ns,
            regions,
        }
    }

    /// As JSON.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_else(|error| format!("{{\"error\": \"{error}\"}}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_how_the_machine_was_set() {
        let options = Options { seed: 3, ..Options::default() };
        let text = Summary::new(&options, 64, 5_000, 7_000, &[]).json();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["schema"], &value["seed"], &value["vcpus"]), (&1.into(), &3.into(), &64.into()));
        assert_eq!(value["regions"], serde_json::json!([]));
    }
}
