//! Parts of a pass that several profiles share, timed.

use super::kernel::Kernel;
use crate::metrics::{CallKind, CallLog};
use crate::sys::{AT_EMPTY_PATH, AT_RECURSIVE, MountAttr};
use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, UnmountFlags};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// How often containerd tries to unmount what is busy, and how long it waits in between (core/mount/mount_linux.go, unmount).
const BUSY_TRIES: u32 = 50;
const BUSY_WAIT: Duration = Duration::from_millis(50);

/// What shall be set on an idmapped tree besides its ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdmapAttr {
    /// MOUNT_ATTR_IDMAP, and what else.
    pub attr_set: u64,
    /// MS_PRIVATE, or 0 for no change.
    pub propagation: u64,
    /// The whole tree, submounts included.
    pub recursive: bool,
}

/// A detached copy of the tree at `source` with the ids of `user_ns`.
///
/// # Errors
/// The call that failed.
pub fn clone_idmapped(
    kernel: &dyn Kernel,
    source: &Path,
    attr: IdmapAttr,
    user_ns: &OwnedFd,
    log: &mut CallLog<'_>,
) -> Result<OwnedFd> {
    let IdmapAttr { attr_set, propagation, recursive } = attr;
    let mut clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    clone.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let tree = log
        .time(CallKind::OpenTree, || kernel.open_tree(source, clone))
        .with_context(|| format!("open_tree({}, {clone:?})", source.display()))?;
    let attr = MountAttr { attr_set, propagation, userns_fd: user_ns.as_raw_fd() as u64, ..MountAttr::default() };
    let flags = if recursive { AT_EMPTY_PATH | AT_RECURSIVE } else { AT_EMPTY_PATH };
    log.time(CallKind::MountSetattr, || kernel.mount_setattr(&tree, flags, &attr))
        .with_context(|| format!("mount_setattr({}, attr_set {attr_set:#x})", source.display()))?;
    Ok(tree)
}

/// Shows `source` at `target` with the ids of `user_ns`.
///
/// # Errors
/// The call that failed.
pub fn attach_idmapped(
    kernel: &dyn Kernel,
    source: &Path,
    target: &Path,
    attr: IdmapAttr,
    user_ns: &OwnedFd,
    log: &mut CallLog<'_>,
) -> Result<()> {
    let tree = clone_idmapped(kernel, source, attr, user_ns, log)?;
    log.time(CallKind::MoveMount, || kernel.move_mount(&tree, target))
        .with_context(|| format!("move_mount(to {})", target.display()))?;
    kernel.close(tree);
    Ok(())
}

/// umount2(MNT_DETACH), once.
///
/// # Errors
/// umount2(2) failed.
pub fn detach(kernel: &dyn Kernel, target: &Path, kind: CallKind, log: &mut CallLog<'_>) -> Result<()> {
    log.time(kind, || kernel.umount2(target, UnmountFlags::DETACH))
        .with_context(|| format!("umount2({}, MNT_DETACH)", target.display()))
}

/// umount2(0), again while the mount is busy: a child that holds another container's user namespace has inherited our descriptors,
/// and with one of them, for some milliseconds, the mount.
///
/// # Errors
/// umount2(2) failed with anything but EBUSY, or with EBUSY to the end.
pub fn unmount_when_free(kernel: &dyn Kernel, target: &Path, kind: CallKind, log: &mut CallLog<'_>) -> Result<()> {
    try_unmount(kernel, target, kind, log).with_context(|| format!("umount2({}, 0)", target.display()))
}

/// umount2(0) until nothing is mounted there: one call more than there are mounts, which fails with EINVAL.
///
/// # Errors
/// As [`unmount_when_free`], or if nothing was mounted at all.
pub fn unmount_all(kernel: &dyn Kernel, target: &Path, kind: CallKind, log: &mut CallLog<'_>) -> Result<()> {
    let mut unmounted = 0;
    loop {
        match try_unmount(kernel, target, kind, log) {
            Ok(()) => unmounted += 1,
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error).with_context(|| format!("umount2({}, 0)", target.display())),
        }
    }
    ensure!(unmounted > 0, "umount2({}, 0): nothing was mounted there", target.display());
    Ok(())
}

fn try_unmount(kernel: &dyn Kernel, target: &Path, kind: CallKind, log: &mut CallLog<'_>) -> Result<(), Errno> {
    for _ in 1..BUSY_TRIES {
        match log.time(kind, || kernel.umount2(target, UnmountFlags::empty())) {
            Err(Errno::BUSY) => {
                log.add_busy();
                kernel.sleep(BUSY_WAIT);
            }
            other => return other,
        }
    }
    log.time(kind, || kernel.umount2(target, UnmountFlags::empty()))
}
