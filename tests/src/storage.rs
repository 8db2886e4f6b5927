//! The mount that a storm happens in: a fresh file system with the propagation that the storm asks for.

use crate::disk::{Disk, OnDisk, on_disk};
use crate::protocol::{Propagation, Storage};
use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The folder that all of the lab's mounts lie in: a tmpfs that the guest has mounted over it.
pub const BASE: &str = "/tmp";

/// How long a file system may stay busy, or its superblock there, that nobody uses: the kernel lets go of mounts in the background.
pub const BUSY_LIMIT: Duration = Duration::from_secs(10);

/// Most superblocks that are made to have the number of one given out again. Numbers below it that are free are taken first; nobody frees
/// so many, or the storm's file system, which is mounted first, would have a lower one.
const MOST_NUMBERS: usize = 4096;

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
    devices: Devices,
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
        let ground = Ground { path, disk, devices };
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

    /// Empties and unmounts it. That nobody holds it any more is a check of its own: a leaked mount of a layer would, which umount2(2) does
    /// not say. A disk is free as soon as it has returned: of the superblock's claim on it nothing may be left. On a kernel of ours, the
    /// number of a superblock without a disk is given out again (see [`superblock_is_gone`]). Returns the device that was.
    ///
    /// # Errors
    /// A file cannot be removed, the file system stays busy, the device is not free at once, or the superblock stays.
    pub fn unmount(self) -> Result<Option<PathBuf>> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            // ext4's own folder stays: the next storm of this boot may use the same disk.
            if entry.file_name() != "lost+found" {
                fs::remove_dir_all(entry.path()).with_context(|| format!("cannot empty {}", self.path.display()))?;
            }
        }
        let number = anonymous_number(&self.path)?;
        unmount_within(&self.path, BUSY_LIMIT)?;
        match &self.disk {
            Some(disk) => disk.claim_at_once()?,
            // On a host somebody else may take the number.
            None if self.devices == Devices::Lab => superblock_is_gone(&self.path, number, BUSY_LIMIT)?,
            None => {}
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

/// The number by which the kernel tells a superblock without a disk from others: the minor one of its device (get_anon_bdev(), fs/super.c).
///
/// # Errors
/// stat(2) failed.
pub fn anonymous_number(path: &Path) -> Result<u32> {
    let status = fs::metadata(path).with_context(|| format!("cannot stat {}", path.display()))?;
    Ok(rustix::fs::minor(status.dev()))
}

/// Proves that a superblock without a disk is gone, of which no mount is left in sight: its number is given out again. The kernel gives out
/// the lowest that is free (ida_alloc_range(), get_anon_bdev() in fs/super.c), when a superblock is shut down it is, and one mount that was
/// lost, of any layer, keeps a superblock. For this, tmpfs are mounted at `dir` until one has the number. Nobody else may mount meanwhile.
///
/// # Errors
/// It is still there after `limit`, or a call failed.
pub fn superblock_is_gone(dir: &Path, number: u32, limit: Duration) -> Result<()> {
    let start = Instant::now();
    while !is_given_out(dir, number)? {
        if start.elapsed() >= limit {
            bail!("the superblock 0:{number} is still there {limit:?} after its last umount: a mount of it was lost");
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn is_given_out(dir: &Path, number: u32) -> Result<bool> {
    let mut mounted = 0;
    let given_out = loop {
        mount_tmpfs(dir)?;
        mounted += 1;
        match anonymous_number(dir)? {
            lower if lower < number && mounted < MOST_NUMBERS => {}
            given => break given == number,
        }
    };
    (0..mounted).try_for_each(|_| unmount_within(dir, BUSY_LIMIT))?;
    Ok(given_out)
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
