//! The time-stamp counter: virtual as well.
//!
//! QEMU answers the guest's RDTSC with the host's (include/qemu/timer.h, `cpu_get_host_ticks`), an instruction that no library can stand
//! before. But the kernel can make it fault (PR_SET_TSC, prctl(2)): then the carrier gets SIGSEGV, and the handler puts virtual time where
//! the counter would have been. So the guest may use its cheapest and most usual clock, at [`crate::clock::TSC_KHZ`].
#![allow(unsafe_code)]

use crate::machine::machine;
use libc::{c_int, c_void, siginfo_t, ucontext_t};
use std::io;

/// SI_KERNEL (include/uapi/asm-generic/siginfo.h): what a general protection fault is sent with.
const SI_KERNEL: c_int = 0x80;

/// Lets every RDTSC of this host thread, the carrier, fault from now on.
///
/// # Errors
/// The kernel refuses: it has no PR_SET_TSC, or a seccomp filter forbids it.
pub fn make_virtual() -> io::Result<()> {
    // SAFETY: a zeroed sigaction is one without a mask; the handler has the type that SA_SIGINFO asks for.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        if libc::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut()) != 0
            || libc::prctl(libc::PR_SET_TSC, libc::PR_TSC_SIGSEGV) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The length of the instruction at `code` if it reads the time-stamp counter, and whether it is RDTSCP.
///
/// # Safety
/// `code` can be read: the CPU has just fetched the instruction from there.
unsafe fn tsc_read(code: *const u8) -> Option<(i64, bool)> {
    // SAFETY: as above; the third byte is read only where the first two leave an instruction unfinished.
    unsafe {
        match (*code, *code.add(1)) {
            (0x0f, 0x31) => Some((2, false)),
            (0x0f, 0x01) if *code.add(2) == 0xf9 => Some((3, true)),
            _ => None,
        }
    }
}

extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let context: *mut ucontext_t = context.cast();
    // SAFETY: the kernel passes both for this signal, and takes the registers back from where they are.
    unsafe {
        let registers = &mut (*context).uc_mcontext.gregs;
        let read =
            ((*info).si_code == SI_KERNEL).then(|| tsc_read(registers[libc::REG_RIP as usize] as *const u8)).flatten();
        let Some((length, with_cpu)) = read else {
            // A fault of QEMU's own: back to it, without us.
            libc::signal(signal, libc::SIG_DFL);
            return;
        };
        let ticks = machine().tsc();
        registers[libc::REG_RAX as usize] = (ticks & 0xffff_ffff) as i64;
        registers[libc::REG_RDX as usize] = (ticks >> 32) as i64;
        if with_cpu {
            registers[libc::REG_RCX as usize] = 0;
        }
        registers[libc::REG_RIP as usize] += length;
    }
}
