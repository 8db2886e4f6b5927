//! What the measured kernel does under its mount locks, told from the calls and stores that [`crate::probe`] sees (pure).
//!
//! A task is known by its kernel stack, which it keeps while it sleeps and when it changes CPUs. "Instructions under the lock" are those of the
//! holder alone, interrupts that hit it included.

use crate::ring::Ticks;
use serde::Serialize;
use std::collections::HashMap;

/// A kernel stack's lowest address.
pub type Stack = u64;

/// Size of a kernel stack: THREAD_SIZE of x86-64 without KASAN (arch/x86/include/asm/page_64_types.h); stacks are aligned to it.
const STACK: u64 = 4096 << 2;

/// The stack in which a stack pointer points.
pub fn stack_of(pointer: u64) -> Stack {
    pointer & !(STACK - 1)
}

/// How a rwsem is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// For writing.
    Exclusive,
    /// For reading.
    Shared,
}

/// When and where something was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Virtual time of the vCPU.
    pub clock: Ticks,
    /// Instructions that the vCPU has executed.
    pub instructions: u64,
}

/// What was counted. Times are virtual, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// `namespace_sem` taken for writing.
    pub namespace_sem_exclusive_acquisitions: u64,
    /// Instructions of its holders meanwhile.
    pub namespace_sem_exclusive_instructions: u64,
    /// Time that it was held so.
    pub namespace_sem_exclusive_ticks: u64,
    /// `namespace_sem` taken for reading.
    pub namespace_sem_shared_acquisitions: u64,
    /// Instructions of its holders meanwhile.
    pub namespace_sem_shared_instructions: u64,
    /// Time that tasks waited for it, summed over tasks.
    pub namespace_sem_waited_ticks: u64,
    /// Times it was released while a task waited for it, and then taken.
    pub namespace_sem_handovers: u64,
    /// Time between those two.
    pub namespace_sem_handover_ticks: u64,
    /// Write sections of `mount_lock` that made its sequence odd.
    pub mount_lock_write_sections: u64,
    /// Stores to its sequence.
    pub mount_lock_increments: u64,
    /// Time that its sequence was odd.
    pub mount_lock_odd_ticks: u64,
    /// Expedited grace periods that were asked for.
    pub expedited_grace_periods: u64,
}

impl Counts {
    /// What was added since.
    pub fn since(&self, begin: &Counts) -> Counts {
        Counts {
            namespace_sem_exclusive_acquisitions: self.namespace_sem_exclusive_acquisitions
                - begin.namespace_sem_exclusive_acquisitions,
            namespace_sem_exclusive_instructions: self.namespace_sem_exclusive_instructions
                - begin.namespace_sem_exclusive_instructions,
            namespace_sem_exclusive_ticks: self.namespace_sem_exclusive_ticks - begin.namespace_sem_exclusive_ticks,
            namespace_sem_shared_acquisitions: self.namespace_sem_shared_acquisitions
                - begin.namespace_sem_shared_acquisitions,
            namespace_sem_shared_instructions: self.namespace_sem_shared_instructions
                - begin.namespace_sem_shared_instructions,
            namespace_sem_waited_ticks: self.namespace_sem_waited_ticks - begin.namespace_sem_waited_ticks,
            namespace_sem_handovers: self.namespace_sem_handovers - begin.namespace_sem_handovers,
            namespace_sem_handover_ticks: self.namespace_sem_handover_ticks - begin.namespace_sem_handover_ticks,
            mount_lock_write_sections: self.mount_lock_write_sections - begin.mount_lock_write_sections,
            mount_lock_increments: self.mount_lock_increments - begin.mount_lock_increments,
            mount_lock_odd_ticks: self.mount_lock_odd_ticks - begin.mount_lock_odd_ticks,
            expedited_grace_periods: self.expedited_grace_periods - begin.expedited_grace_periods,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Hold {
    mode: Mode,
    taken: Ticks,
    /// Instructions before the last time its task was switched in.
    executed: u64,
    /// Instructions of its CPU when its task was switched in; `None` while it sleeps.
    running_since: Option<u64>,
}

/// The account. See the module's head.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    counts: Counts,
    /// Tasks that want the semaphore, by the stack pointer at which the call began.
    wanting: HashMap<u64, (Mode, Ticks)>,
    holds: HashMap<Stack, Hold>,
    /// When the semaphore was last released while somebody wanted it.
    released: Option<Ticks>,
    odd_since: Option<Ticks>,
}

impl Evidence {
    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// A task calls down_write() or down_read() on the semaphore.
    pub fn want(&mut self, pointer: u64, mode: Mode, now: Now) {
        self.wanting.insert(pointer, (mode, now.clock));
    }

    /// Whether any task wants it: else no return need be looked at.
    pub fn is_wanted(&self) -> bool {
        !self.wanting.is_empty()
    }

    /// A function returns with this stack pointer: if it is the one that took the semaphore, it is taken now.
    pub fn returned(&mut self, pointer: u64, now: Now) {
        let Some((mode, began)) = self.wanting.remove(&pointer) else { return };
        self.counts.namespace_sem_waited_ticks += now.clock.saturating_sub(began);
        if let Some(released) = self.released.take() {
            self.counts.namespace_sem_handovers += 1;
            self.counts.namespace_sem_handover_ticks += now.clock.saturating_sub(released);
        }
        match mode {
            Mode::Exclusive => self.counts.namespace_sem_exclusive_acquisitions += 1,
            Mode::Shared => self.counts.namespace_sem_shared_acquisitions += 1,
        }
        let hold = Hold { mode, taken: now.clock, executed: 0, running_since: Some(now.instructions) };
        self.holds.insert(stack_of(pointer), hold);
    }

    /// A task calls up_write() or up_read() on the semaphore, or downgrade_write(), after which it holds it shared.
    pub fn release(&mut self, pointer: u64, downgrade: bool, now: Now) {
        let stack = stack_of(pointer);
        let Some(hold) = self.holds.remove(&stack) else { return };
        let executed = hold.executed + hold.running_since.map_or(0, |since| now.instructions.saturating_sub(since));
        match hold.mode {
            Mode::Exclusive => {
                self.counts.namespace_sem_exclusive_instructions += executed;
                self.counts.namespace_sem_exclusive_ticks += now.clock.saturating_sub(hold.taken);
            }
            Mode::Shared => self.counts.namespace_sem_shared_instructions += executed,
        }
        if self.is_wanted() && self.holds.is_empty() {
            self.released = Some(now.clock);
        }
        if downgrade {
            self.counts.namespace_sem_shared_acquisitions += 1;
            let hold =
                Hold { mode: Mode::Shared, taken: now.clock, executed: 0, running_since: Some(now.instructions) };
            self.holds.insert(stack, hold);
        }
    }

    /// Whether any task holds it: else no switch of tasks need be looked at.
    pub fn is_held(&self) -> bool {
        !self.holds.is_empty()
    }

    /// The task with this stack leaves its CPU.
    pub fn switched_out(&mut self, pointer: u64, now: Now) {
        if let Some(hold) = self.holds.get_mut(&stack_of(pointer))
            && let Some(since) = hold.running_since.take()
        {
            hold.executed += now.instructions.saturating_sub(since);
        }
    }

    /// The task with this stack is on a CPU again.
    pub fn switched_in(&mut self, pointer: u64, now: Now) {
        if let Some(hold) = self.holds.get_mut(&stack_of(pointer)) {
            hold.running_since.get_or_insert(now.instructions);
        }
    }

    /// The sequence of `mount_lock` becomes `value`.
    pub fn sequence(&mut self, value: u64, now: Now) {
        self.counts.mount_lock_increments += 1;
        if value % 2 == 1 {
            self.counts.mount_lock_write_sections += 1;
            self.odd_since = Some(now.clock);
        } else if let Some(since) = self.odd_since.take() {
            self.counts.mount_lock_odd_ticks += now.clock.saturating_sub(since);
        }
    }

    /// A task calls synchronize_rcu_expedited().
    pub fn expedited(&mut self) {
        self.counts.expedited_grace_periods += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u64 = 0xffff_c900_0001_3e50;
    const B: u64 = 0xffff_c900_0004_3e50;

    fn at(clock: Ticks, instructions: u64) -> Now {
        Now { clock, instructions }
    }

    #[test]
    fn a_hold_counts_the_holders_instructions_and_no_sleep() {
        let mut evidence = Evidence::default();
        evidence.want(A, Mode::Exclusive, at(100, 50));
        evidence.returned(A, at(130, 60));
        evidence.switched_out(A - 0x800, at(150, 80));
        // On another CPU, which has executed more.
        evidence.switched_in(A - 0x800, at(500, 900));
        evidence.release(A - 0x20, false, at(510, 907));
        let counts = evidence.counts();
        assert_eq!(counts.namespace_sem_exclusive_acquisitions, 1);
        assert_eq!(counts.namespace_sem_exclusive_instructions, 20 + 7);
        assert_eq!(counts.namespace_sem_exclusive_ticks, 380);
        assert_eq!(counts.namespace_sem_waited_ticks, 30);
        assert_eq!(counts.namespace_sem_handovers, 0, "nobody waited");
    }

    #[test]
    fn a_hand_over_is_from_release_to_the_next_return() {
        let mut evidence = Evidence::default();
        evidence.want(A, Mode::Exclusive, at(0, 0));
        evidence.returned(A, at(10, 0));
        evidence.want(B, Mode::Shared, at(20, 0));
        evidence.release(A, false, at(100, 5));
        evidence.returned(B, at(160, 0));
        evidence.release(B, false, at(170, 9));
        let counts = evidence.counts();
        assert_eq!((counts.namespace_sem_handovers, counts.namespace_sem_handover_ticks), (1, 60));
        assert_eq!((counts.namespace_sem_shared_acquisitions, counts.namespace_sem_shared_instructions), (1, 9));
        assert_eq!(counts.namespace_sem_waited_ticks, 10 + 140);
    }

    #[test]
    fn a_downgrade_goes_on_shared() {
        let mut evidence = Evidence::default();
        evidence.want(A, Mode::Exclusive, at(0, 0));
        evidence.returned(A, at(0, 0));
        evidence.release(A, true, at(5, 5));
        assert!(evidence.is_held());
        evidence.release(A, false, at(8, 8));
        let counts = evidence.counts();
        assert_eq!((counts.namespace_sem_exclusive_ticks, counts.namespace_sem_shared_instructions), (5, 3));
        assert!(!evidence.is_held());
    }

    #[test]
    fn returns_of_others_take_nothing() {
        let mut evidence = Evidence::default();
        evidence.want(A, Mode::Shared, at(0, 0));
        evidence.returned(B, at(1, 1));
        evidence.release(B, false, at(1, 1));
        assert_eq!(evidence.counts(), Counts::default());
        assert!(evidence.is_wanted());
    }

    #[test]
    fn the_sequence_is_odd_between_two_stores() {
        let mut evidence = Evidence::default();
        for (value, clock) in [(7, 100), (8, 130), (9, 200), (10, 205)] {
            evidence.sequence(value, at(clock, 0));
        }
        let counts = evidence.counts();
        assert_eq!((counts.mount_lock_write_sections, counts.mount_lock_increments), (2, 4));
        assert_eq!(counts.mount_lock_odd_ticks, 35);
        evidence.expedited();
        assert_eq!(evidence.counts().since(&counts), Counts { expedited_grace_periods: 1, ..Counts::default() });
    }
}
