//! The mount that a storm happens in: a fresh file system with the propagation that the storm asks for.

use crate::disk::{Disk, OnDisk, on_disk};
use crate::protocol::{Propagation, Storage};
use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The folder that all of the lab's mounts lie in: a tmpfs that the guest has mounted over it.
pub const BASE: &str = "/tmp";

/// How long the storm's file system may stay busy after the storm: the kernel lets go of mounts in the background.
const BUSY_LIMIT: Duration = Duration::from_secs(10);

/// How often to look in a wait.
const POLL: Duration = Duration::from_millis(10);

/// Whose devices these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// The lab's: a virtio disk may be used as it is.
    Lab,
    /// The host's: its disks are never touched.
    Host,
}

/// A mounted file system for storms. Not unmounted on drop: the mount namespace, or the machine, ends with the guest.
#[derive(Debug)]
pub struct Ground {
    path: PathBuf,
    disk: Option<Disk>,
}

impl Ground {
    /// Mounts one.
    ///
    /// # Errors
    /// There is no such file system to be had here, or it cannot be mounted.
    pub fn mount(storage: Storage, propagation: Propagation, devices: Devices) -> Result<Ground> {
        let path = Path::new(BASE).join("storm");
        fs::create_dir_all(&path)?;
        let disk = match on_disk(storage) {
            None => mount_tmpfs(&path).map(|()| None)?,
            Some(kind) => Some(mount_disk(&path, kind, devices)?),
        };
        let ground = Ground { path, disk };
        let change = match propagation {
            Propagation::Shared => MountPropagationFlags::SHARED,
            Propagation::Private => MountPropagationFlags::PRIVATE,
        };
        mount_change(&ground.path, change).with_context(|| format!("cannot make the storm's mount {propagation:?}"))?;
        Ok(ground)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Empties and unmounts it. That nobody holds it any more is a check of its own: a leaked mount of a layer would. So is that its device is
    /// free as soon as umount2(2) has returned: of the superblock's claim on it nothing may be left. Returns the device that was.
    ///
    /// # Errors
    /// A file cannot be removed, the file system stays busy, or the device is not free at once.
    pub fn unmount(self) -> Result<Option<PathBuf>> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            // ext4's own folder stays: the next storm of this boot may use the same disk.
            if entry.file_name() != "lost+found" {
                fs::remove_dir_all(entry.path()).with_context(|| format!("cannot empty {}", self.path.display()))?;
            }
        }
        unmount_within(&self.path, BUSY_LIMIT)?;
        if let Some(disk) = &self.disk {
            disk.claim_at_once()?;
        }
        fs::remove_dir(&self.path)?;
        let device = self.disk.as_ref().map(|disk| disk.device().to_owned());
        self.disk.map_or(Ok(()), Disk::remove)?;
        Ok(device)
    }
}

/// Mounts a tmpfs, readable for all: a container's ids must reach the layers.
///
/// # Errors
/// mount(2) failed.
pub fn mount_tmpfs(path: &Path) -> Result<()> {
    mount("storm", path, "tmpfs", MountFlags::empty(), c"mode=0755")
        .with_context(|| format!("cannot mount a tmpfs at {}", path.display()))
}

/// On the machine's disk, or a new one.
fn mount_disk(path: &Path, kind: OnDisk, devices: Devices) -> Result<Disk> {
    let disk = Disk::open(kind, devices)?;
    let (device, fs_type) = (disk.device(), kind.fs_type);
    mount(device, path, fs_type, MountFlags::empty(), None)
        .with_context(|| format!("cannot mount {} as {fs_type}", device.display()))?;
    Ok(disk)
}

fn unmount_within(path: &Path, limit: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        match unmount(path, UnmountFlags::empty()) {
            Err(Errno::BUSY) if start.elapsed() < limit => std::thread::sleep(POLL),
            Err(Errno::BUSY) => {
                bail!("{} is still busy {limit:?} after the storm: something holds a mount of it", path.display())
            }
            other => return other.with_context(|| format!("umount2({}, 0)", path.display())),
        }
    }
}
