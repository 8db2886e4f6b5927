//! `test`: first what needs no guest (unit tests, lints, series), then the suite in guests on mainline and the candidate.

use crate::cache::Cache;
use crate::event::{Event, Events};
use crate::failure::{Exit, exit_code};
use crate::flags::TestFlags;
use crate::kernel::{Kernel, Selftests, Workshop};
use crate::known::{self, Known};
use crate::machine::{Boot, BootLog, End, Fallback, Limits, Machine, MachineKind, Setting, Topology};
use crate::process::Task;
use crate::{bench, console, guest, machine, measure, report, setup};
use anyhow::{Context, Result};
use mount_storms::protocol::{GuestEvent, Job, Outcome, PROTOCOL, SelftestJob, SuiteJob, TrialResult, Work};
use mount_storms::race::{self, Race};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Limit of one trial in a guest, in seconds: lockdep under emulation is some fifty times slower than a host.
const TRIAL_LIMIT_S: u32 = 60;

/// Limit of one selftest program, in seconds: below the silence that a boot may keep, for a program reports nothing before it ends.
const SELFTEST_LIMIT_S: u32 = 75;

/// How many times as long everything may take in a lane: each access to memory is checked by KASAN and KCSAN, and KCSAN stops to watch besides.
fn patience(lane: &str) -> u32 {
    match lane {
        "kasan" | "faults" => 3,
        "kcsan" => 4,
        _ => 1,
    }
}

/// Limits of a boot that runs the suite. A trial is silent while it runs, hence more than its own limit.
const LIMITS: Limits =
    Limits { hello: Duration::from_secs(180), silence: Duration::from_secs(90), total: Duration::from_secs(1500) };

/// What was counted, over unit tests and trials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Held.
    pub passed: u64,
    /// Did not hold.
    pub failed: u64,
    /// Requirements not met here.
    pub skipped: u64,
}

impl Totals {
    fn add(&mut self, other: Totals) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    fn of_trials(trials: &[TrialResult]) -> Totals {
        let count = |wanted: fn(&Outcome) -> bool| trials.iter().filter(|trial| wanted(&trial.outcome)).count() as u64;
        Totals {
            passed: count(|outcome| matches!(outcome, Outcome::Passed)),
            failed: count(|outcome| matches!(outcome, Outcome::Failed { .. })),
            skipped: count(|outcome| matches!(outcome, Outcome::Skipped { .. })),
        }
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Runs everything; prints one line per part and the totals last, alone on their line.
///
/// # Errors
/// A part that could not be run at all. A part that ran and failed is counted, and makes the exit code 1.
pub fn test(flags: &TestFlags, root: &Path, events: Events<'_>) -> Result<Exit> {
    setup::ensure(&flags.setup, events)?;
    let cache = Cache::lock()?;
    let workshop = Workshop { root, cache: &cache, source: flags.source.source.as_deref() };
    workshop.check_names(&["mainline", &flags.kernel], &["base", &flags.lane])?;
    let kind = MachineKind::parse(&flags.machine.machine)?;
    machine::check(&kind)?;
    let topology = bench::topology(&flags.machine, flags.machine.one_cpus()?)?;
    let mut totals = Totals::default();
    if !flags.guests_only {
        totals.add(lints(root, events)?);
        totals.add(unit_tests(root, events)?);
        totals.add(series(&workshop, events));
    }
    if !flags.no_guests {
        totals.add(guests(flags, &workshop, &kind, &topology, events)?);
    }
    if !flags.no_guests && !flags.guests_only {
        totals.add(selfcheck(&workshop, events)?);
    }
    println!("{totals}");
    Ok(if totals.failed == 0 { Exit::Success } else { Exit::Regression })
}

/// Runs a part that is one command: passed or failed as a whole.
fn part(name: &str, command: Command, events: Events<'_>) -> Result<(Totals, String)> {
    events.hear(&Event::StageStarted { stage: name.to_owned() });
    let task =
        Task::new(command).limit(Duration::from_secs(1800)).on_failure(Exit::Regression, "mend it, then run it alone");
    match task.run() {
        Ok(output) => {
            println!("{name}: passed");
            Ok((Totals { passed: 1, ..Totals::default() }, output))
        }
        Err(error) if crate::process::interrupted() => Err(error),
        Err(error) => {
            println!("{name}: FAILED\n{error:#}");
            Ok((Totals { failed: 1, ..Totals::default() }, format!("{error:#}")))
        }
    }
}

fn cargo(root: &Path, args: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).args(args);
    cargo
}

fn lints(root: &Path, events: Events<'_>) -> Result<Totals> {
    let (mut totals, _) = part("cargo fmt", cargo(root, &["fmt", "--all", "--check"]), events)?;
    let clippy = cargo(root, &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]);
    totals.add(part("cargo clippy", clippy, events)?.0);
    Ok(totals)
}

/// Runs `cargo test`; its own counts replace the one of the part when it says them.
fn unit_tests(root: &Path, events: Events<'_>) -> Result<Totals> {
    let (whole, output) = part("cargo test", cargo(root, &["test", "--workspace", "--no-fail-fast"]), events)?;
    let counted = cargo_test_totals(&output);
    println!("cargo test: {counted}");
    // A crash before any count (a test binary that does not build) must not pass as "0 failed".
    Ok(if counted == Totals::default() || (whole.failed > 0 && counted.failed == 0) { whole } else { counted })
}

/// Sums the lines "test result: ok. 12 passed; 0 failed; 1 ignored; ..." of `cargo test`.
fn cargo_test_totals(output: &str) -> Totals {
    let mut totals = Totals::default();
    for line in output.lines().filter_map(|line| line.trim_start().strip_prefix("test result: ")) {
        let counts = line.split_once(". ").map_or("", |(_, counts)| counts);
        for (number, word) in counts.split("; ").filter_map(|count| count.split_once(' ')) {
            let number = number.parse().unwrap_or(0);
            match word {
                "passed" => totals.passed += number,
                "failed" => totals.failed += number,
                "ignored" => totals.skipped += number,
                _ => {}
            }
        }
    }
    totals
}

/// Checks the patches as `kernel check` does.
fn series(workshop: &Workshop<'_>, events: Events<'_>) -> Totals {
    events.hear(&Event::StageStarted { stage: "kernel check".into() });
    match workshop.check(events) {
        Ok(summary) => {
            println!("kernel check: {summary}");
            Totals { passed: 1, ..Totals::default() }
        }
        Err(error) => {
            println!("kernel check: FAILED\n{error:#}");
            Totals { failed: 1, ..Totals::default() }
        }
    }
}

/// Holds the simulated machine to its known answers; skipped, and said so, where no QEMU for it can be had.
fn selfcheck(workshop: &Workshop<'_>, events: Events<'_>) -> Result<Totals> {
    match machine::find_simulator(workshop.cache, &mut *events) {
        Err(error) if exit_code(&error) == Exit::Unavailable => {
            println!("selfcheck: skipped: {error:#}");
            return Ok(Totals { skipped: 1, ..Totals::default() });
        }
        found => found?,
    }
    let (passed, failed) = crate::selfcheck::quick(workshop, events)?;
    println!("selfcheck: {passed} held, {failed} did not");
    Ok(Totals { passed, failed, skipped: 0 })
}

/// Runs the suite in one guest per kernel: mainline first, because mainline is the reference.
fn guests(
    flags: &TestFlags,
    workshop: &Workshop<'_>,
    kind: &MachineKind,
    topology: &Topology,
    events: Events<'_>,
) -> Result<Totals> {
    let guest = guest::build(workshop.root, events)?;
    // Mainline is the reference; asked for by name it is all there is to test.
    let mut names = vec!["mainline", flags.kernel.as_str()];
    names.dedup();
    let subjects = names.iter().map(|name| subject(name, flags, workshop, events)).collect::<Result<Vec<_>>>()?;
    let (root, cache, kernel) = (workshop.root, workshop.cache, subjects.first().map(|subject| &subject.kernel));
    let setting = Setting { root, cache, kernel, guest: &guest, fallback: Fallback::Tcg, model: None };
    let opened = machine::open(kind, topology, &setting, &mut *events)?;
    events.hear(&Event::Note(opened.why));
    let mut totals = Totals::default();
    let mut known = None;
    for subject in &subjects {
        totals.add(suite(subject, flags, workshop.root, &guest, opened.machine.as_ref(), &mut known, events)?);
    }
    Ok(totals)
}

/// What one boot tests.
struct Subject {
    kernel: Kernel,
    /// Its own selftests; nothing with `--no-selftests`.
    selftests: Option<Selftests>,
}

fn subject(name: &str, flags: &TestFlags, workshop: &Workshop<'_>, events: Events<'_>) -> Result<Subject> {
    let kernel = workshop.prepare(name, &["base", &flags.lane], events)?;
    let selftests = if flags.no_selftests { None } else { Some(workshop.selftests(name, events)?) };
    Ok(Subject { kernel, selftests })
}

/// Boots one kernel and runs the suite in it. A boot that ends badly is a failure by itself, whatever its trials said. The first kernel is
/// mainline: what its selftests do becomes known.
fn suite(
    subject: &Subject,
    flags: &TestFlags,
    root: &Path,
    guest: &Path,
    machine: &dyn Machine,
    known: &mut Option<Known>,
    events: Events<'_>,
) -> Result<Totals> {
    let kernel = &subject.kernel;
    let dir = root.join("target/lab-tests").join(format!("{}-{}", kernel.name, flags.lane));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let slower = patience(&flags.lane);
    let selftests = subject.selftests.as_ref();
    let selftests_job =
        selftests.map(|built| SelftestJob { folder: built.programs.clone(), limit_s: SELFTEST_LIMIT_S * slower });
    let filter = flags.filter.clone();
    let work = Work::Suite(SuiteJob {
        filter,
        trial_limit_s: TRIAL_LIMIT_S * slower,
        selftests: selftests_job,
        ..SuiteJob::default()
    });
    let job = Job { protocol: PROTOCOL, seed: 1, work };
    let boot = Boot {
        kernel: Some(kernel),
        guest,
        job: &job,
        dir: &dir,
        limits: LIMITS.times(slower),
        machine_seed: 1,
        evidence: None,
    };
    let name = format!("suite on {} ({})", kernel.name, flags.lane);
    let (log, races) = without_races(measure::boot_any(machine, &boot, &name, events)?)?;
    let mut trials = trials(&log.events);
    trials.extend(selftests.iter().flat_map(|built| not_there(built)));
    let raced = known::races(&races, known.as_ref());
    let mut trials = match known {
        Some(known) => known.judge(trials),
        None => {
            let (mainline, trials) = Known::of_mainline(trials, races);
            *known = Some(mainline);
            trials
        }
    };
    trials.extend(raced);
    report::junit::write(&dir.join("junit.xml"), &name, &trials)?;
    let mut totals = Totals::of_trials(&trials);
    print!("{}", told(&name, &trials, totals));
    if let Some(failure) = log.failure() {
        println!("{name}: the boot ended badly: {failure:#}");
        totals.failed += 1;
    } else if totals.passed == 0 {
        println!("{name}: no trial ran");
        totals.failed += 1;
    }
    Ok(totals)
}

/// A boot whose console shows nothing but data races has not ended badly: they are judged one by one. Anywhere else a race is a splat.
fn without_races(log: BootLog) -> Result<(BootLog, BTreeSet<Race>)> {
    let console = fs::read(&log.console).unwrap_or_default();
    let (rest, races) = race::split(&String::from_utf8_lossy(&console));
    let was_done = log.events.last() == Some(&GuestEvent::Done);
    let end = match log.end {
        End::Splat(_) if was_done && !races.is_empty() && console::judge(&rest).is_empty() => End::Finished,
        end => end,
    };
    Ok((BootLog { end, ..log }, races))
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

/// Every trial that did not simply pass, with its reason, and the totals.
fn told(name: &str, trials: &[TrialResult], totals: Totals) -> String {
    let mut text = String::new();
    for trial in trials {
        match &trial.outcome {
            Outcome::Passed => {}
            Outcome::Failed { why } => text += &format!("  FAILED  {}: {why}\n", trial.name),
            Outcome::Skipped { why } => text += &format!("  skipped {}: {why}\n", trial.name),
        }
    }
    format!("{name}: {totals}\n{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_several_binaries_add_up() {
        let output = "running 3 tests\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                      test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";
        assert_eq!(cargo_test_totals(output), Totals { passed: 4, failed: 2, skipped: 1 });
        assert_eq!(cargo_test_totals("error: could not compile"), Totals::default());
    }

    #[test]
    fn the_last_line_is_plain() {
        assert_eq!(Totals { passed: 3, failed: 0, skipped: 1 }.to_string(), "3 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn failures_and_skips_are_told_with_their_reason() {
        let trial = |name: &str, outcome| TrialResult { name: name.into(), outcome, elapsed_ms: 1 };
        let trials = [
            trial("a::held", Outcome::Passed),
            trial("b::broke", Outcome::Failed { why: "EBUSY expected, got 0".into() }),
            trial("c::cannot", Outcome::Skipped { why: "one CPU".into() }),
        ];
        let totals = Totals::of_trials(&trials);
        let text = told("suite", &trials, totals);
        assert!(text.starts_with("suite: 1 passed, 1 failed, 1 skipped\n"), "{text}");
        assert!(
            text.contains("FAILED  b::broke: EBUSY expected") && text.contains("skipped c::cannot: one CPU"),
            "{text}"
        );
        assert!(!text.contains("a::held"));
    }
}
