//! Virtual time as QEMU sees it: ticks of the ring made into nanoseconds.

use crate::ring::Ticks;

/// Nanoseconds in a second.
pub const NS_PER_S: u64 = 1_000_000_000;

/// Wall-clock time at virtual time 0, seconds since 1970: 2026-01-01T00:00:00Z. Fixed, so that each boot sees the same date.
pub const EPOCH_S: u64 = 1_767_225_600;

/// Ticks of the ring when QEMU starts: not 0, which some of QEMU's timers take for "never".
pub const START: Ticks = NS_PER_S;

/// Speed of the time-stamp counter: one tick a nanosecond, whatever a vCPU's speed.
pub const TSC_KHZ: u64 = 1_000_000;

/// How fast a vCPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Million instructions a second; 1000 is one instruction a nanosecond.
    pub mips: u64,
}

impl Rate {
    /// The time that so many ticks take, rounded down.
    pub fn ns(self, ticks: Ticks) -> u64 {
        (u128::from(ticks) * 1000 / u128::from(self.mips)) as u64
    }

    /// The first tick at or after a time: a timer never fires early.
    pub fn ticks(self, ns: u64) -> Ticks {
        let ticks = (u128::from(ns) * u128::from(self.mips)).div_ceil(1000);
        Ticks::try_from(ticks).unwrap_or(Ticks::MAX)
    }
}

/// (seconds, nanoseconds), as in `struct timespec`.
pub fn split(ns: u64) -> (i64, i64) {
    ((ns / NS_PER_S) as i64, (ns % NS_PER_S) as i64)
}

/// An absolute time that a caller waits for, in virtual monotonic nanoseconds. Callers may count from 1970 (CLOCK_REALTIME)
/// or from boot (CLOCK_MONOTONIC); what is that late can only be the former.
pub fn monotonic(s: i64, ns: i64) -> u64 {
    let since_boot = u64::try_from(s).unwrap_or(0);
    let since_boot = since_boot.checked_sub(EPOCH_S).unwrap_or(since_boot);
    since_boot.saturating_mul(NS_PER_S).saturating_add(u64::try_from(ns).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_giga_instruction_a_second_is_one_a_nanosecond() {
        let rate = Rate { mips: 1000 };
        assert_eq!((rate.ns(12_345), rate.ticks(12_345)), (12_345, 12_345));
    }

    #[test]
    fn a_deadline_is_never_early() {
        for mips in [1, 300, 1000, 2500] {
            let rate = Rate { mips };
            for ns in [0, 1, 7, 999, 1_000_003] {
                assert!(rate.ns(rate.ticks(ns)) >= ns, "{mips} {ns}");
                assert!(ns == 0 || rate.ns(rate.ticks(ns) - 1) < ns, "{mips} {ns}");
            }
        }
    }

    #[test]
    fn far_deadlines_do_not_wrap() {
        assert_eq!(Rate { mips: 2000 }.ticks(u64::MAX), Ticks::MAX);
        assert_eq!(monotonic(i64::MAX, 0), u64::MAX);
    }

    #[test]
    fn both_ways_to_say_a_time_mean_the_same() {
        assert_eq!(monotonic(5, 7), 5 * NS_PER_S + 7);
        assert_eq!(monotonic(EPOCH_S as i64 + 5, 7), 5 * NS_PER_S + 7);
        assert_eq!(split(5 * NS_PER_S + 7), (5, 7));
    }
}
