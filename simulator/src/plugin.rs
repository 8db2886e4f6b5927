//! What QEMU calls: at installation, for each vCPU, for each block that it translates, at halts, at the end.
#![allow(unsafe_code)]

use crate::interpose::tsc;
use crate::machine::{self, LIMIT, machine};
use crate::options::Options;
use crate::probe::Probe;
use crate::profile::Profile;
use crate::ram::Ram;
use crate::raw;
use crate::region::{Mark, Region, Snapshot, Waits, mark};
use crate::report::Summary;
use crate::spin::{self, Spin};
use crate::symbols::Symbols;
use crate::watch::{Executed, Look, Turn};
use libc::{c_char, c_int, c_uint, c_void};
use qemu_plugin_sys as qemu;
use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::ptr;

/// The oldest plugin interface that has all we call: conditional callbacks came with 3 (QEMU 9.1), and bindings of 4 are used.
#[unsafe(no_mangle)]
static qemu_plugin_version: c_int = 4;

/// One vCPU's line of the scoreboard, which translated code adds to by itself.
#[repr(C)]
struct Line {
    /// Time used up, from an arbitrary start: see `machine::LIMIT`.
    ticks: u64,
    /// `pause` instructions, and the time they took.
    pauses: u64,
    paused: u64,
    tsc_reads: u64,
    /// Instructions in blocks that tell their loads and stores.
    told: u64,
}

struct Plugin {
    options: Options,
    board: *mut qemu::qemu_plugin_scoreboard,
    vcpus: usize,
    begin: Option<Snapshot>,
    regions: Vec<Region>,
    profile: Profile,
    spins: Vec<Spin>,
    waits: BTreeMap<u64, Waits>,
    ram: Ram,
    probe: Option<Probe>,
    start: Snapshot,
}

struct Shared(UnsafeCell<Option<Plugin>>);
// SAFETY: the invariant of `machine`: one carrier.
unsafe impl Sync for Shared {}

static PLUGIN: Shared = Shared(UnsafeCell::new(None));

fn plugin() -> &'static mut Plugin {
    // SAFETY: the invariant of `machine`; no reference is kept over a change of fibers.
    unsafe { (*PLUGIN.0.get()).as_mut() }.expect("QEMU calls back only after the installation")
}

fn entry(offset: usize) -> qemu::qemu_plugin_u64 {
    qemu::qemu_plugin_u64 { score: plugin().board, offset }
}

fn ticks() -> qemu::qemu_plugin_u64 {
    entry(std::mem::offset_of!(Line, ticks))
}

fn get(offset: usize, vcpu: usize) -> u64 {
    // SAFETY: the scoreboard lives as long as QEMU, and has a line for each vCPU that has been initialised.
    unsafe { qemu::qemu_plugin_u64_get(entry(offset), vcpu as c_uint) }
}

/// QEMU's entry point.
#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_plugin_install(
    id: qemu::qemu_plugin_id_t,
    _info: *const c_void,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    // SAFETY: QEMU passes `count` C strings.
    let words: Vec<String> = (0..count as usize)
        .map(|at| unsafe { CStr::from_ptr(*arguments.add(at)) }.to_string_lossy().into_owned())
        .collect();
    match Options::parse(words.iter().map(String::as_str)) {
        Ok(options) => install(id, options),
        Err(error) => {
            eprintln!("simulator: {error}");
            1
        }
    }
}

fn read_symbols(path: &str) -> Result<Symbols, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))?;
    Symbols::parse(&text).map_err(|error| format!("{path}: {error}"))
}

fn install(id: qemu::qemu_plugin_id_t, options: Options) -> c_int {
    if let Err(error) = tsc::make_virtual() {
        eprintln!("simulator: the time-stamp counter cannot be made virtual (PR_SET_TSC): {error}");
        return 1;
    }
    let symbols = match options.symbols.as_ref().map(|path| read_symbols(path)).transpose() {
        Ok(symbols) => symbols,
        Err(error) => {
            eprintln!("simulator: {error}");
            return 1;
        }
    };
    let machine = machine();
    machine.ring.configure(options.quantum, options.seed);
    machine.rate.mips = options.mips;
    // SAFETY: QEMU's own functions, with the plugin's id and functions of the types that they ask for.
    unsafe {
        let board = qemu::qemu_plugin_scoreboard_new(size_of::<Line>());
        *PLUGIN.0.get() = Some(Plugin {
            options,
            board,
            vcpus: 0,
            begin: None,
            regions: Vec::new(),
            profile: Profile::default(),
            spins: Vec::new(),
            waits: BTreeMap::new(),
            ram: Ram::default(),
            probe: symbols.map(Probe::new),
            start: Snapshot { host_ns: raw::host_ns(), ..Snapshot::default() },
        });
        qemu::qemu_plugin_register_vcpu_init_cb(id, Some(on_vcpu));
        qemu::qemu_plugin_register_vcpu_idle_cb(id, Some(on_idle));
        qemu::qemu_plugin_register_vcpu_resume_cb(id, Some(on_resume));
        qemu::qemu_plugin_register_vcpu_tb_trans_cb(id, Some(on_translation));
        qemu::qemu_plugin_register_atexit_cb(id, Some(on_exit), ptr::null_mut());
    }
    0
}

unsafe extern "C" fn on_vcpu(_id: qemu::qemu_plugin_id_t, vcpu: c_uint) {
    let plugin = plugin();
    plugin.vcpus = plugin.vcpus.max(vcpu as usize + 1);
    plugin.spins.resize(plugin.vcpus, Spin::default());
    // A new vCPU may have moved the scoreboard.
    for index in 0..plugin.vcpus {
        // SAFETY: QEMU has made the lines of all vCPUs up to the highest that was initialised.
        let line: *mut Line = unsafe { qemu::qemu_plugin_scoreboard_find(plugin.board, index as c_uint) }.cast();
        // SAFETY: the address of a field; nothing is read.
        machine().count_in(index, unsafe { &raw mut (*line).ticks });
    }
    if let Some(probe) = &mut plugin.probe {
        probe.learn_registers();
    }
    machine().become_vcpu(vcpu as usize);
}

unsafe extern "C" fn on_idle(_id: qemu::qemu_plugin_id_t, _vcpu: c_uint) {
    let machine = machine();
    machine.ring.set_idle(machine.current(), true);
}

unsafe extern "C" fn on_resume(_id: qemu::qemu_plugin_id_t, _vcpu: c_uint) {
    let machine = machine();
    machine.ring.set_idle(machine.current(), false);
}

/// Samples the running vCPU, which is about to execute `address`, if that is due.
fn sample(vcpu: c_uint, address: u64) {
    let plugin = plugin();
    if plugin.begin.is_none() || plugin.options.profile.is_none() {
        return;
    }
    let machine = machine();
    machine.settle();
    let samples = plugin.profile.due(vcpu as usize, machine.ring.spent(vcpu as usize), plugin.options.period);
    if samples > 0 {
        let stack = plugin.probe.as_mut().map_or_else(|| vec![address], |probe| probe.stack(address));
        plugin.profile.add(stack, samples);
    }
}

unsafe extern "C" fn on_window(vcpu: c_uint, address: *mut c_void) {
    sample(vcpu, address as u64);
    machine::end_of_window();
}

/// The probe, if evidence is asked for.
pub fn probe() -> Option<&'static mut Probe> {
    plugin().probe.as_mut()
}

/// Instructions that a vCPU has executed: time that it was awake, without pauses.
pub fn instructions_of(vcpu: c_uint) -> u64 {
    machine().ring.spent(vcpu as usize) - get(std::mem::offset_of!(Line, paused), vcpu as usize)
}

/// What callbacks may read: the guest's registers when stacks are walked.
fn registers() -> qemu::qemu_plugin_cb_flags {
    if plugin().options.profile.is_some() {
        qemu::qemu_plugin_cb_flags::QEMU_PLUGIN_CB_R_REGS
    } else {
        qemu::qemu_plugin_cb_flags::QEMU_PLUGIN_CB_NO_REGS
    }
}

/// What an instruction is to the machine.
enum Kind {
    Plain,
    Pause,
    ReadTsc,
    Mark(Mark),
}

fn kind(bytes: &[u8]) -> Kind {
    match bytes {
        // PAUSE is F3 90 (Intel SDM, volume 2).
        [0xf3, 0x90] => Kind::Pause,
        // RDTSC is 0F 31, RDTSCP 0F 01 F9.
        [0x0f, 0x31] | [0x0f, 0x01, 0xf9] => Kind::ReadTsc,
        _ => mark(bytes).map_or(Kind::Plain, Kind::Mark),
    }
}

unsafe extern "C" fn on_translation(_id: qemu::qemu_plugin_id_t, block: *mut qemu::qemu_plugin_tb) {
    // SAFETY: the block and its instructions live until this callback returns.
    unsafe {
        let count = qemu::qemu_plugin_tb_n_insns(block);
        let spins = is_near_pause(qemu::qemu_plugin_tb_get_insn(block, 0));
        for at in 0..count {
            let instruction = qemu::qemu_plugin_tb_get_insn(block, at);
            count_instruction(instruction);
            if spins {
                watch_instruction(instruction);
            }
        }
        let add = qemu::qemu_plugin_op::QEMU_PLUGIN_INLINE_ADD_U64;
        qemu::qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(block, add, ticks(), count as u64);
        if spins {
            let told = entry(std::mem::offset_of!(Line, told));
            qemu::qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(block, add, told, count as u64);
        }
        qemu::qemu_plugin_register_vcpu_tb_exec_cond_cb(
            block,
            Some(on_window),
            registers(),
            qemu::qemu_plugin_cond::QEMU_PLUGIN_COND_GE,
            ticks(),
            LIMIT,
            qemu::qemu_plugin_tb_vaddr(block) as *mut c_void,
        );
    }
}

/// How far around a block is searched for a `pause`: loops that wait are short.
const NEAR: usize = 128;

/// x86-64's pages.
const PAGE: usize = 4096;

/// Where the kernel's image is mapped (Documentation/arch/x86/x86_64/mm.rst): it lies in one piece in the guest's memory, which is one in the
/// host's.
const KERNEL_IMAGE: std::ops::Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_a000_0000;

/// Whether a block may be part of a loop that waits: a `pause` is near its first instruction, outside of the kernel in the same page.
unsafe fn is_near_pause(first: *const qemu::qemu_plugin_insn) -> bool {
    // SAFETY: the instruction lives until the translation callback returns; QEMU has just read it from this address of the host, guest
    // pages are whole in the host, and the kernel's image neither begins nor ends where the guest's memory does.
    unsafe {
        let at = qemu::qemu_plugin_insn_haddr(first) as usize;
        if at == 0 {
            return false;
        }
        let page = at & !(PAGE - 1);
        let (mut begin, mut end) = (at.saturating_sub(NEAR), at + NEAR);
        if !KERNEL_IMAGE.contains(&qemu::qemu_plugin_insn_vaddr(first)) {
            (begin, end) = (begin.max(page), end.min(page + PAGE));
        }
        let bytes = std::slice::from_raw_parts(begin as *const u8, end - begin);
        bytes.windows(2).any(|pair| pair == [0xf3, 0x90])
    }
}

/// Has each load of an instruction told to [`on_load`], and each store to [`on_store`].
unsafe fn watch_instruction(instruction: *mut qemu::qemu_plugin_insn) {
    let flags = qemu::qemu_plugin_cb_flags::QEMU_PLUGIN_CB_NO_REGS;
    // SAFETY: the instruction lives until the translation callback returns.
    unsafe {
        let (reads, writes) =
            (qemu::qemu_plugin_mem_rw::QEMU_PLUGIN_MEM_R, qemu::qemu_plugin_mem_rw::QEMU_PLUGIN_MEM_W);
        qemu::qemu_plugin_register_vcpu_mem_cb(instruction, Some(on_load), flags, reads, ptr::null_mut());
        qemu::qemu_plugin_register_vcpu_mem_cb(instruction, Some(on_store), flags, writes, ptr::null_mut());
    }
}

unsafe extern "C" fn on_store(vcpu: c_uint, _info: qemu::qemu_plugin_meminfo_t, _address: u64, _data: *mut c_void) {
    machine().watches[vcpu as usize].disturb();
}

unsafe extern "C" fn on_load(vcpu: c_uint, info: qemu::qemu_plugin_meminfo_t, address: u64, _data: *mut c_void) {
    let watch = &mut machine().watches[vcpu as usize];
    match unsafe { look(info, address) } {
        Some(look) => watch.load(look),
        None => watch.disturb(),
    }
}

/// A load as something to look at again.
unsafe fn look(info: qemu::qemu_plugin_meminfo_t, address: u64) -> Option<Look> {
    let ram = &mut plugin().ram;
    if *ram == Ram::default() {
        *ram = Ram::find();
    }
    // SAFETY: called for an access of the running vCPU, as these functions ask for.
    unsafe {
        let handle = qemu::qemu_plugin_get_hwaddr(info, address);
        if handle.is_null() || qemu::qemu_plugin_hwaddr_is_io(handle) {
            return None;
        }
        let size = 1u8 << qemu::qemu_plugin_mem_size_shift(info);
        let data = qemu::qemu_plugin_mem_get_value(info).data;
        let found = match size {
            1 => u64::from(data.u8_),
            2 => u64::from(data.u16_),
            4 => u64::from(data.u32_),
            8 => data.u64_,
            _ => return None,
        };
        let at = ram.look(qemu::qemu_plugin_hwaddr_phys_addr(handle), size, found)?;
        Some(Look { at, size, found })
    }
}

/// Instruments one instruction.
unsafe fn count_instruction(instruction: *mut qemu::qemu_plugin_insn) {
    let mut bytes = [0u8; 16];
    // SAFETY: QEMU writes at most as many bytes as it is told, and the longest x86 instruction has 15.
    let length = unsafe { qemu::qemu_plugin_insn_data(instruction, bytes.as_mut_ptr().cast(), bytes.len()) };
    let add = qemu::qemu_plugin_op::QEMU_PLUGIN_INLINE_ADD_U64;
    let flags = registers();
    // SAFETY: the instruction lives until the translation callback returns.
    unsafe {
        if let Some(probe) = &plugin().probe {
            probe.instrument(instruction, &bytes[..length]);
        }
        let address = qemu::qemu_plugin_insn_vaddr(instruction) as *mut c_void;
        let call = |callback: unsafe extern "C" fn(c_uint, *mut c_void)| {
            qemu::qemu_plugin_register_vcpu_insn_exec_cb(instruction, Some(callback), flags, address);
        };
        match kind(&bytes[..length]) {
            Kind::Plain => {}
            Kind::Pause => call(on_pause),
            Kind::ReadTsc => {
                let reads = entry(std::mem::offset_of!(Line, tsc_reads));
                qemu::qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(instruction, add, reads, 1);
            }
            Kind::Mark(Mark::Begin) => call(on_begin),
            Kind::Mark(Mark::End) => call(on_end),
        }
    }
}

/// Outside a region a spinning vCPU may look so much more rarely: nothing is measured there, and a boot spins a lot.
const OUTSIDE: u64 = 20;

unsafe extern "C" fn on_pause(vcpu: c_uint, address: *mut c_void) {
    machine().settle();
    let executed = Executed { all: instructions_of(vcpu), told: get(std::mem::offset_of!(Line, told), vcpu as usize) };
    let (plugin, machine) = (plugin(), machine());
    let clock = machine.ring.clock(machine.current());
    let most = plugin.options.spin * if plugin.begin.is_some() { 1 } else { OUTSIDE };
    let turn = machine.watches[vcpu as usize].pause(executed);
    let parks = turn == Turn::Same;
    let share = if parks { spin::PARKED_SHARE } else { spin::SHARE };
    let spin = &mut plugin.spins[vcpu as usize];
    spin.pauses(clock, address as u64);
    if turn == Turn::Changed {
        spin.begins(clock);
    }
    let mut cost = spin.cost(clock, plugin.options.pause, share, most);
    if parks {
        machine::park(clock + cost);
        let machine = self::machine();
        cost = machine.ring.clock(machine.current()) - clock;
        plugin.spins[vcpu as usize].ended(clock + cost);
    } else {
        machine.charge(cost);
    }
    sample(vcpu, address as u64);
    let plugin = self::plugin();
    let waits = plugin.waits.entry(address as u64).or_default();
    waits.pauses += 1;
    waits.parks += u64::from(parks);
    waits.ticks += cost;
    // SAFETY: the line of a vCPU that runs.
    unsafe {
        let line: *mut Line = qemu::qemu_plugin_scoreboard_find(plugin.board, vcpu).cast();
        (*line).pauses += 1;
        (*line).paused += cost;
    }
}

fn snapshot() -> Snapshot {
    let machine = machine();
    machine.settle();
    let vcpus = 0..plugin().vcpus;
    Snapshot {
        clock: machine.ring.clock(machine.current()),
        counts: machine.ring.counts(),
        switches: machine.switches,
        mutex_waits: machine.mutex_waits,
        exclusive_waits: machine.exclusive_waits,
        tsc_reads: vcpus.clone().map(|vcpu| get(std::mem::offset_of!(Line, tsc_reads), vcpu)).sum(),
        outside_waits: machine.losses.outside_waits,
        ticks: vcpus.clone().map(|vcpu| machine.ring.spent(vcpu)).collect(),
        pauses: vcpus.clone().map(|vcpu| get(std::mem::offset_of!(Line, pauses), vcpu)).collect(),
        paused: vcpus.map(|vcpu| get(std::mem::offset_of!(Line, paused), vcpu)).collect(),
        host_ns: raw::host_ns(),
        waits: plugin().waits.clone(),
        evidence: plugin().probe.as_ref().map(Probe::counts),
        sequence: plugin().probe.as_ref().and_then(Probe::sequence_physical).and_then(|at| plugin().ram.word(at)),
    }
}

unsafe extern "C" fn on_begin(_vcpu: c_uint, _data: *mut c_void) {
    let begin = snapshot();
    let plugin = plugin();
    for vcpu in 0..plugin.vcpus {
        plugin.profile.begin(vcpu, machine().ring.spent(vcpu), plugin.options.period);
    }
    plugin.begin = Some(begin);
}

unsafe extern "C" fn on_end(_vcpu: c_uint, _data: *mut c_void) {
    let Some(begin) = plugin().begin.take() else { return };
    let rate = machine().rate;
    let region = Region::between(&begin, &snapshot(), |ticks| rate.ns(ticks));
    plugin().regions.push(region);
    write_summary();
}

unsafe extern "C" fn on_exit(_id: qemu::qemu_plugin_id_t, _data: *mut c_void) {
    write_summary();
    let plugin = plugin();
    if let Some(path) = &plugin.options.profile {
        save(path, &plugin.profile.folded());
    }
}

fn write_summary() {
    let now = snapshot();
    let (plugin, rate) = (plugin(), machine().rate);
    let total = Region::between(&plugin.start, &now, |ticks| rate.ns(ticks));
    let summary = Summary::new(&plugin.options, raw::max_rss_kib(), total, &plugin.regions);
    match &plugin.options.summary {
        Some(path) => save(path, &summary.json()),
        None => eprintln!("{}", summary.json()),
    }
}

fn save(path: &str, text: &str) {
    if let Err(error) = std::fs::write(path, text) {
        eprintln!("simulator: cannot write {path}: {error}");
    }
}
