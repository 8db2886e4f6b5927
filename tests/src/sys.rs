//! The calls that no safe crate wraps. The only `unsafe` of this package lives here.
#![allow(unsafe_code)]

use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ffi::CStr;
use std::io;
use std::sync::atomic::AtomicU32;

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

/// The fixed part of `struct statmount` (include/uapi/linux/mount.h, 512 bytes) and room for its strings.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "named and explained in include/uapi/linux/mount.h")]
pub struct StatMount {
    pub size: u32,
    pub mnt_opts: u32,
    pub mask: u64,
    pub sb_dev_major: u32,
    pub sb_dev_minor: u32,
    pub sb_magic: u64,
    pub sb_flags: u32,
    pub fs_type: u32,
    pub mnt_id: u64,
    pub mnt_parent_id: u64,
    pub mnt_id_old: u32,
    pub mnt_parent_id_old: u32,
    pub mnt_attr: u64,
    pub mnt_propagation: u64,
    pub mnt_peer_group: u64,
    pub mnt_master: u64,
    pub propagate_from: u64,
    pub mnt_root: u32,
    pub mnt_point: u32,
    pub mnt_ns_id: u64,
    pub fs_subtype: u32,
    pub sb_source: u32,
    pub opt_num: u32,
    pub opt_array: u32,
    pub opt_sec_num: u32,
    pub opt_sec_array: u32,
    pub supported_mask: u64,
    pub mnt_uidmap_num: u32,
    pub mnt_uidmap: u32,
    pub mnt_gidmap_num: u32,
    pub mnt_gidmap: u32,
    spare: [u64; 43],
    strings: [u8; STATMOUNT_STRING_BYTES],
}

/// Two paths of PATH_MAX and what else is asked for.
const STATMOUNT_STRING_BYTES: usize = 3 * 4096;
const _: () = assert!(size_of::<StatMount>() == 512 + STATMOUNT_STRING_BYTES);

impl StatMount {
    /// The string at an offset that one of the `[str]` fields holds.
    pub fn string(&self, offset: u32) -> &str {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        CStr::from_bytes_until_nul(rest).ok().and_then(|text| text.to_str().ok()).unwrap_or_default()
    }
}

/// STATMOUNT_SB_BASIC (include/uapi/linux/mount.h).
pub const STATMOUNT_SB_BASIC: u64 = 0x0001;
/// STATMOUNT_MNT_BASIC (include/uapi/linux/mount.h).
pub const STATMOUNT_MNT_BASIC: u64 = 0x0002;
/// STATMOUNT_MNT_ROOT (include/uapi/linux/mount.h).
pub const STATMOUNT_MNT_ROOT: u64 = 0x0008;
/// STATMOUNT_MNT_POINT (include/uapi/linux/mount.h).
pub const STATMOUNT_MNT_POINT: u64 = 0x0010;
/// STATMOUNT_FS_TYPE (include/uapi/linux/mount.h).
pub const STATMOUNT_FS_TYPE: u64 = 0x0020;
/// STATMOUNT_MNT_NS_ID (include/uapi/linux/mount.h).
pub const STATMOUNT_MNT_NS_ID: u64 = 0x0040;
/// STATMOUNT_MNT_UIDMAP (include/uapi/linux/mount.h).
pub const STATMOUNT_MNT_UIDMAP: u64 = 0x2000;
/// LSMT_ROOT (include/uapi/linux/mount.h): everything below the caller's root.
pub const LSMT_ROOT: u64 = u64::MAX;

/// `struct mnt_id_req` (include/uapi/linux/mount.h), MNT_ID_REQ_SIZE_VER1.
#[repr(C)]
struct MntIdReq {
    size: u32,
    mnt_ns_fd: u32,
    mnt_id: u64,
    param: u64,
    mnt_ns_id: u64,
}

impl MntIdReq {
    fn new(mnt_id: u64, param: u64) -> MntIdReq {
        MntIdReq { size: size_of::<MntIdReq>() as u32, mnt_ns_fd: 0, mnt_id, param, mnt_ns_id: 0 }
    }
}

/// Number of statmount(2): the same on every architecture but alpha.
const SYS_STATMOUNT: libc::c_long = 457;
/// Number of listmount(2): the same on every architecture but alpha.
const SYS_LISTMOUNT: libc::c_long = 458;

/// statmount(2) in the caller's mount namespace, of a unique mount id; `mask` is of STATMOUNT_*.
///
/// # Errors
/// The kernel's errno.
pub fn statmount(mnt_id: u64, mask: u64) -> io::Result<Box<StatMount>> {
    statmount_in(0, mnt_id, mask)
}

/// As [`statmount`], in the mount namespace with this id (STATMOUNT_MNT_NS_ID); 0 is the caller's.
///
/// # Errors
/// The kernel's errno.
pub fn statmount_in(mnt_ns_id: u64, mnt_id: u64, mask: u64) -> io::Result<Box<StatMount>> {
    let request = MntIdReq { mnt_ns_id, ..MntIdReq::new(mnt_id, mask) };
    let mut answer = Box::<StatMount>::new_uninit();
    // SAFETY: integers and bytes only, so all zeroes is a value of it. The kernel reads one live struct and writes at most the
    // size passed into the other.
    let result = unsafe {
        std::ptr::write_bytes(answer.as_mut_ptr(), 0, 1);
        libc::syscall(SYS_STATMOUNT, std::ptr::from_ref(&request), answer.as_mut_ptr(), size_of::<StatMount>(), 0)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed above.
    Ok(unsafe { answer.assume_init() })
}

/// listmount(2) in the caller's mount namespace: ids of the mounts below `mnt_id`, those after the id `last` (0: from the
/// first), as many as `ids` has room for. Returns how many there were.
///
/// # Errors
/// The kernel's errno.
pub fn listmount(mnt_id: u64, last: u64, ids: &mut [u64]) -> io::Result<usize> {
    listmount_in(0, mnt_id, last, ids)
}

/// As [`listmount`], in the mount namespace with this id (STATMOUNT_MNT_NS_ID); 0 is the caller's.
///
/// # Errors
/// The kernel's errno.
pub fn listmount_in(mnt_ns_id: u64, mnt_id: u64, last: u64, ids: &mut [u64]) -> io::Result<usize> {
    let request = MntIdReq { mnt_ns_id, ..MntIdReq::new(mnt_id, last) };
    // SAFETY: the kernel reads one live struct and writes at most `ids.len()` ids.
    let result = unsafe { libc::syscall(SYS_LISTMOUNT, std::ptr::from_ref(&request), ids.as_mut_ptr(), ids.len(), 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as usize) }
}

/// `struct loop_config` with the `struct loop_info64` in it (include/uapi/linux/loop.h); only the flags are used.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info_before_flags: [u8; 52],
    lo_flags: u32,
    info_after_flags: [u8; 176],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);
const _: () = assert!(std::mem::offset_of!(LoopConfig, lo_flags) == 60);

/// LOOP_CTL_GET_FREE (include/uapi/linux/loop.h).
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
/// LOOP_CONFIGURE (include/uapi/linux/loop.h).
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
/// LO_FLAGS_AUTOCLEAR (include/uapi/linux/loop.h).
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// Number of a loop device that nobody uses; `control` is /dev/loop-control.
///
/// # Errors
/// The kernel's errno.
pub fn loop_free_number(control: impl AsFd) -> io::Result<u32> {
    // SAFETY: this ioctl takes no argument.
    let number = unsafe { libc::ioctl(control.as_fd().as_raw_fd(), LOOP_CTL_GET_FREE as _) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Puts `backing` behind a loop device, until the device's last user closes it (LO_FLAGS_AUTOCLEAR).
///
/// # Errors
/// The kernel's errno; EBUSY when somebody else was faster.
pub fn loop_configure(device: impl AsFd, backing: impl AsFd) -> io::Result<()> {
    let config = LoopConfig {
        fd: backing.as_fd().as_raw_fd() as u32,
        block_size: 0,
        info_before_flags: [0; 52],
        lo_flags: LO_FLAGS_AUTOCLEAR,
        info_after_flags: [0; 176],
        reserved: [0; 8],
    };
    // SAFETY: the kernel reads one live struct of the size that the ioctl's number stands for.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_CONFIGURE as _, std::ptr::from_ref(&config)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// LOOP_CLR_FD (include/uapi/linux/loop.h).
const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
/// LOOP_GET_STATUS64 (include/uapi/linux/loop.h).
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;

/// Takes the backing file away from a loop device: at once if this is its only opening, else when the last one is closed.
///
/// # Errors
/// The kernel's errno.
pub fn loop_clear(device: impl AsFd) -> io::Result<()> {
    // SAFETY: this ioctl takes no argument.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_CLR_FD as _) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether a loop device has a backing file that is not being taken away.
pub fn loop_is_bound(device: impl AsFd) -> bool {
    let mut status = [0_u64; LOOP_INFO_WORDS];
    // SAFETY: the kernel writes one struct loop_info64, for which there is room.
    unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_GET_STATUS64 as _, status.as_mut_ptr()) == 0 }
}

/// `struct loop_info64` has 232 bytes.
const LOOP_INFO_WORDS: usize = 29;

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
        let parent = std::process::id() as libc::pid_t;
        let flags = libc::CLONE_NEWUSER | libc::CLONE_PIDFD | libc::SIGCHLD | more_flags;
        // SAFETY: a fork without a new stack; the child calls only the async-signal-safe prctl, getppid, pause and _exit, so no lock that
        // another thread held at the fork is ever taken. `pidfd` is written before the call returns in the parent.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, std::ptr::from_mut(&mut pidfd), 0, 0) };
        match pid {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: see above; nothing of Rust runs in the child.
            0 => unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
                // A parent that was killed before the line above sends no signal any more.
                if libc::getppid() != parent {
                    libc::_exit(0);
                }
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

/// Forks; the child does `work` and exits with its value. Returns the child's id. Only for a process without other threads: nobody else
/// can hold a lock that the child then waits for.
///
/// # Errors
/// The kernel's errno.
pub fn fork(work: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: the caller has no other threads, so the child is as whole a process as the parent.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let status = work();
            // SAFETY: ends the child, without the parent's exit handlers.
            unsafe { libc::_exit(status) }
        }
        child => Ok(child),
    }
}

/// Has malloc(3) keep what it got from the kernel, and ask for at least `step_bytes` at a time: mallopt(3). Nothing at all with another C
/// library than glibc, whose parameters these are.
pub fn keep_heap(step_bytes: usize) {
    #[cfg(target_env = "gnu")]
    {
        let step = i32::try_from(step_bytes).unwrap_or(i32::MAX);
        // An mmap for each large allocation, given back with it, is what must not be; glibc takes at most half of a heap (HEAP_MAX_SIZE / 2).
        let largest = 32 << 20;
        let parameters =
            [(libc::M_MMAP_THRESHOLD, largest), (libc::M_TRIM_THRESHOLD, i32::MAX), (libc::M_TOP_PAD, step)];
        for (parameter, value) in parameters {
            // SAFETY: sets a number in the allocator; no memory of ours is involved.
            unsafe { libc::mallopt(parameter, value) };
        }
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = step_bytes;
}

/// Executes so many instructions, give or take ten, of a loop that touches no memory.
pub fn spin_insns(insns: u64) {
    let turns = (insns / 2).max(1);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: counts a register down to zero.
    unsafe {
        std::arch::asm!("2: sub {turns}, 1", "jnz 2b", turns = inout(reg) turns => _, options(nomem, nostack));
    }
    #[cfg(not(target_arch = "x86_64"))]
    (0..turns).for_each(|turn| drop(std::hint::black_box(turn)));
}

/// Makes the calling thread one of SCHED_FIFO: it gives its CPU to no thread that is not. sched(7): the kernel takes 50 ms of each second back.
///
/// # Errors
/// The kernel's errno: EPERM without CAP_SYS_NICE.
pub fn run_before_all_others() -> io::Result<()> {
    // SAFETY: plain numbers, of which zero is one.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = 1;
    // SAFETY: the kernel reads one live structure; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &param) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// futex(2) FUTEX_WAIT: sleeps while the word is `value`. May return early; the caller looks again.
pub fn futex_wait(word: &AtomicU32, value: u32) {
    let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the kernel reads one live word.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, value, std::ptr::null::<libc::timespec>()) };
}

/// futex(2) FUTEX_WAKE of one waiter.
pub fn futex_wake(word: &AtomicU32) {
    let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the kernel uses the word's address alone.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, 1) };
}

/// Tells the simulated machine that the measured region begins: a no-operation whose displacement carries the mark (simulator/src/region.rs).
/// Any other machine does nothing at it (Intel SDM, volume 2, NOP: `0F 1F /0`).
pub fn region_begin() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a no-operation with an operand that is not accessed.
    unsafe {
        std::arch::asm!(".byte 0x0f, 0x1f, 0x84, 0x00, 0x01, 0x4f, 0x54, 0x53", options(nostack, preserves_flags));
    }
}

/// Tells the simulated machine that the measured region has ended.
pub fn region_end() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!(".byte 0x0f, 0x1f, 0x84, 0x00, 0x02, 0x4f, 0x54, 0x53", options(nostack, preserves_flags));
    }
}
