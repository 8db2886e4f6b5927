//! The system calls of a pass: one seam, so that a test can see which calls a profile makes, in which order and with which arguments,
//! without root and without mounting anything.

use crate::mount_tree;
use crate::sys::{self, MountAttr};
use crate::user_ns::{self, IdMap};
use anyhow::Result;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    self, FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a pass asks of the kernel. Each method is one system call, but for the two that say otherwise.
pub trait Kernel: Sync {
    /// A user namespace with this map: clone(2), two writes, open(2), kill(2) (see [`user_ns::open`]).
    ///
    /// # Errors
    /// As there.
    fn user_ns(&self, map: IdMap, descriptors_inherited: bool) -> Result<OwnedFd>;
    /// mkdir(2) with 0700.
    fn mkdir(&self, path: &Path) -> io::Result<()>;
    /// rmdir(2).
    fn rmdir(&self, path: &Path) -> io::Result<()>;
    /// open_tree(2). containerd passes -EBADF where we pass AT_FDCWD: paths are absolute, so the kernel looks at neither (path_init, fs/namei.c).
    fn open_tree(&self, path: &Path, flags: OpenTreeFlags) -> Result<OwnedFd, Errno>;
    /// mount_setattr(2) of a descriptor.
    fn mount_setattr(&self, tree: &OwnedFd, flags: u32, attr: &MountAttr) -> io::Result<()>;
    /// move_mount(2) of a descriptor, MOVE_MOUNT_F_EMPTY_PATH.
    fn move_mount(&self, tree: &OwnedFd, target: &Path) -> Result<(), Errno>;
    /// mount(2) of an overlay.
    fn mount_overlay(&self, target: &Path, options: &str) -> io::Result<()>;
    /// umount2(2).
    fn umount2(&self, target: &Path, flags: UnmountFlags) -> Result<(), Errno>;
    /// fsopen(2) of an overlay.
    fn fsopen_overlay(&self) -> Result<OwnedFd, Errno>;
    /// fsconfig(2), FSCONFIG_SET_STRING.
    fn fsconfig_string(&self, fs: &OwnedFd, key: &str, value: &str) -> Result<(), Errno>;
    /// fsconfig(2), FSCONFIG_SET_FD.
    fn fsconfig_fd(&self, fs: &OwnedFd, key: &str, value: &OwnedFd) -> Result<(), Errno>;
    /// fsconfig(2), FSCONFIG_CMD_CREATE.
    fn fsconfig_create(&self, fs: &OwnedFd) -> Result<(), Errno>;
    /// fsmount(2).
    fn fsmount(&self, fs: &OwnedFd) -> Result<OwnedFd, Errno>;
    /// close(2).
    fn close(&self, fd: OwnedFd);
    /// Where something is mounted, from mountinfo: open(2), some read(2).
    ///
    /// # Errors
    /// It cannot be read.
    fn mount_points(&self) -> Result<Vec<PathBuf>>;
    /// nanosleep(2).
    fn sleep(&self, time: Duration);
}

/// The kernel that we run on.
#[derive(Clone, Copy, Debug)]
pub struct Linux;

impl Kernel for Linux {
    fn user_ns(&self, map: IdMap, descriptors_inherited: bool) -> Result<OwnedFd> {
        user_ns::open(map, descriptors_inherited)
    }

    fn mkdir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(path)
    }

    fn rmdir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn open_tree(&self, path: &Path, flags: OpenTreeFlags) -> Result<OwnedFd, Errno> {
        mount::open_tree(CWD, path, flags)
    }

    fn mount_setattr(&self, tree: &OwnedFd, flags: u32, attr: &MountAttr) -> io::Result<()> {
        sys::mount_setattr(tree, c"", flags, attr)
    }

    fn move_mount(&self, tree: &OwnedFd, target: &Path) -> Result<(), Errno> {
        mount::move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    }

    fn mount_overlay(&self, target: &Path, options: &str) -> io::Result<()> {
        let options = CString::new(options)?;
        Ok(mount::mount("overlay", target, "overlay", MountFlags::empty(), options.as_c_str())?)
    }

    fn umount2(&self, target: &Path, flags: UnmountFlags) -> Result<(), Errno> {
        mount::unmount(target, flags)
    }

    fn fsopen_overlay(&self) -> Result<OwnedFd, Errno> {
        mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
    }

    fn fsconfig_string(&self, fs: &OwnedFd, key: &str, value: &str) -> Result<(), Errno> {
        mount::fsconfig_set_string(fs.as_fd(), key, value)
    }

    fn fsconfig_fd(&self, fs: &OwnedFd, key: &str, value: &OwnedFd) -> Result<(), Errno> {
        mount::fsconfig_set_fd(fs.as_fd(), key, value.as_fd())
    }

    fn fsconfig_create(&self, fs: &OwnedFd) -> Result<(), Errno> {
        mount::fsconfig_create(fs.as_fd())
    }

    fn fsmount(&self, fs: &OwnedFd) -> Result<OwnedFd, Errno> {
        mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    }

    fn close(&self, fd: OwnedFd) {
        drop(fd);
    }

    fn mount_points(&self) -> Result<Vec<PathBuf>> {
        // Escaped characters do not occur in the storm's own paths, and others' are not looked at.
        Ok(mount_tree::read()?.into_iter().map(|mount| mount.mount_point.into()).collect())
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}
