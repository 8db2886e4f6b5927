//! QEMU as a machine: is it there, is it new enough, and one boot of it.

use super::disk::Disk;
use super::qemu_args::{Accel, BootFiles, arguments};
use super::topology::Topology;
use super::watch::{Running, console_path, events_path, last_said, watch};
use super::{Boot, BootLog, Machine, MachineInfo, initramfs};
use crate::failure::{Exit, Failure};
use crate::kernel::Kernel;
use crate::process::{Group, Task, status_words, with_parent_death_signal};
use anyhow::{Context, Result};
use mount_storms::protocol::{GuestEvent, Job, PROTOCOL, Work};
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

/// The program.
const QEMU: &str = "qemu-system-x86_64";

/// The oldest QEMU that the argument list is tested with: Debian 12's.
const OLDEST: Version = Version { major: 7, minor: 2, patch: 0 };

/// How long QEMU may take to end after SIGTERM; it only has files to close.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// A version of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// A version.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Version {
        Version { major, minor, patch }
    }

    /// Reads the first line of `qemu-system-x86_64 --version`: "QEMU emulator version 7.2.22 (Debian ...)".
    pub fn parse(output: &str) -> Option<Version> {
        let number = output.split("version ").nth(1)?.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let mut parts = number.split('.').map(str::parse::<u32>);
        let mut part = || parts.next().unwrap_or(Ok(0)).ok();
        Some(Version { major: part()?, minor: part()?, patch: part()? })
    }
}

/// The installed QEMU's version.
///
/// # Errors
/// QEMU is missing or too old: unavailable.
pub fn installed() -> Result<Version> {
    installed_as(QEMU)
}

fn installed_as(program: &str) -> Result<Version> {
    let mut command = Command::new(program);
    command.arg("--version");
    let output = Task::new(command)
        .limit(Duration::from_secs(20))
        .on_failure(Exit::Unavailable, format!("install QEMU {OLDEST} or newer; `cargo xtask setup` does it"))
        .run()?;
    new_enough(program, &output)
}

fn new_enough(program: &str, output: &str) -> Result<Version> {
    let first = output.lines().next().unwrap_or_default();
    let unusable =
        |what: String| Failure::error(Exit::Unavailable, format!("{what}\nnext: install QEMU {OLDEST} or newer"));
    match Version::parse(output) {
        None => Err(unusable(format!("`{program} --version` says '{first}', which is no version of QEMU"))),
        Some(version) if version < OLDEST => Err(unusable(format!("{program} is {version}, older than {OLDEST}"))),
        Some(version) => Ok(version),
    }
}

/// QEMU with one accelerator and one shape of machine.
pub struct Qemu {
    accel: Accel,
    topology: Topology,
    info: MachineInfo,
}

impl Qemu {
    /// A machine of this shape.
    ///
    /// # Errors
    /// QEMU is missing or too old.
    pub fn new(accel: Accel, topology: &Topology) -> Result<Qemu> {
        let info = MachineInfo {
            kind: accel.name().into(),
            version: format!("QEMU {}", installed()?),
            cpus: topology.cpus(),
            memory_mib: topology.memory.guest_mib,
            topology: topology.name.clone(),
            simulated: false,
        };
        Ok(Qemu { accel, topology: topology.clone(), info })
    }

    /// Boots with the console on this terminal; the guest offers its prompt. A person is the limit of this wait.
    pub fn interactive(&self, kernel: &Kernel, guest: &Path, dir: &Path) -> Result<ExitStatus> {
        let initrd = dir.join("initrd");
        let job = Job { protocol: PROTOCOL, seed: 1, work: Work::Shell };
        initramfs::write(&initrd, guest, &job)?;
        let events = events_path(dir);
        let files = BootFiles { kernel: &kernel.bzimage, initrd: &initrd, console: None, events: &events, disks: &[] };
        let mut command = Command::new(QEMU);
        command.args(arguments(self.accel, &self.topology, &files));
        let mut bound = with_parent_death_signal(&command);
        bound.stdin(Stdio::inherit()).status().with_context(|| format!("cannot start {QEMU}"))
    }
}

/// One boot of a QEMU: writes the files that it needs, starts what `command` makes of them, and watches it to its end.
pub fn boot_qemu(
    boot: &Boot<'_>,
    on_event: &mut dyn FnMut(&GuestEvent),
    command: impl FnOnce(&BootFiles<'_>) -> Command,
) -> Result<BootLog> {
    let kernel = boot.kernel.context("QEMU needs a kernel to boot")?;
    let initrd = boot.dir.join("initrd");
    initramfs::write(&initrd, boot.guest, boot.job)?;
    let disks = Disk::for_job(boot.job, boot.dir)?;
    let files = BootFiles {
        kernel: &kernel.bzimage,
        initrd: &initrd,
        console: Some(&console_path(boot.dir)),
        events: &events_path(boot.dir),
        disks: &disks,
    };
    let log = boot.dir.join("qemu.log");
    let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut running = RunningQemu { group: Group::spawn(&command(&files), output.into())?, log };
    let log = watch(&mut running, boot, on_event);
    fs::remove_file(&initrd).with_context(|| format!("cannot remove {}", initrd.display()))?;
    log
}

impl Machine for Qemu {
    fn info(&self) -> &MachineInfo {
        &self.info
    }

    fn boot(&self, boot: &Boot<'_>, on_event: &mut dyn FnMut(&GuestEvent)) -> Result<BootLog> {
        boot_qemu(boot, on_event, |files| {
            let mut command = Command::new(QEMU);
            command.args(arguments(self.accel, &self.topology, files));
            command
        })
    }
}

struct RunningQemu {
    group: Group,
    log: PathBuf,
}

impl Running for RunningQemu {
    fn ended(&mut self) -> Result<Option<String>> {
        let Some(status) = self.group.try_wait()? else { return Ok(None) };
        Ok(Some(format!("QEMU {}{}", status_words(status), last_said(&self.log))))
    }

    fn stop(&mut self) {
        if !matches!(self.group.try_wait(), Ok(Some(_))) {
            self.group.stop(STOP_GRACE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;

    #[test]
    fn versions_of_distributions_parse() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003-2022\n";
        let fedora = "QEMU emulator version 10.1.0 (qemu-10.1.0-3.fc43)\n";
        assert_eq!(Version::parse(debian).unwrap().to_string(), "7.2.22");
        assert_eq!(Version::parse(fedora).unwrap().to_string(), "10.1.0");
        assert_eq!(Version::parse("QEMU emulator version 9.2\n").unwrap().to_string(), "9.2.0");
        assert_eq!(Version::parse("bochs 2.7\n"), None);
    }

    #[test]
    fn an_old_or_strange_qemu_is_refused() {
        for (output, part) in [("QEMU emulator version 6.2.0 (Ubuntu)\n", "older than 7.2.0"), ("hello\n", "'hello'")] {
            let error = new_enough(QEMU, output).unwrap_err();
            assert_eq!(exit_code(&error), Exit::Unavailable);
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(new_enough(QEMU, "QEMU emulator version 7.2.0\n").is_ok());
    }

    #[test]
    fn a_missing_qemu_says_how_to_get_it() {
        let error = installed_as("qemu-that-is-not-there").unwrap_err();
        assert_eq!(exit_code(&error), Exit::Unavailable);
        assert!(error.to_string().contains("cargo xtask setup"), "{error}");
    }
}
