//! `bench`: plan, boot by boot, write down. Judging comes after, from the files.

use crate::cache::Cache;
use crate::event::{Event, Events};
use crate::failure::{Exit, Failure, exit_code};
use crate::flags::{BenchFlags, MachineFlags};
use crate::kernel::{self, Kernel, Workshop};
use crate::machine::{Boot, BootLog, Limits, Machine, MachineInfo, MachineKind, Setting, Topology};
use crate::process::{Task, check_interrupt};
use crate::results::{Arm, Manifest, PlannedBoot, RESULTS_VERSION, Run, StoredSample};
use crate::{compare, guest, machine, plan, report, results, setup, warning};
use anyhow::{Context, Result};
use mount_storms::protocol::{GuestEvent, Job, PROTOCOL, StormJob, StormPoint, Work};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use xshell::{Shell, cmd};

/// The kconfig fragments of timed kernels.
const KCONFIG: [&str; 2] = ["base", "bench"];

/// Limits of a boot that runs storms. An emulated guest may take long over one iteration, but not in silence.
const LIMITS: Limits =
    Limits { hello: Duration::from_secs(120), silence: Duration::from_secs(60), total: Duration::from_secs(1800) };

/// Runs or resumes a bench, writes its reports, prints the table; returns the exit code.
///
/// # Errors
/// Anything on the way to a measurement; what was measured until then stays in the run's folder for `--resume`.
pub fn bench(flags: &BenchFlags, root: &Path, events: Events<'_>) -> Result<Exit> {
    let kind = MachineKind::parse(&flags.machine.machine)?;
    if !matches!(kind, MachineKind::Mock(_)) {
        setup::ensure(&flags.setup, events)?;
    }
    machine::check(&kind)?;
    let cache = Cache::lock()?;
    let workshop = Workshop { root, cache: &cache, source: flags.source.source.as_deref() };
    let lab = Lab { flags, workshop };
    let (mut run, machine, guest) = match &flags.resume {
        Some(which) => lab.resume(which, events)?,
        None => lab.start(&kind, events)?,
    };
    measure(&mut run, machine.as_ref(), &guest, events)?;
    let comparison = compare::of_run(&run)?;
    report::write(&run, &comparison)?;
    write_index(&flags.results)?;
    print!("{}", report::table(&run, &comparison));
    Ok(comparison.exit())
}

/// A run with boots to make, the machine to make them on, and the guest.
type Ready = (Run, Box<dyn Machine>, PathBuf);

/// What a bench begins with.
struct Lab<'a> {
    flags: &'a BenchFlags,
    workshop: Workshop<'a>,
}

impl Lab<'_> {
    /// Builds the kernels, opens the machine, plans the boots and writes the manifest.
    fn start(&self, kind: &MachineKind, events: Events<'_>) -> Result<Ready> {
        let flags = self.flags;
        let topology = topology(&flags.machine)?;
        let baseline = self.kernel(&flags.baseline, kind, events)?;
        let candidate = match kind {
            // The host machine has one kernel, the running one: two such runs are compared with `compare RUN RUN`.
            MachineKind::Host => None,
            _ => Some(self.kernel(&flags.kernel, kind, events)?),
        };
        let guest = self.guest(kind, events)?;
        let setting = Setting { cache: self.workshop.cache.dir(), kernel: Some(&baseline), guest: &guest };
        let opened = machine::open(kind, &topology, &setting)?;
        events.hear(&Event::Note(opened.why));
        let manifest = manifest(flags, self.workshop.root, opened.machine.info(), baseline, candidate);
        manifest.warnings.iter().for_each(|warning| events.hear(&Event::Warning(warning.clone())));
        Ok((Run::create(&flags.results, manifest)?, opened.machine, guest))
    }

    /// Opens an unfinished run, finds its kernels again, and opens the machine it was made on.
    fn resume(&self, which: &str, events: Events<'_>) -> Result<Ready> {
        let dir = if which == "newest" { results::find_resumable(&self.flags.results)? } else { PathBuf::from(which) };
        let mut run = Run::open(&dir)?;
        let info = run.manifest.machine.clone();
        let kind = MachineKind::parse(&info.kind)?;
        for kernel in std::iter::once(&mut run.manifest.baseline).chain(run.manifest.candidate.as_mut()) {
            *kernel = same_kernel(kernel, self.kernel(&kernel.name, &kind, events)?)?;
        }
        let guest = self.guest(&kind, events)?;
        let topology = Topology::load(&info.topology)?.with_cpus(info.cpus)?;
        let setting = Setting { cache: self.workshop.cache.dir(), kernel: Some(&run.manifest.baseline), guest: &guest };
        let opened = machine::open(&kind, &topology, &setting)?;
        let left = run.remaining().len();
        events.hear(&Event::Note(format!("resuming {}: {left} boots to go", dir.display())));
        Ok((run, opened.machine, guest))
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

/// The shape asked for: a topology, with another number of CPUs if told so.
///
/// # Errors
/// Usage: no such topology, or too many CPUs.
pub fn topology(flags: &MachineFlags) -> Result<Topology> {
    let topology = Topology::load(&flags.topology)?;
    flags.cpus.map_or(Ok(topology.clone()), |cpus| topology.with_cpus(cpus))
}

/// Commit of the checkout, with "-dirty" when it has changes.
fn commit_of(root: &Path) -> String {
    let describe = || -> Result<String> {
        let shell = Shell::new()?;
        let git = cmd!(shell, "git -C {root} describe --always --dirty --abbrev=12 --exclude=*");
        Task::new(git).limit(Duration::from_secs(20)).run()
    };
    describe().map_or("unknown".into(), |commit| commit.trim().to_owned())
}

/// Writes the generated index of all runs.
///
/// # Errors
/// The folder cannot be written.
pub fn write_index(results: &Path) -> Result<()> {
    let runs: Vec<Run> = results::all(results).iter().filter_map(|dir| Run::open(dir).ok()).collect();
    results::write_atomically(&results.join("README.md"), &report::index(&runs, results))
}

fn manifest(
    flags: &BenchFlags,
    root: &Path,
    info: &MachineInfo,
    baseline: Kernel,
    candidate: Option<Kernel>,
) -> Manifest {
    Manifest {
        version: RESULTS_VERSION,
        command: std::env::args().skip(1).collect(),
        mountlab_commit: commit_of(root),
        started: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        host: warning::host_in_words(),
        machine: info.clone(),
        seed: flags.seed,
        margin: flags.margin,
        points: points(flags, info.cpus),
        iterations: flags.iterations,
        warmup_iterations: flags.warmup_iterations,
        descriptors_inherited: !flags.no_descriptor_race,
        boots: plan::plan(flags.boots, candidate.is_some(), flags.seed),
        warnings: warning::collect(info),
        baseline,
        candidate,
    }
}

/// Every combination of the storms' parameters.
fn points(flags: &BenchFlags, cpus: u32) -> Vec<StormPoint> {
    let mut points = Vec::new();
    for &profile in &flags.profile {
        for &storage in &flags.storage {
            for &propagation in &flags.propagation {
                points.extend(flags.layers.iter().map(|&layers| StormPoint {
                    profile: profile.into(),
                    storage: storage.into(),
                    propagation: propagation.into(),
                    threads: flags.threads.unwrap_or(cpus),
                    containers: flags.containers,
                    layers,
                    inspection_passes: flags.inspection_passes,
                }));
            }
        }
    }
    points
}

/// Makes the boots that are not made yet.
fn measure(run: &mut Run, machine: &dyn Machine, guest: &Path, events: Events<'_>) -> Result<()> {
    let stage = "storms".to_owned();
    let started = Instant::now();
    events.hear(&Event::StageStarted { stage: stage.clone() });
    let total = run.manifest.boots.len() as u64;
    for planned in run.remaining() {
        let done = u64::from(planned.position);
        events.hear(&Event::StageProgress { stage: stage.clone(), done, total: Some(total), unit: "boots" });
        measure_boot(run, machine, guest, &planned, events).map_err(|error| unfinished(run, &planned, &error))?;
    }
    let result = format!("{total} boots in {}", run.dir.display());
    events.hear(&Event::StageFinished { stage, result, elapsed: started.elapsed() });
    Ok(())
}

fn measure_boot(
    run: &mut Run,
    machine: &dyn Machine,
    guest: &Path,
    planned: &PlannedBoot,
    events: Events<'_>,
) -> Result<()> {
    check_interrupt("the bench")?;
    let dir = run.boot_dir(planned)?;
    let job = Job { protocol: PROTOCOL, seed: planned.seed, work: Work::Storm(storm_job(&run.manifest)) };
    let kernel = kernel_of(&run.manifest, planned.arm)?;
    let boot = Boot { kernel: Some(kernel), guest, job: &job, dir: &dir, limits: LIMITS };
    let log = boot_once(machine, &boot, &boot_name(&run.manifest, planned), events)?;
    run.append(planned, samples(&log, planned))
}

/// Boots and tells of it; an end that is not a good one is an error.
fn boot_once(machine: &dyn Machine, boot: &Boot<'_>, name: &str, events: Events<'_>) -> Result<BootLog> {
    let log = boot_any(machine, boot, name, events)?;
    log.failure().map_or(Ok(log), Err)
}

/// Boots and tells of it, whatever the end.
pub fn boot_any(machine: &dyn Machine, boot: &Boot<'_>, name: &str, events: Events<'_>) -> Result<BootLog> {
    let name = name.to_owned();
    events.hear(&Event::BootStarted { boot: name.clone() });
    let mut tell = |event: &GuestEvent| events.hear(&Event::GuestSpoke { boot: name.clone(), event: event.clone() });
    let log = machine.boot(boot, &mut tell)?;
    events.hear(&Event::BootEnded { boot: name, end: log.end.clone(), wall_s: log.wall_s });
    Ok(log)
}

fn storm_job(manifest: &Manifest) -> StormJob {
    StormJob {
        points: manifest.points.clone(),
        iterations: manifest.iterations,
        warmup_iterations: manifest.warmup_iterations,
        descriptors_inherited: manifest.descriptors_inherited,
    }
}

fn kernel_of(manifest: &Manifest, arm: Arm) -> Result<&Kernel> {
    match arm {
        Arm::Baseline | Arm::Control => Ok(&manifest.baseline),
        Arm::Candidate => manifest.candidate.as_ref().context("the plan has candidate boots, but no candidate"),
    }
}

fn boot_name(manifest: &Manifest, planned: &PlannedBoot) -> String {
    let kernel = match planned.arm {
        Arm::Baseline => manifest.baseline.name.as_str(),
        Arm::Control => "A/A control",
        Arm::Candidate => manifest.candidate.as_ref().map_or("candidate", |kernel| &kernel.name),
    };
    format!("{}/{}: {kernel}", planned.position + 1, manifest.boots.len())
}

fn samples(log: &BootLog, planned: &PlannedBoot) -> Vec<StoredSample> {
    let stored = |event: &GuestEvent| match event {
        GuestEvent::Sample(sample) => {
            Some(StoredSample { arm: planned.arm, boot: planned.boot, sample: sample.clone() })
        }
        _ => None,
    };
    log.events.iter().filter_map(stored).collect()
}

/// What a user should know when a boot went wrong; the exit code stays that of the cause.
fn unfinished(run: &Run, planned: &PlannedBoot, error: &anyhow::Error) -> anyhow::Error {
    let boot = boot_name(&run.manifest, planned);
    let dir = run.dir.display();
    let message =
        format!("boot {boot}: {error:#}\nthe boots before it are kept\nnext: cargo xtask bench --resume {dir}");
    Failure::error(exit_code(error), message)
}
