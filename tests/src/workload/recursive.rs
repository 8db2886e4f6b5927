//! Profile `recursive`, containerd 2.3 and later: one recursive, private idmap of the layers' common parent, for the rootfs alone, and a
//! recursive unmount by what mountinfo says.

use super::calls::{IdmapAttr, unmount_all};
use super::kernel::Kernel;
use crate::metrics::{CallKind, CallLog};
use crate::sys::{MOUNT_ATTR_IDMAP, MOUNT_ATTR_RDONLY};
use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};

/// What is set on the layers' common parent. MS_PRIVATE is 1 << 18 (include/uapi/linux/mount.h).
pub const ATTR: IdmapAttr =
    IdmapAttr { attr_set: MOUNT_ATTR_IDMAP | MOUNT_ATTR_RDONLY, propagation: 1 << 18, recursive: true };

/// Takes down everything that is mounted at or below `temporary`, the deepest first.
///
/// # Errors
/// The call that failed, or nothing is mounted there.
pub fn release(kernel: &dyn Kernel, temporary: &Path, log: &mut CallLog<'_>) -> Result<()> {
    let mut below: Vec<PathBuf> =
        kernel.mount_points()?.into_iter().filter(|point| point.starts_with(temporary)).collect();
    ensure!(!below.is_empty(), "nothing is mounted at {}", temporary.display());
    below.sort_by_key(|point| std::cmp::Reverse(point.as_os_str().len()));
    below.iter().try_for_each(|point| unmount_all(kernel, point, CallKind::Umount, log))
}
