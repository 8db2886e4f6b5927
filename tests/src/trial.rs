//! A trial and its run: each in a process of its own, with a limit, its outcome joined with what the kernel logged meanwhile.

use crate::call::{Skip, Verdict};
use crate::kmsg::Kmsg;
use crate::model::SEED_VARIABLE;
use crate::protocol::{Outcome, TrialResult};
use crate::race;
use crate::scratch::Scratch;
use crate::splat::judge_kmsg;
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Exit status of a skipped trial: automake's.
const SKIPPED: u8 = 77;

/// How often a waiting runner looks at its trial.
const POLL: Duration = Duration::from_millis(2);

/// How long a killed trial may take to end; one that takes longer hangs in the kernel.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// Splat lines that one outcome shows; the rest are counted.
const SPLATS_SHOWN: usize = 8;

/// A trial.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// `area::sentence`.
    pub name: &'static str,
    /// What must hold; gets an empty scratch in a mount namespace of its own.
    pub body: fn(&Scratch) -> Verdict,
}

/// Runs a trial's body in this process, which must have no other threads.
pub fn run_here(trial: &Trial) -> ExitCode {
    // A trial never outlives its runner. Its children are in its process group, which the runner kills.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    match Scratch::enter().and_then(|scratch| (trial.body)(&scratch)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(if error.is::<Skip>() { SKIPPED } else { 1 })
        }
    }
}

/// Runs a trial in a child, and fails it if the kernel logged a splat meanwhile, whatever the body said. `seed` is that of its random choices.
pub fn run_watched(name: &str, seed: u64, limit: Duration) -> TrialResult {
    let start = Instant::now();
    let outcome = watched(name, seed, limit).unwrap_or_else(|error| Outcome::Failed { why: format!("{error:#}") });
    TrialResult { name: name.into(), outcome, elapsed_ms: start.elapsed().as_millis() as u64 }
}

fn watched(name: &str, seed: u64, limit: Duration) -> Result<Outcome> {
    let mut log = Kmsg::mark(name)?;
    let outcome = run_child(name, seed, limit)?;
    Ok(with_splats(outcome, &splats_in(&log.records()?)))
}

fn run_child(name: &str, seed: u64, limit: Duration) -> Result<Outcome> {
    let mut command = Command::new("/proc/self/exe");
    command.args(["trial", name]).env(SEED_VARIABLE, seed.to_string());
    let Ran { in_time, status, said } = run_limited(command, limit)?;
    let said = said.trim_end().to_owned();
    Ok(match (in_time, status) {
        (true, Some(status)) => read_outcome(status, said),
        (_, Some(_)) => Outcome::Failed { why: format!("not done after {limit:?}, killed. {said}") },
        (_, None) => Outcome::Failed { why: format!("not done after {limit:?}, and not even SIGKILL ends it. {said}") },
    })
}

/// What came of a program that was run with a limit.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Whether it ended before the limit.
    pub in_time: bool,
    /// How it ended; nothing if not even SIGKILL ended it.
    pub status: Option<ExitStatus>,
    /// All it wrote to stdout and stderr.
    pub said: String,
}

/// Runs a program in a process group of its own, which is killed at the limit or when the program has ended.
pub(crate) fn run_limited(mut command: Command, limit: Duration) -> Result<Ran> {
    let mut output = File::from(rustix::fs::memfd_create("trial", MemfdFlags::CLOEXEC)?);
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()
        .context("cannot start the trial's process")?;
    let in_time = ends_within(&child, limit)?;
    // Not reaped yet, so its id still names this group. ESRCH would mean that nobody is left in it.
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    let status = if ends_within(&child, KILL_GRACE)? { Some(child.wait()?) } else { None };
    let mut said = Vec::new();
    output.rewind()?;
    output.read_to_end(&mut said)?;
    Ok(Ran { in_time, status, said: String::from_utf8_lossy(&said).into_owned() })
}

/// Waits for a child's end without reaping it.
fn ends_within(child: &Child, limit: Duration) -> Result<bool> {
    let start = Instant::now();
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        let status = waitid(Id::Pid(Pid::from_raw(child.id() as i32)), flags).context("cannot wait for the trial")?;
        let ended = status != WaitStatus::StillAlive;
        if ended || start.elapsed() >= limit {
            return Ok(ended);
        }
        std::thread::sleep(POLL);
    }
}

fn read_outcome(status: ExitStatus, said: String) -> Outcome {
    match status.code() {
        Some(0) => Outcome::Passed,
        Some(code) if code == i32::from(SKIPPED) => Outcome::Skipped { why: said },
        Some(1) => Outcome::Failed { why: said },
        Some(code) => Outcome::Failed { why: format!("exit status {code}: {said}") },
        None => Outcome::Failed { why: format!("signal {:?}: {said}", status.signal()) },
    }
}

/// Splats in records of the log. Data races are left to the host: it knows which of them mainline has, and a race is met by chance, in
/// whatever trial runs then.
pub(crate) fn splats_in(records: &str) -> Vec<String> {
    judge_kmsg(&race::split(records).0)
}

/// An outcome, and a failure if there were splats.
pub(crate) fn with_splats(outcome: Outcome, splats: &[String]) -> Outcome {
    if splats.is_empty() {
        return outcome;
    }
    let before = match outcome {
        Outcome::Failed { why } => format!("{why}; and "),
        Outcome::Passed | Outcome::Skipped { .. } => String::new(),
    };
    let shown = splats[..splats.len().min(SPLATS_SHOWN)].join(" | ");
    Outcome::Failed { why: format!("{before}the kernel logged {} splat lines: {shown}", splats.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(outcome: Outcome) -> String {
        let Outcome::Failed { why } = outcome else { panic!("{outcome:?}") };
        why
    }

    #[test]
    fn the_exit_status_says_how_a_trial_ended() {
        let read = |wait_status| read_outcome(ExitStatus::from_raw(wait_status), "said".into());
        assert_eq!(read(0), Outcome::Passed);
        assert_eq!(read(77 << 8), Outcome::Skipped { why: "said".into() });
        assert_eq!(failed(read(1 << 8)), "said");
        assert!(failed(read(101 << 8)).contains("101"));
        assert!(failed(read(11)).contains("signal Some(11)"));
    }

    #[test]
    fn a_splat_fails_whatever_the_body_said() {
        let splats = vec!["WARNING: at fs/namespace.c:1".to_owned(); 20];
        assert!(failed(with_splats(Outcome::Passed, &splats)).contains("20 splat lines"));
        assert!(failed(with_splats(Outcome::Skipped { why: "no".into() }, &splats)).contains("WARNING"));
        assert!(failed(with_splats(Outcome::Failed { why: "body".into() }, &splats)).starts_with("body; and"));
        assert_eq!(with_splats(Outcome::Passed, &[]), Outcome::Passed);
    }
}
