//! Clocks and sleeps: virtual, all of them. CPU-time clocks stay the host's: nothing that the guest sees comes from them.
#![allow(unsafe_code)]

use crate::clock::{EPOCH_S, NS_PER_S, monotonic, split};
use crate::machine::{SLEEP, machine, wait};
use crate::raw;
use libc::{c_int, c_void, clockid_t, time_t, timespec, timeval, useconds_t};

/// Since boot for the monotonic clocks, since 1970 for the others.
fn seconds_before(clock: clockid_t) -> Option<u64> {
    match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE | libc::CLOCK_TAI => Some(EPOCH_S),
        libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_RAW | libc::CLOCK_MONOTONIC_COARSE | libc::CLOCK_BOOTTIME => {
            Some(0)
        }
        _ => None,
    }
}

/// clock_gettime(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    let Some(before) = seconds_before(clock) else {
        // SAFETY: the caller's.
        return unsafe { raw::call_c(libc::SYS_clock_gettime, [clock as usize, time as usize, 0, 0, 0, 0]) as c_int };
    };
    let (s, ns) = split(machine().now_ns());
    // SAFETY: the caller's place for the time.
    unsafe { time.write(timespec { tv_sec: s + before as i64, tv_nsec: ns }) };
    0
}

/// gettimeofday(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn gettimeofday(time: *mut timeval, _zone: *mut c_void) -> c_int {
    let (s, ns) = split(machine().now_ns());
    // SAFETY: the caller's place for the time.
    unsafe { time.write(timeval { tv_sec: s + EPOCH_S as i64, tv_usec: ns / 1000 }) };
    0
}

/// time(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn time(time: *mut time_t) -> time_t {
    let s = split(machine().now_ns()).0 + EPOCH_S as i64;
    if !time.is_null() {
        // SAFETY: the caller's place for the time.
        unsafe { time.write(s) };
    }
    s
}

fn sleep_until(ns: u64) {
    let until = machine().rate.ticks(ns);
    wait(SLEEP, Some(until));
}

fn sleep_for(s: i64, ns: i64) -> c_int {
    let duration = (s.max(0) as u64).saturating_mul(NS_PER_S).saturating_add(ns.max(0) as u64);
    sleep_until(machine().now_ns().saturating_add(duration));
    0
}

/// nanosleep(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn nanosleep(time: *const timespec, _left: *mut timespec) -> c_int {
    // SAFETY: the caller's time.
    let time = unsafe { *time };
    sleep_for(time.tv_sec, time.tv_nsec)
}

/// clock_nanosleep(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_nanosleep(
    _clock: clockid_t,
    flags: c_int,
    time: *const timespec,
    _left: *mut timespec,
) -> c_int {
    // SAFETY: the caller's time.
    let time = unsafe { *time };
    if flags & libc::TIMER_ABSTIME == 0 {
        return sleep_for(time.tv_sec, time.tv_nsec);
    }
    sleep_until(monotonic(time.tv_sec, time.tv_nsec));
    0
}

/// usleep(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn usleep(us: useconds_t) -> c_int {
    sleep_for(0, i64::from(us) * 1000)
}
