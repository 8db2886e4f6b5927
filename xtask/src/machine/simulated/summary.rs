//! What the simulator writes about a boot: the measured regions, and whether they were exact.

use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Version of the summary that this reads (simulator/src/report.rs).
const SCHEMA: u32 = 2;

/// A summary.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Summary {
    schema: u32,
    /// The measured regions, in the order of their ends.
    pub regions: Vec<Region>,
    /// The most memory that QEMU has had at once.
    pub max_rss_kib: u64,
    /// From power-on to the end.
    pub total: Region,
}

/// What happened between two marks of the guest. Field by field as in simulator/src/region.rs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Region {
    /// Virtual time that it took.
    pub virtual_ns: u64,
    /// The host's time that it took.
    pub host_ns: u64,
    /// Windows in which some vCPU ran.
    pub rounds: u64,
    /// Virtual time in which all vCPUs were halted.
    pub warped_ns: u64,
    /// Waits for a lock inside QEMU that another thread held while it gave way.
    pub mutex_waits: u64,
    /// Times that a vCPU, not halted, waited for the others inside QEMU.
    pub exclusive_waits: u64,
    /// Times that nothing could go on without the outside world.
    pub outside_waits: u64,
    /// Readings of the time-stamp counter.
    pub tsc_reads: u64,
    /// Instructions executed, by vCPU.
    pub instructions: Vec<u64>,
    /// Time spent in PAUSE, in ticks, by vCPU.
    pub paused: Vec<u64>,
    /// Time spent in PAUSE by the address of the instruction, in hexadecimal. Not kept: without the kernel it means nothing.
    #[serde(default, skip_serializing)]
    pub waits: BTreeMap<String, Waits>,
    /// Evidence, if it was asked for: counts by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<BTreeMap<String, u64>>,
    /// How many stores to the sequence of `mount_lock` the evidence has missed: its own proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence_stores_missed: Option<i64>,
}

/// What the `pause` at one address came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits {
    /// Times executed.
    pub pauses: u64,
    /// Those in which the vCPU was not run until what it looked at changed.
    pub parks: u64,
    /// Time that they took.
    pub ticks: u64,
}

impl Summary {
    /// Reads the summary of a boot that has ended.
    ///
    /// # Errors
    /// The simulator has not written one, or is of another version.
    pub fn read(path: &Path) -> Result<Summary> {
        let text = fs::read(path).with_context(|| format!("the simulator has left no summary {}", path.display()))?;
        let summary: Summary =
            serde_json::from_slice(&text).with_context(|| format!("{} is no summary", path.display()))?;
        if summary.schema == SCHEMA {
            return Ok(summary);
        }
        let message = format!("{} is of version {}, this reads {SCHEMA}", path.display(), summary.schema);
        Err(Failure::error(Exit::Unavailable, message))
    }
}

impl Region {
    /// Why its figures are not to be compared, if they are not: time passed that the model does not account for. In an undisturbed region
    /// both counts are 0, and 0 is the limit: see ARCHITECTURE.md, "Where lockstep could be lost".
    pub fn lost(&self) -> Option<String> {
        let what = match (self.outside_waits, self.exclusive_waits) {
            (0, 0) => return None,
            (0, n) => format!(
                "{n} times a vCPU waited for the others inside QEMU (exclusive execution, a full translation buffer)"
            ),
            (n, _) => format!("{n} times nothing could go on without the world outside the simulation"),
        };
        Some(format!("lockstep was lost: {what}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"schema": 2, "vcpus": 2, "seed": 3, "max_rss_kib": 1,
        "total": {"begin_ns": 0, "virtual_ns": 9, "host_ns": 1, "rounds": 1, "switches": 1, "warps": 0, "warped_ns": 0, "mutex_waits": 0,
                  "exclusive_waits": 7, "tsc_reads": 0, "outside_waits": 0, "instructions": [5, 6], "pauses": [0, 1], "paused": [0, 45]},
        "regions": []}"#;

    #[test]
    fn what_the_simulator_writes_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.json");
        fs::write(&path, TEXT).unwrap();
        let summary = Summary::read(&path).unwrap();
        assert_eq!((summary.total.virtual_ns, summary.total.instructions), (9, vec![5, 6]));
        fs::write(&path, TEXT.replace("\"schema\": 2", "\"schema\": 99")).unwrap();
        assert!(Summary::read(&path).unwrap_err().to_string().contains("version 99"));
        assert!(Summary::read(&dir.path().join("none")).unwrap_err().to_string().contains("left no summary"));
    }

    #[test]
    fn each_loss_is_named() {
        let lost =
            |exclusive_waits, outside_waits| Region { exclusive_waits, outside_waits, ..Region::default() }.lost();
        assert_eq!(lost(0, 0), None);
        assert!(lost(3, 0).unwrap().contains("3 times a vCPU waited"));
        assert!(lost(3, 1).unwrap().contains("world outside"));
    }
}
