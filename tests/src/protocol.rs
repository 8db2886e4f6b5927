//! What the host asks of a guest, and what the guest answers: the one vocabulary both sides share.
//!
//! The host writes one [`Job`] as JSON; the guest answers with one [`GuestEvent`] per line.

use crate::leak::Look;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Version of this vocabulary; a guest refuses a job of another version.
pub const PROTOCOL: u32 = 1;

/// Name of the virtio-serial port that carries the guest's events.
pub const EVENT_PORT: &str = "lab.events";

/// Prefix of an event line when the console has to carry it, because no event port was found.
pub const CONSOLE_PREFIX: &str = "@lab ";

/// Where the job lies in the initramfs.
pub const JOB_PATH: &str = "/job.json";

/// One order to a guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Must equal [`PROTOCOL`].
    pub protocol: u32,
    /// Seeds every random choice in the guest.
    pub seed: u64,
    /// What to do.
    pub work: Work,
}

/// The kinds of work a guest knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Work {
    /// Say hello and power off: proves that the machine boots.
    Hello,
    /// Run mount storms and time them.
    Storm(StormJob),
    /// Run the test suite.
    Suite(SuiteJob),
    /// Run loads with known answers.
    Load(LoadJob),
    /// Give the console to a person.
    Shell,
}

/// A list of storms, run one after the other in one boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StormJob {
    /// The storms, in the order they run.
    pub points: Vec<StormPoint>,
    /// Timed iterations of each point.
    pub iterations: u32,
    /// Untimed iterations before them.
    pub warmup_iterations: u32,
    /// How containers are started.
    #[serde(flatten)]
    pub manner: Manner,
    /// Who reads beside the storm.
    #[serde(default)]
    pub readers: Vec<Reader>,
    /// Pause between two looks of a reader whose look is short, us.
    #[serde(default = "usual_reader_period_us")]
    pub reader_period_us: u32,
    /// What stands around the storm.
    #[serde(flatten)]
    pub surroundings: Surroundings,
}

/// Pause between two looks of a reader, us: often enough to be in every phase of a storm, seldom enough not to be the storm.
pub const READER_PERIOD_US: u32 = 1000;

fn usual_reader_period_us() -> u32 {
    READER_PERIOD_US
}

/// What stands around a storm, and how closely its mounts are watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings {
    /// Other mount namespaces with a copy of the storm's mount: its peers, if it is shared.
    #[serde(default)]
    pub peer_namespaces: u32,
    /// What is written down of each mount.
    #[serde(default)]
    pub ledger: LedgerKind,
}

/// How closely a storm's mounts are watched, by their unique ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LedgerKind {
    /// Before the clock, after it and after the storm: costs nothing under the clock.
    #[default]
    Table,
    /// Each attach and detach as well, against fanotify's stream and a thread that checks while the storm runs. Costs a statx(2) for each
    /// attach and each detach, an event under `namespace_sem` for each, and the thread's work: such a run is no measurement.
    Full,
}

/// How containers are started: what containerd does besides its calls on mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manner {
    /// Whether the child that holds a container's user namespace inherits copies of the guest's descriptors, as containerd's does: a
    /// plain umount then sees EBUSY now and then, and waits 50 ms. `false` turns that race off.
    pub descriptors_inherited: bool,
    /// Whether each container's root is mounted by a process of its own, as a shim is; `false`: by the thread that starts the container.
    /// Runs from before there were any had none.
    #[serde(default)]
    pub shims: bool,
    /// When each container's user namespace is made.
    #[serde(default)]
    pub user_namespaces: UserNamespaces,
}

impl Manner {
    /// All as containerd does it.
    pub const CONTAINERD: Manner =
        Manner { descriptors_inherited: true, shims: true, user_namespaces: UserNamespaces::PerPass };

    /// Nothing but mounts under the clock: no waits for busy ones, no forks.
    pub const MOUNTS_ALONE: Manner =
        Manner { descriptors_inherited: false, shims: true, user_namespaces: UserNamespaces::Before };
}

/// When the user namespace of a container is made. Each has its own in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserNamespaces {
    /// By each pass, as containerd does: a fork of a process with many threads, under the clock. Its copy of the address space (`mmap_lock`,
    /// TLB flushes on all CPUs) can cost more than all mounts of a pass.
    #[default]
    PerPass,
    /// Once for each container and process, before the clock: what is timed then are the mounts.
    Before,
}

/// Something that the rest of a host does while containers start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reader {
    /// stat(2) and open(2) of an unrelated file: a health check.
    Stat,
    /// All of /proc/self/mountinfo: systemd, the kubelet.
    Mountinfo,
    /// listmount(2), and statmount(2) of what it lists.
    Listmount,
    /// openat2(2) with RESOLVE_IN_ROOT and `..` in the path; counts how often it had to be asked again.
    Openat2,
    /// poll(2) on mountinfo, and all of it at each change: PID 1; counts the wake-ups.
    Poll,
    /// fanotify(7) events of attach and detach, Linux 6.15 and later; counts them.
    Fanotify,
}

impl Reader {
    /// Whether it looks at one path, in some microseconds, however many mounts there are: only then may it look more often than once a
    /// millisecond and not be the storm.
    pub fn is_short(self) -> bool {
        matches!(self, Reader::Stat | Reader::Openat2)
    }

    /// Its name in a [`Sample`].
    pub fn name(self) -> &'static str {
        match self {
            Reader::Stat => "stat",
            Reader::Mountinfo => "mountinfo",
            Reader::Listmount => "listmount",
            Reader::Openat2 => "openat2",
            Reader::Poll => "poll",
            Reader::Fanotify => "fanotify",
        }
    }
}

/// What one reader saw around one iteration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReaderSample {
    /// In quiet, before the storm; nothing if it had nothing to do.
    pub before: Option<Latency>,
    /// While the storm ran.
    pub during: Option<Latency>,
    /// Times that the kernel wanted to be asked again (`openat2`), or woke the reader (`poll`); events (`fanotify`).
    pub again: u64,
}

/// Where one storm stands in the space of storms.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StormPoint {
    /// Which containerd's sequence of calls.
    pub profile: Profile,
    /// File system below the layers.
    pub storage: Storage,
    /// Propagation of the mount that the storm happens below.
    pub propagation: Propagation,
    /// CPUs of the machine; 0 in runs from before sweeps, which had one number for all storms.
    #[serde(default)]
    pub cpus: u32,
    /// Concurrent container starts.
    pub threads: u32,
    /// Container starts in total, per iteration.
    pub containers: u32,
    /// Image layers per container.
    pub layers: u32,
    /// Inspection passes before each rootfs pass (storm-profiles: containerd makes one or two).
    pub inspection_passes: u32,
}

/// A version range of containerd, by what it calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// containerd 2.0.0 - 2.0.6: one idmap per layer, `umount2(MNT_DETACH)`.
    Detach,
    /// containerd 2.1.0 - 2.1.4: one read-only idmap per layer, `umount2(0)` made once; leaks what is busy.
    Rdonly,
    /// containerd 2.0.7+, 2.1.5+, 2.2: one idmap of the layers' common parent, `umount2(0)`.
    Common,
    /// containerd 2.3 and later: one recursive, private idmap of the layers' common parent, for the rootfs alone.
    Recursive,
    /// In no containerd yet: layers that are never attached, handed to the overlay as descriptors.
    Fds,
    /// Nobody's: stat(2), open(2) and close(2) by paths that cross mounts; a "container" is a round of such calls.
    Paths,
}

/// What the layers lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// tmpfs.
    Tmpfs,
    /// ext4 on a virtio disk that the machine gives, else on a loop device.
    Ext4,
    /// XFS on the same.
    Xfs,
}

/// Propagation type of the storm's parent mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// MS_SHARED, as `/` is on a systemd host.
    Shared,
    /// MS_PRIVATE.
    Private,
}

/// Which trials to run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SuiteJob {
    /// Run only trials whose name contains this.
    pub filter: Option<String>,
    /// Limit for one trial, in seconds.
    pub trial_limit_s: u32,
    /// Full names of trials that run before all others: those most likely to fail.
    #[serde(default)]
    pub first: Vec<String>,
    /// Run no trial but those.
    #[serde(default)]
    pub only_first: bool,
    /// Whether the first trial that fails is the last that runs; a note names each as it begins.
    #[serde(default)]
    pub until_failure: bool,
    /// Kernel selftests to run after the trials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selftests: Option<SelftestJob>,
}

/// Which kernel selftests to run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SelftestJob {
    /// Folder of folders of programs. A lab machine has it at the same path as the host: its initramfs brings it along.
    pub folder: PathBuf,
    /// Limit for one program, in seconds.
    pub limit_s: u32,
}

/// A list of loads, run one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadJob {
    /// The loads, in the order they run.
    pub loads: Vec<Load>,
}

/// Work with a known answer, by which a simulated machine is held to account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "load", rename_all = "snake_case")]
pub enum Load {
    /// Independent threads: as many of them take as long as one.
    Spinners {
        /// Threads, one on each CPU from 0.
        threads: u32,
        /// Instructions of each.
        insns: u64,
    },
    /// A critical section under one spinlock: however many threads want it, it is passed once in the time it takes.
    Spinlock {
        /// Threads, one on each CPU from 0.
        threads: u32,
        /// Instructions of the section.
        section_insns: u64,
        /// Sections in all.
        sections: u32,
    },
    /// The same under a lock whose waiters queue, as those of the kernel's spinlocks and semaphores do: each waits first for its turn, then for
    /// the holder.
    QueuedLock {
        /// Threads, one on each CPU from 0.
        threads: u32,
        /// Instructions of the section.
        section_insns: u64,
        /// Sections in all.
        sections: u32,
    },
    /// Two threads that sleep and wake each other in turn.
    Handover {
        /// Wake-ups of each.
        rounds: u32,
    },
}

/// How long a load took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadResult {
    /// Which.
    pub load: Load,
    /// Wall time in the guest, ns.
    pub elapsed_ns: u64,
}

/// One line from a guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum GuestEvent {
    /// First line of every guest.
    Hello {
        /// Must equal [`PROTOCOL`].
        protocol: u32,
        /// `uname -r`.
        kernel_release: String,
        /// Online CPUs.
        cpus: u32,
        /// MemTotal of /proc/meminfo, in KiB.
        memory_kib: u64,
    },
    /// Something a reader of the log should know.
    Note {
        /// A sentence.
        text: String,
    },
    /// How far the job is; sent at least every two seconds of work, so silence means a hang.
    Progress {
        /// Units done.
        done: u64,
        /// Units in all.
        total: u64,
        /// Of what: "iterations", "trials".
        unit: String,
    },
    /// One timed iteration of a storm.
    Sample(Sample),
    /// One trial of the suite.
    Trial(TrialResult),
    /// One load.
    Load(LoadResult),
    /// Last line of a guest whose job came to its end, whatever was found.
    Done,
    /// Last line of a guest that could not do its job.
    Failed {
        /// What the guest was doing.
        stage: String,
        /// What went wrong.
        error: String,
    },
}

/// [`GuestEvent::Failed::stage`] of a storm that could be begun: a call of it failed, or what it left behind was in the way. Such a kernel
/// does not do what containerd needs, which is another thing than a guest that cannot work.
pub const STORM_STAGE: &str = "storm";

/// One timed iteration of one storm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Which storm.
    pub point: StormPoint,
    /// Number of the iteration, from 0.
    pub iteration: u32,
    /// Wall time of the storm in the guest, in nanoseconds; `None` when an oracle failed: no number then.
    pub elapsed_ns: Option<u64>,
    /// Latency of each kind of call: "open_tree", "mount_setattr", "move_mount", "overlay_mount", "umount", "umount_rootfs".
    pub calls: BTreeMap<String, Latency>,
    /// What the oracles saw.
    pub oracle: Oracle,
    /// What the kernel kept, if this is not the first iteration in its boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leak: Option<Box<Look>>,
    /// What readers saw beside the storm, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub readers: BTreeMap<String, ReaderSample>,
}

/// What was checked, and what was found wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oracle {
    /// Number of checks made, by name of the oracle ("idmapped_ownership", "layer_content", "mount_table").
    pub checks: BTreeMap<String, u64>,
    /// One sentence per check that failed (at most 20; the rest are counted in the last).
    pub failures: Vec<String>,
}

/// A latency distribution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Calls measured.
    pub count: u64,
    /// Arithmetic mean, ns.
    pub mean_ns: f64,
    /// Median, ns.
    pub p50_ns: u64,
    /// 99th percentile, ns.
    pub p99_ns: u64,
    /// Largest, ns.
    pub max_ns: u64,
    /// The whole histogram: HdrHistogram V2, deflate-free, base64.
    pub hdr_v2_base64: String,
}

/// How a trial ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialResult {
    /// `area::sentence`.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Wall time in the guest, ms.
    pub elapsed_ms: u64,
}

/// The three ways a trial can end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It held.
    Passed,
    /// It did not hold.
    Failed {
        /// What was seen, and what was expected.
        why: String,
    },
    /// Its requirements are not met here.
    Skipped {
        /// Which requirement.
        why: String,
    },
}
