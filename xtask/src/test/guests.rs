//! What `test` does in guests: the suite, the kernel's own selftests and small storms, on mainline first and then on the candidate.

use super::totals::{Totals, told};
use crate::event::{Event, Events};
use crate::flags::TestFlags;
use crate::kernel::{Kernel, Reach, Selftests, Workshop};
use crate::known::{self, Known};
use crate::lanes::{Booted, Current, Keeper, Tested, Wanted};
use crate::machine::{self, Boot, BootLog, End, Fallback, Limits, Machine, MachineKind, Setting, Topology};
use crate::process::check_interrupt;
use crate::results::plain;
use crate::side_by_side::{host_cpus, side_by_side};
use crate::{console, guest, lanes, measure, report, small_storm};
use anyhow::{Context, Result};
use mount_storms::protocol::{
    GuestEvent, Job, Outcome, PROTOCOL, Profile, SelftestJob, StormJob, SuiteJob, TrialResult, Work,
};
use mount_storms::race::{self, Races};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Limit of one trial in a guest, in seconds: lockdep under emulation is some fifty times slower than a host.
const TRIAL_LIMIT_S: u32 = 60;

/// Limit of one selftest program, in seconds: below the silence that a boot may keep, for a program reports nothing before it ends.
const SELFTEST_LIMIT_S: u32 = 75;

/// Limits of a boot that runs the suite or storms. A trial is silent while it runs, hence more than its own limit.
const LIMITS: Limits =
    Limits { hello: Duration::from_secs(180), silence: Duration::from_secs(90), total: Duration::from_secs(1500) };

/// Fewest CPUs of a guest that storms: as many as a series must stand, and more than a small host has.
const STORM_CPUS: u32 = 8;

/// Starts of containers in an iteration of a storm, for each CPU.
const CONTAINERS_PER_CPU: u32 = 2;

/// Layers of each container.
const STORM_LAYERS: u32 = 5;

/// Iterations of each storm: the leak oracle needs two.
const STORM_ITERATIONS: u32 = 2;

/// What boots are called.
const SUITE: &str = "suite";
const STORMS: &str = "storms";

/// The lane of data races.
const KCSAN: &str = "kcsan";

/// The lanes that the series is tested in.
const LANES: [&str; 4] = ["lockdep", "kasan", KCSAN, "faults"];

/// How many times as long everything may take in a lane: each access to memory is checked by KASAN and KCSAN, and KCSAN stops to watch besides.
pub fn patience(lane: &str) -> u32 {
    match lane {
        "kasan" | "faults" => 3,
        KCSAN => 4,
        _ => 1,
    }
}

/// Tests mainline and the candidates; mainline is judged first, because it is the reference. With `--keep`, writes down what was seen.
///
/// # Errors
/// A kernel that does not build, a machine that does not start, or a result that cannot be written.
pub fn guests(
    flags: &TestFlags,
    workshop: &Workshop<'_>,
    kind: &MachineKind,
    topology: &Topology,
    events: Events<'_>,
) -> Result<Totals> {
    let guest = guest::build(workshop.root, events)?;
    let names = names(flags, workshop)?;
    let mut subjects = names.iter().map(|name| subject(name, flags, workshop, events)).collect::<Result<Vec<_>>>()?;
    let keeper = if flags.keep { Some(keeper(flags, workshop, &subjects, events)?) } else { None };
    if flags.resume {
        leave_out_kept(&mut subjects, keeper.as_ref(), flags, guest::trials(&guest)?, events)?;
    }
    let lab = Lab::open(flags, workshop, kind, topology, guest, subjects.first(), events)?;
    let (mut totals, mut known, mut waiting) = (Totals::default(), None, BTreeMap::new());
    let (mut untold, at_once) = (0, flags.jobs.get() as usize);
    let test = |&index: &usize, events: Events<'_>| lab.test(&subjects[index], events);
    let mut tell = |index: usize, made: Made| -> Result<()> {
        let (seen, tested) = lab.tell(&subjects[index], made, &mut known)?;
        totals.add(seen);
        keeper.iter().try_for_each(|keeper| keeper.keep(tested.clone()))
    };
    let all = side_by_side((0..subjects.len()).collect(), at_once, test, events, |index, made, _| {
        waiting.insert(index, made?);
        // Told in order: mainline is what the others are judged by.
        while let Some(made) = waiting.remove(&untold) {
            tell(untold, made)?;
            untold += 1;
        }
        Ok(())
    });
    if all.is_err() && untold > 0 {
        // What was finished behind the one that was not is lost otherwise.
        waiting.into_iter().try_for_each(|(index, made)| tell(index, made))?;
    }
    all?;
    Ok(totals)
}

/// Keeps what these kernels show, and leaves what was kept of prefixes that are as they were.
fn keeper(flags: &TestFlags, workshop: &Workshop<'_>, subjects: &[Subject], events: Events<'_>) -> Result<Keeper> {
    let mut current = Current::default();
    let lanes = LANES.iter().copied().filter(|lane| *lane != flags.lane).chain([flags.lane.as_str()]);
    for lane in lanes {
        for name in workshop.prefixes("patched")?.into_iter().chain(["mainline", "patched"].map(str::to_owned)) {
            let key = workshop.key(&name, &["base", lane], &mut *events)?;
            current.0.insert((lane.to_owned(), name), key);
        }
    }
    let of_run = |subject: &Subject| ((flags.lane.clone(), subject.kernel.name.clone()), subject.kernel.key.clone());
    current.0.extend(subjects.iter().map(of_run));
    Ok(Keeper::new(workshop.root, &flags.lane, current))
}

/// Leaves out what was kept; never the first, which is mainline.
fn leave_out_kept(
    subjects: &mut Vec<Subject>,
    keeper: Option<&Keeper>,
    flags: &TestFlags,
    trials: u64,
    events: Events<'_>,
) -> Result<()> {
    let whats: &[&str] = if flags.no_storms { &[SUITE] } else { &[SUITE, STORMS] };
    let wanted = Wanted { whats, trials, selftests: !flags.no_selftests };
    let mut all = std::mem::take(subjects).into_iter();
    subjects.extend(all.next());
    for subject in all {
        if keeper.map(|keeper| keeper.has(&subject.kernel, &wanted)).transpose()? == Some(true) {
            events.hear(&Event::Note(format!("{}: kept already, left out", subject.kernel.name)));
        } else {
            subjects.push(subject);
        }
    }
    Ok(())
}

/// Mainline first, because it is the reference, and what is tested against it.
fn names(flags: &TestFlags, workshop: &Workshop<'_>) -> Result<Vec<String>> {
    let candidates = if flags.each { workshop.prefixes("patched")?.split_off(1) } else { flags.kernel.clone() };
    Ok(in_turn(candidates))
}

/// Mainline, then each of `candidates` once, in the order in which they were asked for. Where that is mainline only, nothing else is tested.
fn in_turn(candidates: Vec<String>) -> Vec<String> {
    let mut names = vec!["mainline".to_owned()];
    for name in candidates {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// One kernel to test.
struct Subject {
    kernel: Kernel,
    /// Its own selftests; nothing with `--no-selftests`.
    selftests: Option<Selftests>,
    /// What its patches can have to do with.
    reach: Option<Reach>,
}

fn subject(name: &str, flags: &TestFlags, workshop: &Workshop<'_>, events: Events<'_>) -> Result<Subject> {
    let kernel = workshop.prepare(name, &["base", &flags.lane], events)?;
    let selftests = if flags.no_selftests { None } else { Some(workshop.selftests(name, events)?) };
    Ok(Subject { kernel, selftests, reach: workshop.reach(name, events)? })
}

/// How many times as long it may take because `jobs` guests of `cpus` CPUs share the `host_cpus` of the host.
fn crowd(jobs: u32, cpus: u32, host_cpus: u32) -> u32 {
    (jobs * cpus).div_ceil(host_cpus.max(1)).clamp(1, jobs)
}

/// What the boots of one kernel showed, not yet judged.
#[derive(Default)]
struct Made {
    boots: Vec<Booted>,
    trials: Vec<TrialResult>,
    races: Races,
}

impl Made {
    /// Adds a boot, and the trials that `trials` reads from its log.
    fn add(
        &mut self,
        what: &str,
        machine: &dyn Machine,
        log: BootLog,
        trials: impl FnOnce(&BootLog) -> Vec<TrialResult>,
    ) {
        let (log, races) = without_races(log);
        self.trials.extend(trials(&log));
        self.races.extend(races);
        let ended = log.failure().map(|failure| format!("{failure:#}"));
        self.boots.push(Booted { what: what.into(), machine: machine.info().clone(), wall_s: log.wall_s, ended });
    }
}

/// What all boots have in common.
struct Lab<'a> {
    flags: &'a TestFlags,
    root: &'a Path,
    guest: PathBuf,
    suite_on: Box<dyn Machine>,
    storms_on: Box<dyn Machine>,
}

impl<'a> Lab<'a> {
    fn open(
        flags: &'a TestFlags,
        workshop: &Workshop<'a>,
        kind: &MachineKind,
        topology: &Topology,
        guest: PathBuf,
        first: Option<&Subject>,
        events: Events<'_>,
    ) -> Result<Lab<'a>> {
        let (root, cache, kernel) = (workshop.root, workshop.cache, first.map(|subject| &subject.kernel));
        let setting = Setting { root, cache, kernel, guest: &guest, fallback: Fallback::Tcg, model: None };
        let opened = machine::open(kind, topology, &setting, &mut *events)?;
        events.hear(&Event::Note(opened.why));
        // The same kind with more CPUs. What `auto` chose is not asked again: KVM may do with fewer CPUs of the host where nothing is timed.
        let kind = match kind {
            MachineKind::Auto => MachineKind::parse(&opened.machine.info().kind)?,
            other => other.clone(),
        };
        let wide = topology.clone().with_cpus(topology.cpus().max(STORM_CPUS))?;
        let storms_on = machine::open(&kind, &wide, &setting, &mut *events)?.machine;
        Ok(Lab { flags, root, guest, suite_on: opened.machine, storms_on })
    }

    /// Boots a kernel for the suite, and again for the storms.
    fn test(&self, subject: &Subject, events: Events<'_>) -> Result<Made> {
        let mut made = Made::default();
        // A filter may leave storms alone.
        if !self.flags.filter.as_ref().is_some_and(|filter| filter.starts_with(small_storm::AREA)) {
            let machine = self.suite_on.as_ref();
            let log = self.boot(subject, SUITE, machine, Work::Suite(self.suite_job(subject)), events)?;
            made.add(SUITE, machine, log, |log| trials(&log.events));
            made.trials.extend(subject.selftests.iter().flat_map(not_there));
        }
        let machine = self.storms_on.as_ref();
        if let Some(job) = storms(self.flags, machine.info().cpus) {
            let log = self.boot(subject, STORMS, machine, Work::Storm(job.clone()), events)?;
            made.add(STORMS, machine, log, |log| small_storm::trials(&job, log));
        }
        Ok(made)
    }

    /// How many times as long a boot may take on this machine, in this lane, beside others.
    fn slower(&self, machine: &dyn Machine) -> u32 {
        patience(&self.flags.lane) * crowd(self.flags.jobs.get(), machine.info().cpus, host_cpus() as u32)
    }

    fn suite_job(&self, subject: &Subject) -> SuiteJob {
        let slower = self.slower(self.suite_on.as_ref());
        let selftests =
            |built: &Selftests| SelftestJob { folder: built.programs.clone(), limit_s: SELFTEST_LIMIT_S * slower };
        SuiteJob {
            filter: self.flags.filter.clone(),
            trial_limit_s: TRIAL_LIMIT_S * slower,
            selftests: subject.selftests.as_ref().map(selftests),
            ..SuiteJob::default()
        }
    }

    fn boot(
        &self,
        subject: &Subject,
        what: &str,
        machine: &dyn Machine,
        work: Work,
        events: Events<'_>,
    ) -> Result<BootLog> {
        let kernel = &subject.kernel;
        let dir = self.dir(kernel).join(what);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let job = Job { protocol: PROTOCOL, seed: self.flags.seed, work };
        let limits = LIMITS.times(self.slower(machine) * machine.patience());
        let boot = Boot {
            kernel: Some(kernel),
            guest: &self.guest,
            job: &job,
            dir: &dir,
            limits,
            machine_seed: 1,
            evidence: None,
        };
        check_interrupt("the test")?;
        let log =
            measure::boot_any(machine, &boot, &format!("{what} on {} ({})", kernel.name, self.flags.lane), events)?;
        // A boot that somebody ended says nothing of its kernel.
        check_interrupt("the test")?;
        Ok(log)
    }

    fn dir(&self, kernel: &Kernel) -> PathBuf {
        self.root.join("target/lab-tests").join(format!("{}-{}", plain(&kernel.name), self.flags.lane))
    }

    /// Judges, prints, and writes what a CI shows. A boot that ended badly is a failure by itself, whatever its trials said. The first kernel
    /// is mainline: what its selftests do, and its data races in this run and in kept ones, become known.
    fn tell(&self, subject: &Subject, made: Made, known: &mut Option<Known>) -> Result<(Totals, Tested)> {
        let Made { boots, trials, races } = made;
        let mut raced = known::races(&races, known.as_ref(), subject.reach.as_ref());
        if known.is_none() && races.is_empty() && self.flags.filter.is_none() && self.flags.lane == KCSAN {
            raced.push(asleep());
        }
        let mut trials = match known {
            Some(known) => known.judge(trials),
            None => {
                let earlier = lanes::races(self.root, &self.flags.lane, &subject.kernel)?;
                let (mainline, trials) = Known::of_mainline(trials, races.into_iter().chain(earlier).collect());
                *known = Some(mainline);
                trials
            }
        };
        trials.extend(raced);
        trials.extend(boots.iter().filter_map(ended_badly));
        if !trials.iter().any(|trial| trial.outcome == Outcome::Passed) {
            trials.push(failed("boot::trials", "no trial ran"));
        }
        let kernel = &subject.kernel;
        let name = format!("{} ({})", kernel.name, self.flags.lane);
        report::junit::write(&self.dir(kernel).join("junit.xml"), &name, &trials)?;
        print!("{}", told(&name, &trials));
        Ok((Totals::of_trials(&trials), Tested::of(kernel, boots, &trials)))
    }
}

/// A boot that ended badly, as a trial that failed: counted, told and kept like any other.
fn ended_badly(boot: &Booted) -> Option<TrialResult> {
    Some(failed(&format!("boot::{}", boot.what), &format!("the boot ended badly: {}", boot.ended.as_ref()?)))
}

fn failed(name: &str, why: &str) -> TrialResult {
    TrialResult { name: name.into(), outcome: Outcome::Failed { why: why.into() }, elapsed_ms: 0 }
}

/// The storms that the flags ask for.
fn storms(flags: &TestFlags, cpus: u32) -> Option<StormJob> {
    let filter = flags.filter.as_deref().unwrap_or_default();
    let chosen: Vec<Profile> =
        small_storm::PROFILES.into_iter().filter(|&profile| small_storm::name(profile).contains(filter)).collect();
    let size = small_storm::Size {
        threads: cpus,
        containers: CONTAINERS_PER_CPU * cpus,
        layers: STORM_LAYERS,
        iterations: STORM_ITERATIONS,
    };
    (!flags.no_storms && !chosen.is_empty()).then(|| small_storm::job(&chosen, cpus, size))
}

/// A boot whose console shows nothing but data races has not ended badly: they are judged one by one. Anywhere else a race is a splat.
fn without_races(log: BootLog) -> (BootLog, Races) {
    let console = fs::read(&log.console).unwrap_or_default();
    let (rest, races) = race::split(&String::from_utf8_lossy(&console));
    let was_done = log.events.last() == Some(&GuestEvent::Done);
    let end = match log.end {
        End::Splat(_) if was_done && !races.is_empty() && console::judge(&rest).is_empty() => End::Finished,
        end => end,
    };
    (BootLog { end, ..log }, races)
}

/// What a whole suite without a single data race on mainline stands for: KCSAN that sleeps, and tells nothing of any kernel.
fn asleep() -> TrialResult {
    let why = "no data race was seen on mainline in a whole suite, and it has some: is KCSAN awake? See vm-configs/kconfig/kcsan.config";
    failed("kcsan::is_awake", why)
}

/// Selftests that were not built, as trials that could not run.
fn not_there(selftests: &Selftests) -> impl Iterator<Item = TrialResult> + '_ {
    let skipped = |(name, why): (&String, &String)| TrialResult {
        name: format!("selftest::{}", name.trim_start_matches("filesystems/")),
        outcome: Outcome::Skipped { why: why.clone() },
        elapsed_ms: 0,
    };
    selftests.not_there.iter().map(skipped)
}

fn trials(events: &[GuestEvent]) -> Vec<TrialResult> {
    let trial = |event: &GuestEvent| match event {
        GuestEvent::Trial(trial) => Some(trial.clone()),
        _ => None,
    };
    events.iter().filter_map(trial).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{Command, Flags};
    use clap::Parser;

    fn flags(words: &[&str]) -> TestFlags {
        match Flags::parse_from([&["xtask", "test"], words].concat()).command {
            Command::Test(flags) => flags,
            _ => panic!("no test"),
        }
    }

    #[test]
    fn every_profile_storms_on_all_cpus_unless_flags_leave_it_out() {
        let points = |words: &[&str]| storms(&flags(words), 8).map_or(0, |job| job.points.len());
        assert_eq!(points(&[]), 5);
        assert_eq!((points(&["--filter=storm::"]), points(&["--filter=storm::fds"])), (5, 1));
        assert_eq!((points(&["--filter=umount"]), points(&["--no-storms"])), (0, 0));
        let job = storms(&flags(&[]), 8).unwrap();
        assert!(job.points.iter().all(|point| (point.cpus, point.threads, point.containers) == (8, 8, 16)));
    }

    #[test]
    fn kernels_are_tested_once_each_after_mainline() {
        let turn = |words: &[&str]| in_turn(flags(words).kernel);
        assert_eq!(turn(&[]), ["mainline", "patched"]);
        assert_eq!(turn(&["--kernel=mainline"]), ["mainline"]);
        let chosen = ["--kernel=patched@15", "--kernel=patched@2", "--kernel=patched@15"];
        assert_eq!(turn(&chosen), ["mainline", "patched@15", "patched@2"]);
    }

    #[test]
    fn guests_that_share_cpus_have_more_time_and_no_more_than_they_take_from_each_other() {
        assert_eq!((crowd(1, 2, 2), crowd(1, 8, 2), crowd(2, 2, 2)), (1, 1, 2));
        assert_eq!((crowd(4, 2, 16), crowd(4, 8, 16), crowd(4, 8, 1)), (1, 2, 4));
    }

    fn log(console: &str, end: End) -> (tempfile::TempDir, BootLog) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        fs::write(&path, console).unwrap();
        (dir, BootLog { events: vec![GuestEvent::Done], end, console: path, wall_s: 1.0, summary: None })
    }

    #[test]
    fn data_races_alone_are_no_bad_end_and_a_splat_beside_them_is() {
        let report = "<3>[    2.0] ==================================================================\n\
            <3>[    2.0] BUG: KCSAN: data-race in a / b\n\
            <3>[    2.0] ==================================================================\n";
        let splat = || End::Splat(vec!["x".into()]);
        let (_dir, raced) = log(report, splat());
        let (raced, races) = without_races(raced);
        assert_eq!((raced.end, races.len()), (End::Finished, 1));
        let (_dir, both) = log(&format!("{report}<4>[    3.0] odd\n"), splat());
        assert_eq!(without_races(both).0.end, splat());
        let (_dir, hung) = log(report, End::Hang("x".into()));
        assert_eq!(without_races(hung).0.end, End::Hang("x".into()));
    }
}
