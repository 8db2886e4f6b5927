//! The running kernel as a machine: `lab-guest` as root, which makes itself a private mount namespace.

use super::watch::{Running, console_path, events_path, last_said, watch};
use super::{Boot, BootLog, Machine, MachineInfo};
use crate::failure::{Exit, Failure};
use crate::process::{Group, status_words};
use anyhow::{Context, Result};
use mount_storms::protocol::GuestEvent;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Longest record of /dev/kmsg (include/linux/printk.h, PRINTK_MESSAGE_MAX is 2048; older kernels go up to 8192).
const RECORD_BYTES: usize = 8192;

/// How long the guest may take to take its mounts down after SIGTERM.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// The host itself.
pub struct Host {
    info: MachineInfo,
}

impl Host {
    /// The host, if we may use it.
    ///
    /// # Errors
    /// Not root.
    pub fn new() -> Result<Host> {
        needs_root(geteuid().is_root())?;
        let cpus = std::thread::available_parallelism()?.get();
        let info = MachineInfo {
            kind: "host".into(),
            version: format!("Linux {}", nix::sys::utsname::uname()?.release().to_string_lossy()),
            cpus: u32::try_from(cpus)?,
            memory_mib: memory_mib(&fs::read_to_string("/proc/meminfo")?)?,
            topology: "host".into(),
            simulated: false,
        };
        Ok(Host { info })
    }
}

impl Machine for Host {
    fn info(&self) -> &MachineInfo {
        &self.info
    }

    fn boot(&self, boot: &Boot<'_>, on_event: &mut dyn FnMut(&GuestEvent)) -> Result<BootLog> {
        let job = boot.dir.join("job.json");
        fs::write(&job, serde_json::to_vec(boot.job)?)?;
        let mut command = Command::new(boot.guest);
        command.arg("run").arg(&job).arg(events_path(boot.dir));
        let log = boot.dir.join("guest.log");
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        // Opened before the guest starts: what the kernel says from here on is the guest's doing.
        let kernel_log = KernelLog::open(&console_path(boot.dir))?;
        let group = Group::spawn(&command, output.into())?;
        let mut running = RunningGuest { group, kernel_log, log };
        watch(&mut running, &Boot { kernel: None, ..*boot }, on_event)
    }
}

fn needs_root(root: bool) -> Result<()> {
    if root {
        return Ok(());
    }
    let message = "the machine 'host' mounts on the running kernel, which needs root\n\
                   next: run it with sudo, or take a machine that boots its own kernel (--machine auto)";
    Err(Failure::error(Exit::NotRoot, message))
}

fn memory_mib(meminfo: &str) -> Result<u64> {
    let line =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).context("/proc/meminfo has no MemTotal")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("MemTotal of /proc/meminfo is no number")?;
    Ok(kib / 1024)
}

struct RunningGuest {
    group: Group,
    kernel_log: KernelLog,
    log: PathBuf,
}

impl Running for RunningGuest {
    fn ended(&mut self) -> Result<Option<String>> {
        let status = self.group.try_wait()?;
        self.kernel_log.copy()?;
        Ok(status.map(|status| format!("lab-guest {}{}", status_words(status), last_said(&self.log))))
    }

    fn stop(&mut self) {
        if !matches!(self.group.try_wait(), Ok(Some(_))) {
            self.group.stop(STOP_GRACE);
        }
    }
}

/// Copies the kernel's messages from now on into the console file.
struct KernelLog {
    source: File,
    target: File,
}

impl KernelLog {
    fn open(target: &Path) -> Result<KernelLog> {
        let target = File::create(target).with_context(|| format!("cannot write {}", target.display()))?;
        let flags = OFlag::O_NONBLOCK.bits();
        let source = OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg");
        // SEEK_END of /dev/kmsg is the record after the last (kernel/printk/printk.c, devkmsg_llseek).
        let source = source.and_then(|mut file| file.seek(SeekFrom::End(0)).map(|_| file));
        Ok(KernelLog { source: source.map_err(|error| unseen(&error))?, target })
    }

    fn copy(&mut self) -> Result<()> {
        let mut record = [0; RECORD_BYTES];
        loop {
            match self.source.read(&mut record) {
                Ok(0) => return Ok(()),
                Ok(size) => writeln!(self.target, "{}", shown_record(&String::from_utf8_lossy(&record[..size])))?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // EPIPE: the oldest records were overwritten before we read them; the next read goes on behind the gap.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                    writeln!(self.target, "mountlab: some kernel messages were lost here")?;
                }
                Err(error) => return Err(error).context("cannot read /dev/kmsg"),
            }
        }
    }
}

/// A run whose splats nobody sees has no oracle for them, and so no number.
fn unseen(error: &std::io::Error) -> anyhow::Error {
    let message = format!(
        "/dev/kmsg cannot be read: {error}: a splat of this run would not be seen\n\
         next: run it outside of a container, or in one that has CAP_SYSLOG and /dev/kmsg"
    );
    Failure::error(Exit::Unavailable, message)
}

/// A record of /dev/kmsg ("4,1234,5678901,-;text", Documentation/ABI/testing/dev-kmsg) as a serial console shows it with
/// console_msg_format=syslog: "<4>[    5.678901] text". The number keeps its facility, which tells the kernel from programs.
fn shown_record(record: &str) -> String {
    let Some((head, text)) = record.trim_end().split_once(';') else { return record.trim_end().to_owned() };
    let mut fields = head.split(',').map(|field| field.parse::<u64>().unwrap_or(0));
    let priority = fields.next().unwrap_or(0);
    let microseconds = fields.nth(1).unwrap_or(0);
    let (seconds, rest) = (microseconds / 1_000_000, microseconds % 1_000_000);
    let text = text.lines().next().unwrap_or_default();
    format!("<{priority}>[{seconds:5}.{rest:06}] {text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;

    #[test]
    fn without_root_the_way_out_is_named() {
        let error = needs_root(false).unwrap_err();
        assert_eq!(exit_code(&error), Exit::NotRoot);
        assert!(error.to_string().contains("sudo"), "{error}");
        assert!(needs_root(true).is_ok());
    }

    #[test]
    fn a_record_looks_like_a_console_line() {
        let record = "4,1234,5678901,-;WARNING: CPU: 0\n SUBSYSTEM=block\n DEVICE=b7:0\n";
        assert_eq!(shown_record(record), "<4>[    5.678901] WARNING: CPU: 0");
        // 12 is level 4 of facility 1: a program wrote it, not the kernel.
        assert_eq!(shown_record("12,1,2000000,-;BUG: says a program\n"), "<12>[    2.000000] BUG: says a program");
    }

    #[test]
    fn a_run_whose_splats_nobody_sees_is_refused() {
        let error = unseen(&std::io::Error::from_raw_os_error(nix::libc::EPERM));
        assert_eq!(exit_code(&error), Exit::Unavailable);
        assert!(error.to_string().contains("CAP_SYSLOG"), "{error}");
    }

    #[test]
    fn memory_is_in_mib() {
        assert_eq!(memory_mib("MemTotal:        2015232 kB\nMemFree: 1 kB\n").unwrap(), 1968);
        assert!(memory_mib("MemFree: 1 kB\n").is_err());
    }
}
