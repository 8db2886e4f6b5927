//! The suite: every trial by area, and their run in one kernel.

mod beneath;
mod covers;
mod detached;
mod devices;
mod disturbed_storms;
mod faults;
mod lazy;
mod leaks;
mod limits;
mod locked;
mod model;
mod mount_events;
mod mount_setattr;
mod move_mount;
mod names;
mod namespaces;
mod open_tree;
mod overlay;
mod pivot_root;
mod propagation;
mod races;
mod receivers;
mod references;
mod remount;
mod shown;
mod statmount;
mod umount;
mod walks;
mod watchers;

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, ColorSetting, Completion, Failed};
use mount_storms::kmsg::MARKER;
use mount_storms::protocol::{GuestEvent, Outcome, SuiteJob, TrialResult};
use mount_storms::selftest;
use mount_storms::trial::{Trial, run_here, run_watched};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// A guest that is silent for longer than two seconds counts as hanging (see `GuestEvent::Progress`).
const PROGRESS: Duration = Duration::from_secs(1);

/// Names each trial after its function, in the area `$area`; a trial that is not listed here is dead code, and so a warning.
macro_rules! trials {
    ($area:literal: $($trial:ident),+ $(,)?) => {
        /// The trials of this area.
        pub(super) const TRIALS: &[mount_storms::trial::Trial] = &[
            $(mount_storms::trial::Trial { name: concat!($area, "::", stringify!($trial)), body: $trial }),+
        ];
    };
}
use trials;

const AREAS: &[&[Trial]] = &[
    open_tree::TRIALS,
    mount_setattr::TRIALS,
    move_mount::TRIALS,
    overlay::TRIALS,
    umount::TRIALS,
    propagation::TRIALS,
    locked::TRIALS,
    statmount::TRIALS,
    names::TRIALS,
    remount::TRIALS,
    races::TRIALS,
    detached::TRIALS,
    beneath::TRIALS,
    lazy::TRIALS,
    namespaces::TRIALS,
    pivot_root::TRIALS,
    walks::TRIALS,
    devices::TRIALS,
    limits::TRIALS,
    leaks::TRIALS,
    model::TRIALS,
    disturbed_storms::TRIALS,
    mount_events::TRIALS,
    faults::TRIALS,
    covers::TRIALS,
    receivers::TRIALS,
    references::TRIALS,
    shown::TRIALS,
    watchers::TRIALS,
];

/// Runs the trials that `job` names, one after the other, each in a process of its own, and emits each outcome. A trial that
/// failed is an outcome and no error.
///
/// # Errors
/// When the job names no trial, or gives none of them any time.
pub fn run(job: &SuiteJob, seed: u64, emit: &dyn Fn(GuestEvent)) -> Result<()> {
    let chosen = chosen(job)?;
    ensure!(job.trial_limit_s > 0, "a trial_limit_s of 0 gives no trial any time");
    let limit = Duration::from_secs(job.trial_limit_s.into());
    let total = chosen.len() as u64;
    let (sender, heard) = channel();
    let over = Arc::new(AtomicBool::new(false));
    let last_failure = job.until_failure.then_some(&over);
    let mimicked =
        chosen.into_iter().map(|trial| mimic(trial, seed, limit, sender.clone(), last_failure.cloned())).collect();
    drop(sender);
    std::thread::scope(|scope| {
        // One at a time: the kernel's log is attributed to the trial that runs. No colours: what a guest prints is a log.
        let color = Some(ColorSetting::Never);
        let arguments = Arguments { test_threads: Some(1), color, ..Arguments::default() };
        scope.spawn(move || libtest_mimic::run(&arguments, mimicked));
        report(&heard, total, |_| true, emit);
    });
    Ok(())
}

/// Whether the job names a trial.
pub fn any(job: &SuiteJob) -> bool {
    all().any(|trial| trial.name.contains(job.filter.as_deref().unwrap_or_default()))
}

/// Runs selftests, one after the other, and emits the outcome of each case and of each program.
pub fn run_selftests(programs: &[selftest::Program], limit: Duration, emit: &dyn Fn(GuestEvent)) {
    let (sender, results) = channel();
    let run = move || {
        let results = programs.iter().flat_map(|program| selftest::run(program, limit));
        // The receiver outlives the sender.
        results.for_each(|result| drop(sender.send(GuestEvent::Trial(result))));
    };
    std::thread::scope(|scope| {
        scope.spawn(run);
        report(&results, programs.len() as u64, |result| !selftest::is_case(&result.name), emit);
    });
}

/// Runs the body of one trial in this process: what [`run`] starts a child for.
pub fn run_one(name: &str) -> ExitCode {
    match all().find(|trial| trial.name == name) {
        Some(trial) => run_here(&trial),
        None => {
            eprintln!("there is no trial {name}");
            ExitCode::from(2)
        }
    }
}

/// Prints the names of all trials, one per line.
pub fn list() -> ExitCode {
    all().for_each(|trial| println!("{}", trial.name));
    ExitCode::SUCCESS
}

fn all() -> impl Iterator<Item = Trial> {
    AREAS.iter().copied().flatten().copied()
}

/// The trials of a job, in the order in which they run.
fn chosen(job: &SuiteJob) -> Result<Vec<Trial>> {
    let filter = job.filter.as_deref().unwrap_or_default();
    let is_first = |trial: &Trial| job.first.iter().any(|name| name == trial.name);
    let mut chosen: Vec<Trial> = all().filter(|trial| trial.name.contains(filter)).collect();
    ensure!(!chosen.is_empty(), "no trial's name contains {filter:?}");
    for name in &job.first {
        ensure!(chosen.iter().any(|trial| trial.name == name), "there is no trial {name:?} to run first");
    }
    chosen.retain(|trial| !job.only_first || is_first(trial));
    chosen.sort_by_key(|trial| !is_first(trial));
    Ok(chosen)
}

/// `over`, if there is one, is set by the first trial that fails; the trials after it do not run.
fn mimic(
    trial: Trial,
    seed: u64,
    limit: Duration,
    events: Sender<GuestEvent>,
    over: Option<Arc<AtomicBool>>,
) -> libtest_mimic::Trial {
    libtest_mimic::Trial::ignorable_test(trial.name, move || {
        if over.as_ref().is_some_and(|over| over.load(Ordering::Relaxed)) {
            return Ok(Completion::ignored_with("a trial before it failed"));
        }
        if over.is_some() {
            // Whoever waits for a failure wants to know what ran when the kernel failed.
            let begun = GuestEvent::Note { text: format!("{MARKER}{}", trial.name) };
            events.send(begun).map_err(|_| Failed::from("nobody waits for the outcome"))?;
        }
        let result = run_watched(trial.name, seed, limit);
        let outcome = result.outcome.clone();
        if let (Outcome::Failed { .. }, Some(over)) = (&outcome, &over) {
            over.store(true, Ordering::Relaxed);
        }
        events.send(GuestEvent::Trial(result)).map_err(|_| Failed::from("nobody waits for the outcome"))?;
        match outcome {
            Outcome::Passed => Ok(Completion::Completed),
            Outcome::Skipped { why } => Ok(Completion::ignored_with(why)),
            Outcome::Failed { why } => Err(why.into()),
        }
    })
}

/// Emits events as they come, and how many of `total` are done.
fn report(events: &Receiver<GuestEvent>, total: u64, counts: fn(&TrialResult) -> bool, emit: &dyn Fn(GuestEvent)) {
    let mut done = 0;
    loop {
        match events.recv_timeout(PROGRESS) {
            Ok(event) => {
                done += u64::from(matches!(&event, GuestEvent::Trial(result) if counts(result)));
                emit(event);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        emit(GuestEvent::Progress { done, total, unit: "trials".into() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_areas_and_sentences_and_unique() {
        let mut names: Vec<&str> = all().map(|trial| trial.name).collect();
        assert!(names.iter().all(|name| name.split_once("::").is_some_and(|(_, sentence)| sentence.contains('_'))));
        let listed = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), listed);
    }

    #[test]
    fn a_filter_that_fits_nothing_is_an_error() {
        let job = SuiteJob { filter: Some("no such trial".into()), trial_limit_s: 1, ..SuiteJob::default() };
        let error = run(&job, 1, &|_| {}).unwrap_err().to_string();
        assert!(error.contains("no such trial"), "{error}");
    }

    #[test]
    fn a_job_without_time_is_an_error() {
        assert!(run(&SuiteJob::default(), 1, &|_| {}).is_err());
    }

    #[test]
    fn trials_named_first_run_first_or_alone() {
        let names = |job: &SuiteJob| -> Vec<&str> { chosen(job).unwrap().iter().map(|trial| trial.name).collect() };
        let last = all().last().unwrap().name;
        let mut job = SuiteJob { first: vec![last.into()], ..SuiteJob::default() };
        assert_eq!((names(&job)[0], names(&job).len()), (last, all().count()));
        job.only_first = true;
        assert_eq!(names(&job), [last]);
        job.first.push("nowhere::to_be_found".into());
        assert!(chosen(&job).is_err());
    }

    #[test]
    fn mutants_name_trials_that_exist() {
        let entries = |dir: &str| std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
        let folders = entries("../kernel-patches/mutants").filter(|path| path.is_dir());
        let dirs = folders.map(|dir| dir.display().to_string()).chain(["../kernel-patches/mutants".to_owned()]);
        let files: Vec<_> = dirs.flat_map(|dir| entries(&dir)).filter(|path| path.is_file()).collect();
        assert!(files.iter().any(|file| file.parent().is_some_and(|dir| dir.ends_with("on-v7.3"))));
        for path in files {
            let text = std::fs::read_to_string(&path).unwrap();
            for name in text.lines().filter_map(|line| line.strip_prefix("Seen-by: ")) {
                assert!(all().any(|trial| trial.name == name), "{}: {name}", path.display());
            }
        }
    }
}
