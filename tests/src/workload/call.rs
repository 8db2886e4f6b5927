//! Single calls with containerd's arguments, timed by name.

use crate::metrics::Calls;
use crate::sys::{self, MOUNT_ATTR_IDMAP, MountAttr};
use anyhow::{Context, Result, bail};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use std::path::Path;
use std::time::Duration;

/// containerd retries umount2 this often on EBUSY ...
const BUSY_RETRIES: u32 = 50;
/// ... after this pause (core/mount/mount_linux.go, unmount()).
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// open_tree, mount_setattr, move_mount: `source` appears idmapped on `target`.
///
/// # Errors
/// The call that failed, with its errno.
pub fn idmap_bind(calls: &mut Calls, source: &Path, target: &Path, user_ns: &OwnedFd, attr_set: u64) -> Result<()> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = calls.time("open_tree", || open_tree(CWD, source, clone));
    let tree = tree.with_context(|| format!("open_tree {}", source.display()))?;
    let userns_fd = user_ns.as_raw_fd() as u64;
    let attr = MountAttr { attr_set: attr_set | MOUNT_ATTR_IDMAP, userns_fd, ..MountAttr::default() };
    calls
        .time("mount_setattr", || sys::mount_setattr(&tree, c"", sys::AT_EMPTY_PATH, &attr))
        .with_context(|| format!("mount_setattr {}", source.display()))?;
    calls
        .time("move_mount", || move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH))
        .with_context(|| format!("move_mount to {}", target.display()))
}

/// `umount2(target, MNT_DETACH)`, under the name `umount`.
///
/// # Errors
/// The errno.
pub fn umount_detach(calls: &mut Calls, target: &Path) -> Result<()> {
    let result = calls.time("umount", || unmount(target, UnmountFlags::DETACH));
    result.with_context(|| format!("umount2 MNT_DETACH {}", target.display()))
}

/// `umount2(target, 0)`, again while a forked child still holds the mount busy.
///
/// # Errors
/// EBUSY after all retries, or another errno at once.
pub fn umount_retrying(calls: &mut Calls, name: &'static str, target: &Path) -> Result<(), Errno> {
    for _ in 0..BUSY_RETRIES {
        match calls.time(name, || unmount(target, UnmountFlags::empty())) {
            Err(Errno::BUSY) => std::thread::sleep(BUSY_PAUSE),
            result => return result,
        }
    }
    Err(Errno::BUSY)
}

/// `umount2(target, 0)` until EINVAL says that nothing is mounted there: one call more than there are mounts.
///
/// # Errors
/// Any other errno.
pub fn umount_all(calls: &mut Calls, target: &Path) -> Result<()> {
    loop {
        match umount_retrying(calls, "umount_inspect", target) {
            Ok(()) => {}
            Err(Errno::INVAL) => return Ok(()),
            Err(errno) => bail!("umount2 {}: {errno}", target.display()),
        }
    }
}
