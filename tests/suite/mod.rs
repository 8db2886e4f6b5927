//! The suite: every trial by area, and their run in one kernel.

mod beneath;
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
mod remount;
mod statmount;
mod umount;
mod walks;

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, ColorSetting, Completion, Failed};
use mount_storms::protocol::{GuestEvent, Outcome, SuiteJob, TrialResult};
use mount_storms::selftest;
use mount_storms::trial::{Trial, run_here, run_watched};
use std::process::ExitCode;
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
];

/// Runs the trials that `job` names, one after the other, each in a process of its own, and emits each outcome. A trial that
/// failed is an outcome and no error.
///
/// # Errors
/// When the job names no trial, or gives none of them any time.
pub fn run(job: &SuiteJob, emit: &dyn Fn(GuestEvent)) -> Result<()> {
    let chosen: Vec<Trial> =
        all().filter(|trial| trial.name.contains(job.filter.as_deref().unwrap_or_default())).collect();
    ensure!(!chosen.is_empty(), "no trial's name contains {:?}", job.filter.as_deref().unwrap_or_default());
    ensure!(job.trial_limit_s > 0, "a trial_limit_s of 0 gives no trial any time");
    let limit = Duration::from_secs(job.trial_limit_s.into());
    let total = chosen.len() as u64;
    let (sender, results) = channel();
    let mimicked = chosen.into_iter().map(|trial| mimic(trial, limit, sender.clone())).collect();
    drop(sender);
    std::thread::scope(|scope| {
        // One at a time: the kernel's log is attributed to the trial that runs. No colours: what a guest prints is a log.
        let color = Some(ColorSetting::Never);
        let arguments = Arguments { test_threads: Some(1), color, ..Arguments::default() };
        scope.spawn(move || libtest_mimic::run(&arguments, mimicked));
        report(&results, total, |_| true, emit);
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
    let run = move |program| selftest::run(program, limit).into_iter().try_for_each(|result| sender.send(result));
    std::thread::scope(|scope| {
        scope.spawn(move || programs.iter().try_for_each(run));
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

fn all() -> impl Iterator<Item = Trial> {
    AREAS.iter().copied().flatten().copied()
}

fn mimic(trial: Trial, limit: Duration, results: Sender<TrialResult>) -> libtest_mimic::Trial {
    libtest_mimic::Trial::ignorable_test(trial.name, move || {
        let result = run_watched(trial.name, limit);
        let outcome = result.outcome.clone();
        results.send(result).map_err(|_| Failed::from("nobody waits for the outcome"))?;
        match outcome {
            Outcome::Passed => Ok(Completion::Completed),
            Outcome::Skipped { why } => Ok(Completion::ignored_with(why)),
            Outcome::Failed { why } => Err(why.into()),
        }
    })
}

/// Emits results as they come, and how many of `total` are done.
fn report(results: &Receiver<TrialResult>, total: u64, counts: fn(&TrialResult) -> bool, emit: &dyn Fn(GuestEvent)) {
    let mut done = 0;
    loop {
        match results.recv_timeout(PROGRESS) {
            Ok(result) => {
                done += u64::from(counts(&result));
                emit(GuestEvent::Trial(result));
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
        let error = run(&job, &|_| {}).unwrap_err().to_string();
        assert!(error.contains("no such trial"), "{error}");
    }

    #[test]
    fn a_job_without_time_is_an_error() {
        assert!(run(&SuiteJob::default(), &|_| {}).is_err());
    }
}
