//! The measured region: what the machine had done at its begin and at its end, and the difference.

use crate::evidence::Counts;
use crate::ring::{self, Ticks};
use serde::Serialize;
use std::collections::BTreeMap;

/// The guest's mark: `nopl 0x53544fID(%rax,%rax,1)`, an eight-byte no-operation that no compiler makes. Its fifth byte says which.
const MARK: [u8; 8] = [0x0f, 0x1f, 0x84, 0x00, 0x00, 0x4f, 0x54, 0x53];

/// What a mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The region begins.
    Begin,
    /// It ends.
    End,
}

/// The mark that an instruction's bytes are, if any.
pub fn mark(instruction: &[u8]) -> Option<Mark> {
    let plain = instruction.len() == MARK.len() && (0..MARK.len()).all(|at| at == 4 || instruction[at] == MARK[at]);
    match (plain, instruction.get(4)) {
        (true, Some(1)) => Some(Mark::Begin),
        (true, Some(2)) => Some(Mark::End),
        _ => None,
    }
}

/// Sums since QEMU started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Virtual time of the vCPU that ran into the mark.
    pub clock: Ticks,
    /// The ring's counts.
    pub counts: ring::Counts,
    /// Changes of fibers.
    pub switches: u64,
    /// Waits for a lock of QEMU's.
    pub mutex_waits: u64,
    /// Waits of vCPUs for each other.
    pub exclusive_waits: u64,
    /// Reads of the host's time-stamp counter.
    pub tsc_reads: u64,
    /// Waits for the outside world.
    pub outside_waits: u64,
    /// Time used, by vCPU.
    pub ticks: Vec<Ticks>,
    /// `pause` instructions, by vCPU.
    pub pauses: Vec<u64>,
    /// Time spent in them, by vCPU.
    pub paused: Vec<Ticks>,
    /// The host's monotonic time.
    pub host_ns: u64,
    /// Waits by the address of their `pause`.
    pub waits: BTreeMap<u64, Waits>,
    /// What happened under the kernel's mount locks, if that is asked for.
    pub evidence: Option<Counts>,
    /// The sequence of `mount_lock`, as it stands in the guest's memory.
    pub sequence: Option<u64>,
}

/// What a `pause` at one address came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Waits {
    /// Times executed, or a turn of the loop skipped to its end.
    pub pauses: u64,
    /// Those of them in which the vCPU was not run until what it looked at changed.
    pub parks: u64,
    /// Time that they took.
    pub ticks: Ticks,
}

/// What happened between two marks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Region {
    /// Virtual time at its begin.
    pub begin_ns: u64,
    /// Virtual time that it took.
    pub virtual_ns: u64,
    /// The host's time that it took.
    pub host_ns: u64,
    /// Windows in which some vCPU ran.
    pub rounds: u64,
    /// Changes from one of QEMU's threads to another.
    pub switches: u64,
    /// Jumps over times in which all vCPUs were halted, and their sum.
    pub warps: u64,
    /// See `warps`.
    pub warped_ns: u64,
    /// Waits for a lock inside QEMU that another thread held while it gave way.
    pub mutex_waits: u64,
    /// Times that a vCPU, not halted, waited for the others: exclusive execution, work on another vCPU.
    pub exclusive_waits: u64,
    /// Reads of the host's time-stamp counter, which is no virtual time. Above 0 the run is no longer exact.
    pub tsc_reads: u64,
    /// Times that nothing could go on without the outside world. Above 0 the run is no longer exact.
    pub outside_waits: u64,
    /// Instructions executed, by vCPU.
    pub instructions: Vec<u64>,
    /// `pause` instructions among them.
    pub pauses: Vec<u64>,
    /// Time spent in them, in ticks.
    pub paused: Vec<Ticks>,
    /// The same by the address of the `pause`, in hexadecimal.
    pub waits: BTreeMap<String, Waits>,
    /// What happened under the kernel's mount locks, if that is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Counts>,
    /// Stores to the sequence of `mount_lock` that evidence has missed, or counted twice: its own proof.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence_stores_missed: Option<i64>,
}

impl Region {
    /// The difference; `ns` makes ticks into nanoseconds.
    pub fn between(begin: &Snapshot, end: &Snapshot, ns: impl Fn(Ticks) -> u64) -> Region {
        let counted = end.evidence.map(|end| end.since(&begin.evidence.unwrap_or_default()));
        let paused = differences(&begin.paused, &end.paused);
        let ticks = differences(&begin.ticks, &end.ticks);
        let instructions = ticks.iter().zip(&paused).map(|(ticks, paused)| ticks.saturating_sub(*paused)).collect();
        Region {
            begin_ns: ns(begin.clock),
            virtual_ns: ns(end.clock) - ns(begin.clock),
            host_ns: end.host_ns - begin.host_ns,
            rounds: end.counts.rounds - begin.counts.rounds,
            switches: end.switches - begin.switches,
            warps: end.counts.warps - begin.counts.warps,
            warped_ns: ns(end.counts.warped) - ns(begin.counts.warped),
            mutex_waits: end.mutex_waits - begin.mutex_waits,
            exclusive_waits: end.exclusive_waits - begin.exclusive_waits,
            tsc_reads: end.tsc_reads - begin.tsc_reads,
            outside_waits: end.outside_waits - begin.outside_waits,
            instructions,
            pauses: differences(&begin.pauses, &end.pauses),
            paused,
            waits: waits(&begin.waits, &end.waits),
            evidence: counted,
            sequence_stores_missed: missed(begin, end, counted),
        }
    }
}

/// The sequence is incremented by 1 for each store.
fn missed(begin: &Snapshot, end: &Snapshot, counted: Option<Counts>) -> Option<i64> {
    // 32 bits wide, it may have wrapped.
    let stored = (end.sequence? as u32).wrapping_sub(begin.sequence? as u32);
    Some(i64::from(stored) - counted?.mount_lock_increments as i64)
}

/// By address, without those that did not happen meanwhile.
fn waits(begin: &BTreeMap<u64, Waits>, end: &BTreeMap<u64, Waits>) -> BTreeMap<String, Waits> {
    let meanwhile = end.iter().map(|(address, end)| {
        let begin = begin.get(address).copied().unwrap_or_default();
        let waits =
            Waits { pauses: end.pauses - begin.pauses, parks: end.parks - begin.parks, ticks: end.ticks - begin.ticks };
        (format!("{address:x}"), waits)
    });
    meanwhile.filter(|(_, waits)| waits.pauses > 0).collect()
}

/// By vCPU; one that was not there at the begin began at 0.
fn differences(begin: &[u64], end: &[u64]) -> Vec<u64> {
    end.iter().enumerate().map(|(at, end)| end - begin.get(at).copied().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_mark_is_one() {
        let mut bytes = MARK;
        assert_eq!(mark(&bytes), None);
        bytes[4] = 1;
        assert_eq!(mark(&bytes), Some(Mark::Begin));
        bytes[4] = 2;
        assert_eq!(mark(&bytes), Some(Mark::End));
        assert_eq!(mark(&bytes[..7]), None);
        bytes[7] = 0;
        assert_eq!(mark(&bytes), None);
    }

    #[test]
    fn evidence_proves_itself_by_the_sequence() {
        let of = |sequence, mount_lock_increments| Snapshot {
            sequence: Some(sequence),
            evidence: Some(Counts { mount_lock_increments, ..Counts::default() }),
            ..Snapshot::default()
        };
        let missed = |begin, end| Region::between(&begin, &end, |ticks| ticks).sequence_stores_missed;
        assert_eq!(missed(of(10, 0), of(14, 4)), Some(0));
        assert_eq!(missed(of(u64::from(u32::MAX), 0), of(3, 1)), Some(3));
    }

    #[test]
    fn a_region_is_the_difference() {
        let counts = |rounds, warps, warped| ring::Counts { rounds, warps, warped };
        let begin = Snapshot {
            clock: 1000,
            counts: counts(5, 1, 100),
            ticks: vec![10],
            pauses: vec![0],
            ..Snapshot::default()
        };
        let end = Snapshot {
            clock: 5000,
            counts: counts(25, 3, 700),
            ticks: vec![110, 50],
            pauses: vec![2, 0],
            paused: vec![80, 0],
            switches: 9,
            ..Snapshot::default()
        };
        let region = Region::between(&begin, &end, |ticks| ticks * 2);
        assert_eq!((region.begin_ns, region.virtual_ns, region.rounds), (2000, 8000, 20));
        assert_eq!((region.warps, region.warped_ns, region.switches), (2, 1200, 9));
        assert_eq!((region.instructions, region.pauses), (vec![20, 50], vec![2, 0]));
    }
}
