//! Makes the boots of a plan, one after the other, or side by side on a machine whose figures the host cannot disturb.

use crate::event::{Event, Events};
use crate::failure::{Exit, Failure, exit_code};
use crate::kernel::Kernel;
use crate::machine::{Boot, BootLog, Limits, Machine, Region};
use crate::plan::SplitMix64;
use crate::process::{check_interrupt, interrupted};
use crate::results::{Arm, Cost, Manifest, PlannedBoot, Run, StoredSample};
use crate::side_by_side::{host_cpus, side_by_side};
use anyhow::{Context, Result};
use mount_storms::protocol::{GuestEvent, Job, PROTOCOL, Sample, StormJob, Work};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Limits of a boot that runs storms. An emulated guest may take long over one iteration, but not in silence.
const LIMITS: Limits =
    Limits { hello: Duration::from_secs(120), silence: Duration::from_secs(60), total: Duration::from_secs(1800) };

/// How far a storm's own clock and the simulator's may be apart: a tenth of a percent, or this. The marks stand a few instructions
/// beside the readings of the clock.
const CLOCKS_APART_NS: u64 = 20_000;

/// The machines of a run, by their number of CPUs.
pub type Fleet = BTreeMap<u32, Box<dyn Machine>>;

/// What the boots of a run have in common.
struct Plan<'a> {
    /// The run without its samples, which change meanwhile.
    run: Run,
    fleet: &'a Fleet,
    guest: &'a Path,
}

/// Makes the boots that are not made yet, and writes down the samples of each as soon as it has ended.
///
/// # Errors
/// The first boot that went wrong; those that run beside it are finished and kept.
pub fn measure(run: &mut Run, fleet: &Fleet, guest: &Path, events: Events<'_>) -> Result<()> {
    let stage = "storms".to_owned();
    let started = Instant::now();
    events.hear(&Event::StageStarted { stage: stage.clone() });
    let (total, queue) = (run.manifest.boots.len() as u64, run.remaining());
    let mut made = total - queue.len() as u64;
    let plan = Plan { run: Run { samples: Vec::new(), ..run.clone() }, fleet, guest };
    let boot = |planned: &PlannedBoot, events: Events<'_>| plan.boot(planned, events);
    side_by_side(queue, at_once(fleet), boot, &mut *events, |planned, samples, events| {
        let result = samples.and_then(|samples| run.append(&planned, samples));
        made += 1;
        events.hear(&Event::StageProgress { stage: stage.clone(), done: made, total: Some(total), unit: "boots" });
        match result {
            Err(error) if !interrupted() => Err(ended_badly(run, &planned, &error)),
            result => result.map_err(|error| unfinished(run, &planned, &error)),
        }
    })?;
    let result = format!("{total} boots in {}", run.dir.display());
    events.hear(&Event::StageFinished { stage, result, elapsed: started.elapsed() });
    Ok(())
}

/// How many boots may run at once: one on each CPU of the host where time is virtual, else one.
fn at_once(fleet: &Fleet) -> usize {
    let virtual_time = fleet.values().all(|machine| machine.info().has_virtual_time());
    if virtual_time { host_cpus() } else { 1 }
}

impl Plan<'_> {
    fn boot(&self, planned: &PlannedBoot, events: Events<'_>) -> Result<Vec<StoredSample>> {
        check_interrupt("the bench")?;
        let manifest = &self.run.manifest;
        let dir = self.run.boot_dir(planned)?;
        let job = Job { protocol: PROTOCOL, seed: planned.seed, work: Work::Storm(storm_job(manifest, planned)) };
        let kernel = kernel_of(manifest, planned.arm)?;
        let machine = self.fleet.get(&planned.cpus).context("the plan has a number of CPUs without a machine")?;
        let limits = LIMITS.times(machine.patience());
        let machine_seed = machine_seed(planned);
        let boot = Boot {
            kernel: Some(kernel),
            guest: self.guest,
            job: &job,
            dir: &dir,
            limits,
            machine_seed,
            evidence: None,
        };
        let log = boot_any(machine.as_ref(), &boot, &boot_name(manifest, planned), events)?;
        log.failure().map_or(Ok(()), Err)?;
        samples(&log, planned)
    }
}

/// Boots and tells of it, whatever the end.
///
/// # Errors
/// The machine could not be started.
pub fn boot_any(machine: &dyn Machine, boot: &Boot<'_>, name: &str, events: Events<'_>) -> Result<BootLog> {
    let name = name.to_owned();
    events.hear(&Event::BootStarted { boot: name.clone() });
    let mut tell = |event: &GuestEvent| events.hear(&Event::GuestSpoke { boot: name.clone(), event: event.clone() });
    let log = machine.boot(boot, &mut tell)?;
    events.hear(&Event::BootEnded { boot: name, end: log.end.clone(), wall_s: log.wall_s });
    Ok(log)
}

/// The seed of a machine that draws. Not the same for two arms: the A/A control would repeat the baseline to the nanosecond, and say nothing
/// about how much hangs on chance.
fn machine_seed(planned: &PlannedBoot) -> u64 {
    SplitMix64(planned.seed ^ (planned.arm as u64)).next().max(1)
}

fn storm_job(manifest: &Manifest, planned: &PlannedBoot) -> StormJob {
    StormJob {
        points: manifest.points_of(planned),
        iterations: manifest.iterations,
        warmup_iterations: manifest.warmup_iterations,
        manner: manifest.manner,
        readers: manifest.readers.clone(),
        reader_period_us: manifest.reader_period_us(planned.cpus),
        surroundings: manifest.surroundings,
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
    let cpus = if manifest.cpus().len() > 1 { format!(", {} CPUs", planned.cpus) } else { String::new() };
    format!("{}/{}: {kernel}{cpus}", planned.position + 1, manifest.boots.len())
}

/// The samples of a boot, each with what the simulated machine counted in its region.
fn samples(log: &BootLog, planned: &PlannedBoot) -> Result<Vec<StoredSample>> {
    let samples = log.events.iter().filter_map(|event| match event {
        GuestEvent::Sample(sample) => Some(sample.clone()),
        _ => None,
    });
    let memory_mib = log.summary.as_ref().map_or(0, |summary| summary.max_rss_kib / 1024);
    let cost = Some(Cost { wall_s: log.wall_s, memory_mib });
    let stored = |sample, region| StoredSample { arm: planned.arm, boot: planned.boot, sample, region, cost };
    let Some(summary) = &log.summary else { return Ok(samples.map(|sample| stored(sample, None)).collect()) };
    let samples: Vec<Sample> = samples.collect();
    if samples.len() != summary.regions.len() {
        let (sent, marked) = (samples.len(), summary.regions.len());
        let message =
            format!("the guest sent {sent} samples and marked {marked} regions: which belong together is unknown");
        return Err(Failure::error(Exit::MachineDied, message));
    }
    let pairs = samples.into_iter().zip(summary.regions.iter().cloned());
    Ok(pairs.map(|(sample, region)| stored(held_against(sample, &region), Some(region))).collect())
}

/// The simulated machine's own oracle: a sample's number stands only if lockstep held and both clocks agree.
fn held_against(mut sample: Sample, region: &Region) -> Sample {
    *sample.oracle.checks.entry("lockstep".into()).or_default() += 1;
    let why = region.lost().or_else(|| clocks_disagree(sample.elapsed_ns?, region.virtual_ns));
    if let Some(why) = why {
        sample.elapsed_ns = None;
        sample.oracle.failures.push(why);
    }
    sample
}

fn clocks_disagree(guest_ns: u64, machine_ns: u64) -> Option<String> {
    let apart = guest_ns.abs_diff(machine_ns);
    let why = || format!("the guest's clock says {guest_ns} ns, the machine's {machine_ns} ns");
    (apart > CLOCKS_APART_NS.max(machine_ns / 1000)).then(why)
}

/// Writes down that a boot ended badly: it is made again by `--resume`, and who reads the run then has to know.
fn ended_badly(run: &mut Run, planned: &PlannedBoot, error: &anyhow::Error) -> anyhow::Error {
    let name = boot_name(&run.manifest, planned);
    let why = format!("{error:#}").lines().next().unwrap_or_default().to_owned();
    match run.warn(format!("boot {name} ended badly and was made again, or is to be: {why}")) {
        Ok(()) => unfinished(run, planned, error),
        Err(unwritten) => {
            unfinished(run, planned, &Failure::error(exit_code(error), format!("{error:#}\n{unwritten:#}")))
        }
    }
}

/// What a user should know when a boot went wrong; the exit code stays that of the cause.
fn unfinished(run: &Run, planned: &PlannedBoot, error: &anyhow::Error) -> anyhow::Error {
    let boot = boot_name(&run.manifest, planned);
    let dir = run.dir.display();
    let message = format!("boot {boot}: {error:#}\nfinished boots are kept\nnext: cargo xtask bench --resume {dir}");
    Failure::error(exit_code(error), message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::fixture;

    fn sample(elapsed_ns: u64) -> Sample {
        let run = fixture::run(&[(Arm::Baseline, 100.0)]);
        Sample { elapsed_ns: Some(elapsed_ns), ..run.samples[0].sample.clone() }
    }

    #[test]
    fn a_region_that_lost_lockstep_withholds_the_number() {
        let region = Region { virtual_ns: 1_000_000, ..Region::default() };
        let held = held_against(sample(1_000_100), &region);
        assert_eq!((held.elapsed_ns, held.oracle.checks["lockstep"]), (Some(1_000_100), 1));
        let lost = held_against(sample(1_000_100), &Region { exclusive_waits: 1, ..region });
        assert_eq!(lost.elapsed_ns, None);
        assert!(lost.oracle.failures[0].starts_with("lockstep was lost"), "{:?}", lost.oracle.failures);
    }

    #[test]
    fn two_clocks_must_agree() {
        assert_eq!(clocks_disagree(100_000_000, 100_050_000), None);
        assert!(clocks_disagree(100_000_000, 101_000_000).unwrap().contains("101000000 ns"));
    }

    #[test]
    fn arms_of_a_block_draw_differently_and_the_same_each_time() {
        let boot = |arm| PlannedBoot { position: 0, arm, boot: 0, cpus: 2, seed: 7 };
        assert_eq!(machine_seed(&boot(Arm::Control)), machine_seed(&boot(Arm::Control)));
        assert_ne!(machine_seed(&boot(Arm::Control)), machine_seed(&boot(Arm::Baseline)));
    }
}
