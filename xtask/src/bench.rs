//! `bench`: plan, boot by boot, write down. Judging comes after, from the files.

use crate::cache::Cache;
use crate::event::{Event, Events};
use crate::failure::{Exit, Failure};
use crate::flags::BenchFlags;
use crate::kernel::{self, Kernel};
use crate::machine::{Boot, BootLog, End, Limits, Machine, MachineInfo, MachineKind, Setting, Topology};
use crate::results::{Arm, Manifest, PlannedBoot, RESULTS_VERSION, Run, StoredSample};
use crate::{compare, guest, machine, plan, process, report, results, setup, warning};
use anyhow::{Context, Result};
use mount_storms::protocol::{GuestEvent, Job, PROTOCOL, StormJob, StormPoint, Work};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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
    setup::ensure(&flags.setup, events)?;
    let cache = Cache::lock()?;
    let guest = guest::build(root, events)?;
    let (mut run, machine) = match &flags.resume {
        Some(which) => resume(which, flags, &guest, &cache, events)?,
        None => start(flags, root, &guest, &cache, events)?,
    };
    measure(&mut run, machine.as_ref(), &guest, events)?;
    let comparison = compare::of_run(&run)?;
    report::write(&run, &comparison)?;
    results::write_index(&flags.results)?;
    print!("{}", report::terminal(&run, &comparison));
    Ok(comparison.exit())
}

type Ready = (Run, Box<dyn Machine>);

/// Builds the kernels, opens the machine, plans the boots and writes the manifest.
fn start(flags: &BenchFlags, root: &Path, guest: &Path, cache: &Cache, events: Events<'_>) -> Result<Ready> {
    let kind = MachineKind::parse(&flags.machine.machine)?;
    let topology = topology(&flags.machine)?;
    let kernels = kernels(flags, &kind, cache, events)?;
    let setting = Setting { cache: cache.dir(), kernel: Some(&kernels.0), guest };
    let opened = machine::open(&kind, &topology, &setting)?;
    events.hear(&Event::Note(opened.why));
    let manifest = manifest(flags, root, opened.machine.info(), kernels);
    manifest.warnings.iter().for_each(|warning| events.hear(&Event::Warning(warning.clone())));
    Ok((Run::create(&flags.results, manifest)?, opened.machine))
}

/// The shape asked for: a topology, with another number of CPUs if told so.
pub fn topology(flags: &crate::flags::MachineFlags) -> Result<Topology> {
    let topology = Topology::load(&flags.topology)?;
    Ok(match flags.cpus {
        Some(cpus) => topology.with_cpus(cpus)?,
        None => topology,
    })
}

/// Baseline and candidate; the `host` machine has one kernel alone, the running one.
fn kernels(flags: &BenchFlags, kind: &MachineKind, cache: &Cache, events: Events<'_>) -> Result<(Kernel, Option<Kernel>)> {
    let baseline = kernel_named(&flags.baseline, kind, flags, cache, events)?;
    let candidate = match kind {
        MachineKind::Host => None,
        _ => Some(kernel_named(&flags.kernel, kind, flags, cache, events)?),
    };
    Ok((baseline, candidate))
}

fn kernel_named(name: &str, kind: &MachineKind, flags: &BenchFlags, cache: &Cache, events: Events<'_>) -> Result<Kernel> {
    match kind {
        MachineKind::Host => kernel::running(),
        MachineKind::Mock(_) => Ok(kernel::unbuilt(name)),
        _ => kernel::prepare(name, &KCONFIG, cache, flags.source.source.as_deref(), events),
    }
}

fn manifest(flags: &BenchFlags, root: &Path, info: &MachineInfo, kernels: (Kernel, Option<Kernel>)) -> Manifest {
    let (baseline, candidate) = kernels;
    Manifest {
        version: RESULTS_VERSION,
        command: std::env::args().skip(1).collect(),
        mountlab_commit: results::commit_of(root),
        started: jiff::Timestamp::now().to_string(),
        host: warning::host_in_words(),
        machine: info.clone(),
        seed: flags.seed,
        margin: flags.margin,
        points: points(flags, info.cpus),
        iterations: flags.iterations,
        warmup_iterations: flags.warmup_iterations,
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

/// Opens an unfinished run, its kernels and the machine it was made on.
fn resume(which: &str, flags: &BenchFlags, guest: &Path, cache: &Cache, events: Events<'_>) -> Result<Ready> {
    let dir = if which == "newest" { results::find_resumable(&flags.results)? } else { PathBuf::from(which) };
    let mut run = Run::open(&dir)?;
    let kind = MachineKind::parse(&run.manifest.machine.kind)?;
    rebuild(&mut run, &kind, flags, cache, events)?;
    let info = &run.manifest.machine;
    let topology = Topology::load(&info.topology)?.with_cpus(info.cpus)?;
    let setting = Setting { cache: cache.dir(), kernel: Some(&run.manifest.baseline), guest };
    let opened = machine::open(&kind, &topology, &setting)?;
    events.hear(&Event::Note(format!("resuming {}: {} boots to go", dir.display(), run.remaining().len())));
    Ok((run, opened.machine))
}

/// Finds the images of a run's kernels again (or builds them), and refuses others than the run began with.
fn rebuild(run: &mut Run, kind: &MachineKind, flags: &BenchFlags, cache: &Cache, events: Events<'_>) -> Result<()> {
    let manifest = &mut run.manifest;
    for kernel in std::iter::once(&mut manifest.baseline).chain(manifest.candidate.as_mut()) {
        let found = kernel_named(&kernel.name, kind, flags, cache, events)?;
        if found.key != kernel.key {
            let (name, was, is) = (&kernel.name, &kernel.key, &found.key);
            let message = format!("{name} is another kernel now (key {is}, the run began with {was})\nnext: start a new bench");
            return Err(Failure::new(Exit::Usage, message));
        }
        *kernel = found;
    }
    Ok(())
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
        measure_boot(run, machine, guest, &planned, events)
            .with_context(|| unfinished(run, &planned))?;
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
    process::check_interrupt("the bench")?;
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
    let mut tell = |event: &GuestEvent| events.hear(&Event::BootEvent { boot: name.clone(), event: event.clone() });
    let log = machine.boot(boot, &mut tell)?;
    events.hear(&Event::BootEnded { boot: name, end: log.end.clone(), wall_s: log.wall_s });
    Ok(log)
}

fn storm_job(manifest: &Manifest) -> StormJob {
    StormJob {
        points: manifest.points.clone(),
        iterations: manifest.iterations,
        warmup_iterations: manifest.warmup_iterations,
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
        GuestEvent::Sample(sample) => Some(StoredSample { arm: planned.arm, boot: planned.boot, sample: sample.clone() }),
        _ => None,
    };
    log.events.iter().filter_map(stored).collect()
}

/// What a user should know when a boot went wrong.
fn unfinished(run: &Run, planned: &PlannedBoot) -> String {
    let boot = boot_name(&run.manifest, planned);
    let dir = run.dir.display();
    format!("boot {boot} came to nothing; the boots before it are kept\nnext: cargo xtask bench --resume {dir}")
}
