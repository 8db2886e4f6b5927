//! A loop device with an empty ext4 on it, for trials that ask when an unmounted file system lets go of its device.

use crate::call::{Call, named};
use crate::scratch::Scratch;
use crate::sys::{loop_clear, loop_configure, loop_free_number, loop_is_bound};
use anyhow::{Context, Result, bail};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

/// An empty ext4; fixtures/README.md says how it was made.
pub const EXT4: &[u8] = include_bytes!("../fixtures/ext4.img");

/// Attempts to get a loop device before somebody else takes it.
const ATTEMPTS: usize = 16;

/// A loop device with this file behind it: its path, and a descriptor that keeps it. The kernel takes it apart when its last user is gone.
///
/// # Errors
/// When there is no free loop device.
pub fn configured(image: &File) -> Result<(String, File)> {
    let control = File::open("/dev/loop-control").context("cannot open /dev/loop-control")?;
    for _ in 0..ATTEMPTS {
        let path = format!("/dev/loop{}", loop_free_number(&control).context("LOOP_CTL_GET_FREE")?);
        let writable = OpenOptions::new().read(true).write(true).open(&path).with_context(|| path.clone())?;
        if loop_configure(&writable, image).is_ok() {
            // Without CONFIG_BLK_DEV_WRITE_MOUNTED a device that is open for writing cannot be mounted.
            let device = File::open(&path).with_context(|| path.clone())?;
            return Ok((path, device));
        }
    }
    bail!("no loop device could be configured in {ATTEMPTS} attempts")
}

/// The disk. The kernel takes it apart when the last of its users is gone: this value, or a mount of it.
#[derive(Debug)]
pub struct LoopDisk {
    path: String,
    device: File,
}

impl LoopDisk {
    /// Makes a disk out of a file in the scratch.
    ///
    /// # Errors
    /// When there is no free loop device.
    pub fn with_ext4(scratch: &Scratch) -> Result<LoopDisk> {
        let image = scratch.path("ext4.img");
        fs::write(&image, EXT4).context("cannot write the image")?;
        let (path, device) = configured(&OpenOptions::new().read(true).write(true).open(image)?)?;
        Ok(LoopDisk { path, device })
    }

    /// Its path in /dev.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Makes a new, empty ext4 on it, as mkfs does: by exclusive use of the device.
    ///
    /// # Errors
    /// EBUSY while a file system claims the device.
    pub fn format(&self) -> Call {
        let device = self.claim()?;
        named(format!("write({})", self.path), (&device).write_all(EXT4).and_then(|()| device.sync_all()))
    }

    /// Takes the file away from behind the device (LOOP_CLR_FD). The kernel does it now if nobody else uses the device, and else later.
    ///
    /// # Errors
    /// As ioctl(2).
    pub fn clear(&self) -> Call {
        named(format!("ioctl({}, LOOP_CLR_FD)", self.path), loop_clear(&self.device))
    }

    /// Whether a file is still behind the device.
    pub fn is_bound(&self) -> bool {
        loop_is_bound(&self.device)
    }

    /// Holds if no file system claims the device: an exclusive opening is refused with EBUSY while one does.
    ///
    /// # Errors
    /// EBUSY.
    pub fn claim(&self) -> Call<File> {
        let open = OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(&self.path);
        named(format!("open({}, O_EXCL)", self.path), open)
    }
}
