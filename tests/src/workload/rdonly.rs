//! Profile `rdonly`, containerd 2.1.0 - 2.1.4: one read-only idmap per layer, taken down by a plain umount that is made once. A layer that
//! is busy then stays mounted: this containerd leaks it.

use super::calls::IdmapAttr;
use super::kernel::Kernel;
use super::pass::remove_folder;
use crate::metrics::{CallKind, CallLog};
use crate::sys::{MOUNT_ATTR_IDMAP, MOUNT_ATTR_RDONLY};
use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::path::PathBuf;

/// What is set on each layer.
pub const ATTR: IdmapAttr =
    IdmapAttr { attr_set: MOUNT_ATTR_IDMAP | MOUNT_ATTR_RDONLY, propagation: 0, recursive: false };

/// Takes down what [`super::detach::attach`] has returned; says whether all of it went.
///
/// # Errors
/// A call failed, and not because the mount is busy.
pub fn release(kernel: &dyn Kernel, lower_dirs: &[PathBuf], log: &mut CallLog<'_>) -> Result<bool> {
    let mut all = true;
    for lower_dir in lower_dirs {
        match log.time(CallKind::Umount, || kernel.umount2(lower_dir, UnmountFlags::empty())) {
            Ok(()) => remove_folder(kernel, lower_dir)?,
            Err(Errno::BUSY) => {
                log.add_busy();
                log.add_leaked(lower_dir);
                all = false;
            }
            Err(error) => return Err(error).with_context(|| format!("umount2({}, 0)", lower_dir.display())),
        }
    }
    Ok(all)
}
