//! virtme-ng as a machine: the kernel boots with the host's file system as its root, and `lab-guest` is started in it.

use super::kvm_probe::{self, Probe};
use super::topology::Topology;
use super::watch::{Running, console_path, events_path, watch};
use super::{Boot, BootLog, Machine, MachineInfo, Setting};
use crate::failure::Exit;
use crate::process::{Group, Task, shown, status_words};
use anyhow::{Context, Result};
use mount_storms::protocol::GuestEvent;
use nix::unistd::geteuid;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

/// The release that is installed where there is none, from PyPI; the oldest that the arguments below were tried with.
const PACKAGE: &str = "virtme-ng==1.42";

/// How long virtme-ng and its QEMU may take to end.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// virtme-ng with one shape of machine. Of the topology it takes the number of CPUs and the memory.
pub struct Virtme {
    vng: PathBuf,
    kvm: bool,
    info: MachineInfo,
}

impl Virtme {
    /// Finds virtme-ng, or installs it into a Python environment in the cache.
    ///
    /// # Errors
    /// QEMU is missing, virtme-ng cannot be installed.
    pub fn new(topology: &Topology, setting: &Setting<'_>) -> Result<Virtme> {
        super::qemu::installed()?;
        let vng = match find_vng(setting.cache.dir()) {
            Some(vng) => vng,
            None => install(setting.cache.dir())?,
        };
        let kvm = matches!(kvm_probe::probe(setting)?, Probe::Works(_));
        let info = MachineInfo {
            kind: "virtme".into(),
            version: format!("{}, {}", version(&vng)?, if kvm { "kvm" } else { "tcg" }),
            cpus: topology.cpus(),
            memory_mib: topology.memory.guest_mib,
            topology: topology.name.clone(),
            simulated: false,
        };
        Ok(Virtme { vng, kvm, info })
    }
}

impl Machine for Virtme {
    fn info(&self) -> &MachineInfo {
        &self.info
    }

    fn boot(&self, boot: &Boot<'_>, on_event: &mut dyn FnMut(&GuestEvent)) -> Result<BootLog> {
        let kernel = boot.kernel.context("virtme-ng needs a kernel to boot")?;
        let dir = boot.dir.canonicalize().with_context(|| format!("no folder {}", boot.dir.display()))?;
        let guest = dir.join("lab-guest");
        // Copied, because virtme-ng hides some of the host's folders (/tmp, /run) from the guest but shows this one.
        fs::copy(boot.guest, &guest).with_context(|| format!("cannot copy {}", boot.guest.display()))?;
        fs::write(dir.join("job.json"), serde_json::to_vec(boot.job)?)?;
        let vng = vng_command(&self.vng, &kernel.bzimage, &dir, &self.info, self.kvm);
        let mut running = RunningVirtme::start(&contained(&vng, geteuid().is_root()), &console_path(&dir))?;
        let log = watch(&mut running, boot, on_event);
        fs::remove_file(&guest).with_context(|| format!("cannot remove {}", guest.display()))?;
        log
    }
}

/// `vng` with its arguments; each says why it is there.
fn vng_command(vng: &Path, kernel: &Path, dir: &Path, info: &MachineInfo, kvm: bool) -> Command {
    let mut command = Command::new(vng);
    // Prints the boot console, where panics and splats show.
    command.arg("--verbose");
    command.arg("--run").arg(kernel);
    if !kvm {
        // virtme-ng takes KVM wherever the device opens, which is no proof that it works.
        command.arg("--disable-kvm");
    }
    // 9p is in the lab's kernels, virtiofs and its daemon need not be.
    command.arg("--force-9p");
    command.args(["--cpus", &info.cpus.to_string(), "--memory", &format!("{}M", info.memory_mib)]);
    // The one folder of the host that the guest may write to: its events go there.
    command.arg(format!("--rwdir={}", dir.display()));
    // As on QEMU's command line: warnings with their level, panic on an oops. virtme-ng itself adds panic=-1.
    command.args(["--append", "console_msg_format=syslog loglevel=5 oops=panic"]);
    command.arg("--exec").arg(guest_command(dir));
    // virtme-ng starts its own helpers by name.
    command.env("PATH", search_path(vng));
    command
}

fn guest_command(dir: &Path) -> String {
    let mut guest = Command::new(dir.join("lab-guest"));
    guest.arg("run").arg(dir.join("job.json")).arg(events_path(dir));
    shown(&guest)
}

fn search_path(vng: &Path) -> OsString {
    let mut path = vng.parent().map(|parent| parent.as_os_str().to_owned()).unwrap_or_default();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    path
}

/// `command` as the first process of a process namespace. virtme-ng starts QEMU through two more programs, which a death signal does not
/// reach; but a namespace ends with its first process, and --kill-child ends that with us.
fn contained(command: &Command, root: bool) -> Command {
    let mut outer = Command::new("unshare");
    if !root {
        outer.args(["--user", "--map-current-user"]);
    }
    outer.args(["--pid", "--fork", "--kill-child=KILL", "--"]).arg(command.get_program()).args(command.get_args());
    outer.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    outer
}

fn find_vng(cache: &Path) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain([environment(cache).join("bin")]);
    folders.map(|folder| folder.join("vng")).find(|candidate| candidate.is_file())
}

fn environment(cache: &Path) -> PathBuf {
    cache.join("virtme-ng")
}

/// A Python environment in the cache with virtme-ng in it: nothing else on the host changes.
fn install(cache: &Path) -> Result<PathBuf> {
    let environment = environment(cache);
    let mut create = Command::new("python3");
    create.args(["-m", "venv"]).arg(&environment);
    Task::new(create).on_failure(Exit::Unavailable, "install python3-venv, or virtme-ng itself (`vng`)").run()?;
    let mut pip = Command::new(environment.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", PACKAGE]);
    Task::new(pip)
        .on_failure(Exit::Unavailable, "virtme-ng comes from PyPI: check the network, or put a `vng` on PATH")
        .run()?;
    Ok(environment.join("bin/vng"))
}

fn version(vng: &Path) -> Result<String> {
    let mut command = Command::new(vng);
    command.arg("--version");
    let output = Task::new(command).limit(Duration::from_secs(60)).run()?;
    Ok(output.lines().next().unwrap_or("virtme-ng of unknown version").trim().to_owned())
}

struct RunningVirtme {
    group: Group,
    copier: Option<JoinHandle<()>>,
}

impl RunningVirtme {
    /// Its output goes through a pipe into the console file: given the file itself, QEMU would open and truncate it several times.
    fn start(command: &Command, console: &Path) -> Result<RunningVirtme> {
        let (mut reader, writer) = io::pipe()?;
        let mut file = File::create(console).with_context(|| format!("cannot write {}", console.display()))?;
        let group = Group::spawn(command, writer.into())?;
        let copier = std::thread::spawn(move || {
            // Ends when the last writer has ended. A full disk shows as an incomplete console, and the guest's events tell the rest.
            let _ = io::copy(&mut reader, &mut file);
        });
        Ok(RunningVirtme { group, copier: Some(copier) })
    }
}

impl Running for RunningVirtme {
    fn ended(&mut self) -> Result<Option<String>> {
        Ok(self.group.try_wait()?.map(|status| format!("virtme-ng {}", status_words(status))))
    }

    fn stop(&mut self) {
        if !matches!(self.group.try_wait(), Ok(Some(_))) {
            self.group.stop(STOP_GRACE);
        }
        if let Some(copier) = self.copier.take() {
            let _ = copier.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> MachineInfo {
        MachineInfo {
            kind: "virtme".into(),
            version: String::new(),
            cpus: 2,
            memory_mib: 2048,
            topology: "smoke".into(),
            simulated: false,
        }
    }

    fn built(kvm: bool) -> String {
        let dir = Path::new("/cache/boot 1");
        shown(&vng_command(Path::new("/venv/bin/vng"), Path::new("/k/bzImage"), dir, &info(), kvm))
    }

    #[test]
    fn vng_runs_the_guest_with_one_writable_folder() {
        let command = built(false);
        for part in ["--run /k/bzImage", "--disable-kvm", "--cpus 2 --memory 2048M", "--rwdir=/cache/boot 1"] {
            assert!(command.contains(part), "{part} is missing in: {command}");
        }
        assert!(!built(true).contains("--disable-kvm"));
    }

    #[test]
    fn the_guests_command_survives_a_shell() {
        let command = guest_command(Path::new("/cache/boot 1"));
        assert_eq!(command, "'/cache/boot 1/lab-guest' run '/cache/boot 1/job.json' '/cache/boot 1/events.jsonl'");
    }

    #[test]
    fn helpers_are_found_beside_vng() {
        assert!(search_path(Path::new("/venv/bin/vng")).to_string_lossy().starts_with("/venv/bin:"));
    }

    #[test]
    fn a_process_namespace_ends_with_us() {
        let mut vng = Command::new("vng");
        vng.arg("--run").env("PATH", "/x");
        let root = contained(&vng, true);
        assert_eq!(shown(&root), "unshare --pid --fork --kill-child=KILL -- vng --run");
        assert!(root.get_envs().any(|(key, _)| key == "PATH"));
        assert!(shown(&contained(&vng, false)).starts_with("unshare --user --map-current-user --pid"));
    }

    #[test]
    fn a_vng_in_the_cache_is_found() {
        let cache = tempfile::tempdir().unwrap();
        let bin = environment(cache.path()).join("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join("vng"), "").unwrap();
        assert!(find_vng(cache.path()).unwrap().ends_with("bin/vng"));
    }
}
