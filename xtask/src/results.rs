//! A run on disk: what was planned, each sample as soon as it is measured, and nothing that cannot be repeated.

use crate::kernel::Kernel;
use crate::machine::MachineInfo;
use mount_storms::protocol::{Sample, StormPoint};
use serde::{Deserialize, Serialize};

/// Version of the files in a results folder.
pub const RESULTS_VERSION: u32 = 1;

/// Which group of boots a sample belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arm {
    /// The reference kernel.
    Baseline,
    /// The reference kernel once more, under another name: the A/A control.
    Control,
    /// The kernel under test.
    Candidate,
}

/// One boot of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedBoot {
    /// Position in the run, from 0: the order in which boots are made.
    pub position: u32,
    /// Whose boot.
    pub arm: Arm,
    /// Number of the boot within its arm, from 0.
    pub boot: u32,
    /// Seed of the guest's job: the same for the boots of one block.
    pub seed: u64,
}

/// `manifest.json`: everything needed to repeat the run, written before the first boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Must equal [`RESULTS_VERSION`].
    pub version: u32,
    /// The command line that made the run.
    pub command: Vec<String>,
    /// mountlab's own commit, with "-dirty" when the tree had changes.
    pub mountlab_commit: String,
    /// Start, RFC 3339.
    pub started: String,
    /// The host, in words: CPU model, CPUs, memory, kernel, distribution.
    pub host: String,
    /// The machine the guests ran on.
    pub machine: MachineInfo,
    /// The reference.
    pub baseline: Kernel,
    /// What is compared with it; `None` on a machine with one kernel only.
    pub candidate: Option<Kernel>,
    /// Seed of the order of boots and of all guests.
    pub seed: u64,
    /// Half-width of "equivalent": 0.05 says that ratios within 1/1.05 .. 1.05 are the same.
    pub margin: f64,
    /// The storms of each boot.
    pub points: Vec<StormPoint>,
    /// Timed iterations per storm and boot.
    pub iterations: u32,
    /// Untimed iterations before them.
    pub warmup_iterations: u32,
    /// The boots, in order.
    pub boots: Vec<PlannedBoot>,
    /// What may disturb the figures, in sentences.
    pub warnings: Vec<String>,
}

/// One line of `samples.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredSample {
    /// Whose.
    pub arm: Arm,
    /// Number of the boot within its arm.
    pub boot: u32,
    /// The measurement.
    pub sample: Sample,
}
