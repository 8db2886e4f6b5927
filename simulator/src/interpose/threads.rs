//! Threads: started by the C library, then lent to the carrier (see `fiber`).
#![allow(unsafe_code)]

use crate::fiber::{self, park};
use crate::machine::{self, Start, machine};
use crate::raw;
use libc::{c_int, c_void, pthread_attr_t, pthread_t};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering::Acquire};

type Routine = extern "C" fn(*mut c_void) -> *mut c_void;
type Create = unsafe extern "C" fn(*mut pthread_t, *const pthread_attr_t, Routine, *mut c_void) -> c_int;
type Join = unsafe extern "C" fn(pthread_t, *mut *mut c_void) -> c_int;

fn next(name: &std::ffi::CStr) -> usize {
    // SAFETY: a C string; only names of the C library's own functions are passed.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) as usize }
}

/// pthread_create(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    thread: *mut pthread_t,
    attr: *const pthread_attr_t,
    routine: Routine,
    argument: *mut c_void,
) -> c_int {
    if !fiber::supported() {
        eprintln!("simulator: this host lets no program set the FS base (FSGSBASE: Linux 5.9 and a CPU since 2012)");
        std::process::abort();
    }
    let (id, context) = machine::reserve();
    let start = Box::into_raw(Box::new(Start { routine, argument, context, parked: 0 }));
    // SAFETY: the C library's function of this type (pthread.h); `start` lives until the fiber has read it.
    let result = unsafe {
        let create = std::mem::transmute::<usize, Create>(next(c"pthread_create"));
        create(thread, attr, first_steps, start.cast())
    };
    if result == 0 {
        // SAFETY: the fiber frees `start` only when the carrier, which is here, first runs it.
        wait_until_parked(unsafe { &raw const (*start).parked });
    }
    // SAFETY: on success the C library has written the caller's thread.
    machine::started(id, (result == 0).then(|| unsafe { *thread }));
    result
}

/// Ends as soon as the host has run the new thread for some instructions.
fn wait_until_parked(parked: *const u32) {
    // SAFETY: the caller's word, which the new thread writes once.
    let parked = unsafe { AtomicU32::from_ptr(parked.cast_mut()) };
    while parked.load(Acquire) == 0 {
        raw::host_yield();
    }
}

/// On the new host thread up to `park`, from there on the carrier, as the new fiber.
extern "C" fn first_steps(start: *mut c_void) -> *mut c_void {
    let start: *mut Start = start.cast();
    raw::block_signals();
    // SAFETY: signals are blocked; `start` is ours.
    unsafe { park((*start).context, &raw mut (*start).parked) };
    // SAFETY: nobody else knows `start` any more.
    let start = unsafe { Box::from_raw(start) };
    machine::first_run();
    let (routine, argument) = (start.routine, start.argument);
    drop(start);
    machine::finish(routine(argument) as usize)
}

/// pthread_exit(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_exit(result: *mut c_void) -> ! {
    machine::finish(result as usize)
}

/// pthread_join(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_join(thread: pthread_t, result: *mut *mut c_void) -> c_int {
    let Some(id) = machine().find(thread) else {
        // SAFETY: the C library's function of this type, for a thread that is none of ours.
        return unsafe { std::mem::transmute::<usize, Join>(next(c"pthread_join"))(thread, result) };
    };
    let value = machine::join(id);
    if !result.is_null() {
        // SAFETY: the caller's place for the result.
        unsafe { ptr::write(result, value as *mut c_void) };
    }
    0
}

/// pthread_detach(3): what ended is never freed, so there is nothing to do.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_detach(_thread: pthread_t) -> c_int {
    0
}

/// sched_yield(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn sched_yield() -> c_int {
    machine::give_way();
    0
}
