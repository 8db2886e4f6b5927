//! One job from hello to done, on a lab machine or on a running kernel.

use crate::shell;
use anyhow::{Context, Result, ensure};
use mount_storms::events::Events;
use mount_storms::load;
use mount_storms::protocol::{GuestEvent, JOB_PATH, Job, PROTOCOL, STORM_STAGE, SuiteJob, Work};
use mount_storms::selftest;
use mount_storms::storage::{BASE, Devices, mount_tmpfs};
use mount_storms::storm;
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// The job that lies in the initramfs.
pub fn run_on_lab_machine() -> ExitCode {
    match Events::of_lab_machine() {
        Ok(events) => reported(&events, || do_job(Path::new(JOB_PATH), Devices::Lab, &events)),
        Err(error) => unheard(&error),
    }
}

/// A job on a running kernel. Everything it mounts is in a mount namespace of this process alone, below a tmpfs over [`BASE`]: nothing
/// is left behind even by kill -9, and other processes see none of it.
pub fn run_on_running_kernel(job: &Path, events: &Path) -> ExitCode {
    match Events::to_file(events) {
        Ok(events) => reported(&events, || do_job(job, Devices::Host, &events)),
        Err(error) => unheard(&error),
    }
}

fn unheard(error: &anyhow::Error) -> ExitCode {
    eprintln!("lab-guest: {error:#}");
    ExitCode::from(2)
}

/// What a job was doing when it failed.
struct Stopped {
    stage: &'static str,
    error: anyhow::Error,
}

/// Does the work, and sends the last line.
fn reported(events: &Events, work: impl FnOnce() -> Result<(), Stopped>) -> ExitCode {
    match work() {
        Ok(()) => {
            events.send(&GuestEvent::Done);
            ExitCode::SUCCESS
        }
        Err(Stopped { stage, error }) => {
            eprintln!("lab-guest: {stage}: {error:#}");
            events.send(&GuestEvent::Failed { stage: stage.into(), error: format!("{error:#}") });
            ExitCode::FAILURE
        }
    }
}

fn do_job(path: &Path, devices: Devices, events: &Events) -> Result<(), Stopped> {
    let at = |stage: &'static str| move |error| Stopped { stage, error };
    let job = read_job(path).map_err(at("reading the job"))?;
    if devices == Devices::Host {
        leave_host().map_err(at("making a private mount namespace"))?;
    }
    events.send(&hello().map_err(at("saying hello"))?);
    match &job.work {
        Work::Hello => Ok(()),
        Work::Storm(storm) => storm::run(storm, job.seed, devices, events).map_err(|stopped| match stopped {
            storm::Stopped::Preparing(error) => at("preparing a storm")(error),
            storm::Stopped::Storming(error) => at(STORM_STAGE)(error),
        }),
        Work::Suite(suite) => run_suite(suite, job.seed, events).map_err(at("suite")),
        Work::Load(loads) => load::run(loads, events).map_err(at("load")),
        Work::Shell => shell::run(devices).map_err(at("shell")),
    }
}

fn run_suite(job: &SuiteJob, seed: u64, events: &Events) -> Result<()> {
    let emit = |event| events.send(&event);
    let programs = selftest::programs(job)?;
    // A filter may leave selftests alone; one that leaves nothing at all is the suite's error.
    if programs.is_empty() || crate::suite::any(job) {
        crate::suite::run(job, seed, &emit)?;
    }
    let limit_s = job.selftests.as_ref().map_or(0, |selftests| selftests.limit_s);
    crate::suite::run_selftests(&programs, Duration::from_secs(limit_s.into()), &emit);
    Ok(())
}

fn read_job(path: &Path) -> Result<Job> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let job: Job = serde_json::from_slice(&text).with_context(|| format!("{} is no job", path.display()))?;
    ensure!(job.protocol == PROTOCOL, "the job speaks protocol {}, this guest {PROTOCOL}: rebuild both", job.protocol);
    Ok(job)
}

/// From here on no mount of ours can reach the host, and none of the host's events us.
fn leave_host() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "this needs root: it mounts");
    unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", private).context("mount --make-rprivate /")?;
    mount_tmpfs(Path::new(BASE))
}

fn hello() -> Result<GuestEvent> {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").context("which CPUs are online")?;
    let meminfo = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    Ok(GuestEvent::Hello {
        protocol: PROTOCOL,
        kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
        cpus: cpus_in(&online).with_context(|| format!("no list of CPUs: {online:?}"))?,
        memory_kib: mem_total(&meminfo).context("/proc/meminfo has no MemTotal")?,
    })
}

/// Number of CPUs in a list like "0-3,8" (Documentation/admin-guide/cputopology.rst).
fn cpus_in(list: &str) -> Option<u32> {
    list.trim()
        .split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)? + 1)
        })
        .sum()
}

/// MemTotal in KiB.
fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_counted() {
        assert_eq!(cpus_in("0\n"), Some(1));
        assert_eq!(cpus_in("0-3,8,10-11\n"), Some(7));
        assert_eq!(cpus_in(""), None);
        assert_eq!(cpus_in("3-0"), None);
    }

    #[test]
    fn memory_is_in_kib() {
        assert_eq!(mem_total("MemTotal:         245760 kB\nMemFree:  1 kB\n"), Some(245_760));
        assert_eq!(mem_total("MemFree:  1 kB\n"), None);
    }

    #[test]
    fn a_job_of_another_protocol_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.json");
        fs::write(&path, r#"{"protocol":99,"seed":1,"work":{"kind":"hello"}}"#).unwrap();
        assert!(read_job(&path).unwrap_err().to_string().contains("protocol 99"));
        fs::write(&path, r#"{"protocol":1,"seed":1,"work":{"kind":"hello"}}"#).unwrap();
        assert_eq!(read_job(&path).unwrap().work, Work::Hello);
        fs::write(&path, r#"{"protocol":1,"see"#).unwrap();
        assert!(read_job(&path).unwrap_err().to_string().contains("is no job"));
    }

    #[test]
    fn a_failure_names_its_stage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let events = Events::to_file(&path).unwrap();
        let missing = dir.path().join("none.json");
        reported(&events, || do_job(&missing, Devices::Lab, &events));
        let last: GuestEvent = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert!(
            matches!(last, GuestEvent::Failed { stage, error } if stage == "reading the job" && error.contains("none.json"))
        );
    }
}
