//! The summary: one JSON object, written at the end of each region and when QEMU ends.

use crate::options::Options;
use crate::region::Region;
use serde::Serialize;

/// Version of the summary's form.
pub const SCHEMA: u32 = 2;

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
    spin_insns: u64,
    seed: u64,
    vcpus: usize,
    /// The most memory that QEMU has had at once.
    max_rss_kib: u64,
    /// From power-on to now.
    total: Region,
    /// What the guest marked.
    regions: &'a [Region],
}

impl<'a> Summary<'a> {
    /// Of a machine with these options.
    pub fn new(options: &Options, max_rss_kib: u64, total: Region, regions: &'a [Region]) -> Summary<'a> {
        Summary {
            schema: SCHEMA,
            quantum_insns: options.quantum,
            mips: options.mips,
            pause_insns: options.pause,
            spin_insns: options.spin,
            seed: options.seed,
            vcpus: total.instructions.len(),
            max_rss_kib,
            total,
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
    use crate::region::Snapshot;

    #[test]
    fn the_summary_says_how_the_machine_was_set() {
        let options = Options { seed: 3, ..Options::default() };
        let end = Snapshot { ticks: vec![7; 64], paused: vec![0; 64], ..Snapshot::default() };
        let total = Region::between(&Snapshot::default(), &end, |ticks| ticks);
        let text = Summary::new(&options, 7, total, &[]).json();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["schema"], &value["seed"], &value["vcpus"]), (&SCHEMA.into(), &3.into(), &64.into()));
        assert_eq!(value["regions"], serde_json::json!([]));
    }
}
