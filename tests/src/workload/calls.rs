//! The mount calls of a container start, timed, with containerd's arguments.

use crate::metrics::{CallKind, CallLog};
use crate::sys::{AT_EMPTY_PATH, MountAttr, mount_setattr};
use anyhow::{Context, Result, ensure};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// How often containerd tries to unmount what is busy, and how long it waits in between (core/mount/mount_linux.go, unmount).
const BUSY_TRIES: u32 = 50;
const BUSY_WAIT: Duration = Duration::from_millis(50);

/// Shows `source` at `target` with the ids of `user_ns`. `attr_set` must have MOUNT_ATTR_IDMAP.
///
/// containerd passes -EBADF where we pass AT_FDCWD: the paths are absolute, so the kernel looks at neither (path_init, fs/namei.c).
///
/// # Errors
/// The call that failed.
pub fn attach_idmapped(
    source: &Path,
    target: &Path,
    attr_set: u64,
    user_ns: &OwnedFd,
    log: &mut CallLog<'_>,
) -> Result<()> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = log
        .time(CallKind::OpenTree, || open_tree(CWD, source, clone))
        .with_context(|| format!("open_tree({}, OPEN_TREE_CLONE)", source.display()))?;
    let attr = MountAttr { attr_set, userns_fd: user_ns.as_raw_fd() as u64, ..MountAttr::default() };
    log.time(CallKind::MountSetattr, || mount_setattr(&tree, c"", AT_EMPTY_PATH, &attr))
        .with_context(|| format!("mount_setattr({}, attr_set {attr_set:#x})", source.display()))?;
    log.time(CallKind::MoveMount, || move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH))
        .with_context(|| format!("move_mount(to {})", target.display()))
}

/// umount2(MNT_DETACH), once.
///
/// # Errors
/// umount2(2) failed.
pub fn detach(target: &Path, kind: CallKind, log: &mut CallLog<'_>) -> Result<()> {
    log.time(kind, || unmount(target, UnmountFlags::DETACH))
        .with_context(|| format!("umount2({}, MNT_DETACH)", target.display()))
}

/// umount2(0), again while the mount is busy: a child that holds another container's user namespace has inherited our descriptors,
/// and with one of them, for some milliseconds, the mount.
///
/// # Errors
/// umount2(2) failed with anything but EBUSY, or with EBUSY to the end.
pub fn unmount_when_free(target: &Path, kind: CallKind, log: &mut CallLog<'_>) -> Result<()> {
    try_unmount(target, kind, log).with_context(|| format!("umount2({}, 0)", target.display()))
}

/// umount2(0) until nothing is mounted there: one call more than there are mounts, which fails with EINVAL.
///
/// # Errors
/// As [`unmount_when_free`], or if nothing was mounted at all.
pub fn unmount_all(target: &Path, kind: CallKind, log: &mut CallLog<'_>) -> Result<()> {
    let mut unmounted = 0;
    loop {
        match try_unmount(target, kind, log) {
            Ok(()) => unmounted += 1,
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error).with_context(|| format!("umount2({}, 0)", target.display())),
        }
    }
    ensure!(unmounted > 0, "umount2({}, 0): nothing was mounted there", target.display());
    Ok(())
}

fn try_unmount(target: &Path, kind: CallKind, log: &mut CallLog<'_>) -> Result<(), Errno> {
    for _ in 1..BUSY_TRIES {
        match log.time(kind, || unmount(target, UnmountFlags::empty())) {
            Err(Errno::BUSY) => {
                log.add_busy();
                std::thread::sleep(BUSY_WAIT);
            }
            other => return other,
        }
    }
    log.time(kind, || unmount(target, UnmountFlags::empty()))
}
