//! A prompt in the guest: busybox's or /bin/sh where there is one, else a few words of our own.

use anyhow::{Context, Result};
use mount_storms::events::Events;
use mount_storms::protocol::{
    Manner, Profile, Propagation, READER_PERIOD_US, Storage, StormJob, StormPoint, Surroundings,
};
use mount_storms::storage::Devices;
use mount_storms::storm;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

const HELP: &str = "\
storm   run a small storm and show its events
mounts  show /proc/self/mountinfo
dmesg   show the kernel's log
exit    power off (so does the end of input)";

/// Longest record of /dev/kmsg (PRINTK_MESSAGE_MAX of kernel/printk/internal.h, with room for older kernels' 8192).
const KMSG_RECORD_BYTES: usize = 8192;

/// Talks with whoever sits at the console until they leave.
///
/// # Errors
/// The console cannot be read, or a real shell cannot be started.
pub fn run(devices: Devices) -> Result<()> {
    match real_shell() {
        Some(mut shell) => shell.status().map(drop).with_context(|| format!("cannot start {shell:?}")),
        None => prompt(devices),
    }
}

fn real_shell() -> Option<Command> {
    if Path::new("/bin/busybox").exists() {
        let mut shell = Command::new("/bin/busybox");
        shell.arg("sh");
        return Some(shell);
    }
    Path::new("/bin/sh").exists().then(|| Command::new("/bin/sh"))
}

fn prompt(devices: Devices) -> Result<()> {
    println!("lab-guest's own prompt; `help` lists what it knows");
    let mut lines = io::stdin().lock().lines();
    loop {
        print!("lab> ");
        io::stdout().flush()?;
        let Some(line) = lines.next() else { return Ok(()) };
        match line.context("cannot read the console")?.trim() {
            "exit" => return Ok(()),
            word => {
                if let Err(error) = obey(word, devices) {
                    println!("{error:#}");
                }
            }
        }
    }
}

fn obey(word: &str, devices: Devices) -> Result<()> {
    match word {
        "" => {}
        "storm" => storm::run(&small_storm(), 1, devices, &Events::to_file(Path::new("/proc/self/fd/1"))?)
            .map_err(storm::Stopped::error)?,
        "mounts" => print!("{}", fs::read_to_string("/proc/self/mountinfo")?),
        "dmesg" => dmesg()?,
        "help" => println!("{HELP}"),
        _ => println!("no command {word:?}\n{HELP}"),
    }
    Ok(())
}

fn small_storm() -> StormJob {
    let point = StormPoint {
        profile: Profile::Detach,
        storage: Storage::Tmpfs,
        propagation: Propagation::Shared,
        cpus: 2,
        threads: 2,
        containers: 8,
        layers: 10,
        inspection_passes: 1,
    };
    StormJob {
        points: vec![point],
        iterations: 1,
        warmup_iterations: 1,
        manner: Manner::CONTAINERD,
        readers: Vec::new(),
        reader_period_us: READER_PERIOD_US,
        surroundings: Surroundings::default(),
    }
}

/// Each read gives one record, and EAGAIN after the last (Documentation/ABI/testing/dev-kmsg).
fn dmesg() -> Result<()> {
    let mut kmsg = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open("/dev/kmsg")?;
    let mut record = [0; KMSG_RECORD_BYTES];
    loop {
        match kmsg.read(&mut record) {
            Ok(length) => print!("{}", String::from_utf8_lossy(&record[..length])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            // EPIPE: records were overwritten before we read them.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error).context("cannot read /dev/kmsg"),
        }
    }
}
