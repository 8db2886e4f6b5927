//! The kernel with a book beside it: each mount that is attached or detached is written down by its unique id, for a full ledger. A mount that is
//! made read-only has to be.

use super::kernel::{Kernel, Linux};
use crate::ledger::Entries;
use crate::metrics::CallLog;
use crate::namespace_view::{unique_id_at, unique_id_of};
use crate::sys::{MOUNT_ATTR_RDONLY, MountAttr};
use crate::user_ns::IdMap;
use anyhow::Result;
use rustix::fs::{StatVfsMountFlags, fstatvfs};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, UnmountFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Makes calls; if `recorded`, the log gets what they attach and detach.
///
/// # Errors
/// The calls'.
pub fn on_linux<T>(
    recorded: bool,
    log: &mut CallLog<'_>,
    calls: impl FnOnce(&dyn Kernel, &mut CallLog<'_>) -> Result<T>,
) -> Result<T> {
    if !recorded {
        return calls(&Linux, log);
    }
    let kernel = Recorded::default();
    let result = calls(&kernel, log);
    log.add_entries(kernel.entries.into_inner().unwrap_or_else(PoisonError::into_inner));
    result
}

#[derive(Debug, Default)]
struct Recorded {
    entries: Mutex<Entries>,
}

impl Recorded {
    /// An id that cannot be had is written down as 0, which no mount has: the ledger then does not add up, and says so.
    fn attached(&self, id: Result<u64>) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).attached.push(id.unwrap_or(0));
    }

    fn detached(&self, id: Result<u64>) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).detached.push(id.unwrap_or(0));
    }
}

impl Kernel for Recorded {
    fn move_mount(&self, tree: &OwnedFd, target: &Path) -> Result<(), Errno> {
        Linux.move_mount(tree, target)?;
        self.attached(unique_id_of(tree));
        Ok(())
    }

    fn mount_overlay(&self, target: &Path, options: &str) -> io::Result<()> {
        Linux.mount_overlay(target, options)?;
        self.attached(unique_id_at(target));
        Ok(())
    }

    fn umount2(&self, target: &Path, flags: UnmountFlags) -> Result<(), Errno> {
        // Nobody else mounts on this path, so what is topmost now is what goes.
        let id = unique_id_at(target);
        Linux.umount2(target, flags)?;
        self.detached(id);
        Ok(())
    }

    fn user_ns(&self, map: IdMap, descriptors_inherited: bool) -> Result<OwnedFd> {
        Linux.user_ns(map, descriptors_inherited)
    }

    fn mkdir(&self, path: &Path) -> io::Result<()> {
        Linux.mkdir(path)
    }

    fn rmdir(&self, path: &Path) -> io::Result<()> {
        Linux.rmdir(path)
    }

    fn open_tree(&self, path: &Path, flags: OpenTreeFlags) -> Result<OwnedFd, Errno> {
        Linux.open_tree(path, flags)
    }

    fn mount_setattr(&self, tree: &OwnedFd, flags: u32, attr: &MountAttr) -> io::Result<()> {
        Linux.mount_setattr(tree, flags, attr)?;
        if attr.attr_set & MOUNT_ATTR_RDONLY != 0 && !fstatvfs(tree)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err(io::Error::other("mount_setattr(2) succeeded, and the mount is not read-only"));
        }
        Ok(())
    }

    fn fsopen_overlay(&self) -> Result<OwnedFd, Errno> {
        Linux.fsopen_overlay()
    }

    fn fsconfig_string(&self, fs: &OwnedFd, key: &str, value: &str) -> Result<(), Errno> {
        Linux.fsconfig_string(fs, key, value)
    }

    fn fsconfig_fd(&self, fs: &OwnedFd, key: &str, value: &OwnedFd) -> Result<(), Errno> {
        Linux.fsconfig_fd(fs, key, value)
    }

    fn fsconfig_create(&self, fs: &OwnedFd) -> Result<(), Errno> {
        Linux.fsconfig_create(fs)
    }

    fn fsmount(&self, fs: &OwnedFd) -> Result<OwnedFd, Errno> {
        Linux.fsmount(fs)
    }

    fn close(&self, fd: OwnedFd) {
        Linux.close(fd);
    }

    fn mount_points(&self) -> Result<Vec<PathBuf>> {
        Linux.mount_points()
    }

    fn sleep(&self, time: Duration) {
        Linux.sleep(time);
    }
}
