//! System calls made directly: the C library's own functions of these names are ours.
#![allow(unsafe_code)]

use std::arch::asm;

/// A system call; the kernel's result, negative errno on failure.
///
/// # Safety
/// As the call itself.
pub unsafe fn call(number: i64, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the x86-64 system call convention: rcx and r11 are overwritten, nothing else.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
             in("r10") args[3], in("r8") args[4], in("r9") args[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// The same with the C library's convention: -1 and errno.
///
/// # Safety
/// As the call itself.
pub unsafe fn call_c(number: i64, args: [usize; 6]) -> isize {
    // SAFETY: the caller's.
    let result = unsafe { call(number, args) };
    if (-4095..0).contains(&result) {
        set_errno(-result as i32);
        return -1;
    }
    result
}

/// Sets this thread's errno.
pub fn set_errno(errno: i32) {
    // SAFETY: the address of a live thread-local of this thread.
    unsafe { *libc::__errno_location() = errno };
}

/// The host's monotonic time in nanoseconds.
pub fn host_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    unsafe { call(libc::SYS_clock_gettime, [libc::CLOCK_MONOTONIC as usize, &raw mut time as usize, 0, 0, 0, 0]) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The most memory that this process has had at once, KiB.
pub fn max_rss_kib() -> u64 {
    // SAFETY: an all-zero rusage is one; the kernel fills it.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        call(libc::SYS_getrusage, [libc::RUSAGE_SELF as usize, &raw mut usage as usize, 0, 0, 0, 0]);
        usage.ru_maxrss as u64
    }
}

/// Lets the host's other threads run.
pub fn host_yield() {
    // SAFETY: no arguments.
    unsafe { call(libc::SYS_sched_yield, [0; 6]) };
}

/// Sleeps for a time of the host.
pub fn host_sleep_ns(ns: i64) {
    let time = libc::timespec { tv_sec: 0, tv_nsec: ns };
    // SAFETY: the kernel reads one timespec; an interrupted sleep may be short.
    unsafe { call(libc::SYS_nanosleep, [&raw const time as usize, 0, 0, 0, 0, 0]) };
}

/// Blocks all signals in this host thread.
pub fn block_signals() {
    let all = u64::MAX;
    // SAFETY: the kernel reads 8 bytes, the size of its signal set on x86-64.
    unsafe { call(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as usize, &raw const all as usize, 0, 8, 0, 0]) };
}
