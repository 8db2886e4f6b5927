//! Does KVM work here? /dev/kvm can exist, open, and still boot nothing (a nested hypervisor without hardware support): only a
//! guest that booted is proof.

use super::qemu::Qemu;
use super::qemu_args::Accel;
use super::topology::Topology;
use super::{Boot, End, Limits, Machine, Setting};
use anyhow::{Context, Result};
use mount_storms::protocol::{GuestEvent, Job, PROTOCOL, Work};
use std::fs::OpenOptions;
use std::io;
use std::time::Duration;

/// The device.
const KVM: &str = "/dev/kvm";

/// How long a guest under KVM may take to say hello. A working KVM needs about one second.
const LIMIT: Duration = Duration::from_secs(10);

/// Whether KVM is usable, and how we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A guest booted; in how many seconds, as words.
    Works(String),
    /// Why not.
    Unusable(String),
}

/// Boots the real kernel under KVM with nothing to do but say hello.
///
/// # Errors
/// QEMU is missing or too old, or Ctrl-C; an unusable KVM is no error here.
pub fn probe(setting: &Setting<'_>) -> Result<Probe> {
    if let Err(error) = OpenOptions::new().read(true).write(true).open(KVM) {
        return Ok(Probe::Unusable(unopened(&error)));
    }
    let kernel = setting.kernel.context("probing KVM needs a kernel to boot")?;
    let dir = tempfile::tempdir_in(setting.cache.dir()).context("cannot make a folder for the KVM probe")?;
    let job = Job { protocol: PROTOCOL, seed: 0, work: Work::Hello };
    let limits = Limits { hello: LIMIT, silence: LIMIT, total: LIMIT };
    let boot = Boot {
        kernel: Some(kernel),
        guest: setting.guest,
        job: &job,
        dir: dir.path(),
        limits,
        machine_seed: 0,
        evidence: None,
    };
    // The smallest shape: 96 CPUs can take their time to start, which would say nothing about KVM.
    let log = Qemu::new(Accel::Kvm, &Topology::load("smoke")?)?.boot(&boot, &mut |_| ())?;
    match log.end {
        End::Interrupted => Err(log.failure().context("an interrupted boot has a failure")?),
        end => Ok(judge(&end, &log.events, log.wall_s)),
    }
}

/// What a boot says about KVM. A hello is proof, whatever came after it.
fn judge(end: &End, events: &[GuestEvent], wall_s: f64) -> Probe {
    if events.iter().any(|event| matches!(event, GuestEvent::Hello { .. })) {
        return Probe::Works(format!("a guest booted under it within {wall_s:.1} s"));
    }
    let how = match end {
        End::Hang(how) | End::Died(how) | End::Panic(how) | End::GuestFailed(how) => how.clone(),
        other => format!("{other:?}"),
    };
    Probe::Unusable(format!("{KVM} opens, but no guest boots under it ({how})"))
}

fn unopened(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("there is no {KVM}"),
        io::ErrorKind::PermissionDenied => format!("{KVM} may not be opened (are you in the group kvm?)"),
        _ => format!("{KVM} cannot be opened: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_hello_is_proof() {
        let hello = GuestEvent::Hello { protocol: 1, kernel_release: "7.3.4".into(), cpus: 2, memory_kib: 1 };
        assert_eq!(judge(&End::Finished, &[hello], 0.84), Probe::Works("a guest booted under it within 0.8 s".into()));
        let hang = End::Hang("no hello for 10.0 s; the console is empty".into());
        let Probe::Unusable(why) = judge(&hang, &[], 10.0) else { panic!("usable") };
        assert!(why.contains("opens, but no guest boots") && why.contains("no hello for 10.0 s"), "{why}");
    }

    #[test]
    fn a_closed_device_is_explained() {
        assert!(unopened(&io::ErrorKind::NotFound.into()).contains("there is no"));
        assert!(unopened(&io::ErrorKind::PermissionDenied.into()).contains("group kvm"));
    }
}
