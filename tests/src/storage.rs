//! The mount that a storm happens in: a fresh file system with the propagation that the storm asks for.

use crate::loop_disk::configured;
use crate::protocol::{Propagation, Storage};
use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The folder that all of the lab's mounts lie in: a tmpfs that the guest has mounted over it.
pub const BASE: &str = "/tmp";

/// The disk that a lab machine hands over, already formatted.
const VIRTIO_DISK: &str = "/dev/vda";

/// Size of the disk that is made where the machine gives none; sparse, so mostly room for the inode tables.
const LOOP_DISK_BYTES: u64 = 512 << 20;

/// How long mke2fs(8) may take.
const TOOL_LIMIT: Duration = Duration::from_secs(60);

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

/// The block device below a file system.
#[derive(Debug)]
struct Disk {
    device: PathBuf,
    /// Of a loop device: the file behind it, and a descriptor that keeps the kernel from taking it apart with the unmount.
    made: Option<(PathBuf, File)>,
}

impl Ground {
    /// Mounts one.
    ///
    /// # Errors
    /// There is no such file system to be had here, or it cannot be mounted.
    pub fn mount(storage: Storage, propagation: Propagation, devices: Devices) -> Result<Ground> {
        let path = Path::new(BASE).join("storm");
        fs::create_dir_all(&path)?;
        let disk = match storage {
            Storage::Tmpfs => mount_tmpfs(&path).map(|()| None)?,
            Storage::Ext4 => Some(mount_ext4(&path, devices)?),
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
    /// free as soon as umount2(2) has returned: of the superblock's claim on it nothing may be left.
    ///
    /// # Errors
    /// A file cannot be removed, the file system stays busy, or the device is not free at once.
    pub fn unmount(self) -> Result<()> {
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
        self.disk.map_or(Ok(()), Disk::remove)
    }
}

impl Disk {
    /// Opens the device as mkfs does, for itself alone; and makes a new file system on it where there is a mkfs and the disk is ours to wipe.
    fn claim_at_once(&self) -> Result<()> {
        let device = self.device.display();
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(&self.device).with_context(|| {
            format!("umount2(2) has returned, and open({device}, O_EXCL) fails: something holds the superblock")
        })?;
        match (&self.made, tool("mke2fs")) {
            (Some(_), Some(mke2fs)) => make_ext4(&mke2fs, &self.device),
            _ => Ok(()),
        }
    }

    /// The loop device goes with the last descriptor.
    fn remove(self) -> Result<()> {
        let Some((image, device)) = self.made else { return Ok(()) };
        drop(device);
        Ok(fs::remove_file(image)?)
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

fn mount_ext4(path: &Path, devices: Devices) -> Result<Disk> {
    if devices == Devices::Lab && Path::new(VIRTIO_DISK).exists() {
        mount(VIRTIO_DISK, path, "ext4", MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {VIRTIO_DISK} as ext4: the machine must hand it over formatted"))?;
        return Ok(Disk { device: VIRTIO_DISK.into(), made: None });
    }
    let Some(mke2fs) = tool("mke2fs") else {
        bail!(
            "no ext4 here: the machine gave no disk {VIRTIO_DISK}, and without mke2fs (e2fsprogs) no loop disk can be made"
        );
    };
    let image = Path::new(BASE).join("storm.ext4");
    File::create_new(&image)?.set_len(LOOP_DISK_BYTES)?;
    make_ext4(&mke2fs, &image)?;
    let (device, held) = configured(&OpenOptions::new().read(true).write(true).open(&image)?)?;
    mount(device.as_str(), path, "ext4", MountFlags::empty(), None)
        .with_context(|| format!("cannot mount {device} as ext4"))?;
    Ok(Disk { device: device.into(), made: Some((image, held)) })
}

fn make_ext4(mke2fs: &Path, target: &Path) -> Result<()> {
    let mut format = Command::new(mke2fs);
    format.args(["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]).arg(target);
    // A loop device on a tmpfs cannot zero blocks by itself, and the kernel logs each attempt as an error of the device.
    format.env("UNIX_IO_NOZEROOUT", "1");
    run_within(&mut format, TOOL_LIMIT)
}

fn tool(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists())
}

/// Runs a command to its end, and kills it at its limit.
fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start {command:?}"))?;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if start.elapsed() < limit => std::thread::sleep(POLL),
            None => {
                child.kill()?;
                break child.wait()?;
            }
        }
    };
    ensure!(status.success(), "{command:?} ended after {:.1} s with {status}", start.elapsed().as_secs_f64());
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_fails_is_named_with_its_status() {
        let error = run_within(Command::new("sh").args(["-c", "exit 3"]), TOOL_LIMIT).unwrap_err().to_string();
        assert!(error.contains("\"sh\"") && error.contains("exit status: 3"), "{error}");
        assert!(run_within(&mut Command::new("true"), TOOL_LIMIT).is_ok());
    }

    #[test]
    fn a_tool_that_does_not_end_is_killed() {
        let start = Instant::now();
        let error = run_within(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap_err().to_string();
        assert!(error.contains("signal: 9"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}
