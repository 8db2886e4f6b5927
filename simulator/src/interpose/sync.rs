//! Locks and conditions. A lock is still the C library's own: it is tried, and waited for in the ring when another fiber holds it,
//! which must have given way while holding it. A condition is nothing but its address.
#![allow(unsafe_code)]

use crate::clock;
use crate::machine::{machine, wait};
use crate::raw;
use libc::{c_int, c_long, clockid_t, pthread_cond_t, pthread_mutex_t, timespec};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

type Unlock = unsafe extern "C" fn(*mut pthread_mutex_t) -> c_int;

static UNLOCK: AtomicUsize = AtomicUsize::new(0);

/// The C library's own pthread_mutex_unlock.
fn real_unlock() -> Unlock {
    let mut address = UNLOCK.load(Relaxed);
    if address == 0 {
        // SAFETY: a C string; the next library's function of that name exists: it is the C library's.
        address = unsafe { libc::dlsym(libc::RTLD_NEXT, c"pthread_mutex_unlock".as_ptr()) } as usize;
        UNLOCK.store(address, Relaxed);
    }
    // SAFETY: that function has this type (pthread.h).
    unsafe { std::mem::transmute::<usize, Unlock>(address) }
}

/// pthread_mutex_lock(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_mutex_lock(mutex: *mut pthread_mutex_t) -> c_int {
    loop {
        // SAFETY: the caller's mutex.
        let result = unsafe { libc::pthread_mutex_trylock(mutex) };
        if result != libc::EBUSY {
            return result;
        }
        machine().mutex_waits += 1;
        wait(mutex as usize, None);
    }
}

/// pthread_mutex_unlock(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_mutex_unlock(mutex: *mut pthread_mutex_t) -> c_int {
    // SAFETY: the caller's mutex.
    let result = unsafe { real_unlock()(mutex) };
    machine().wake(mutex as usize, 1);
    result
}

fn wait_on(cond: *mut pthread_cond_t, mutex: *mut pthread_mutex_t, until: Option<u64>) -> c_int {
    let machine = machine();
    let me = machine.current();
    match (machine.ring.vcpu(me), machine.ring.is_idle(me)) {
        (Some(_), true) => machine.halts_on(cond as usize),
        (Some(_), false) => machine.exclusive_waits += 1,
        (None, _) => {}
    }
    // SAFETY: the caller of pthread_cond_wait holds the mutex, and gets it back.
    let woken = unsafe {
        pthread_mutex_unlock(mutex);
        let woken = wait(cond as usize, until);
        pthread_mutex_lock(mutex);
        woken
    };
    if woken { 0 } else { libc::ETIMEDOUT }
}

/// pthread_cond_wait(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_cond_wait(cond: *mut pthread_cond_t, mutex: *mut pthread_mutex_t) -> c_int {
    wait_on(cond, mutex, None)
}

/// pthread_cond_timedwait(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_cond_timedwait(
    cond: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
    until: *const timespec,
) -> c_int {
    // SAFETY: the caller's time.
    let until = unsafe { &*until };
    let ns = clock::monotonic(until.tv_sec, until.tv_nsec);
    wait_on(cond, mutex, Some(machine().rate.ticks(ns)))
}

/// pthread_cond_clockwait(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_cond_clockwait(
    cond: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
    _clock: clockid_t,
    until: *const timespec,
) -> c_int {
    // SAFETY: as above; which clock is meant, the time itself tells.
    unsafe { pthread_cond_timedwait(cond, mutex, until) }
}

/// pthread_cond_signal(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_cond_signal(cond: *mut pthread_cond_t) -> c_int {
    machine().wake(cond as usize, 1);
    machine().kick(cond as usize);
    0
}

/// pthread_cond_broadcast(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_cond_broadcast(cond: *mut pthread_cond_t) -> c_int {
    machine().wake(cond as usize, usize::MAX);
    machine().kick(cond as usize);
    0
}

/// syscall(2): QEMU's events and GLib's locks wait by futex(2) through it. Everything else goes to the kernel.
#[unsafe(no_mangle)]
unsafe extern "C" fn syscall(number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long {
    if number == libc::SYS_futex {
        match (b as c_int) & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) {
            libc::FUTEX_WAIT => return futex_wait(a, c as u32, d as *const timespec),
            libc::FUTEX_WAKE => return machine().wake(a, c) as c_long,
            _ => {}
        }
    }
    // SAFETY: the caller's.
    unsafe { raw::call_c(number, [a, b, c, d, e, f]) as c_long }
}

fn futex_wait(address: usize, value: u32, timeout: *const timespec) -> c_long {
    // SAFETY: the caller's futex word, which nobody changes while we, the carrier, run.
    if unsafe { *(address as *const u32) } != value {
        raw::set_errno(libc::EAGAIN);
        return -1;
    }
    // SAFETY: null or the caller's relative time.
    let until = unsafe { timeout.as_ref() }.map(|time| {
        let ns = machine().now_ns() + time.tv_sec as u64 * clock::NS_PER_S + time.tv_nsec as u64;
        machine().rate.ticks(ns)
    });
    if wait(address, until) {
        return 0;
    }
    raw::set_errno(libc::ETIMEDOUT);
    -1
}
