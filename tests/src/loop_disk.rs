//! A loop device with an empty ext4 on it, for trials that ask when an unmounted file system lets go of its device.

use crate::call::{Call, named};
use crate::scratch::Scratch;
use crate::sys::{loop_configure, loop_free_number};
use anyhow::{Context, Result, bail};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

/// An empty ext4; fixtures/README.md says how it was made.
pub const EXT4: &[u8] = include_bytes!("../fixtures/ext4.img");

/// Attempts to get a loop device before somebody else takes it.
const ATTEMPTS: usize = 16;

/// The disk. The kernel takes it apart when the last of its users is gone: this value, or a mount of it.
#[derive(Debug)]
pub struct LoopDisk {
    path: String,
    _device: File,
}

/// Puts an image behind a free loop device; returns the device's path, and a descriptor that keeps the device until somebody else uses it.
///
/// # Errors
/// When there is no free loop device.
pub fn configure(image: &File) -> Result<(String, File)> {
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

impl LoopDisk {
    /// Makes a disk out of a file in the scratch.
    ///
    /// # Errors
    /// When there is no free loop device.
    pub fn with_ext4(scratch: &Scratch) -> Result<LoopDisk> {
        let image = scratch.path("ext4.img");
        fs::write(&image, EXT4).context("cannot write the image")?;
        let image = OpenOptions::new().read(true).write(true).open(image)?;
        let (path, device) = configure(&image)?;
        Ok(LoopDisk { path, _device: device })
    }

    /// Its path in /dev.
    pub fn path(&self) -> &str {
        &self.path
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
