//! `bench`: two kernels, a machine or a sweep of them, a plan. Measuring is `measure`'s; judging comes after, from the files.

use crate::cache::Cache;
use crate::event::{Event, Events};
use crate::failure::{Exit, Failure};
use crate::flags::{BenchFlags, LedgerFlag, MachineFlags, RootfsFlag, Switch};
use crate::kernel::{self, Kernel, Workshop};
use crate::machine::{Fallback, MachineInfo, MachineKind, Setting, Topology};
use crate::measure::{Fleet, measure};
use crate::process::Task;
use crate::results::{Claim, Manifest, RESULTS_VERSION, Run};
use crate::{compare, guest, machine, plan, report, results, setup, warning};
use anyhow::{Context, Result};
use mount_storms::protocol::{Manner, READER_PERIOD_US, StormPoint, Surroundings, UserNamespaces};
use std::path::{Path, PathBuf};
use std::time::Duration;
use xshell::{Shell, cmd};

/// The kconfig fragments of timed kernels.
const KCONFIG: [&str; 2] = ["base", "bench"];

/// CPUs of the default sweep on the simulated machine: from no contention to a big host, largest first, so that boots that run side by
/// side end together.
const SWEEP: [u32; 4] = [64, 32, 8, 1];

/// How much is measured unless the flags say otherwise.
struct Amount {
    /// Container starts per iteration.
    containers: u32,
    /// Boots of each kernel.
    boots: u32,
    /// Timed iterations of each storm per boot.
    iterations: u32,
    /// Untimed iterations before them.
    warmup_iterations: u32,
}

/// On a machine whose figures the host disturbs: repeats within a boot are cheap, and even out some of it.
const AMOUNT: Amount = Amount { containers: 32, boots: 5, iterations: 3, warmup_iterations: 1 };

/// On the simulated machine, on each number of CPUs: the same work everywhere, and enough of it for 64. Nothing disturbs it, so that boots
/// with other seeds are the better repeats; and no cache is cold but the guest's own, which a container host's are not either.
const AMOUNT_SIMULATED: Amount = Amount { containers: 64, boots: 4, iterations: 1, warmup_iterations: 0 };

/// Pause between two looks of a reader of one path that has a CPU to itself where time is virtual, us: a storm lasts some 10 ms there, and a
/// p99 needs hundreds of looks. One look, with its sleep and its wake-up, takes 10 us.
const READER_PERIOD_ALONE_US: u32 = 50;

/// Pause between two looks of a reader of one path, us. Where each CPU has a thread of the storm, a reader takes its time from one of them,
/// and the storm lasts as long as its slowest thread: a look each 50 us cost a storm of 64 containers on 64 CPUs a seventh of its throughput.
fn reader_period_us(flags: &BenchFlags, info: &MachineInfo, cpus: u32) -> u32 {
    let alone = flags.threads.is_some_and(|threads| threads < cpus);
    let usual = if info.has_virtual_time() && alone { READER_PERIOD_ALONE_US } else { READER_PERIOD_US };
    flags.reader_period_us.unwrap_or(usual)
}

fn amount(info: &MachineInfo) -> Amount {
    if info.has_virtual_time() { AMOUNT_SIMULATED } else { AMOUNT }
}

/// Runs or resumes a bench, writes its reports, prints the table; returns the exit code.
///
/// # Errors
/// Anything on the way to a measurement; what was measured until then stays in the run's folder for `--resume`.
pub fn bench(flags: &BenchFlags, root: &Path, events: Events<'_>) -> Result<Exit> {
    let kind = MachineKind::parse(&flags.machine.machine)?;
    if !matches!(kind, MachineKind::Mock(_)) {
        setup::ensure_for(&flags.storage, &flags.setup, events)?;
    }
    machine::check(&kind)?;
    let cache = Cache::lock()?;
    let workshop = Workshop { root, cache: &cache, source: flags.source.source.as_deref() };
    let lab = Lab { flags, workshop };
    let Ready { mut run, fleet, guest, claim: _claim } = match &flags.resume {
        Some(which) => lab.resume(which, events)?,
        None => lab.start(&kind, events)?,
    };
    measure(&mut run, &fleet, &guest, events)?;
    let comparison = compare::of_run(&run)?;
    report::write(&run, &comparison)?;
    write_index(&flags.results)?;
    print!("{}", report::table(&run, &comparison));
    Ok(comparison.exit())
}

/// A run with boots to make, the machines to make them on, and the guest.
struct Ready {
    run: Run,
    fleet: Fleet,
    guest: PathBuf,
    claim: Claim,
}

/// What a bench begins with.
struct Lab<'a> {
    flags: &'a BenchFlags,
    workshop: Workshop<'a>,
}

impl Lab<'_> {
    /// Builds the kernels, opens the machine, plans the boots and writes the manifest.
    fn start(&self, kind: &MachineKind, events: Events<'_>) -> Result<Ready> {
        let flags = self.flags;
        flags.machine.cpus.iter().try_for_each(|cpus| topology(&flags.machine, Some(*cpus)).map(drop))?;
        let baseline = self.kernel(&flags.baseline, kind, events)?;
        let candidate = match kind {
            // The host machine has one kernel, the running one: two such runs are compared with `compare RUN RUN`.
            MachineKind::Host => None,
            _ => Some(self.kernel(&flags.kernel, kind, events)?),
        };
        let guest = self.guest(kind, events)?;
        let fleet = self.fleet(kind, &self.setting(&baseline, &guest), events)?;
        let manifest = manifest(flags, self.workshop.root, &fleet, baseline, candidate)?;
        manifest.warnings.iter().for_each(|warning| events.hear(&Event::Warning(warning.clone())));
        let run = Run::create(&flags.results, manifest)?;
        let claim = results::claim(&run.dir)?;
        Ok(Ready { run, fleet, guest, claim })
    }

    /// Opens an unfinished run, finds its kernels again, and opens the machine it was made on.
    fn resume(&self, which: &str, events: Events<'_>) -> Result<Ready> {
        let dir = if which == "newest" { results::find_resumable(&self.flags.results)? } else { PathBuf::from(which) };
        let claim = results::claim(&dir)?;
        let mut run = Run::open_to_continue(&dir, &claim)?;
        let info = run.manifest.machine.clone();
        let kind = MachineKind::parse(&info.kind)?;
        for kernel in std::iter::once(&mut run.manifest.baseline).chain(run.manifest.candidate.as_mut()) {
            *kernel = same_kernel(kernel, self.kernel(&kernel.name, &kind, events)?)?;
        }
        let guest = self.guest(&kind, events)?;
        let setting = self.setting(&run.manifest.baseline, &guest);
        let mut fleet = Fleet::new();
        for cpus in run.manifest.cpus() {
            let topology = Topology::load(&info.topology)?.with_cpus(cpus)?;
            let machine = machine::open(&kind, &topology, &setting, &mut *events)?.machine;
            same_machine(&info, machine.info())?;
            fleet.insert(cpus, machine);
        }
        let host = warning::host_in_words();
        let is_elsewhere = host != run.manifest.host && !info.has_virtual_time();
        let elsewhere = is_elsewhere.then(|| format!("begun on {}, resumed on {host}", run.manifest.host));
        let other = other_checkout(&run.manifest.mountlab_commit, &commit_of(self.workshop.root));
        for warning in elsewhere.into_iter().chain(other) {
            events.hear(&Event::Warning(warning.clone()));
            run.warn(warning)?;
        }
        let left = run.remaining().len();
        events.hear(&Event::Note(format!("resuming {}: {left} boots to go", dir.display())));
        Ok(Ready { run, fleet, guest, claim })
    }

    fn setting<'b>(&'b self, kernel: &'b Kernel, guest: &'b Path) -> Setting<'b> {
        let (root, cache) = (self.workshop.root, self.workshop.cache);
        Setting { root, cache, kernel: Some(kernel), guest, fallback: Fallback::Simulated, model: None }
    }

    /// A machine for each number of CPUs. What `auto` means is decided once, for the largest.
    fn fleet(&self, kind: &MachineKind, setting: &Setting<'_>, events: Events<'_>) -> Result<Fleet> {
        let flags = &self.flags.machine;
        let first = topology(flags, flags.cpus.iter().copied().max())?;
        let opened = machine::open(kind, &first, setting, &mut *events)?;
        events.hear(&Event::Note(opened.why));
        let info = opened.machine.info().clone();
        let sweep = if info.has_virtual_time() && flags.topology.is_none() { SWEEP.to_vec() } else { vec![info.cpus] };
        let mut fleet = Fleet::from([(info.cpus, opened.machine)]);
        let all = if flags.cpus.is_empty() { &sweep } else { &flags.cpus };
        let kind = MachineKind::parse(&info.kind)?;
        for &cpus in all.iter().filter(|cpus| **cpus != info.cpus) {
            fleet.insert(cpus, machine::open(&kind, &topology(flags, Some(cpus))?, setting, &mut *events)?.machine);
        }
        fleet.retain(|cpus, _| all.contains(cpus));
        if let Some((cpus, machine)) = fleet.iter().find(|(cpus, machine)| machine.info().cpus != **cpus) {
            let message = format!("--machine {} has {} CPUs, not {cpus}", flags.machine, machine.info().cpus);
            return Err(Failure::error(Exit::Usage, message));
        }
        Ok(fleet)
    }

    fn kernel(&self, name: &str, kind: &MachineKind, events: Events<'_>) -> Result<Kernel> {
        match kind {
            MachineKind::Host => Ok(kernel::running()),
            MachineKind::Mock(_) => self.workshop.check_names(&[name], &KCONFIG).map(|()| kernel::unbuilt(name)),
            _ => self.workshop.prepare(name, &KCONFIG, events),
        }
    }

    /// The guest's binary; a mock plays it without one.
    fn guest(&self, kind: &MachineKind, events: Events<'_>) -> Result<PathBuf> {
        match kind {
            MachineKind::Mock(_) => Ok(PathBuf::new()),
            _ => guest::build(self.workshop.root, events),
        }
    }
}

/// Refuses to go on with another kernel than the run began with.
fn same_kernel(before: &Kernel, found: Kernel) -> Result<Kernel> {
    if found.key == before.key {
        return Ok(found);
    }
    let Kernel { name, key, .. } = before;
    let message =
        format!("{name} is another kernel now (key {}, the run began with {key})\nnext: start a new bench", found.key);
    Err(Failure::error(Exit::Usage, message))
}

/// Refuses to go on with another machine than the run began with.
fn same_machine(before: &MachineInfo, found: &MachineInfo) -> Result<()> {
    let told = |info: &MachineInfo| format!("{} {} ({})", info.kind, info.version, info.topology);
    let (now, then) = (told(found), told(before));
    if now == then {
        return Ok(());
    }
    let message = format!("the machine is another now ({now}, the run began with {then})\nnext: start a new bench");
    Err(Failure::error(Exit::Usage, message))
}

/// What to say of a run that goes on with another mountlab: storms and oracles may be others.
fn other_checkout(before: &str, now: &str) -> Option<String> {
    let is_same = before == now && !now.ends_with("-dirty");
    (!is_same).then(|| format!("begun with mountlab {before}, resumed with {now}"))
}

/// The shape asked for: a topology, with another number of CPUs if told so.
///
/// # Errors
/// Usage: no such topology, or too many CPUs.
pub fn topology(flags: &MachineFlags, cpus: Option<u32>) -> Result<Topology> {
    let topology = Topology::load(flags.topology.as_deref().unwrap_or("smoke"))?;
    cpus.map_or(Ok(topology.clone()), |cpus| topology.with_cpus(cpus))
}

/// Commit of the checkout, with "-dirty" when it has changes. Results are none: a run that comes after another is of the same checkout.
pub fn commit_of(root: &Path) -> String {
    let git = |arguments: &[&str]| -> Result<String> {
        let shell = Shell::new()?;
        Task::new(cmd!(shell, "git -C {root} {arguments...}")).limit(Duration::from_secs(20)).run()
    };
    let described = || -> Result<String> {
        let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
        let changes = git(&["status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results"])?;
        Ok(format!("{}{}", commit.trim(), if changes.trim().is_empty() { "" } else { "-dirty" }))
    };
    described().unwrap_or("unknown".into())
}

/// Writes the generated index of all runs, if the folder has none or one that was generated.
///
/// # Errors
/// The folder cannot be written.
pub fn write_index(results: &Path) -> Result<()> {
    let index = results.join("README.md");
    if index.exists() && !std::fs::read_to_string(&index)?.starts_with(report::INDEX_HEAD) {
        return Ok(());
    }
    let runs: Vec<Run> = results::all(results).iter().filter_map(|dir| Run::open(dir).ok()).collect();
    results::write_atomically(&index, &report::index(&runs, results))
}

fn manifest(
    flags: &BenchFlags,
    root: &Path,
    fleet: &Fleet,
    baseline: Kernel,
    candidate: Option<Kernel>,
) -> Result<Manifest> {
    let cpus: Vec<u32> = fleet.keys().rev().copied().collect();
    let info = fleet.values().next_back().context("there is no machine to measure on")?.info();
    let amount = amount(info);
    Ok(Manifest {
        version: RESULTS_VERSION,
        command: std::env::args().skip(1).collect(),
        mountlab_commit: commit_of(root),
        started: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        host: warning::host_in_words(),
        machine: info.clone(),
        seed: flags.seed,
        margin: flags.margin,
        points: cpus.iter().flat_map(|&cpus| points(flags, info, cpus)).collect(),
        iterations: flags.iterations.unwrap_or(amount.iterations),
        warmup_iterations: flags.warmup_iterations.unwrap_or(amount.warmup_iterations),
        manner: manner(flags, info),
        readers: flags.readers.iter().filter_map(|flag| flag.reader()).collect(),
        reader_periods_us: cpus.iter().map(|&cpus| (cpus, reader_period_us(flags, info, cpus))).collect(),
        surroundings: Surroundings { peer_namespaces: flags.peer_namespaces, ledger: flags.ledger.into() },
        boots: plan::plan(flags.boots.unwrap_or(amount.boots), candidate.is_some(), &cpus, flags.seed),
        warnings: warning::collect(info).into_iter().chain(ledger_warning(flags)).collect(),
        baseline,
        candidate,
    })
}

fn ledger_warning(flags: &BenchFlags) -> Option<String> {
    let warning =
        "the full ledger writes down each attach and detach under the clock: these figures are no measurement";
    (flags.ledger == LedgerFlag::Full).then(|| warning.to_owned())
}

/// containerd's way, but for what would hide the mounts on a machine where nothing else is to be measured.
fn manner(flags: &BenchFlags, info: &MachineInfo) -> Manner {
    let usual = if info.has_virtual_time() { Manner::MOUNTS_ALONE } else { Manner::CONTAINERD };
    Manner {
        descriptors_inherited: flags.descriptor_race.map_or(usual.descriptors_inherited, |race| race == Switch::On),
        shims: flags.rootfs == RootfsFlag::Processes,
        user_namespaces: flags.user_namespaces.map_or(usual.user_namespaces, UserNamespaces::from),
    }
}

/// Every combination of the storms' parameters on so many CPUs.
fn points(flags: &BenchFlags, info: &MachineInfo, cpus: u32) -> Vec<StormPoint> {
    let mut points = Vec::new();
    for &profile in &flags.profile {
        for &storage in &flags.storage {
            for &propagation in &flags.propagation {
                points.extend(flags.layers.iter().map(|&layers| StormPoint {
                    profile: profile.into(),
                    storage: storage.into(),
                    propagation: propagation.into(),
                    cpus,
                    threads: flags.threads.unwrap_or(cpus),
                    containers: flags.containers.unwrap_or(amount(info).containers),
                    layers,
                    inspection_passes: flags.inspection_passes,
                }));
            }
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{Command, Flags};
    use clap::Parser;

    #[test]
    fn a_run_goes_on_with_its_own_machine_and_says_when_mountlab_is_another() {
        let before = results::fixture::run(&[]).manifest.machine;
        let found = |version: &str| MachineInfo { cpus: 64, version: version.into(), ..before.clone() };
        assert!(same_machine(&before, &found("")).is_ok());
        assert!(same_machine(&before, &found("QEMU 9")).unwrap_err().to_string().contains("next: start a new bench"));
        assert_eq!(other_checkout("0123", "0123"), None);
        assert!(other_checkout("0123-dirty", "0123-dirty").is_some(), "nobody knows whether the changes are the same");
        assert!(other_checkout("0123", "4567").unwrap().contains("begun with mountlab 0123"));
    }

    #[test]
    fn a_checkout_is_dirty_by_changes_and_not_by_results() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert_eq!(commit_of(root), "unknown");
        let git = |arguments: &str| {
            let shell = Shell::new().unwrap();
            let arguments: Vec<&str> = arguments.split_whitespace().collect();
            Task::new(cmd!(shell, "git -C {root} -c user.name=a -c user.email=a@example.org {arguments...}"))
                .run()
                .unwrap()
        };
        let write = |name: &str, text: &str| {
            std::fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            std::fs::write(root.join(name), text).unwrap();
        };
        ["code", "results/lanes.md"].iter().for_each(|name| write(name, "old"));
        ["init --quiet", "add .", "commit --quiet --message=x"].iter().for_each(|arguments| drop(git(arguments)));
        let commit = commit_of(root);
        assert_eq!(commit.len(), 12, "{commit}");
        write("results/lanes.md", "new");
        write("results/run/report.md", "new");
        assert_eq!(commit_of(root), commit);
        write("code", "new");
        assert_eq!(commit_of(root), format!("{commit}-dirty"));
    }

    #[test]
    fn a_reader_looks_often_only_where_it_takes_no_time_from_a_storm() {
        let period = |args: &str, kind: &str| {
            let Command::Bench(flags) = Flags::parse_from(format!("xtask bench {args}").split_whitespace()).command
            else {
                panic!("{args}")
            };
            let machine = crate::results::fixture::run(&[]).manifest.machine;
            let info = MachineInfo { kind: kind.into(), simulated: kind == "simulated", ..machine };
            reader_period_us(&flags, &info, 64)
        };
        assert_eq!(period("", "simulated"), 1000);
        assert_eq!(period("--threads 64", "simulated"), 1000);
        assert_eq!(period("--threads 63", "simulated"), 50);
        assert_eq!(period("--threads 63", "tcg"), 1000);
        assert_eq!(period("--reader-period-us 20", "tcg"), 20);
    }
}
