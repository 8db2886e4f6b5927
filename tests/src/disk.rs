//! The disk below a storm's file system: one that the machine hands over formatted, or a loop device. And whether it is free when it must be.

use crate::loop_disk::configured;
use crate::protocol::Storage;
use crate::storage::{BASE, Devices};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where the kernel lists block devices. Of a virtio disk it shows the serial number (drivers/block/virtio_blk.c, serial_show()).
const BLOCK_DEVICES: &str = "/sys/block";

/// Size of the disk that is made where the machine gives none; sparse, so mostly room for inode tables and logs. mkfs.xfs(8) refuses less than
/// 300 MiB (xfsprogs 5.19 and later).
const LOOP_DISK_BYTES: u64 = 512 << 20;

/// How long mkfs may take.
const TOOL_LIMIT: Duration = Duration::from_secs(60);

/// How often to look in a wait.
const POLL: Duration = Duration::from_millis(10);

/// A file system that lies on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnDisk {
    /// For mount(2); also the serial number of the virtio disk that has it.
    pub fs_type: &'static str,
    /// What makes one.
    pub mkfs: &'static str,
    /// The package that has it, on Debian.
    pub package: &'static str,
    /// Nothing is left for a kernel thread to initialise later, in the middle of a measurement; and no time is spent on discarding what is empty.
    pub args: &'static [&'static str],
}

/// The file system, if it lies on a disk.
pub fn on_disk(storage: Storage) -> Option<OnDisk> {
    match storage {
        Storage::Tmpfs => None,
        Storage::Ext4 => Some(OnDisk {
            fs_type: "ext4",
            mkfs: "mke2fs",
            package: "e2fsprogs",
            args: &["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"],
        }),
        Storage::Xfs => {
            Some(OnDisk { fs_type: "xfs", mkfs: "mkfs.xfs", package: "xfsprogs", args: &["-q", "-f", "-K"] })
        }
    }
}

/// The block device below a mounted file system.
#[derive(Debug)]
pub struct Disk {
    kind: OnDisk,
    device: PathBuf,
    /// Of a loop device: the file behind it, and a descriptor that keeps the kernel from taking it apart with the unmount.
    made: Option<(PathBuf, File)>,
}

impl Disk {
    /// The machine's disk with this file system, or a loop device with a new one.
    ///
    /// # Errors
    /// The machine gave none, and there is no mkfs here or no loop device.
    pub fn open(kind: OnDisk, devices: Devices) -> Result<Disk> {
        if devices == Devices::Lab
            && let Some(device) = with_serial(Path::new(BLOCK_DEVICES), kind.fs_type)?
        {
            return Ok(Disk { kind, device, made: None });
        }
        let OnDisk { fs_type, mkfs, package, .. } = kind;
        let Some(mkfs) = tool(mkfs) else {
            bail!(
                "no {fs_type} here: the machine gave no disk of serial number {fs_type}, and without {mkfs} (package {package}) no loop disk \
                 can be made"
            );
        };
        let image = Path::new(BASE).join(format!("storm.{fs_type}"));
        File::create_new(&image)?.set_len(LOOP_DISK_BYTES)?;
        format(&mkfs, kind, &image)?;
        let (device, held) = configured(&OpenOptions::new().read(true).write(true).open(&image)?)?;
        Ok(Disk { kind, device: device.into(), made: Some((image, held)) })
    }

    /// Its path in /dev.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Opens the device as mkfs does, for itself alone; and makes a new file system on it where there is a mkfs and the disk is ours to wipe.
    ///
    /// # Errors
    /// As [`claim`], or mkfs fails.
    pub fn claim_at_once(&self) -> Result<()> {
        claim(&self.device)?;
        match (&self.made, tool(self.kind.mkfs)) {
            (Some(_), Some(mkfs)) => format(&mkfs, self.kind, &self.device),
            _ => Ok(()),
        }
    }

    /// The loop device goes with the last descriptor.
    ///
    /// # Errors
    /// The file behind it cannot be removed.
    pub fn remove(self) -> Result<()> {
        let Some((image, device)) = self.made else { return Ok(()) };
        drop(device);
        Ok(fs::remove_file(image)?)
    }
}

/// Holds if nothing claims the block device: of the superblock that was on it nothing may be left.
///
/// # Errors
/// EBUSY while a superblock lives.
pub fn claim(device: &Path) -> Result<()> {
    let open = OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(device);
    open.map(drop).with_context(|| {
        let device = device.display();
        format!("umount2(2) has returned, and open({device}, O_EXCL) fails: something holds the superblock")
    })
}

/// The block device with this serial number.
fn with_serial(devices: &Path, serial: &str) -> Result<Option<PathBuf>> {
    let Ok(entries) = fs::read_dir(devices) else { return Ok(None) };
    for entry in entries {
        let entry = entry?;
        // Most block devices have no such file.
        if fs::read_to_string(entry.path().join("serial")).is_ok_and(|found| found.trim() == serial) {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}

fn format(mkfs: &Path, kind: OnDisk, target: &Path) -> Result<()> {
    let mut command = Command::new(mkfs);
    command.args(kind.args).arg(target);
    // A loop device on a tmpfs cannot zero blocks by itself, and the kernel logs each attempt as an error of the device (mke2fs(8)).
    command.env("UNIX_IO_NOZEROOUT", "1");
    run_within(&mut command, TOOL_LIMIT)
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

    #[test]
    fn a_disk_is_known_by_its_serial_number() {
        let devices = tempfile::tempdir().unwrap();
        for (name, serial) in [("loop0", None), ("vda", Some("ext4\n")), ("vdb", Some("xfs"))] {
            fs::create_dir(devices.path().join(name)).unwrap();
            if let Some(serial) = serial {
                fs::write(devices.path().join(name).join("serial"), serial).unwrap();
            }
        }
        let found = |serial| with_serial(devices.path(), serial).unwrap();
        assert_eq!(found("ext4"), Some("/dev/vda".into()));
        assert_eq!(found("xfs"), Some("/dev/vdb".into()));
        assert_eq!(found("btrfs"), None);
    }

    #[test]
    fn a_serial_number_fits_into_virtio() {
        // VIRTIO_BLK_ID_BYTES, include/uapi/linux/virtio_blk.h.
        for storage in [Storage::Ext4, Storage::Xfs] {
            assert!(on_disk(storage).unwrap().fs_type.len() <= 20);
        }
        assert_eq!(on_disk(Storage::Tmpfs), None);
    }
}
