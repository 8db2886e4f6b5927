//! User namespaces for idmapped mounts, and mount_setattr(2) by a trial's names.

use crate::call::{Call, named};
use crate::scratch::Scratch;
use crate::sys::{self, AT_EMPTY_PATH, MOUNT_ATTR_IDMAP, MountAttr, UserNsChild};
use anyhow::{Context, Result};
use nix::sched::CloneFlags;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::CWD;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;

/// Where [`shifted`] puts uid 0; the rest of its range follows.
pub const SHIFT: u32 = 100_000;

/// A user namespace that shows ids 0 to 65535 as [`SHIFT`] and up.
///
/// # Errors
/// As clone(2), and as writing to uid_map.
pub fn shifted() -> Result<OwnedFd> {
    // The child shares our descriptors, so it must be gone before a trial opens what it wants to close.
    let child = UserNsChild::spawn().context("clone(CLONE_NEWUSER)")?;
    let map = format!("0 {SHIFT} 65536\n");
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{file}", child.pid), &map).with_context(|| format!("cannot write {file}"))?;
    }
    Ok(File::open(format!("/proc/{}/ns/user", child.pid)).context("cannot open the user namespace")?.into())
}

/// The attributes that idmap a mount with this user namespace.
pub fn idmap(userns: &OwnedFd) -> MountAttr {
    MountAttr { attr_set: MOUNT_ATTR_IDMAP, userns_fd: userns.as_raw_fd() as u64, ..MountAttr::default() }
}

/// The attributes that set these bits.
pub fn set(attr_set: u64) -> MountAttr {
    MountAttr { attr_set, ..MountAttr::default() }
}

/// The attributes that clear these bits.
pub fn clear(attr_clr: u64) -> MountAttr {
    MountAttr { attr_clr, ..MountAttr::default() }
}

/// The attributes that change the propagation: MS_SHARED and its like.
pub fn propagation(kind: nix::mount::MsFlags) -> MountAttr {
    MountAttr { propagation: kind.bits(), ..MountAttr::default() }
}

/// mount_setattr(2) of the mount that a descriptor stands for.
///
/// # Errors
/// As mount_setattr(2).
pub fn setattr_tree(tree: impl AsFd, flags: u32, attr: &MountAttr) -> Call {
    named(format!("mount_setattr(tree, {attr:?})"), sys::mount_setattr(tree, c"", flags | AT_EMPTY_PATH, attr))
}

impl Scratch {
    /// mount_setattr(2) of the mount at a path. `flags` is 0 or AT_RECURSIVE.
    ///
    /// # Errors
    /// As mount_setattr(2).
    pub fn setattr(&self, name: &str, flags: u32, attr: &MountAttr) -> Call {
        let path = CString::new(self.path(name).as_os_str().as_bytes()).unwrap_or_default();
        named(format!("mount_setattr({name}, {attr:?})"), sys::mount_setattr(CWD, &path, flags, attr))
    }

    /// A detached copy of `from` whose owners are shifted by [`SHIFT`].
    ///
    /// # Errors
    /// As open_tree(2) and mount_setattr(2).
    pub fn idmapped_tree(&self, from: &str) -> Result<OwnedFd> {
        let userns = shifted()?;
        let tree = self.clone_tree(from)?;
        setattr_tree(&tree, 0, &idmap(&userns))?;
        Ok(tree)
    }

    /// Shows `from` at `to`, with its owners shifted by [`SHIFT`]: what containerd does for each layer.
    ///
    /// # Errors
    /// As open_tree(2), mount_setattr(2) and move_mount(2).
    pub fn bind_idmapped(&self, from: &str, to: &str) -> Result<()> {
        Ok(self.attach(self.idmapped_tree(from)?, to)?)
    }

    /// Moves this process into a user namespace where it is root, and into a mount namespace that belongs to it: a less
    /// privileged copy, in which every mount that came along is locked.
    ///
    /// # Errors
    /// As unshare(2), and as writing to uid_map.
    pub fn become_less_privileged(&self) -> Result<()> {
        named("unshare(CLONE_NEWUSER)", nix::sched::unshare(CloneFlags::CLONE_NEWUSER))?;
        // Without CAP_SETUID in the parent namespace only the own id can be mapped, and groups only with setgroups denied.
        for (file, content) in [("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")] {
            fs::write(format!("/proc/self/{file}"), content).with_context(|| format!("cannot write {file}"))?;
        }
        Ok(named("unshare(CLONE_NEWNS)", nix::sched::unshare(CloneFlags::CLONE_NEWNS))?)
    }
}
