//! What a `pause` costs: how long a vCPU that spins waits until it looks again.
//!
//! Hardware pauses for a fixed time, and a spinning CPU does nothing but look at one word. QEMU leaves its execution loop at each
//! `pause` (target/i386/tcg/misc_helper.c), so that to simulate each look of 63 CPUs that wait for one costs far more than the one
//! that works. Where we know all that the loop looks at (see `watch`), the vCPU does not run until that changes, and no word is seen late;
//! only a count kept in a register could be, so that it looks again after as long as it has waited ([`PARKED_SHARE`]). Elsewhere, the
//! longer a vCPU has spun without a break, the longer it waits until it looks again: at most 1/[`SHARE`] of the time that it has waited
//! already. What it sees is late by half of that on average: 1.6 % of the wait. Neither waits longer than a limit.

use crate::ring::Ticks;

/// A spinning vCPU looks again after this part of the time it has waited.
pub const SHARE: Ticks = 32;

/// The same for one that is woken when something changes.
pub const PARKED_SHARE: Ticks = 1;

/// Two pauses of one loop with at most so many instructions between them belong to one wait. The kernel's spin loops
/// (kernel/locking/osq_lock.c, qspinlock.c, rwsem.c) have few between two looks. Two loops are two waits: who comes to the head of a queue has
/// waited in one for his turn, and looks as often as hardware does in the next, where the holder may let go at once.
const LOOP: Ticks = 100;

/// One vCPU's current wait.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spin {
    begin: Ticks,
    /// When its last pause was over.
    last: Ticks,
    /// Address of its `pause`.
    at: u64,
}

impl Spin {
    /// The vCPU pauses, by the `pause` at this address.
    pub fn pauses(&mut self, clock: Ticks, at: u64) {
        if clock > self.last + LOOP || at != self.at {
            self.begins(clock);
            self.at = at;
        }
    }

    /// The wait begins, or begins anew because something has changed.
    pub fn begins(&mut self, clock: Ticks) {
        self.begin = clock;
    }

    /// The cost of its `pause` at this time of the vCPU's own clock: at least `pause`, at most `most`.
    pub fn cost(&mut self, clock: Ticks, pause: Ticks, share: Ticks, most: Ticks) -> Ticks {
        let waited = clock.saturating_sub(self.begin);
        let cost = (waited / share).clamp(pause, most.max(pause));
        self.last = clock + cost;
        cost
    }

    /// The pause was over at another time than it said.
    pub fn ended(&mut self, clock: Ticks) {
        self.last = clock;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Address of the loop's `pause`.
    const AT: u64 = 0xffff_ffff_8100_0000;

    fn cost(spin: &mut Spin, clock: Ticks, at: u64) -> Ticks {
        spin.pauses(clock, at);
        spin.cost(clock, 40, SHARE, 1000)
    }

    #[test]
    fn a_short_wait_costs_what_hardware_costs() {
        let mut spin = Spin::default();
        let mut clock = 5000;
        while clock < 5000 + 40 * SHARE {
            let cost = cost(&mut spin, clock, AT);
            assert_eq!(cost, 40);
            clock += cost + 10;
        }
    }

    #[test]
    fn a_long_wait_is_seen_late_by_a_small_part_of_it() {
        let mut spin = Spin::default();
        let (begin, mut clock) = (5000, 5000);
        for _ in 0..2000 {
            let cost = cost(&mut spin, clock, AT);
            assert!(cost == 40 || cost <= (clock - begin) / SHARE, "{cost} at {}", clock - begin);
            clock += cost + 10;
        }
        assert_eq!(cost(&mut spin, clock, AT), 1000);
    }

    fn waited_long() -> (Spin, Ticks) {
        let mut spin = Spin::default();
        let mut clock = 5000;
        for _ in 0..2000 {
            clock += cost(&mut spin, clock, AT) + 10;
        }
        (spin, clock)
    }

    #[test]
    fn work_ends_a_wait() {
        let (mut spin, clock) = waited_long();
        assert_eq!(cost(&mut spin, clock + LOOP + 1, AT), 40);
    }

    #[test]
    fn another_loop_is_another_wait() {
        let (mut spin, clock) = waited_long();
        assert_eq!(cost(&mut spin, clock, AT + 64), 40);
    }

    #[test]
    fn a_change_begins_a_wait_anew() {
        let (mut spin, clock) = waited_long();
        spin.begins(clock);
        assert_eq!(cost(&mut spin, clock, AT), 40);
    }
}
