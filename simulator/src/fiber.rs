//! How one host thread goes on as another of QEMU's threads: by changing to that thread's stack and thread-local storage.
//!
//! Each of QEMU's threads is still started by the C library, which gives it a stack and thread-local storage (TLS). Then its host
//! thread lends both out for ever: it parks in a system call that needs neither, and the one *carrier* (the host thread that QEMU
//! began with) runs on them whenever the ring says so. A change takes some ten nanoseconds, where waking a host thread takes
//! microseconds; and the host's scheduler has no say in it.
//!
//! Needs the FSGSBASE instructions in user space (Linux 5.9, Ivy Bridge or Zen): [`supported`].
#![allow(unsafe_code)]

use std::arch::naked_asm;

/// Where a fiber goes on: its stack, on which its registers lie, and its TLS.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Context {
    rsp: usize,
    fs: usize,
}

impl Context {
    /// Of a fiber that runs, and whose context is therefore not known yet.
    pub const fn running() -> Context {
        Context { rsp: 0, fs: 0 }
    }
}

/// Whether user space may set the FS base (bit 1 of AT_HWCAP2, arch/x86/include/uapi/asm/hwcap2.h).
pub fn supported() -> bool {
    const HWCAP2_FSGSBASE: u64 = 1 << 1;
    // SAFETY: reads the process's auxiliary vector.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & HWCAP2_FSGSBASE != 0 }
}

/// Saves the running fiber in `from` and goes on as `to`. Returns when somebody switches back.
///
/// # Safety
/// Only the carrier may call it, `to` must have been saved by [`switch`] or [`park`] and not been gone on with since.
#[unsafe(naked)]
pub unsafe extern "C" fn switch(from: *mut Context, to: *const Context) {
    // What the System V ABI lets a function keep is saved on the stack; everything else the caller has saved.
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "stmxcsr [rsp]",
        "fnstcw [rsp + 4]",
        "rdfsbase rax",
        "mov [rdi + 8], rax",
        "mov [rdi], rsp",
        "mov rsp, [rsi]",
        "mov rax, [rsi + 8]",
        "wrfsbase rax",
        "ldmxcsr [rsp]",
        "fldcw [rsp + 4]",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// Saves this host thread as a fiber in `own`, says so in `parked`, and lends out its stack and TLS for ever. The carrier
/// returns from this call when it goes on as that fiber.
///
/// # Safety
/// All signals must be blocked: a handler would run on the stack that was lent out.
#[unsafe(naked)]
pub unsafe extern "C" fn park(own: *mut Context, parked: *mut u32) {
    // 34 is pause(2): it waits for a signal, none of which can come. The loop uses registers alone.
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "stmxcsr [rsp]",
        "fnstcw [rsp + 4]",
        "rdfsbase rax",
        "mov [rdi + 8], rax",
        "mov [rdi], rsp",
        "mov dword ptr [rsi], 1",
        "2:",
        "mov eax, 34",
        "syscall",
        "jmp 2b",
    )
}
