//! PID 1 of a lab machine: mounts what a program expects, has a child do the job, reaps what dies, powers off.
//!
//! The job runs in a child so that its crash is reported as such, and not as a kernel panic for want of an init.

use anyhow::{Context, Result};
use mount_storms::events::Events;
use mount_storms::protocol::GuestEvent;
use mount_storms::storage::mount_tmpfs;
use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::mount::{MountFlags, mount};
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// The argument with which PID 1 starts itself again.
pub const WORK: &str = "work";

/// Longest job. The host's limits are shorter; this one is for a machine that nobody watches.
const JOB_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// How long a killed child may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How often to look for the dead. Rare, so that it takes nothing from the storm.
const REAP_POLL: Duration = Duration::from_millis(50);

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Exited(i32),
    Killed(Signal),
    OutOfTime,
}

/// Never returns on a real machine: an init that ends is a kernel panic.
pub fn run() -> ExitCode {
    let last_word = match mount_essentials().and_then(|()| job()) {
        Ok(end) => crash(end),
        Err(error) => Some(format!("{error:#}")),
    };
    if let Some(error) = last_word {
        report(&error);
    }
    power_off()
}

fn mount_essentials() -> Result<()> {
    for (fs_type, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(at)?;
        match mount(fs_type, at, fs_type, MountFlags::empty(), None) {
            // Mounted by the kernel already (CONFIG_DEVTMPFS_MOUNT).
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot mount {fs_type} at {at}")),
        }
    }
    fs::create_dir_all("/tmp")?;
    mount_tmpfs(Path::new("/tmp"))
}

fn job() -> Result<End> {
    let child = Command::new("/proc/self/exe").arg(WORK).spawn().context("cannot start the job's process")?;
    let child = Pid::from_raw(i32::try_from(child.id())?);
    if let Some(end) = reap_until(child, JOB_LIMIT)? {
        return Ok(end);
    }
    kill(child, Signal::SIGKILL)?;
    reap_until(child, KILL_LIMIT)?;
    Ok(End::OutOfTime)
}

/// Reaps whatever dies until `child` does, and says how that ended; `None` if it did not in time.
fn reap_until(child: Pid, limit: Duration) -> Result<Option<End>> {
    let start = Instant::now();
    while start.elapsed() < limit {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return Ok(Some(End::Exited(code))),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return Ok(Some(End::Killed(signal))),
            Ok(WaitStatus::StillAlive) => std::thread::sleep(REAP_POLL),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for the job's process"),
        }
    }
    Ok(None)
}

/// What is to be said of a child that ended so: nothing if it has sent its last line itself.
fn crash(end: End) -> Option<String> {
    match end {
        End::Exited(0 | 1) => None,
        End::Exited(code) => Some(format!("the job's process ended with exit status {code}, see the console")),
        End::Killed(signal) => Some(format!("the job's process was killed by {signal}")),
        End::OutOfTime => Some(format!("the job did not end within {JOB_LIMIT:?}")),
    }
}

/// The job's process is gone, so the event port is free again.
fn report(error: &str) {
    eprintln!("lab-guest: {error}");
    match Events::of_lab_machine() {
        Ok(events) => events.send(&GuestEvent::Failed { stage: "init".into(), error: error.into() }),
        Err(error) => eprintln!("lab-guest: {error:#}"),
    }
}

/// Nothing is synced: all file systems are thrown away with the machine.
fn power_off() -> ExitCode {
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("lab-guest: cannot power off: {error}");
    // The host ends the machine; until then there must be an init.
    std::thread::sleep(JOB_LIMIT);
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_crash_is_reported_by_init() {
        assert_eq!(crash(End::Exited(0)), None);
        // The job said why it failed.
        assert_eq!(crash(End::Exited(1)), None);
        assert!(crash(End::Exited(101)).unwrap().contains("exit status 101"));
        assert!(crash(End::Killed(Signal::SIGSEGV)).unwrap().contains("SIGSEGV"));
        assert!(crash(End::OutOfTime).unwrap().contains("86400s"));
    }
}
