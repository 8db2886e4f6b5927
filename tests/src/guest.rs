//! What a guest does: as PID 1 of a lab kernel, or as a plain program in a private mount namespace of a running one.

use crate::events::Events;
use crate::protocol::{GuestEvent, JOB_PATH, Job, PROTOCOL, SuiteJob, Work};
use crate::storm;
use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::reboot::{RebootMode, reboot};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use std::fs;
use std::path::Path;

/// Runs the trials of a suite; `lab-guest` hands it in, because the trials are not part of this library.
pub type SuiteRunner = fn(&SuiteJob, &Events) -> Result<()>;

/// What PID 1 mounts: source, target, type.
const MOUNTS: [(&str, &str, &str); 4] =
    [("proc", "/proc", "proc"), ("sysfs", "/sys", "sysfs"), ("dev", "/dev", "devtmpfs"), ("tmp", "/tmp", "tmpfs")];

/// The whole life of PID 1. Ends with the machine powered off.
pub fn pid_1(suite: SuiteRunner) -> ! {
    if let Err(error) = mount_all().and_then(|()| serve(suite)) {
        // There may be no channel yet: the console is all that is left.
        eprintln!("lab-guest: {error:#}");
    }
    power_off()
}

fn mount_all() -> Result<()> {
    for (source, target, fs_type) in MOUNTS {
        fs::create_dir_all(target).with_context(|| format!("mkdir {target}"))?;
        // The kernel has mounted devtmpfs already where CONFIG_DEVTMPFS_MOUNT reaches; a second mount changes nothing.
        mount(source, target, fs_type, MountFlags::empty(), None).with_context(|| format!("mounting {target}"))?;
    }
    Ok(())
}

fn serve(suite: SuiteRunner) -> Result<()> {
    let events = Events::of_machine()?;
    let job = read_job(Path::new(JOB_PATH));
    answer(job, Path::new("/tmp"), suite, &events);
    Ok(())
}

/// Runs a job on a running kernel, in a mount namespace of its own, in a folder of its own; nothing is left of either.
///
/// # Errors
/// The job cannot be read or the event file cannot be written; everything else is told as an event.
pub fn on_running_kernel(job: &Path, events: &Path, suite: SuiteRunner) -> Result<()> {
    let events = Events::to_file(events)?;
    let job = read_job(job);
    let base = tempdir()?;
    match enter_private_namespace(&base) {
        Ok(()) => {
            answer(job, &base, suite, &events);
            let _ = unmount(&base, UnmountFlags::DETACH);
        }
        Err(error) => events.say(&failed("entering a private mount namespace", &error)),
    }
    fs::remove_dir(&base).with_context(|| format!("cannot remove {}", base.display()))
}

fn tempdir() -> Result<std::path::PathBuf> {
    nix::unistd::mkdtemp("/tmp/mountlab-XXXXXX").context("cannot make a folder below /tmp")
}

fn enter_private_namespace(base: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare CLONE_NEWNS (root is needed)")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context("making / private")?;
    mount("mountlab", base, "tmpfs", MountFlags::empty(), None).context("mounting a tmpfs")
}

fn read_job(path: &Path) -> Result<Job> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let job: Job = serde_json::from_str(&text).with_context(|| format!("{} is no job", path.display()))?;
    ensure!(job.protocol == PROTOCOL, "the job speaks protocol {}, this guest {PROTOCOL}", job.protocol);
    Ok(job)
}

/// Says hello, does the job, says how it ended.
fn answer(job: Result<Job>, base: &Path, suite: SuiteRunner, events: &Events) {
    let result = hello().and_then(|hello| {
        events.say(&hello);
        work(&job?, base, suite, events)
    });
    events.say(&match result {
        Ok(()) => GuestEvent::Done,
        Err(error) => failed("the job", &error),
    });
}

fn failed(stage: &str, error: &anyhow::Error) -> GuestEvent {
    GuestEvent::Failed { stage: stage.into(), error: format!("{error:#}") }
}

fn hello() -> Result<GuestEvent> {
    let kernel_release = rustix::system::uname().release().to_string_lossy().into_owned();
    let memory = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let cpus = std::thread::available_parallelism()?.get() as u32;
    Ok(GuestEvent::Hello { protocol: PROTOCOL, kernel_release, cpus, memory_kib: memory_kib(&memory)? })
}

/// MemTotal of /proc/meminfo, KiB.
fn memory_kib(meminfo: &str) -> Result<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let number = line.and_then(|line| line.split_whitespace().next()).context("/proc/meminfo has no MemTotal")?;
    Ok(number.parse()?)
}

fn work(job: &Job, base: &Path, suite: SuiteRunner, events: &Events) -> Result<()> {
    match &job.work {
        Work::Hello => Ok(()),
        Work::Storm(storm) => storm::run(storm, job.seed, base, events),
        Work::Suite(job) => suite(job, events),
        Work::Shell if std::process::id() == 1 => crate::prompt::run(),
        Work::Shell => bail!("a prompt needs a machine of its own"),
    }
}

/// Powers off. A kernel without ACPI can only restart, which ends QEMU as well (-no-reboot).
fn power_off() -> ! {
    rustix::fs::sync();
    let _ = reboot(RebootMode::RB_POWER_OFF);
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    // The kernel panics when PID 1 ends: an end is better than a hang.
    std::process::exit(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read() {
        assert_eq!(memory_kib("MemTotal:        2031892 kB\nMemFree: 1 kB\n").unwrap(), 2_031_892);
        assert!(memory_kib("MemFree: 1 kB\n").is_err());
    }

    #[test]
    fn a_job_of_another_protocol_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job");
        let mut job = Job { protocol: PROTOCOL, seed: 1, work: Work::Hello };
        fs::write(&path, serde_json::to_string(&job).unwrap()).unwrap();
        assert_eq!(read_job(&path).unwrap(), job);
        job.protocol += 1;
        fs::write(&path, serde_json::to_string(&job).unwrap()).unwrap();
        assert!(read_job(&path).unwrap_err().to_string().contains("protocol"));
    }
}
