//! The calls that no safe crate wraps. The only `unsafe` of this package lives here.
#![allow(unsafe_code)]

use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ffi::CStr;
use std::io;

/// `struct mount_attr` (include/uapi/linux/mount.h), 32 bytes: MOUNT_ATTR_SIZE_VER0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountAttr {
    /// MOUNT_ATTR_* to set.
    pub attr_set: u64,
    /// MOUNT_ATTR_* to clear.
    pub attr_clr: u64,
    /// MS_SHARED, MS_PRIVATE, MS_SLAVE, MS_UNBINDABLE, or 0 for no change.
    pub propagation: u64,
    /// User namespace of MOUNT_ATTR_IDMAP.
    pub userns_fd: u64,
}

/// MOUNT_ATTR_RDONLY (include/uapi/linux/mount.h).
pub const MOUNT_ATTR_RDONLY: u64 = 0x0000_0001;
/// MOUNT_ATTR_IDMAP (include/uapi/linux/mount.h).
pub const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
/// AT_EMPTY_PATH (include/uapi/linux/fcntl.h).
pub const AT_EMPTY_PATH: u32 = 0x1000;
/// AT_RECURSIVE (include/uapi/linux/fcntl.h).
pub const AT_RECURSIVE: u32 = 0x8000;

/// mount_setattr(2).
///
/// # Errors
/// The kernel's errno.
pub fn mount_setattr(dir: impl AsFd, path: &CStr, flags: u32, attr: &MountAttr) -> io::Result<()> {
    let dir = dir.as_fd().as_raw_fd();
    // SAFETY: `path` is a C string and `attr` a live struct of the size passed; the kernel writes to neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir,
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A child in a new user namespace that does nothing but hold it; killed and reaped on drop. Until then it shares the
/// parent's descriptors at the moment of the clone, as containerd's child does.
#[derive(Debug)]
pub struct UserNsChild {
    /// Its process id.
    pub pid: i32,
    pidfd: OwnedFd,
}

impl UserNsChild {
    /// Clones the child: clone(2) with CLONE_NEWUSER | CLONE_PIDFD and no shared memory (a fork).
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn spawn() -> io::Result<UserNsChild> {
        UserNsChild::clone_with(0)
    }

    /// As [`UserNsChild::spawn`], but the child gets no copies of our descriptors: it shares the table they are in (CLONE_FILES), and
    /// so holds nothing that we have closed.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn spawn_without_copies() -> io::Result<UserNsChild> {
        UserNsChild::clone_with(libc::CLONE_FILES)
    }

    fn clone_with(more_flags: libc::c_int) -> io::Result<UserNsChild> {
        let mut pidfd: libc::c_int = -1;
        let flags = libc::CLONE_NEWUSER | libc::CLONE_PIDFD | libc::SIGCHLD | more_flags;
        // SAFETY: a fork without a new stack; the child calls only the async-signal-safe prctl, pause and _exit, so no lock that
        // another thread held at the fork is ever taken. `pidfd` is written before the call returns in the parent.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, std::ptr::from_mut(&mut pidfd), 0, 0) };
        match pid {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: see above; nothing of Rust runs in the child.
            0 => unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
                loop {
                    libc::pause();
                }
            },
            // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
            pid => Ok(UserNsChild { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
        }
    }
}

impl Drop for UserNsChild {
    fn drop(&mut self) {
        let mut status = 0;
        // SAFETY: signals and reaps our own child, by a descriptor that cannot name another process.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<u8>(),
                0,
            );
            libc::waitpid(self.pid, &mut status, 0);
        }
    }
}
