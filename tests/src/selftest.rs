//! Kernel selftests: programs of the tested tree, each in a process group and a mount namespace of its own, with a limit. Their results
//! become trials.

use crate::kmsg::Kmsg;
use crate::protocol::{Outcome, SuiteJob, TrialResult};
use crate::tap::Tap;
use crate::trial::{Ran, run_limited, splats_in, with_splats};
use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

/// The argument with which a guest becomes a selftest.
pub const SELFTEST: &str = "selftest";

/// Area of the trials.
const AREA: &str = "selftest";

/// KSFT_SKIP (tools/testing/selftests/kselftest.h).
const SKIPPED: i32 = 4;

/// Lines of a program without cases that its outcome shows.
const LINES_SHOWN: usize = 5;

/// A selftest program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Program {
    /// `selftest::folder/program`.
    pub name: String,
    path: PathBuf,
}

/// The programs of a job that its filter leaves: those whose name contains it, and the one that a case is named of.
///
/// # Errors
/// The folder cannot be read.
pub fn programs(job: &SuiteJob) -> Result<Vec<Program>> {
    let Some(selftests) = &job.selftests else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for folder in entries(&selftests.folder)?.into_iter().filter(|path| path.is_dir()) {
        found.extend(entries(&folder)?.into_iter().map(|path| Program { name: name_of(&path), path }));
    }
    found.sort();
    let filter = job.filter.as_deref().unwrap_or_default();
    found.retain(|program| program.name.contains(filter) || filter.starts_with(&program.name));
    Ok(found)
}

/// Whether a name is that of a case, and not of a whole program.
pub fn is_case(name: &str) -> bool {
    name.split("::").count() > 2
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    Ok(entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<_>>()?)
}

/// The last two parts of a path.
fn name_of(path: &Path) -> String {
    let part = |path: Option<&Path>| {
        path.and_then(Path::file_name).map_or_else(String::new, |part| part.to_string_lossy().into_owned())
    };
    format!("{AREA}::{}/{}", part(path.parent()), part(Some(path)))
}

/// Runs a program: one result for each case, and one for the program as a whole, which carries its time.
pub fn run(program: &Program, limit: Duration) -> Vec<TrialResult> {
    let start = Instant::now();
    let mut results = watched(program, limit)
        .unwrap_or_else(|error| vec![trial(&program.name, Outcome::Failed { why: format!("{error:#}") })]);
    if let Some(whole) = results.last_mut() {
        whole.elapsed_ms = start.elapsed().as_millis() as u64;
    }
    results
}

fn watched(program: &Program, limit: Duration) -> Result<Vec<TrialResult>> {
    let mut log = Kmsg::mark(&program.name)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(SELFTEST).arg(&program.path);
    let ran = run_limited(command, limit)?;
    let tap = Tap::read(&ran.said);
    let whole = with_splats(whole(&tap, &ran, limit), &splats_in(&log.records()?));
    let mut results: Vec<TrialResult> =
        tap.cases.into_iter().map(|(case, outcome)| trial(&format!("{}::{case}", program.name), outcome)).collect();
    results.push(trial(&program.name, whole));
    Ok(results)
}

/// A case has no time of its own: programs do not say it.
fn trial(name: &str, outcome: Outcome) -> TrialResult {
    TrialResult { name: name.into(), outcome, elapsed_ms: 0 }
}

/// What is to be said of a program besides its cases: it must end in time, by itself, having run what it planned.
fn whole(tap: &Tap, ran: &Ran, limit: Duration) -> Outcome {
    let failed = |why: String| Outcome::Failed { why };
    let planned = tap.planned.unwrap_or(tap.ran);
    match ran.status {
        None => failed(format!("not done after {limit:?}, and not even SIGKILL ends it")),
        Some(_) if !ran.in_time => failed(format!("not done after {limit:?}, killed. {}", last_lines(&ran.said))),
        Some(status) if status.code() == Some(SKIPPED) => Outcome::Skipped { why: last_lines(&ran.said) },
        Some(_) if planned != tap.ran => {
            failed(format!("planned {planned} cases and ran {}. {}", tap.ran, last_lines(&ran.said)))
        }
        Some(status) => ended(status, tap, &ran.said),
    }
}

/// A failed case is told as such, and need not be told again.
fn ended(status: ExitStatus, tap: &Tap, said: &str) -> Outcome {
    match status.code() {
        Some(0) => Outcome::Passed,
        Some(_) if tap.any_failed() => Outcome::Passed,
        _ => Outcome::Failed { why: format!("{status}. {}", last_lines(said)) },
    }
}

fn last_lines(said: &str) -> String {
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LINES_SHOWN)..].join(" | ")
}

/// Becomes a program: what it mounts ends with it, and nothing of it reaches the mount namespace that the next one starts in.
pub fn become_program(path: &Path) -> ExitCode {
    match enter(path) {
        Ok(()) => {
            let error = Command::new(path).exec();
            eprintln!("cannot execute {}: {error}", path.display());
        }
        Err(error) => eprintln!("{error:#}"),
    }
    ExitCode::FAILURE
}

fn enter(path: &Path) -> Result<()> {
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .context("mount --make-rprivate /")?;
    // Some programs write beside themselves, as kselftest's runner lets them.
    std::env::set_current_dir(path.parent().context("a program lies in a folder")?).context("cannot go to its folder")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::SelftestJob;
    use std::os::unix::process::ExitStatusExt;

    fn judged(said: &str, wait_status: Option<i32>, in_time: bool) -> Outcome {
        let ran = Ran { in_time, status: wait_status.map(ExitStatus::from_raw), said: said.into() };
        whole(&Tap::read(said), &ran, Duration::from_secs(1))
    }

    fn why(outcome: Outcome) -> String {
        let Outcome::Failed { why } = outcome else { panic!("{outcome:?}") };
        why
    }

    #[test]
    fn a_program_must_run_what_it_planned_and_end_by_itself() {
        assert_eq!(judged("1..1\nok 1 a\n", Some(0), true), Outcome::Passed);
        assert!(why(judged("1..2\nok 1 a\n", Some(0), true)).contains("planned 2 cases and ran 1"));
        assert!(why(judged("1..1\nok 1 a\n", Some(11), true)).contains("signal: 11"));
        assert!(why(judged("1..1\nok 1 a\n", Some(9), false)).contains("killed"));
        assert!(why(judged("", None, false)).contains("SIGKILL"));
    }

    #[test]
    fn a_failed_case_is_told_once() {
        assert_eq!(judged("1..1\nnot ok 1 a\n", Some(1 << 8), true), Outcome::Passed);
        assert!(why(judged("1..1\nok 1 a\n", Some(1 << 8), true)).contains("exit status: 1"));
    }

    #[test]
    fn a_program_without_cases_is_judged_by_its_exit_status() {
        assert_eq!(judged("all is well\n", Some(0), true), Outcome::Passed);
        assert!(why(judged("mount: EPERM\n", Some(1 << 8), true)).contains("mount: EPERM"));
        assert_eq!(judged("no binderfs\n", Some(4 << 8), true), Outcome::Skipped { why: "no binderfs".into() });
    }

    #[test]
    fn a_filter_may_name_programs_or_a_case() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["nsfs/owner", "nsfs/pidns", "openat2/openat2_test"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let selftests = Some(SelftestJob { folder: dir.path().into(), limit_s: 1 });
        let names = |filter: Option<&str>| -> Vec<String> {
            let filter = filter.map(str::to_owned);
            let job = SuiteJob { filter, selftests: selftests.clone(), ..SuiteJob::default() };
            programs(&job).unwrap().into_iter().map(|program| program.name).collect()
        };
        assert_eq!(names(None), ["selftest::nsfs/owner", "selftest::nsfs/pidns", "selftest::openat2/openat2_test"]);
        assert_eq!(names(Some("nsfs/p")), ["selftest::nsfs/pidns"]);
        assert_eq!(names(Some("selftest::nsfs/owner::1")), ["selftest::nsfs/owner"]);
        assert_eq!(names(Some("umount::")), [""; 0]);
        assert!(is_case("selftest::nsfs/owner::1") && !is_case("selftest::nsfs/owner"));
    }
}
