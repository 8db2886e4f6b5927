//! Waits for file descriptors. They become ready by what other fibers write (QEMU's event notifiers), which [`LOOK`] tells, or by
//! the world outside, which is asked now and then.
#![allow(unsafe_code)]

use crate::clock::NS_PER_S;
use crate::machine::{LOOK, POLL, machine, poll_turn, polled, wait};
use crate::raw;
use libc::{c_int, c_void, epoll_event, nfds_t, pollfd, sigset_t, size_t, ssize_t, timespec};
use std::sync::atomic::Ordering::Relaxed;

fn poll_now(fds: *mut pollfd, count: nfds_t, mask: *const sigset_t) -> c_int {
    let none = timespec { tv_sec: 0, tv_nsec: 0 };
    // 8 is the size of the kernel's signal set.
    let args = [fds as usize, count as usize, &raw const none as usize, mask as usize, 8, 0];
    // SAFETY: the caller's descriptors; the time is ours.
    unsafe { raw::call_c(libc::SYS_ppoll, args) as c_int }
}

/// Looks by `poll_now`, which does not wait, until it finds something or the time is over.
fn wait_until(timeout_ns: Option<u64>, poll_now: impl Fn() -> c_int) -> c_int {
    poll_turn();
    let until = timeout_ns.map(|ns| machine().rate.ticks(machine().now_ns().saturating_add(ns)));
    loop {
        let found = poll_now();
        let late = until.is_some_and(|until| machine().ring.now() >= until);
        if found != 0 || late {
            polled();
            return found;
        }
        wait(POLL, until);
    }
}

/// Milliseconds, or for ever if negative.
fn ns_of(timeout_ms: c_int) -> Option<u64> {
    u64::try_from(timeout_ms).ok().map(|ms| ms * 1_000_000)
}

/// ppoll(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn ppoll(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int {
    // SAFETY: null or the caller's time.
    let timeout = unsafe { timeout.as_ref() };
    let timeout_ns = timeout.map(|time| time.tv_sec as u64 * NS_PER_S + time.tv_nsec as u64);
    wait_until(timeout_ns, || poll_now(fds, count, mask))
}

/// poll(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn poll(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int {
    wait_until(ns_of(timeout_ms), || poll_now(fds, count, std::ptr::null()))
}

/// write(2): what an event notifier is told by.
#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, count: size_t) -> ssize_t {
    LOOK.store(true, Relaxed);
    // SAFETY: the caller's.
    unsafe { raw::call_c(libc::SYS_write, [fd as usize, bytes as usize, count, 0, 0, 0]) }
}

/// QEMU would wait for files in io_uring, whose waits no library can stand between: it falls back to poll.
#[unsafe(no_mangle)]
unsafe extern "C" fn io_uring_queue_init(_entries: u32, _ring: *mut c_void, _flags: u32) -> c_int {
    -libc::ENOSYS
}

/// epoll_wait(2): QEMU takes it for many descriptors.
#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_wait(fd: c_int, events: *mut epoll_event, most: c_int, timeout_ms: c_int) -> c_int {
    let args = [fd as usize, events as usize, most as usize, 0, 0, 0];
    // SAFETY: the caller's descriptor and place for events; the kernel does not wait.
    wait_until(ns_of(timeout_ms), || unsafe { raw::call_c(libc::SYS_epoll_wait, args) as c_int })
}
