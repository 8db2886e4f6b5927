//! Who runs next, and what time it is: pure bookkeeping, without threads, QEMU or a clock.
//!
//! Members are the threads of the emulator. Some are *vCPUs*: they pay for running with virtual time. The others are
//! *services* (main loop, RCU, workers): they run in no virtual time, as soon as they can.
//!
//! Invariants:
//! 1. Exactly one member runs at any time; all others are ready, blocked or ended.
//! 2. Virtual time (`now`) is the start of the current window. It never goes back, and it moves on only when no service is
//!    ready and each ready vCPU has used up the window.
//! 3. A vCPU's own clock never lags behind `now` when it starts to run, and passes the window's end by at most the block
//!    of instructions in which it ended.
//! 4. With no vCPU ready, time jumps to the next deadline: nobody waits for the host's clock.
//! 5. Who runs next depends on nothing but the calls made: the same calls give the same order, bit for bit.

use crate::bits::Bits;
use std::collections::{BTreeSet, VecDeque};

/// Virtual time in instructions: one tick is the time of one.
pub type Ticks = u64;

/// A member's number, in order of joining.
pub type Id = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Blocked { until: Option<Ticks> },
    Ended,
}

#[derive(Debug)]
struct Member {
    state: State,
    vcpu: Option<usize>,
    /// A vCPU's own clock.
    local: Ticks,
    /// Time that it has run.
    spent: Ticks,
    /// Halted: its clock stands while it waits, and is set on by whoever wakes it.
    idle: bool,
    /// Blocked in a loop that waits for a change of memory: as [`Ring::park`] left it.
    parked: bool,
}

/// What [`Ring::next`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This member runs.
    Run(Id),
    /// A window has begun: parked vCPUs are to be looked after; then ask again.
    Window,
    /// All are blocked and no deadline is set: only the world outside can go on.
    Stuck,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Windows in which some vCPU ran.
    pub rounds: u64,
    /// Jumps over times in which all vCPUs were halted.
    pub warps: u64,
    /// Virtual time jumped over.
    pub warped: Ticks,
}

/// The ring. See the module's head for its invariants.
#[derive(Debug)]
pub struct Ring {
    quantum: Ticks,
    now: Ticks,
    members: Vec<Member>,
    /// Members that are vCPUs, by the vCPU's index.
    vcpus: Vec<Id>,
    /// vCPUs that are ready.
    ready: Bits,
    /// Those of them that have some of this window left and do not run.
    todo: Bits,
    /// The vCPU that ran last: the next one of `todo` after it runs next.
    last: usize,
    /// Ready services, first come first served.
    services: VecDeque<Id>,
    deadlines: BTreeSet<(Ticks, Id)>,
    /// Decides where each window begins in the ring; 0: one further each time.
    seed: u64,
    counts: Counts,
}

impl Ring {
    /// A ring whose one member, 0, runs.
    pub const fn new(start: Ticks, quantum: Ticks) -> Ring {
        Ring {
            quantum,
            now: start,
            members: Vec::new(),
            vcpus: Vec::new(),
            ready: Bits::new(),
            todo: Bits::new(),
            last: 0,
            services: VecDeque::new(),
            deadlines: BTreeSet::new(),
            seed: 0,
            counts: Counts { rounds: 0, warps: 0, warped: 0 },
        }
    }

    /// Sets the length of a window, and the seed of the order in which vCPUs run within each.
    pub fn configure(&mut self, quantum: Ticks, seed: u64) {
        self.quantum = quantum.max(1);
        self.seed = seed;
    }

    /// A new service, ready to run.
    pub fn join(&mut self) -> Id {
        let id = self.members.len();
        self.members.push(Member {
            state: State::Ready,
            vcpu: None,
            local: self.now,
            spent: 0,
            idle: false,
            parked: false,
        });
        if id > 0 {
            self.services.push_back(id);
        }
        id
    }

    /// The running member turns out to be a vCPU.
    pub fn become_vcpu(&mut self, id: Id, index: usize) {
        if self.vcpus.len() <= index {
            self.vcpus.resize(index + 1, id);
        }
        self.vcpus[index] = id;
        let now = self.now;
        let member = &mut self.members[id];
        member.vcpu = Some(index);
        member.local = now;
        self.ready.insert(index);
    }

    /// Virtual time.
    pub fn now(&self) -> Ticks {
        self.now
    }

    /// Start of the next window, unless everybody halts before.
    pub fn window_end(&self) -> Ticks {
        self.now + self.quantum
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The index of a member that is a vCPU.
    pub fn vcpu(&self, id: Id) -> Option<usize> {
        self.members.get(id)?.vcpu
    }

    /// Whether the member has halted.
    pub fn is_idle(&self, id: Id) -> bool {
        self.members[id].idle
    }

    /// A member's own clock: a service has none and reads the window's start.
    pub fn clock(&self, id: Id) -> Ticks {
        let member = &self.members[id];
        if member.vcpu.is_some() { member.local } else { self.now }
    }

    /// How far the vCPU may run in this window; at least one instruction.
    pub fn budget(&self, id: Id) -> Ticks {
        self.window_end().saturating_sub(self.members[id].local).max(1)
    }

    /// The vCPU has run so many instructions.
    pub fn spend(&mut self, id: Id, ticks: Ticks) {
        self.members[id].local += ticks;
        self.members[id].spent += ticks;
    }

    /// How long the vCPU of this index has run since it joined.
    pub fn spent(&self, index: usize) -> Ticks {
        self.members[self.vcpus[index]].spent
    }

    /// The vCPU halts (true) or is about to run again.
    pub fn set_idle(&mut self, id: Id, idle: bool) {
        self.members[id].idle = idle;
    }

    /// The running member lets others run, but could go on.
    pub fn yield_now(&mut self, id: Id) {
        self.enqueue(id);
    }

    /// The running member waits, at longest until a deadline.
    pub fn block(&mut self, id: Id, until: Option<Ticks>) {
        self.members[id].state = State::Blocked { until };
        if let Some(until) = until {
            self.deadlines.insert((until, id));
        }
        if let Some(index) = self.members[id].vcpu {
            self.ready.remove(index);
            self.todo.remove(index);
        }
    }

    /// The running vCPU goes on looking at memory that does not change: it need not run until that changes, or until a deadline. Its clock
    /// goes on, and what it passes counts as spent.
    pub fn park(&mut self, id: Id, until: Ticks) {
        self.members[id].parked = true;
        self.block(id, Some(until));
    }

    /// The running member is gone for good.
    pub fn end(&mut self, id: Id) {
        self.block(id, None);
        self.members[id].state = State::Ended;
    }

    /// Makes a blocked member ready; `by` is the member that woke it, which gives a halted vCPU the time.
    pub fn wake(&mut self, id: Id, by: Id) {
        let State::Blocked { until } = self.members[id].state else { return };
        if let Some(until) = until {
            self.deadlines.remove(&(until, id));
        }
        let time = self.clock(by).max(self.now);
        let now = self.now;
        let member = &mut self.members[id];
        member.state = State::Ready;
        let local = member.local.max(if member.idle || member.parked { time } else { now });
        if std::mem::take(&mut member.parked) {
            member.spent += local - member.local;
        }
        member.local = local;
        self.enqueue(id);
    }

    fn enqueue(&mut self, id: Id) {
        match self.members[id].vcpu {
            None => self.services.push_back(id),
            Some(index) => {
                self.ready.insert(index);
                if self.members[id].local < self.window_end() {
                    self.todo.insert(index);
                }
            }
        }
    }

    /// Who runs next. The member that ran before must have yielded, blocked or ended.
    pub fn next(&mut self) -> Next {
        if let Some(service) = self.services.pop_front() {
            return Next::Run(service);
        }
        if let Some(index) = self.todo.next_after(self.last) {
            self.todo.remove(index);
            self.last = index;
            return Next::Run(self.vcpus[index]);
        }
        if self.move_on() { Next::Window } else { Next::Stuck }
    }

    /// Opens the next window: a quantum further, or at the next deadline when no vCPU is ready.
    fn move_on(&mut self) -> bool {
        if !self.ready.is_empty() {
            self.now += self.quantum;
            self.counts.rounds += 1;
        } else if let Some(&(until, _)) = self.deadlines.first() {
            self.counts.warps += 1;
            self.counts.warped += until.saturating_sub(self.now);
            self.now = self.now.max(until);
        } else {
            return false;
        }
        self.expire();
        self.refill();
        true
    }

    fn expire(&mut self) {
        while let Some(&(until, id)) = self.deadlines.first() {
            if until > self.now {
                return;
            }
            self.wake(id, id);
        }
    }

    fn refill(&mut self) {
        let end = self.window_end();
        for index in self.ready.iter() {
            if self.members[self.vcpus[index]].local < end {
                self.todo.insert(index);
            }
        }
        self.last = self.first_of_window();
    }

    /// No vCPU may always be first: who is decides ties for every lock that is not a queue. Decided by the time alone, and not by how many
    /// windows there were: a service that wakes for nothing opens one, and shall change nothing.
    fn first_of_window(&self) -> usize {
        let count = self.vcpus.len().max(1) as u64;
        let window = self.now / self.quantum;
        let number = if self.seed == 0 { window } else { mixed(window ^ mixed(self.seed)) };
        (number % count) as usize
    }
}

/// splitmix64's finalizer (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014): any change of the number changes
/// every bit of the result half of the time.
fn mixed(number: u64) -> u64 {
    let z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUANTUM: Ticks = 100;

    /// A main loop (0) that has started vCPUs 0.. and blocked.
    fn ring(vcpus: usize) -> Ring {
        let mut ring = Ring::new(1000, QUANTUM);
        let main = ring.join();
        for index in 0..vcpus {
            let id = ring.join();
            ring.yield_now(main);
            assert_eq!(next(&mut ring), Next::Run(id));
            ring.become_vcpu(id, index);
            ring.yield_now(id);
            assert_eq!(next(&mut ring), Next::Run(main));
        }
        ring.block(main, None);
        ring
    }

    /// What is next but the beginning of a window.
    fn next(ring: &mut Ring) -> Next {
        loop {
            match ring.next() {
                Next::Window => {}
                next => return next,
            }
        }
    }

    /// Lets whoever is next run `ticks` and yield; returns who.
    fn run(ring: &mut Ring, ticks: Ticks) -> Id {
        let Next::Run(id) = next(ring) else { panic!("stuck") };
        ring.spend(id, ticks);
        ring.yield_now(id);
        id
    }

    #[test]
    fn each_vcpu_runs_once_a_window_and_the_first_one_changes() {
        let mut ring = ring(3);
        let order: Vec<Id> = (0..9).map(|_| run(&mut ring, QUANTUM)).collect();
        for window in order.chunks(3) {
            let mut sorted = window.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, [1, 2, 3]);
        }
        assert_ne!(order[..3], order[3..6]);
        assert_eq!(ring.now(), 1000 + 2 * QUANTUM);
    }

    #[test]
    fn time_stands_until_all_have_used_the_window() {
        let mut ring = ring(2);
        let first = run(&mut ring, 40);
        run(&mut ring, QUANTUM);
        assert_eq!((ring.now(), run(&mut ring, 60)), (1000, first));
        run(&mut ring, 1);
        assert_eq!(ring.now(), 1000 + QUANTUM);
    }

    #[test]
    fn what_a_block_ran_over_is_paid_back() {
        let mut ring = ring(1);
        run(&mut ring, QUANTUM + 30);
        let Next::Run(id) = next(&mut ring) else { panic!("stuck") };
        assert_eq!(ring.budget(id), QUANTUM - 30);
        ring.spend(id, 3 * QUANTUM);
        ring.yield_now(id);
        next(&mut ring);
        assert_eq!((ring.now(), ring.clock(id)), (1000 + 4 * QUANTUM, 1000 + 4 * QUANTUM + 30));
    }

    #[test]
    fn a_halted_vcpu_wakes_at_its_wakers_time() {
        let mut ring = ring(2);
        let Next::Run(sleeper) = next(&mut ring) else { panic!("stuck") };
        ring.spend(sleeper, 10);
        ring.set_idle(sleeper, true);
        ring.block(sleeper, None);
        let Next::Run(waker) = next(&mut ring) else { panic!("stuck") };
        ring.spend(waker, 70);
        ring.wake(sleeper, waker);
        ring.yield_now(waker);
        assert_eq!(ring.clock(sleeper), 1070);
        let ran = [run(&mut ring, 30), run(&mut ring, 30)];
        assert!(ran.contains(&sleeper) && ran.contains(&waker), "both have 30 left in this window: {ran:?}");
        assert_eq!(ring.now(), 1000);
    }

    #[test]
    fn a_vcpu_that_waited_for_another_thread_does_not_catch_up() {
        let mut ring = ring(2);
        let Next::Run(waiter) = next(&mut ring) else { panic!("stuck") };
        ring.block(waiter, None);
        for _ in 0..5 {
            run(&mut ring, QUANTUM);
        }
        let Next::Run(other) = next(&mut ring) else { panic!("stuck") };
        ring.wake(waiter, other);
        assert_eq!(ring.clock(waiter), ring.now());
        assert_eq!(ring.budget(waiter), QUANTUM);
    }

    #[test]
    fn a_parked_vcpu_pays_for_the_time_it_waited() {
        let mut ring = ring(2);
        let Next::Run(spinner) = next(&mut ring) else { panic!("stuck") };
        ring.spend(spinner, 30);
        ring.park(spinner, 1000 + 10 * QUANTUM);
        let Next::Run(writer) = next(&mut ring) else { panic!("stuck") };
        ring.spend(writer, QUANTUM);
        ring.yield_now(writer);
        assert_eq!(ring.next(), Next::Window);
        ring.wake(spinner, spinner);
        assert_eq!((ring.clock(spinner), ring.now()), (1000 + QUANTUM, 1000 + QUANTUM));
        let index = ring.vcpu(spinner).unwrap();
        assert_eq!(ring.spent(index), QUANTUM, "30 run, 70 waited");
    }

    #[test]
    fn a_parked_vcpu_alone_waits_until_its_deadline() {
        let mut ring = ring(1);
        let Next::Run(spinner) = next(&mut ring) else { panic!("stuck") };
        ring.park(spinner, 5000);
        assert_eq!(next(&mut ring), Next::Run(spinner));
        assert_eq!((ring.now(), ring.clock(spinner)), (5000, 5000));
    }

    #[test]
    fn idle_time_is_jumped_over_to_the_next_deadline() {
        let mut ring = ring(1);
        let Next::Run(vcpu) = next(&mut ring) else { panic!("stuck") };
        ring.wake(0, vcpu);
        ring.set_idle(vcpu, true);
        ring.block(vcpu, None);
        assert_eq!(next(&mut ring), Next::Run(0));
        ring.block(0, Some(1_000_000));
        assert_eq!(next(&mut ring), Next::Run(0));
        assert_eq!((ring.now(), ring.counts().warps), (1_000_000, 1));
        ring.wake(vcpu, 0);
        assert_eq!(ring.clock(vcpu), 1_000_000);
    }

    #[test]
    fn a_deadline_passes_in_the_window_that_reaches_it() {
        let mut ring = ring(1);
        let Next::Run(vcpu) = next(&mut ring) else { panic!("stuck") };
        ring.wake(0, vcpu);
        ring.yield_now(vcpu);
        assert_eq!(next(&mut ring), Next::Run(0));
        ring.block(0, Some(1000 + 2 * QUANTUM + 1));
        let mut windows = 0;
        while run(&mut ring, QUANTUM) != 0 {
            windows += 1;
        }
        assert_eq!((windows, ring.now()), (3, 1000 + 3 * QUANTUM));
    }

    #[test]
    fn a_service_that_is_woken_runs_before_any_vcpu() {
        let mut ring = ring(3);
        let Next::Run(vcpu) = next(&mut ring) else { panic!("stuck") };
        ring.wake(0, vcpu);
        ring.spend(vcpu, QUANTUM);
        ring.yield_now(vcpu);
        assert_eq!(next(&mut ring), Next::Run(0));
        assert_eq!(ring.now(), 1000);
    }

    #[test]
    fn with_nothing_to_wait_for_the_ring_is_stuck() {
        let mut ring = ring(1);
        let Next::Run(vcpu) = next(&mut ring) else { panic!("stuck") };
        ring.end(vcpu);
        assert_eq!(next(&mut ring), Next::Stuck);
        ring.wake(vcpu, 0);
        assert_eq!(next(&mut ring), Next::Stuck, "who ended stays so");
    }

    #[test]
    fn a_seed_changes_the_order_and_repeats_it() {
        let order = |seed| {
            let mut ring = ring(8);
            ring.configure(QUANTUM, seed);
            (0..80).map(|_| run(&mut ring, QUANTUM)).collect::<Vec<Id>>()
        };
        assert_eq!(order(7), order(7));
        assert_ne!(order(7), order(8));
    }
}
