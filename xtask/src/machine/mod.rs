//! Where a kernel runs: each machine boots a kernel with a guest and a job, and yields the guest's events.

mod disk;
mod host;
mod initramfs;
mod kind;
mod kvm_probe;
mod mock;
mod mock_model;
mod qemu;
mod qemu_args;
mod simulated;
mod tail;
mod topology;
mod verdict;
mod virtme;
mod watch;

pub use kind::MachineKind;
#[cfg(test)]
pub use simulated::Waits;
pub use simulated::{Evidence, Model, Region};
pub use topology::Topology;

use crate::cache::Cache;
use crate::event::Events;
use crate::failure::{Exit, Failure};
use crate::kernel::Kernel;
use anyhow::Result;
use kvm_probe::Probe;
use mount_storms::protocol::{GuestEvent, Job};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a machine is, as results record it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineInfo {
    /// "kvm", "tcg", "virtme", "host", "mock", "simulated".
    pub kind: String,
    /// Version of the emulator, or empty.
    pub version: String,
    /// CPUs of the guest.
    pub cpus: u32,
    /// Memory of the guest, MiB.
    pub memory_mib: u64,
    /// Name of the topology (`vm-configs/<topology>.toml`).
    pub topology: String,
    /// Whether its clock is a model and not a clock: figures from it say "simulated".
    pub simulated: bool,
}

impl MachineInfo {
    /// Whether its time is virtual: the host's load cannot disturb it, and machines run side by side do not disturb each other.
    pub fn has_virtual_time(&self) -> bool {
        self.kind == qemu_args::Accel::Simulated.name()
    }
}

/// One boot to make.
pub struct Boot<'a> {
    /// The kernel; `None` on the `host` machine, which has one already.
    pub kernel: Option<&'a Kernel>,
    /// The static `lab-guest` binary.
    pub guest: &'a Path,
    /// What the guest shall do.
    pub job: &'a Job,
    /// Seed of what the machine itself draws: the simulated one, in which order its CPUs take turns.
    pub machine_seed: u64,
    /// What the simulated machine is to tell besides; others have nothing to tell.
    pub evidence: Option<&'a Evidence>,
    /// Empty folder for this boot's console.log and events.jsonl.
    pub dir: &'a Path,
    /// How long to wait for what.
    pub limits: Limits,
}

/// Limits of one boot. Every wait has one.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From start to the guest's hello.
    pub hello: Duration,
    /// Longest silence of the event channel after that.
    pub silence: Duration,
    /// The whole boot.
    pub total: Duration,
}

impl Limits {
    /// The same limits, each so many times as long.
    pub fn times(self, factor: u32) -> Limits {
        Limits { hello: self.hello * factor, silence: self.silence * factor, total: self.total * factor }
    }
}

/// What came of a boot.
#[derive(Clone, Debug, PartialEq)]
pub struct BootLog {
    /// The guest's events, in order.
    pub events: Vec<GuestEvent>,
    /// How it ended.
    pub end: End,
    /// Console log, for a person.
    pub console: PathBuf,
    /// Real time from start to end, in seconds.
    pub wall_s: f64,
    /// What the simulated machine says of it.
    pub summary: Option<simulated::Summary>,
}

/// How a boot ended; each is a verdict of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest said it was done, and its console is clean.
    Finished,
    /// The guest said that it could not do its job.
    GuestFailed(String),
    /// The guest said that a call of a storm failed, or that what the storm left behind was in the way.
    StormFailed(String),
    /// The kernel panicked; the line that says so.
    Panic(String),
    /// The console shows something that the splat policy does not allow; the lines.
    Splat(Vec<String>),
    /// Nothing was heard for longer than a limit; which, and the last console line.
    Hang(String),
    /// The machine ended before the guest was done; how.
    Died(String),
    /// Ctrl-C.
    Interrupted,
}

/// Something that can boot a kernel and run a guest.
pub trait Machine: Sync {
    /// What it is.
    fn info(&self) -> &MachineInfo;
    /// By how much limits are to be longer than usual: how much longer the host takes over a second of the guest's clock.
    fn patience(&self) -> u32 {
        1
    }
    /// Boots, runs the job, ends. `on_event` sees each event as it arrives. An `Err` means that the machine could not
    /// even be started; how a started guest ended is in [`BootLog::end`].
    fn boot(&self, boot: &Boot<'_>, on_event: &mut dyn FnMut(&GuestEvent)) -> Result<BootLog>;
}

/// What opening a machine may need besides its kind and shape.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    /// The checkout: the simulator is built from it.
    pub root: &'a Path,
    /// mountlab's cache: holds a virtme-ng and a QEMU that mountlab fetched, and the probe's scratch files.
    pub cache: &'a Cache,
    /// A kernel to try KVM with. Not needed by `host` and `mock`.
    pub kernel: Option<&'a Kernel>,
    /// The static `lab-guest` binary.
    pub guest: &'a Path,
    /// What `auto` is to fall to.
    pub fallback: Fallback,
    /// Parameters of the simulated machine, instead of those of vm-configs/.
    pub model: Option<Model>,
}

/// What `auto` takes where KVM boots nothing, or the host has fewer CPUs than asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// The simulated machine: right for whoever asks how fast.
    Simulated,
    /// QEMU's translator: faster, right for whoever asks only whether.
    Tcg,
}

/// A machine that is ready to boot.
pub struct Opened {
    /// The machine.
    pub machine: Box<dyn Machine>,
    /// Why this one: a sentence for the user.
    pub why: String,
}

/// Opens the machine that the user asked for. For `auto` and `kvm` that boots a guest under KVM for a moment.
///
/// # Errors
/// The machine is not usable here: QEMU missing or too old, KVM asked for but unusable, no root for `host`.
pub fn open(kind: &MachineKind, topology: &Topology, setting: &Setting<'_>, events: Events<'_>) -> Result<Opened> {
    let as_asked = |machine: Box<dyn Machine>| {
        let info = machine.info();
        let why = format!("{} ({}) as asked for", info.kind, info.version);
        Opened { machine, why }
    };
    Ok(match kind {
        MachineKind::Auto => open_auto(topology, setting, events)?,
        MachineKind::Simulated => as_asked(Box::new(simulated::Simulated::new(topology, setting, events)?)),
        MachineKind::Kvm => open_kvm(topology, setting)?,
        MachineKind::Tcg => as_asked(Box::new(qemu::Qemu::new(qemu_args::Accel::Tcg, topology)?)),
        MachineKind::Virtme => as_asked(Box::new(virtme::Virtme::new(topology, setting)?)),
        MachineKind::Host => as_asked(Box::new(host::Host::new()?)),
        MachineKind::Mock(script) => as_asked(Box::new(mock::Mock::new(script.clone(), topology))),
    })
}

/// Refuses at once, before anything is built, a machine that cannot be opened later.
///
/// # Errors
/// No root for `host`; QEMU missing or too old for the machines that are QEMU.
pub fn check(kind: &MachineKind) -> Result<()> {
    match kind {
        MachineKind::Host => host::Host::new().map(drop),
        MachineKind::Auto | MachineKind::Kvm | MachineKind::Tcg => qemu::installed().map(drop),
        // The simulated machine can do with a QEMU that it fetches.
        MachineKind::Simulated | MachineKind::Virtme | MachineKind::Mock(_) => Ok(()),
    }
}

/// Makes sure that a QEMU for the simulated machine is there.
///
/// # Errors
/// None is, and none can be fetched: unavailable.
pub fn find_simulator(cache: &Cache, events: Events<'_>) -> Result<()> {
    simulated::find_qemu(cache, events)
}

/// Boots with the guest's console on this terminal, and waits until the guest ends.
///
/// # Errors
/// QEMU is missing or does not start.
pub fn interactive(topology: &Topology, kernel: &Kernel, guest: &Path, dir: &Path) -> Result<std::process::ExitStatus> {
    qemu::Qemu::new(qemu_args::Accel::Tcg, topology)?.interactive(kernel, guest, dir)
}

/// KVM if a guest boots under it and no vCPU has to share a CPU of the host; else the fallback.
fn open_auto(topology: &Topology, setting: &Setting<'_>, events: Events<'_>) -> Result<Opened> {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32);
    let why = match kvm_probe::probe(setting)? {
        Probe::Works(how) if topology.cpus() <= cpus => {
            let machine = Box::new(qemu::Qemu::new(qemu_args::Accel::Kvm, topology)?);
            return Ok(Opened { machine, why: format!("auto chose kvm: {how}") });
        }
        Probe::Works(_) => format!("{} CPUs are asked for, the host has {cpus}", topology.cpus()),
        Probe::Unusable(why) => why,
    };
    if setting.fallback == Fallback::Simulated {
        let machine = Box::new(simulated::Simulated::new(topology, setting, events)?);
        return Ok(Opened { machine, why: format!("auto chose the simulated machine: {why}") });
    }
    let machine = Box::new(qemu::Qemu::new(qemu_args::Accel::Tcg, topology)?);
    Ok(Opened { machine, why: format!("auto chose tcg, QEMU's emulator: {why}") })
}

fn open_kvm(topology: &Topology, setting: &Setting<'_>) -> Result<Opened> {
    let machine = qemu::Qemu::new(qemu_args::Accel::Kvm, topology)?;
    match kvm_probe::probe(setting)? {
        Probe::Works(how) => Ok(Opened { machine: Box::new(machine), why: format!("kvm as asked for: {how}") }),
        Probe::Unusable(why) => {
            let message = format!("KVM is unusable here: {why}\nnext: use --machine auto, or --machine tcg");
            Err(Failure::error(Exit::Unavailable, message))
        }
    }
}
