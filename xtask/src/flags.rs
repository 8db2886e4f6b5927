//! The whole command line in one file.

use crate::failure::{Exit, Failure};
use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use mount_storms::protocol::{LedgerKind, Profile, Propagation, Reader, Storage, UserNamespaces};
use std::path::PathBuf;

/// mountlab: does this kernel patch make mount storms scale, and does it break anything?
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 110)]
pub struct Flags {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build two kernels, boot both, storm both with every result checked, compare, report
    Bench(Box<BenchFlags>),
    /// Unit tests, lints, series checks, then the suite in guests on mainline and on the patched kernel
    Test(TestFlags),
    /// Flame graphs and what happens under the mount locks, for two kernels, on the simulated machine
    Profile(ProfileFlags),
    /// May the simulated machine be believed? Loads with known answers, the same boot again, a busy host
    Selfcheck(SelfcheckFlags),
    /// Say what this host lacks and why, and install it after a yes
    Setup(SetupFlags),
    /// The kernels: list, fetch the source, build, check the patches
    #[command(subcommand)]
    Kernel(KernelCommand),
    /// The patch queue as a git tree, and back
    #[command(subcommand)]
    Series(SeriesCommand),
    /// A prompt in a booted guest
    Boot(BootFlags),
    /// Judge a run again from its files, or one run against another
    Compare(CompareFlags),
    /// Write report.md, report.html and comparison.json of a run again from its files, and the index of runs beside it
    Report(ReportFlags),
}

/// Flags of every command that may have to set the host up.
#[derive(Clone, Debug, Args)]
pub struct SetupFlags {
    /// Install what is missing without asking (it is listed all the same)
    #[arg(long)]
    pub yes: bool,
}

/// Where a guest runs.
#[derive(Clone, Debug, Args)]
pub struct MachineFlags {
    /// auto | simulated | kvm | tcg | virtme | host (not `test`) | mock[:SCRIPT]; `boot` is in tcg alone
    #[arg(long, default_value = "auto", value_name = "MACHINE")]
    pub machine: String,
    /// A file of vm-configs/, without `.toml` [default: smoke, 2 CPUs]
    #[arg(long, value_name = "NAME")]
    pub topology: Option<String>,
    /// CPUs of the guest, instead of the topology's; `bench` takes a list [default there, if simulated and without --topology: 1,8,32,64]
    #[arg(long, value_delimiter = ',', value_name = "N,...", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub cpus: Vec<u32>,
}

/// Where kernel source comes from.
#[derive(Clone, Debug, Args)]
pub struct SourceFlags {
    /// A kernel tree or tarball to use instead of fetching one (it is checked like any other)
    #[arg(long, value_name = "PATH")]
    pub source: Option<PathBuf>,
}

/// Flags of `bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchFlags {
    /// The candidate: a name of kernels.toml, `patched@N`, `mutant:NAME`, `mutant:NAME@KERNEL`, a path to a tree, or `git:URL#ref`
    #[arg(long, default_value = "patched", value_name = "KERNEL")]
    pub kernel: String,
    /// The reference, spelled like --kernel
    #[arg(long, default_value = "mainline", value_name = "KERNEL")]
    pub baseline: String,
    /// containerd's sequence of calls
    #[arg(long, value_delimiter = ',', default_value = "detach,common", value_name = "PROFILE,...")]
    pub profile: Vec<ProfileFlag>,
    /// File system below the layers
    #[arg(long, value_delimiter = ',', default_value = "tmpfs", value_name = "STORAGE,...")]
    pub storage: Vec<StorageFlag>,
    /// Propagation of the mount that the storm happens below
    #[arg(long, value_delimiter = ',', default_value = "shared", value_name = "TYPE,...")]
    pub propagation: Vec<PropagationFlag>,
    /// Image layers per container
    #[arg(long, value_delimiter = ',', default_value = "10", value_name = "N,...", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub layers: Vec<u32>,
    /// Container starts per iteration [default: 32; simulated: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub containers: Option<u32>,
    /// Concurrent container starts [default: the guest's CPUs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// Inspection passes before each rootfs pass
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=2))]
    pub inspection_passes: u32,
    /// Whether the children that hold user namespaces inherit descriptors, as containerd's do: some umount2 sees EBUSY then and waits
    /// 50 ms [default: on; simulated: off, because these waits would hide what the kernel does]
    #[arg(long, value_name = "on|off")]
    pub descriptor_race: Option<Switch>,
    /// When a container's user namespace is made: by each pass as containerd does, which forks, or before the clock, so that mounts alone
    /// are timed [default: per-pass; simulated: before]
    #[arg(long, value_name = "WHEN")]
    pub user_namespaces: Option<UserNamespacesFlag>,
    /// Who reads beside the storm, each measured before it and during it [default: stat]
    #[arg(long, value_delimiter = ',', default_value = "stat", value_name = "READER,...")]
    pub readers: Vec<ReaderFlag>,
    /// Pause between two looks of the readers stat and openat2, us; the others pause for 1000 [default: 1000; simulated, if --threads leaves a
    /// CPU to them: 50]
    #[arg(long, value_name = "US", value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    pub reader_period_us: Option<u32>,
    /// Other mount namespaces that hear of each mount and umount of the storm
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub peer_namespaces: u32,
    /// How closely mounts are watched by their unique ids: full writes down each, and costs time under the clock
    #[arg(long, default_value = "table", value_name = "KIND")]
    pub ledger: LedgerFlag,
    /// Who mounts a container's root: a process per container, as a shim is, or the thread that starts the container
    #[arg(long, default_value = "processes", value_name = "WHO")]
    pub rootfs: RootfsFlag,
    /// Boots of each kernel; the A/A control makes as many again [default: 5; simulated: 4 on each number of CPUs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub boots: Option<u32>,
    /// Timed iterations of each storm per boot [default: 3; simulated: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub iterations: Option<u32>,
    /// Untimed iterations before them [default: 1; simulated: 0]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub warmup_iterations: Option<u32>,
    /// Seed of the order of boots and of every choice in the guests
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Half-width of "equivalent"
    #[arg(long, default_value_t = 0.05, value_name = "FRACTION", value_parser = margin)]
    pub margin: f64,
    /// Continue an unfinished run: the newest one, or the folder given
    #[arg(long, value_name = "RUN", num_args = 0..=1, default_missing_value = "newest")]
    pub resume: Option<String>,
    /// Folder for runs
    #[arg(long, default_value = "results", value_name = "DIR")]
    pub results: PathBuf,
    #[command(flatten)]
    pub machine: MachineFlags,
    #[command(flatten)]
    pub source: SourceFlags,
    #[command(flatten)]
    pub setup: SetupFlags,
}

/// Flags of `test`.
#[derive(Clone, Debug, Args)]
pub struct TestFlags {
    /// A kernel to test besides mainline, spelled as in `bench --kernel`; given more than once, each in its turn
    #[arg(long, default_value = "patched", value_name = "KERNEL")]
    pub kernel: Vec<String>,
    /// Test each prefix of the series `patched`, from its first patch to all, instead of chosen kernels
    #[arg(long, conflicts_with_all = ["kernel", "no_guests", "mutants"])]
    pub each: bool,
    /// Run only trials whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// Seed of the suite's random operations and of the small storms
    #[arg(long, default_value_t = 1, value_name = "N", conflicts_with = "no_guests")]
    pub seed: u64,
    /// Leave out the guests: unit tests, lints and series checks that need no kernel build
    #[arg(long)]
    pub no_guests: bool,
    /// Leave out what needs no guest, and the self-check: only the suite, the selftests and the small storms
    #[arg(long, conflicts_with = "no_guests")]
    pub guests_only: bool,
    /// The kconfig fragment of the guests' kernels, on top of `base`
    #[arg(long, default_value = "lockdep", value_name = "FRAGMENT")]
    pub lane: String,
    /// Leave out the kernel's own selftests for mounts, which run after the suite
    #[arg(long)]
    pub no_selftests: bool,
    /// Leave out the small storms on 8 CPUs or more, which come last
    #[arg(long)]
    pub no_storms: bool,
    /// Kernels to test at once, each in guests of its own: worth it where the host has more CPUs than a guest
    #[arg(long, default_value = "1", value_name = "N", conflicts_with = "mutants")]
    pub jobs: std::num::NonZeroU32,
    /// Write what this lane showed into results/lanes.json and results/lanes.md, kernel by kernel
    #[arg(long, conflicts_with_all = ["filter", "no_guests", "mutants"])]
    pub keep: bool,
    /// Leave out kernels of which the lane has kept all that is asked for, without a failure; mainline, the reference, is tested again
    #[arg(long, requires = "keep")]
    pub resume: bool,
    /// Test the suite itself: boot each kernel of kernel-patches/mutants/ that is for this lane, say what killed it, write results/mutants.md
    #[arg(long, conflicts_with_all = ["filter", "no_guests"])]
    pub mutants: bool,
    /// The kernel that the mistakes are made in: mainline, or one of kernels.toml with a series; its own table is results/mutants-KERNEL.md
    #[arg(long, default_value = "mainline", value_name = "KERNEL", requires = "mutants")]
    pub on: String,
    /// Only these mutants; what became of the others is kept from the last run
    #[arg(long, value_delimiter = ',', value_name = "NAME,...", requires = "mutants")]
    pub mutant: Vec<String>,
    #[command(flatten)]
    pub machine: MachineFlags,
    #[command(flatten)]
    pub source: SourceFlags,
    #[command(flatten)]
    pub setup: SetupFlags,
}

/// Flags of `profile`.
#[derive(Clone, Debug, Args)]
pub struct ProfileFlags {
    /// The kernel to look into, spelled as in `bench --kernel`
    #[arg(long, default_value = "patched", value_name = "KERNEL")]
    pub kernel: String,
    /// The kernel to hold it against
    #[arg(long, default_value = "mainline", value_name = "KERNEL")]
    pub baseline: String,
    /// containerd's sequence of calls
    #[arg(long, default_value = "detach", value_name = "PROFILE")]
    pub profile: ProfileFlag,
    /// File system below the layers
    #[arg(long, default_value = "tmpfs", value_name = "STORAGE")]
    pub storage: StorageFlag,
    /// Propagation of the mount that the storm happens below
    #[arg(long, default_value = "shared", value_name = "TYPE")]
    pub propagation: PropagationFlag,
    /// Image layers per container
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub layers: u32,
    /// Container starts [default: the CPUs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub containers: Option<u32>,
    /// CPUs of the simulated machine
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub cpus: u32,
    /// What each patch of --kernel does: every prefix of the series, on 8 CPUs and on --cpus, counted and timed (bench kernels, no stacks)
    #[arg(long, conflicts_with = "baseline")]
    pub each: bool,
    /// Boots of each prefix, with seeds from --seed on; throughput is their mean, with the least and the most
    #[arg(long, default_value_t = 1, value_name = "N", requires = "each", value_parser = clap::value_parser!(u64).range(1..=100))]
    pub boots: u64,
    /// Time that a CPU is awake between two samples of its stack, ns
    #[arg(long, default_value_t = 10_000, value_name = "NS", value_parser = clap::value_parser!(u64).range(100..))]
    pub period_ns: u64,
    /// Seed of every choice in the guest and of the order of its CPUs
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub seed: u64,
    /// simulated (auto means the same here)
    #[arg(long, default_value = "simulated", value_name = "MACHINE")]
    pub machine: String,
    /// Folder for results
    #[arg(long, default_value = "results", value_name = "DIR")]
    pub results: PathBuf,
    #[command(flatten)]
    pub source: SourceFlags,
    #[command(flatten)]
    pub setup: SetupFlags,
}

/// Flags of `selfcheck`.
#[derive(Clone, Debug, Args)]
pub struct SelfcheckFlags {
    /// Measure the effect of the window's length as well (some minutes)
    #[arg(long)]
    pub full: bool,
    /// Write selfcheck.md and selfcheck.json into this folder
    #[arg(long, value_name = "DIR")]
    pub results: Option<PathBuf>,
    #[command(flatten)]
    pub source: SourceFlags,
    #[command(flatten)]
    pub setup: SetupFlags,
}

/// The kernels.
#[derive(Debug, Subcommand)]
pub enum KernelCommand {
    /// Which kernels there are, and which are built
    List,
    /// Get and check the source
    Fetch {
        #[command(flatten)]
        source: SourceFlags,
    },
    /// Build a kernel
    Build {
        /// A kernel, spelled as in `bench --kernel`
        #[arg(default_value = "patched")]
        kernel: String,
        /// The kconfig fragment on top of `base`
        #[arg(long, default_value = "bench", value_name = "FRAGMENT")]
        kconfig: String,
        #[command(flatten)]
        source: SourceFlags,
    },
    /// Check the patches: form, strict application, checkpatch
    Check {
        /// Build every prefix of the series as well
        #[arg(long)]
        each: bool,
        /// Build the patched kernel as PREEMPT_RT, for one CPU, and without fsnotify as well, and refuse what the compiler warns of;
        /// with `--each`, every prefix as these and as bench, lockdep, kasan and kcsan
        #[arg(long)]
        configs: bool,
        #[command(flatten)]
        source: SourceFlags,
    },
}

/// The patch queue as a git tree, and back.
#[derive(Debug, Subcommand)]
pub enum SeriesCommand {
    /// Make a git tree with the base and one commit per patch
    Edit {
        /// Folder to make
        dir: PathBuf,
        #[command(flatten)]
        source: SourceFlags,
    },
    /// Write the commits of such a tree back as the queue
    Save {
        /// Folder that `edit` made
        dir: PathBuf,
    },
}

/// Flags of `boot`.
#[derive(Clone, Debug, Args)]
pub struct BootFlags {
    /// A kernel, spelled as in `bench --kernel`
    #[arg(long, default_value = "patched", value_name = "KERNEL")]
    pub kernel: String,
    /// The kconfig fragment on top of `base`
    #[arg(long, default_value = "bench", value_name = "FRAGMENT")]
    pub kconfig: String,
    #[command(flatten)]
    pub machine: MachineFlags,
    #[command(flatten)]
    pub source: SourceFlags,
    #[command(flatten)]
    pub setup: SetupFlags,
}

/// Flags of `compare`.
#[derive(Clone, Debug, Args)]
pub struct CompareFlags {
    /// Folder of a run; its baseline is the baseline
    pub run: PathBuf,
    /// Folder of another run, whose baseline becomes the candidate
    pub other: Option<PathBuf>,
}

/// Flags of `report`.
#[derive(Clone, Debug, Args)]
pub struct ReportFlags {
    /// Folder of a run
    pub run: PathBuf,
}

/// `--readers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReaderFlag {
    /// nobody
    None,
    /// stat and open of an unrelated file
    Stat,
    /// all of /proc/self/mountinfo
    Mountinfo,
    /// listmount, and statmount of what it lists
    Listmount,
    /// openat2 with RESOLVE_IN_ROOT
    Openat2,
    /// poll on mountinfo, and all of it at each change
    Poll,
    /// fanotify events of mounts
    Fanotify,
}

impl ReaderFlag {
    /// The reader; none for `none`.
    pub fn reader(self) -> Option<Reader> {
        match self {
            ReaderFlag::None => None,
            ReaderFlag::Stat => Some(Reader::Stat),
            ReaderFlag::Mountinfo => Some(Reader::Mountinfo),
            ReaderFlag::Listmount => Some(Reader::Listmount),
            ReaderFlag::Openat2 => Some(Reader::Openat2),
            ReaderFlag::Poll => Some(Reader::Poll),
            ReaderFlag::Fanotify => Some(Reader::Fanotify),
        }
    }
}

/// `--ledger`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LedgerFlag {
    /// before the clock and after it
    Table,
    /// each attach and detach, against fanotify and a thread that looks on
    Full,
}

impl From<LedgerFlag> for LedgerKind {
    fn from(flag: LedgerFlag) -> LedgerKind {
        match flag {
            LedgerFlag::Table => LedgerKind::Table,
            LedgerFlag::Full => LedgerKind::Full,
        }
    }
}

/// `--rootfs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RootfsFlag {
    /// a process per container
    Processes,
    /// the thread that starts it
    Threads,
}

/// `--user-namespaces`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UserNamespacesFlag {
    /// by each pass, under the clock
    PerPass,
    /// before the clock
    Before,
}

impl From<UserNamespacesFlag> for UserNamespaces {
    fn from(flag: UserNamespacesFlag) -> UserNamespaces {
        match flag {
            UserNamespacesFlag::PerPass => UserNamespaces::PerPass,
            UserNamespacesFlag::Before => UserNamespaces::Before,
        }
    }
}

/// "on" or "off".
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// on
    On,
    /// off
    Off,
}

/// `--profile`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProfileFlag {
    /// containerd 2.0.0 - 2.0.6: one idmap per layer, umount2(MNT_DETACH)
    Detach,
    /// containerd 2.1.0 - 2.1.4: one read-only idmap per layer, umount2(0) made once
    Rdonly,
    /// containerd 2.0.7+, 2.1.5+, 2.2: one idmap of the layers' common parent, umount2(0)
    Common,
    /// containerd 2.3+: one recursive, private idmap of the common parent, rootfs only
    Recursive,
    /// no containerd yet: layers never attached, an overlay by descriptors
    Fds,
    /// no containers: stat, open and close by paths across mounts; a round of 1000 calls counts as a container start
    Paths,
}

/// `--storage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StorageFlag {
    /// tmpfs
    Tmpfs,
    /// ext4 on a virtio disk or a loop device
    Ext4,
    /// XFS on the same
    Xfs,
}

/// `--propagation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PropagationFlag {
    /// as `/` is on a systemd host
    Shared,
    /// no peer hears of the storm
    Private,
}

impl MachineFlags {
    /// The number of CPUs, for a command that takes one.
    ///
    /// # Errors
    /// More than one was given.
    pub fn one_cpus(&self) -> Result<Option<u32>> {
        match self.cpus.as_slice() {
            [] => Ok(None),
            [cpus] => Ok(Some(*cpus)),
            _ => Err(Failure::error(Exit::Usage, "--cpus: this command takes one number; `bench` sweeps over a list")),
        }
    }
}

impl From<ProfileFlag> for Profile {
    fn from(flag: ProfileFlag) -> Profile {
        match flag {
            ProfileFlag::Detach => Profile::Detach,
            ProfileFlag::Rdonly => Profile::Rdonly,
            ProfileFlag::Common => Profile::Common,
            ProfileFlag::Recursive => Profile::Recursive,
            ProfileFlag::Fds => Profile::Fds,
            ProfileFlag::Paths => Profile::Paths,
        }
    }
}

impl From<StorageFlag> for Storage {
    fn from(flag: StorageFlag) -> Storage {
        match flag {
            StorageFlag::Tmpfs => Storage::Tmpfs,
            StorageFlag::Ext4 => Storage::Ext4,
            StorageFlag::Xfs => Storage::Xfs,
        }
    }
}

impl From<PropagationFlag> for Propagation {
    fn from(flag: PropagationFlag) -> Propagation {
        match flag {
            PropagationFlag::Shared => Propagation::Shared,
            PropagationFlag::Private => Propagation::Private,
        }
    }
}

fn margin(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value < 1.0 => Ok(value),
        _ => Err("a fraction between 0 and 1 is expected, such as 0.05".into()),
    }
}

/// Paths of all commands, as a user types them: "bench", "kernel check".
#[cfg(test)]
pub fn command_paths() -> Vec<String> {
    use clap::CommandFactory;
    let mut paths = Vec::new();
    for command in Flags::command().get_subcommands() {
        let name = command.get_name();
        if command.get_subcommands().next().is_none() {
            paths.push(name.to_owned());
        }
        paths.extend(command.get_subcommands().map(|sub| format!("{name} {}", sub.get_name())));
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Flags::command().debug_assert();
    }

    #[test]
    fn bench_defaults_are_the_readme_command() {
        let Command::Bench(bench) = Flags::parse_from(["xtask", "bench", "--kernel", "patched"]).command else {
            panic!()
        };
        assert_eq!((bench.boots, bench.baseline.as_str(), bench.resume), (None, "mainline", None));
        assert_eq!(bench.profile, [ProfileFlag::Detach, ProfileFlag::Common]);
    }

    #[test]
    fn resume_takes_an_optional_folder() {
        let Command::Bench(bench) = Flags::parse_from(["xtask", "bench", "--resume"]).command else { panic!() };
        assert_eq!(bench.resume.as_deref(), Some("newest"));
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for wrong in [["bench", "--profile=nope"], ["bench", "--margin=2"], ["bench", "--boots=1"]] {
            assert!(Flags::try_parse_from([&["xtask"][..], &wrong].concat()).is_err(), "{wrong:?}");
        }
    }
}
