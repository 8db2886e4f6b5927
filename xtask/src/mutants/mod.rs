//! `test --mutants`: is the suite able to fail? Each mutant is built, booted, and must be seen to be broken: by a trial, by a storm's
//! oracle, or by its own splat, panic or hang.

mod header;
mod table;
mod verdict;

use crate::cache::Cache;
use crate::event::{Event, Events};
use crate::failure::{Exit, Failure};
use crate::flags::TestFlags;
use crate::kernel::{Kernel, Patch, Workshop};
use crate::machine::{self, Boot, BootLog, Fallback, Limits, Machine, MachineKind, Setting};
use crate::results::plain;
use crate::test::{patience, refuse_host};
use crate::{bench, console, guest, measure, setup, small_storm};
use anyhow::{Context, Result};
use header::Mutant;
use mount_storms::protocol::{GuestEvent, Job, PROTOCOL, Profile, SuiteJob, Work};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use table::{Finding, Findings, Ground};
use verdict::Verdict;

/// Limit of one trial, in seconds. A mutant that hangs one hangs it for ever: shorter than the suite's own limit.
const TRIAL_LIMIT_S: u32 = 40;

/// Limits of a mutant's boot. A trial is silent while it hangs, hence more silence than its own limit.
const LIMITS: Limits =
    Limits { hello: Duration::from_secs(120), silence: Duration::from_secs(75), total: Duration::from_secs(900) };

/// The kernel whose mutants are mistakes that need no series.
const BASE: &str = "mainline";

/// The storm that a mutant must withstand which the suite did not see, in each profile whose calls differ. Its threads are more than the CPUs
/// of the smallest machine.
const STORM: small_storm::Size = small_storm::Size { threads: 4, containers: 12, layers: 5, iterations: 1 };

/// Those profiles.
const PROFILES: [Profile; 3] = [Profile::Detach, Profile::Common, Profile::Recursive];

/// Runs the mutants that `flags` choose, writes what was found of them under `results/`, and prints the table.
///
/// # Errors
/// A mutant that is not there, does not build, or whose machine went away. One that survives is counted; too many of the base's,
/// or one that does not say why, make the exit code 1.
pub fn mutants(flags: &TestFlags, root: &Path, events: Events<'_>) -> Result<Exit> {
    setup::ensure(&flags.setup, events)?;
    let cache = Cache::lock()?;
    let workshop = Workshop { root, cache: &cache, source: flags.source.source.as_deref() };
    let all = all(&workshop, &flags.on)?;
    let chosen = chosen(&all, flags)?;
    workshop.check_names(&[&flags.on], &["base", &flags.lane])?;
    let kind = MachineKind::parse(&flags.machine.machine)?;
    refuse_host(&kind)?;
    machine::check(&kind)?;
    let topology = bench::topology(&flags.machine, flags.machine.one_cpus()?)?;
    let guest = guest::build(root, events)?;
    let whole = workshop.prepare(&flags.on, &["base", &flags.lane], events)?;
    let setting =
        Setting { root, cache: &cache, kernel: Some(&whole), guest: &guest, fallback: Fallback::Tcg, model: None };
    let opened = machine::open(&kind, &topology, &setting, &mut *events)?;
    events.hear(&Event::Note(opened.why));
    let ground = Ground::of(&flags.on, &workshop.series_diff(&flags.on)?);
    let lab =
        Lab { workshop, guest, machine: opened.machine, whole, lane: &flags.lane, commit: bench::commit_of(root) };
    let results = root.join("results");
    let mut findings = Findings::load(&results, ground, &all)?;
    for mutant in &chosen {
        let finding = lab.judge(mutant, events).with_context(|| format!("the mutant {}", mutant.name))?;
        events.hear(&Event::Note(told(&finding)));
        findings.keep(&results, &all, |kept| kept.put(finding))?;
    }
    let seen = lab.whole(&findings, events)?;
    findings.keep(&results, &all, |kept| kept.confirm(&flags.lane, &seen))?;
    for finding in findings.findings.iter().filter(|found| chosen.iter().any(|mutant| mutant.name == found.mutant)) {
        println!("{}", told(finding));
    }
    println!("{}", findings.summary(&all));
    Ok(if findings.enough(&all) { Exit::Success } else { Exit::Regression })
}

/// Every mutant of a kernel of the checkout.
fn all(workshop: &Workshop<'_>, kernel: &str) -> Result<Vec<Mutant>> {
    let (patches, series) = workshop.mutants(kernel)?;
    let (base, _) = workshop.mutants(BASE)?;
    let is_own = |patch: &Patch| base.iter().all(|other| other.slug != patch.slug);
    patches.iter().map(|patch| header::parse(patch, series.as_deref(), is_own(patch))).collect()
}

/// Those that `flags` name, or all of the lane.
fn chosen<'a>(all: &'a [Mutant], flags: &TestFlags) -> Result<Vec<&'a Mutant>> {
    if flags.mutant.is_empty() {
        return Ok(all.iter().filter(|mutant| mutant.lane == flags.lane && mutant.gone.is_none()).collect());
    }
    let find = |name: &String| {
        let mutant = all.iter().find(|mutant| mutant.name == *name);
        let unknown =
            || Failure::error(Exit::Usage, format!("there is no mutant `{name}`: see `cargo xtask kernel list`"));
        let mutant = mutant.ok_or_else(unknown)?;
        if let Some(why) = &mutant.gone {
            return Err(Failure::error(Exit::Usage, format!("the mutant `{name}` is none on {}: {why}", flags.on)));
        }
        let other_lane = format!("the mutant `{name}` is for another lane: --lane {}", mutant.lane);
        if mutant.lane == flags.lane { Ok(mutant) } else { Err(Failure::error(Exit::Usage, other_lane)) }
    };
    flags.mutant.iter().map(find).collect()
}

/// What all boots of a run have in common.
struct Lab<'a> {
    workshop: Workshop<'a>,
    guest: PathBuf,
    machine: Box<dyn Machine>,
    /// The kernel that is not broken.
    whole: Kernel,
    lane: &'a str,
    commit: String,
}

impl Lab<'_> {
    /// Builds a mutant and boots it until something sees that it is broken: first the suite, then a storm.
    fn judge(&self, mutant: &Mutant, events: Events<'_>) -> Result<Finding> {
        let name = format!("mutant:{}@{}", mutant.name, self.whole.name);
        let kernel = self.workshop.prepare(&name, &["base", self.lane], events)?;
        let suite = self.boot(&kernel, "suite", Work::Suite(suite_job(&mutant.seen_by)), events)?;
        let mut wall_s = suite.wall_s;
        let mut killed = seen_in(&suite)?;
        if killed.is_none() {
            let job = small_storm::job(&PROFILES, self.machine.info().cpus, STORM);
            let storm = self.boot(&kernel, "storm", Work::Storm(job), events)?;
            wall_s += storm.wall_s;
            killed = seen_in(&storm)?;
        }
        let survived = || mutant.survives.clone().unwrap_or_else(|| "no reason is known".into());
        Ok(Finding {
            mutant: mutant.name.clone(),
            digest: mutant.digest.clone(),
            lane: self.lane.into(),
            ground: String::new(),
            kernel: kernel.key,
            machine: self.machine.info().clone(),
            mountlab_commit: self.commit.clone(),
            trials: verdict::trials_run(&suite.events),
            wall_s,
            confirmed: false,
            verdict: match killed {
                Some((by, why)) => Verdict::Killed { by, why },
                None => Verdict::Survived { why: survived() },
            },
        })
    }

    /// What the kernel that is not broken shows of the trials that killed. One that fails there is wrong, and its mutant survives. Where
    /// something else killed, a hang say, it runs all that a mutant has to run.
    ///
    /// # Errors
    /// It does not come through what it runs: then nothing is known of the mutants either.
    fn whole(&self, findings: &Findings, events: Events<'_>) -> Result<Vec<GuestEvent>> {
        let not_whole = || format!("{} does not pass what killed mutants", self.whole.name);
        if findings.doubts(self.lane) {
            let storm = small_storm::job(&PROFILES, self.machine.info().cpus, STORM);
            for (what, work) in [("whole-suite", Work::Suite(suite_job(&[]))), ("whole-storm", Work::Storm(storm))] {
                let log = self.boot(&self.whole, what, work, &mut *events)?;
                if let Some((by, why)) = seen_in(&log)? {
                    return Err(anyhow::anyhow!("{by}: {why}")).with_context(not_whole);
                }
            }
        }
        let first: Vec<String> = findings.unconfirmed(self.lane).into_iter().collect();
        if first.is_empty() {
            return Ok(Vec::new());
        }
        let job = SuiteJob { first, only_first: true, trial_limit_s: TRIAL_LIMIT_S, ..SuiteJob::default() };
        let log = self.boot(&self.whole, "confirm", Work::Suite(job), events)?;
        log.failure().map_or(Ok(()), Err).with_context(not_whole)?;
        Ok(log.events)
    }

    fn boot(&self, kernel: &Kernel, what: &str, work: Work, events: Events<'_>) -> Result<BootLog> {
        let name = plain(&kernel.name);
        let dir = self.workshop.root.join("target/lab-tests").join(format!("{name}-{}", self.lane)).join(what);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let job = Job { protocol: PROTOCOL, seed: 1, work };
        let boot = Boot {
            kernel: Some(kernel),
            guest: &self.guest,
            job: &job,
            dir: &dir,
            limits: LIMITS.times(patience(self.lane)),
            machine_seed: 1,
            evidence: None,
        };
        measure::boot_any(self.machine.as_ref(), &boot, &format!("{what} on {} ({})", kernel.name, self.lane), events)
    }
}

fn seen_in(log: &BootLog) -> Result<Option<(verdict::Killer, String)>> {
    let console = fs::read(&log.console).unwrap_or_default();
    verdict::killer(log, &console::judge(&String::from_utf8_lossy(&console)))
}

/// The whole suite up to the first failure, beginning with the trials that should see the mutant.
fn suite_job(seen_by: &[String]) -> SuiteJob {
    SuiteJob { first: seen_by.to_vec(), until_failure: true, trial_limit_s: TRIAL_LIMIT_S, ..SuiteJob::default() }
}

/// A finding in a line.
fn told(finding: &Finding) -> String {
    match &finding.verdict {
        Verdict::Killed { by, why } => format!("killed    {}: by {by}: {why}", finding.mutant),
        Verdict::Survived { why } => format!("SURVIVED  {}: {why}", finding.mutant),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;
    use crate::flags::{Command, Flags};
    use clap::Parser;

    fn flags(words: &[&str]) -> TestFlags {
        match Flags::parse_from([&["xtask", "test", "--mutants"], words].concat()).command {
            Command::Test(flags) => flags,
            _ => panic!("no test"),
        }
    }

    fn mutant(name: &str, lane: &str) -> Mutant {
        header::tests::of(name, &format!("Breaks: x\nLane: {lane}\n---\n")).unwrap()
    }

    #[test]
    fn a_lanes_own_mutants_run_or_those_that_are_named() {
        let gone = Mutant { gone: Some("no code".into()), ..mutant("g", "lockdep") };
        let all = [mutant("a", "lockdep"), mutant("b", "kasan"), mutant("c", "lockdep"), gone];
        let names = |words: &[&str]| -> Result<Vec<String>> {
            Ok(chosen(&all, &flags(words))?.iter().map(|mutant| mutant.name.clone()).collect())
        };
        assert_eq!(names(&[]).unwrap(), ["a", "c"]);
        assert_eq!(names(&["--lane=kasan"]).unwrap(), ["b"]);
        assert_eq!(names(&["--mutant=c,a"]).unwrap(), ["c", "a"]);
        assert_eq!(exit_code(&names(&["--mutant=b"]).unwrap_err()), Exit::Usage);
        assert_eq!(exit_code(&names(&["--mutant=d"]).unwrap_err()), Exit::Usage);
        let error = names(&["--mutant=g"]).unwrap_err();
        assert_eq!(
            (exit_code(&error), error.to_string()),
            (Exit::Usage, "the mutant `g` is none on mainline: no code".into())
        );
    }

    #[test]
    fn the_checkouts_own_mutants_say_what_they_break() {
        let cache_dir = tempfile::tempdir().unwrap();
        let cache = Cache::lock_at(cache_dir.path()).unwrap();
        let workshop = Workshop { root: Path::new(".."), cache: &cache, source: None };
        let lane_is_there =
            |mutant: &&Mutant| Path::new("../vm-configs/kconfig").join(format!("{}.config", mutant.lane)).exists();
        for (kernel, at_least) in [("mainline", 22), ("patched", 32)] {
            let all = all(&workshop, kernel).unwrap();
            assert!(all.len() >= at_least, "{kernel}: {}", all.len());
            assert_eq!(all.iter().filter(lane_is_there).count(), all.len());
            assert!(kernel == "patched" || all.iter().all(|mutant| mutant.gone.is_none()));
        }
    }
}
