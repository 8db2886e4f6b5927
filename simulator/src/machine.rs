//! The machine: ring, fibers and waiters put together. All mutable state of the library is here.
//!
//! Invariant: only the carrier touches it, and never from a signal handler. So it needs no lock, and no call of Rust's standard
//! library that could wait (its locks end in functions that we replace).
#![allow(unsafe_code)]

use crate::clock::{Rate, START, TSC_KHZ};
use crate::fiber::{self, Context};
use crate::ram;
use crate::raw;
use crate::report::Losses;
use crate::ring::{Id, Next, Ring, Ticks};
use crate::watch::Watch;
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Something happened that a poll may be waiting for. Set from anywhere, signal handlers included.
pub static LOOK: AtomicBool = AtomicBool::new(false);

/// Windows between two looks at what only the outside world does (a signal, a pipe): nothing in an undisturbed run.
const ROUNDS_PER_LOOK: u64 = 1 << 14;

/// What a fiber waits for: the address of a lock, condition or futex word, or one of the small numbers below.
pub type Key = usize;
/// Waits for file descriptors.
pub const POLL: Key = 1;
/// Waits for time alone.
pub const SLEEP: Key = 2;

const HASHES: usize = 1024;

/// Locks and conditions lie at multiples of 8, often in objects of equal size: the multiplication (Knuth's, 2^64 / golden ratio)
/// spreads them.
fn hash(key: Key) -> usize {
    key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54
}

/// A thread of QEMU.
struct Fiber {
    context: Context,
    /// pthread_t, by which others join it.
    thread: u64,
    result: usize,
    ended: bool,
    /// Virtual time of the last return from a poll: see [`poll_turn`].
    polled: Ticks,
}

/// The count at which a vCPU's block calls back: far from 0, so that a budget can be given by starting below it.
pub const LIMIT: u64 = 1 << 40;

/// See the module's head.
pub struct Machine {
    /// The ring.
    pub ring: Ring,
    /// Speed of a vCPU.
    pub rate: Rate,
    /// What was not as it should be.
    pub losses: Losses,
    /// Times the carrier changed fibers.
    pub switches: u64,
    /// Times a fiber waited for a lock that another held.
    pub mutex_waits: u64,
    /// Times a vCPU waited, not halted, for another: exclusive execution and the like.
    pub exclusive_waits: u64,
    #[expect(clippy::vec_box, reason = "a fiber is switched to by its address, which a growing vector must not move")]
    fibers: Vec<Box<Fiber>>,
    current: Id,
    waiters: Vec<(Key, Id)>,
    /// Number of waiters by a hash of what they wait for: tells at once that nobody waits.
    waiting: [u16; HASHES],
    /// Where translated code counts each vCPU's ticks.
    counts: Vec<*mut u64>,
    /// Count at which each vCPU's unpaid running begins.
    paid: Vec<u64>,
    next_look: u64,
    /// The last reading of the time-stamp counter.
    tsc: u64,
    /// Parked vCPUs, and what each vCPU's loop looks at.
    parked: Vec<Id>,
    /// What each vCPU looks at while it spins, by index.
    pub watches: Vec<Watch>,
    /// On what each vCPU waits when it is halted, by index: whoever kicks it signals that.
    halts: Vec<Key>,
}

struct Shared(UnsafeCell<Machine>);
// SAFETY: see the module's invariant.
unsafe impl Sync for Shared {}

static MACHINE: Shared = Shared(UnsafeCell::new(Machine {
    ring: Ring::new(START, 100),
    rate: Rate { mips: 1000 },
    losses: Losses::none(),
    switches: 0,
    mutex_waits: 0,
    exclusive_waits: 0,
    fibers: Vec::new(),
    current: 0,
    waiters: Vec::new(),
    waiting: [0; HASHES],
    counts: Vec::new(),
    paid: Vec::new(),
    next_look: 0,
    tsc: 0,
    parked: Vec::new(),
    watches: Vec::new(),
    halts: Vec::new(),
}));

/// The machine. The reference must not be kept over a call that may change fibers.
pub fn machine() -> &'static mut Machine {
    // SAFETY: see the module's invariant.
    let machine = unsafe { &mut *MACHINE.0.get() };
    if machine.fibers.is_empty() {
        machine.add(0);
    }
    machine
}

impl Machine {
    fn add(&mut self, thread: u64) -> Id {
        let fiber = Fiber { context: Context::running(), thread, result: 0, ended: false, polled: 0 };
        self.fibers.push(Box::new(fiber));
        self.ring.join()
    }

    /// The running fiber.
    pub fn current(&self) -> Id {
        self.current
    }

    /// Virtual nanoseconds.
    pub fn now_ns(&self) -> u64 {
        self.rate.ns(self.ring.now())
    }

    /// The time-stamp counter: the running vCPU's own clock, exact to the block of instructions that reads it. vCPUs are within a window of
    /// each other, and none may read less than another has read before.
    pub fn tsc(&mut self) -> u64 {
        self.settle();
        self.tsc = self.tsc.max(self.rate.ns(self.ring.clock(self.current)) * (TSC_KHZ / 1_000_000));
        self.tsc
    }

    /// The fiber of a thread that the C library has started.
    pub fn find(&self, thread: u64) -> Option<Id> {
        self.fibers.iter().position(|fiber| fiber.thread == thread)
    }

    /// Translated code counts the ticks of vCPU `index` in `*count`.
    pub fn count_in(&mut self, index: usize, count: *mut u64) {
        if self.counts.len() <= index {
            self.counts.resize(index + 1, ptr::null_mut());
            self.paid.resize(index + 1, 0);
            self.watches.resize(index + 1, Watch::default());
            self.halts.resize(index + 1, 0);
        }
        self.counts[index] = count;
    }

    /// The running fiber is a vCPU, whose ticks are counted already.
    pub fn become_vcpu(&mut self, index: usize) {
        self.ring.become_vcpu(self.current, index);
        self.grant();
    }

    /// Charges the running vCPU for what it ran since it was charged last.
    pub fn settle(&mut self) {
        let Some(index) = self.ring.vcpu(self.current) else { return };
        // SAFETY: QEMU's scoreboard outlives all vCPUs, and only this vCPU's translated code writes this line of it.
        let count = unsafe { *self.counts[index] };
        self.ring.spend(self.current, count - self.paid[index]);
        self.paid[index] = count;
    }

    /// Charges the running vCPU for time that it spends without executing.
    pub fn charge(&mut self, ticks: Ticks) {
        let Some(index) = self.ring.vcpu(self.current) else { return };
        // SAFETY: as in `settle`.
        unsafe { *self.counts[index] += ticks };
    }

    /// Sets the running vCPU's count so that it reaches [`LIMIT`] when its budget is used up.
    fn grant(&mut self) {
        let Some(index) = self.ring.vcpu(self.current) else { return };
        let start = LIMIT - self.ring.budget(self.current).min(LIMIT);
        // SAFETY: as in `settle`.
        unsafe { *self.counts[index] = start };
        self.paid[index] = start;
    }

    /// Makes up to `most` waiters of `key` ready, first come first served; returns how many.
    pub fn wake(&mut self, key: Key, most: usize) -> usize {
        if self.waiting[hash(key)] == 0 {
            return 0;
        }
        self.settle();
        let mut woken = 0;
        let mut at = 0;
        while at < self.waiters.len() && woken < most {
            if self.waiters[at].0 == key {
                let (_, id) = self.waiters.remove(at);
                self.waiting[hash(key)] -= 1;
                self.ring.wake(id, self.current);
                woken += 1;
            } else {
                at += 1;
            }
        }
        woken
    }

    /// The running vCPU is halted, and waits for this condition.
    pub fn halts_on(&mut self, condition: Key) {
        if let Some(index) = self.ring.vcpu(self.current) {
            self.halts[index] = condition;
        }
    }

    /// Somebody signals a condition: a vCPU that halts on it and is parked has something to do (an interrupt, work of another vCPU's).
    pub fn kick(&mut self, condition: Key) {
        if self.parked.is_empty() {
            return;
        }
        let (ring, halts) = (&self.ring, &self.halts);
        let is_kicked = |id: &Id| ring.vcpu(*id).is_some_and(|index| halts[index] == condition);
        if let Some(at) = self.parked.iter().position(is_kicked) {
            self.settle();
            let id = self.parked.remove(at);
            self.ring.wake(id, self.current);
        }
    }

    /// A window begins: parked vCPUs whose words have changed go on.
    fn look_after_parked(&mut self) {
        let (ring, watches) = (&mut self.ring, &self.watches);
        self.parked.retain(|&id| {
            let changed = ring.vcpu(id).is_none_or(|index| watches[index].changed(ram::read));
            if changed {
                ring.wake(id, id);
            }
            !changed
        });
    }

    fn choose(&mut self) -> Id {
        loop {
            if self.ring.counts().rounds >= self.next_look {
                self.next_look = self.ring.counts().rounds + ROUNDS_PER_LOOK;
                LOOK.store(true, Relaxed);
            }
            if LOOK.swap(false, Relaxed) {
                self.wake(POLL, usize::MAX);
            }
            match self.ring.next() {
                Next::Run(id) => return id,
                Next::Window => self.look_after_parked(),
                Next::Stuck => self.wait_for_the_world(),
            }
        }
    }

    /// Nothing can go on by itself: a file descriptor must become ready.
    fn wait_for_the_world(&mut self) {
        if !self.waiters.iter().any(|(key, _)| *key == POLL) {
            eprintln!("simulator: all threads of QEMU wait for each other; waiters: {:x?}", self.waiters);
            std::process::abort();
        }
        self.losses.outside_waits += 1;
        raw::host_sleep_ns(1_000_000);
        LOOK.store(true, Relaxed);
    }
}

/// Waits for `key`, at longest until a virtual time. Returns whether it was woken, rather than out of time.
pub fn wait(key: Key, until: Option<Ticks>) -> bool {
    let machine = machine();
    let me = machine.current;
    machine.settle();
    machine.waiters.push((key, me));
    machine.waiting[hash(key)] += 1;
    machine.ring.block(me, until);
    reschedule();
    let machine = self::machine();
    match machine.waiters.iter().position(|waiter| *waiter == (key, me)) {
        None => true,
        Some(at) => {
            machine.waiters.remove(at);
            machine.waiting[hash(key)] -= 1;
            false
        }
    }
}

/// The running vCPU looks at words that do not change: goes on when one does, when it is kicked, or at a virtual time.
pub fn park(until: Ticks) {
    let machine = machine();
    let me = machine.current;
    machine.settle();
    machine.parked.push(me);
    machine.ring.park(me, until);
    reschedule();
    self::machine().parked.retain(|id| *id != me);
}

/// The running vCPU has used up its window.
pub fn end_of_window() {
    let machine = machine();
    machine.settle();
    machine.ring.yield_now(machine.current);
    reschedule();
}

/// Lets the others run: a service goes on in the next window.
pub fn give_way() {
    let machine = machine();
    if machine.ring.vcpu(machine.current).is_some() {
        end_of_window();
    } else {
        let until = machine.ring.window_end();
        wait(SLEEP, Some(until));
    }
}

/// A loop of polls that find something each time must not stop the time: one poll a window for each fiber.
pub fn poll_turn() {
    let machine = machine();
    if machine.fibers[machine.current].polled == machine.ring.now() {
        give_way();
    }
}

/// The running fiber returns from a poll.
pub fn polled() {
    let machine = machine();
    let now = machine.ring.now();
    machine.fibers[machine.current].polled = now;
}

fn reschedule() {
    let machine = machine();
    let me = machine.current;
    let next = machine.choose();
    if next != me {
        machine.switches += 1;
        machine.current = next;
        let from = &raw mut machine.fibers[me].context;
        let to = &raw const machine.fibers[next].context;
        // SAFETY: we are the carrier; `next` does not run, so its context was saved when it last gave way or was parked. Both
        // contexts are boxed and never freed.
        unsafe { fiber::switch(from, to) };
    }
    self::machine().grant();
}

/// A fiber runs for the first time: what [`reschedule`] does for one that comes back.
pub fn first_run() {
    machine().grant();
}

/// What a new thread needs to know before it becomes a fiber.
pub struct Start {
    /// QEMU's start routine.
    pub routine: extern "C" fn(*mut libc::c_void) -> *mut libc::c_void,
    /// Its argument.
    pub argument: *mut libc::c_void,
    /// Where its context is to be saved.
    pub context: *mut Context,
    /// Set once it is.
    pub parked: u32,
}

/// A place for a thread that is about to be started, and where its context goes.
pub fn reserve() -> (Id, *mut Context) {
    let machine = machine();
    let fiber = Fiber { context: Context::running(), thread: 0, result: 0, ended: false, polled: 0 };
    machine.fibers.push(Box::new(fiber));
    let id = machine.fibers.len() - 1;
    (id, &raw mut machine.fibers[id].context)
}

/// The thread of a reserved place has parked: it may run. Without a thread the place stays empty.
pub fn started(id: Id, thread: Option<u64>) {
    let machine = machine();
    let joined = machine.ring.join();
    assert_eq!(id, joined, "each fiber is a member of the ring");
    match thread {
        Some(thread) => machine.fibers[id].thread = thread,
        None => machine.fibers[id].ended = true,
    }
}

/// The running fiber ends with a result. Its stack and TLS are never given back: QEMU starts few threads.
pub fn finish(result: usize) -> ! {
    let machine = machine();
    machine.settle();
    let me = machine.current;
    machine.fibers[me].result = result;
    machine.fibers[me].ended = true;
    let key = joining(me);
    machine.wake(key, usize::MAX);
    machine.ring.end(me);
    reschedule();
    unreachable!("the ring never chooses who ended");
}

/// Waits until a fiber has ended; its result.
pub fn join(id: Id) -> usize {
    while !machine().fibers[id].ended {
        let key = joining(id);
        wait(key, None);
    }
    machine().fibers[id].result
}

fn joining(id: Id) -> Key {
    &raw const machine().fibers[id].result as Key
}
