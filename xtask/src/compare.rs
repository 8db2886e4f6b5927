//! Judging: from the samples of a run to ratios with intervals and verdicts. Reads values, boots nothing.

use serde::{Deserialize, Serialize};

/// Version of `comparison.json`.
pub const COMPARISON_VERSION: u32 = 1;

/// `comparison.json`: the stable face for scripts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Must equal [`COMPARISON_VERSION`].
    pub version: u32,
    /// Kind of machine: "kvm", "tcg", ...
    pub machine: String,
    /// Whether the figures come from a model of a machine.
    pub simulated: bool,
    /// Name of the baseline kernel.
    pub baseline: String,
    /// Name of the candidate kernel.
    pub candidate: String,
    /// Half-width of "equivalent".
    pub margin: f64,
    /// Why no number is published: failed oracles, in sentences. Rows are empty then for the storms concerned.
    pub withheld: Vec<String>,
    /// One row per storm and metric.
    pub rows: Vec<Row>,
}

/// One metric of one storm, candidate against baseline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// containerd profile: "detach".
    pub profile: String,
    /// "tmpfs", "ext4".
    pub storage: String,
    /// "shared", "private".
    pub propagation: String,
    /// Layers per container.
    pub layers: u32,
    /// Containers per iteration.
    pub containers: u32,
    /// Concurrent starts.
    pub threads: u32,
    /// CPUs of the guest.
    pub cpus: u32,
    /// "containers_per_s", "umount_latency_ns_p99".
    pub metric: String,
    /// "1/s", "ns".
    pub unit: String,
    /// Boots per arm.
    pub boots: u32,
    /// Mean over baseline boots.
    pub baseline: f64,
    /// Mean over candidate boots.
    pub candidate: f64,
    /// candidate / baseline.
    pub ratio: f64,
    /// 95 % bootstrap interval of the ratio, over boots.
    pub ratio_ci95: [f64; 2],
    /// The same interval for the A/A control: control / baseline.
    pub aa_ratio_ci95: [f64; 2],
    /// What the interval says.
    pub verdict: Verdict,
}

/// What a comparison says about one metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The candidate is better, beyond doubt and margin.
    Faster,
    /// The candidate is worse, beyond doubt and margin.
    Slower,
    /// The whole interval lies within the margin.
    Equivalent,
    /// The samples do not decide.
    Inconclusive,
}
