//! Looking into the measured kernel without patching it: callbacks at some of its instructions, found by symbols. They take no virtual time.
#![allow(unsafe_code)]

use crate::evidence::{Counts, Evidence, Mode, Now};
use crate::machine::machine;
use crate::plugin::instructions_of;
use crate::symbols::Symbols;
use libc::{c_int, c_uint, c_void};
use qemu_plugin_sys as qemu;
use std::ffi::CStr;
use std::ptr;

unsafe extern "C" {
    // GLib's (glib/garray.h), which QEMU is linked with.
    fn g_byte_array_new() -> *mut qemu::GByteArray;
    fn g_byte_array_set_size(array: *mut qemu::GByteArray, length: c_uint) -> *mut qemu::GByteArray;
}

/// Where the kernel's text and data begin, and guest-physical 0 with them, when it has not been relocated
/// (`__START_KERNEL_map`, arch/x86/include/asm/page_64_types.h).
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// Longest stack that is walked, in frames.
const DEEPEST: usize = 64;

/// Registers that are read, in the order of their handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// First argument of a function.
    Rdi,
    /// Stack pointer.
    Rsp,
    /// Frame pointer.
    Rbp,
}

/// The probe: symbols, account, and what reading the guest needs.
pub struct Probe {
    symbols: Symbols,
    evidence: Evidence,
    semaphore: u64,
    sequence: u64,
    handles: [*mut qemu::qemu_plugin_register; 3],
    buffer: *mut qemu::GByteArray,
}

/// What an instruction means to the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Site {
    Want(Mode),
    Return,
    Release,
    Downgrade,
    SwitchOut,
    SwitchIn,
    Expedited,
}

impl Probe {
    /// A probe of a kernel with these symbols.
    pub fn new(symbols: Symbols) -> Probe {
        let (semaphore, sequence) =
            (symbols.data("namespace_sem").unwrap_or(0), symbols.data("mount_lock").unwrap_or(0));
        Probe {
            symbols,
            evidence: Evidence::default(),
            semaphore,
            sequence,
            handles: [ptr::null_mut(); 3],
            // SAFETY: GLib's; lives as long as QEMU.
            buffer: unsafe { g_byte_array_new() },
        }
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.evidence.counts()
    }

    /// Guest-physical address of the sequence of `mount_lock`, if its place is known.
    pub fn sequence_physical(&self) -> Option<u64> {
        self.sequence.checked_sub(KERNEL_MAP)
    }

    /// Learns the handles of the registers. Called while a vCPU is initialised.
    pub fn learn_registers(&mut self) {
        // SAFETY: called from where QEMU asks for it; the array is QEMU's, of as many descriptors as it says.
        unsafe {
            let array = qemu::qemu_plugin_get_registers();
            let first: *const qemu::qemu_plugin_reg_descriptor = (*array).data.cast();
            for descriptor in std::slice::from_raw_parts(first, (*array).len as usize) {
                let place = match CStr::from_ptr(descriptor.name).to_bytes() {
                    b"rdi" => 0,
                    b"rsp" => 1,
                    b"rbp" => 2,
                    _ => continue,
                };
                self.handles[place] = descriptor.handle;
            }
        }
    }

    /// A register of the running vCPU; only in a callback that asked for registers.
    pub fn register(&mut self, register: Register) -> u64 {
        let handle = self.handles[register as usize];
        if handle.is_null() {
            return 0;
        }
        // SAFETY: the handle and buffer are QEMU's and GLib's; a 64-bit register has 8 bytes.
        unsafe {
            g_byte_array_set_size(self.buffer, 0);
            let size: c_int = qemu::qemu_plugin_read_register(handle, self.buffer);
            if size == 8 { (*self.buffer).data.cast::<u64>().read_unaligned() } else { 0 }
        }
    }

    fn read(&mut self, address: u64) -> Option<u64> {
        // SAFETY: reads 8 bytes of the running vCPU's address space into GLib's buffer, or says that it cannot.
        unsafe {
            let read = qemu::qemu_plugin_read_memory_vaddr(address, self.buffer, 8);
            read.then(|| (*self.buffer).data.cast::<u64>().read_unaligned())
        }
    }

    /// The stack of the running vCPU, which is about to execute `address`: innermost first, kernel frames alone.
    pub fn stack(&mut self, address: u64) -> Vec<u64> {
        let mut stack = vec![address];
        if address < KERNEL_MAP {
            return stack;
        }
        let (rsp, mut frame) = (self.register(Register::Rsp), self.register(Register::Rbp));
        // Before its first instruction a function has no frame: the return address is on top of the stack.
        if self.symbols.is_entry(address) {
            stack.extend(self.read(rsp).filter(|caller| *caller >= KERNEL_MAP));
        }
        while stack.len() < DEEPEST && frame >= rsp && frame > 1 << 63 {
            let (Some(next), Some(caller)) = (self.read(frame), self.read(frame + 8)) else { break };
            if caller < KERNEL_MAP {
                break;
            }
            stack.push(caller);
            if next <= frame {
                break;
            }
            frame = next;
        }
        stack
    }

    fn site(&self, address: u64, bytes: &[u8]) -> Option<Site> {
        let (name, range) = self.symbols.function_at(address)?;
        // RET is C3 (Intel SDM, volume 2).
        if bytes == [0xc3] && name.starts_with("down_") {
            return Some(Site::Return);
        }
        if address != range.start {
            return None;
        }
        Some(match name {
            "down_write" | "down_write_killable" => Site::Want(Mode::Exclusive),
            "down_read" | "down_read_killable" | "down_read_interruptible" => Site::Want(Mode::Shared),
            "up_write" | "up_read" => Site::Release,
            "downgrade_write" => Site::Downgrade,
            "__switch_to_asm" => Site::SwitchOut,
            "__switch_to" => Site::SwitchIn,
            "synchronize_rcu_expedited" => Site::Expedited,
            _ => return None,
        })
    }

    /// Instruments an instruction if it is one of those that tell something.
    ///
    /// # Safety
    /// The instruction is of the block that is being translated.
    pub unsafe fn instrument(&self, instruction: *mut qemu::qemu_plugin_insn, bytes: &[u8]) {
        // SAFETY: the caller's.
        let address = unsafe { qemu::qemu_plugin_insn_vaddr(instruction) };
        if address < KERNEL_MAP {
            return;
        }
        if refers_to(self.sequence, address, bytes) {
            let flags = qemu::qemu_plugin_cb_flags::QEMU_PLUGIN_CB_NO_REGS;
            let writes = qemu::qemu_plugin_mem_rw::QEMU_PLUGIN_MEM_W;
            // SAFETY: the caller's.
            unsafe {
                qemu::qemu_plugin_register_vcpu_mem_cb(instruction, Some(on_store), flags, writes, ptr::null_mut());
            }
        }
        if let Some(site) = self.site(address, bytes) {
            let flags = qemu::qemu_plugin_cb_flags::QEMU_PLUGIN_CB_R_REGS;
            let data = site.number() as *mut c_void;
            // SAFETY: the caller's.
            unsafe { qemu::qemu_plugin_register_vcpu_insn_exec_cb(instruction, Some(on_site), flags, data) };
        }
    }

    fn reached(&mut self, site: Site, now: Now) {
        match site {
            Site::Want(mode) if self.register(Register::Rdi) == self.semaphore => {
                let pointer = self.register(Register::Rsp);
                self.evidence.want(pointer, mode, now);
            }
            Site::Return if self.evidence.is_wanted() => {
                let pointer = self.register(Register::Rsp);
                self.evidence.returned(pointer, now);
            }
            Site::Release | Site::Downgrade
                if self.evidence.is_held() && self.register(Register::Rdi) == self.semaphore =>
            {
                let pointer = self.register(Register::Rsp);
                self.evidence.release(pointer, site == Site::Downgrade, now);
            }
            Site::SwitchOut if self.evidence.is_held() => {
                let pointer = self.register(Register::Rsp);
                self.evidence.switched_out(pointer, now);
            }
            Site::SwitchIn if self.evidence.is_held() => {
                let pointer = self.register(Register::Rsp);
                self.evidence.switched_in(pointer, now);
            }
            Site::Expedited => self.evidence.expedited(),
            _ => {}
        }
    }
}

impl Site {
    const ALL: [Site; 8] = [
        Site::Want(Mode::Exclusive),
        Site::Want(Mode::Shared),
        Site::Return,
        Site::Release,
        Site::Downgrade,
        Site::SwitchOut,
        Site::SwitchIn,
        Site::Expedited,
    ];

    fn number(self) -> usize {
        Site::ALL.iter().position(|site| *site == self).unwrap_or(0)
    }
}

/// Whether an instruction names a word by its address: relative to the next instruction, or absolute. The kernel's own code names its global
/// variables so (x86-64 System V ABI, kernel code model); a pointer in a register it is not.
fn refers_to(word: u64, address: u64, bytes: &[u8]) -> bool {
    let next = address + bytes.len() as u64;
    bytes.windows(4).any(|four| {
        let displacement = i64::from(i32::from_le_bytes([four[0], four[1], four[2], four[3]]));
        displacement as u64 == word || next.wrapping_add_signed(displacement) == word
    })
}

fn now(vcpu: c_uint) -> Now {
    let machine = machine();
    machine.settle();
    Now { clock: machine.ring.clock(machine.current()), instructions: instructions_of(vcpu) }
}

unsafe extern "C" fn on_site(vcpu: c_uint, data: *mut c_void) {
    let now = now(vcpu);
    if let (Some(probe), Some(site)) = (crate::plugin::probe(), Site::ALL.get(data as usize)) {
        probe.reached(*site, now);
    }
}

unsafe extern "C" fn on_store(vcpu: c_uint, info: qemu::qemu_plugin_meminfo_t, address: u64, _data: *mut c_void) {
    if crate::plugin::probe().is_none_or(|probe| address != probe.sequence) {
        return;
    }
    // SAFETY: called for an access of the running vCPU; the sequence has 32 bits.
    let value = unsafe { qemu::qemu_plugin_mem_get_value(info).data.u32_ };
    let now = now(vcpu);
    if let Some(probe) = crate::plugin::probe() {
        probe.evidence.sequence(u64::from(value), now);
    }
}
