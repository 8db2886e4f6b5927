//! What must come out, and whether it did: pure.

use crate::machine::Region;
use crate::stats::mean;
use anyhow::{Result, ensure};
use mount_storms::protocol::Load;
use serde::Serialize;

/// Instructions of each spinner: at one a nanosecond 10 ms, a thousand times what a start takes.
const SPINNER_INSNS: u64 = 10_000_000;

/// N independent spinners may be slower than one by this share.
const SPINNER_LIMIT: f64 = 0.02;

/// Sections under the lock, and how many: long enough that the hand-over of a cache line is a small part, as in the kernel.
const SECTION_INSNS: u64 = 5_000;
const SECTIONS: u32 = 1_000;

/// A contended lock may lose this share to its hand-overs.
const LOCK_LIMIT: f64 = 0.05;

/// Wake-ups of each of two threads that wake each other.
const WAKE_UPS: u32 = 500;

/// One claim, and what was measured of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// The claim.
    pub name: String,
    /// What was measured, in words.
    pub measured: String,
    /// How far off it may be, as a share.
    pub limit: f64,
    /// How far off it is, as a share.
    pub off: f64,
    /// Whether that is within the limit.
    pub held: bool,
}

impl Check {
    fn new(name: String, measured: String, limit: f64, off: f64) -> Check {
        Check { name, measured, limit, off, held: off.abs() <= limit }
    }
}

/// The effect of a window's length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quantum {
    /// Instructions.
    pub quantum_insns: u64,
    /// Mean time of the storm over seeds, virtual ms.
    pub mean_ms: f64,
    /// Standard deviation over seeds, as a share of the mean.
    pub deviation: f64,
}

impl Quantum {
    /// Of the times of one length, in ns.
    pub fn of(quantum_insns: u64, times_ns: &[f64]) -> Quantum {
        let mean_ns = mean(times_ns);
        let squares = times_ns.iter().map(|time| (time - mean_ns).powi(2)).sum::<f64>();
        let deviation = (squares / (times_ns.len().max(2) - 1) as f64).sqrt() / mean_ns;
        Quantum { quantum_insns, mean_ms: mean_ns / 1e6, deviation }
    }
}

/// The loads of a machine with so many CPUs; the first is what the others are held against.
pub fn loads(cpus: u32) -> Vec<Load> {
    let counts = || [1, 2, 8, 32, 64].into_iter().filter(move |count| *count <= cpus);
    let spinners = counts().map(|threads| Load::Spinners { threads, insns: SPINNER_INSNS });
    let locks = counts().map(|threads| Load::Spinlock { threads, section_insns: SECTION_INSNS, sections: SECTIONS });
    let queues = counts().map(|threads| Load::QueuedLock { threads, section_insns: SECTION_INSNS, sections: SECTIONS });
    spinners.chain(locks).chain(queues).chain([Load::Handover { rounds: WAKE_UPS }]).collect()
}

/// Holds each load's region against what must come out.
///
/// # Errors
/// There are not as many regions as loads.
pub fn of_loads(loads: &[Load], regions: &[Region]) -> Result<Vec<Check>> {
    ensure!(loads.len() == regions.len(), "{} loads, {} regions", loads.len(), regions.len());
    let alone_ns = regions.first().map_or(0.0, |region| region.virtual_ns as f64);
    let pairs = loads.iter().zip(regions).skip(1);
    Ok(pairs.filter_map(|(load, region)| of_load(load, region.virtual_ns as f64, alone_ns)).collect())
}

fn of_load(load: &Load, ns: f64, alone_ns: f64) -> Option<Check> {
    match *load {
        Load::Spinners { threads, .. } => {
            let speedup = f64::from(threads) * alone_ns / ns;
            let measured = format!("{speedup:.2}-fold");
            let name = format!("{threads} independent spinners do {threads} times the work of one");
            Some(Check::new(name, measured, SPINNER_LIMIT, speedup / f64::from(threads) - 1.0))
        }
        Load::Spinlock { threads, section_insns, sections } => {
            Some(of_lock("a spinlock in turn", threads, section_insns, ns / f64::from(sections)))
        }
        Load::QueuedLock { threads, section_insns, sections } => {
            Some(of_lock("a lock with a queue", threads, section_insns, ns / f64::from(sections)))
        }
        // No known answer, but one that must be the same each time: it is part of what `equal` compares.
        Load::Handover { .. } => None,
    }
}

/// However many want it, a section takes what it takes.
fn of_lock(lock: &str, threads: u32, section_insns: u64, per_section_ns: f64) -> Check {
    let name = format!("{threads} threads pass sections of {section_insns} instructions under {lock}");
    let off = per_section_ns / section_insns as f64 - 1.0;
    Check::new(name, format!("one in {per_section_ns:.0} ns"), LOCK_LIMIT, off)
}

/// Whether boots came out the same, region by region.
pub fn equal(name: &str, limit: f64, boots: &[Vec<Region>]) -> Check {
    let times = |boot: &Vec<Region>| boot.iter().map(|region| region.virtual_ns).collect::<Vec<u64>>();
    let first = boots.first().map(times).unwrap_or_default();
    let off = |times: Vec<u64>| {
        let pairs = times.iter().zip(&first).map(|(a, b)| (*a as f64 / *b as f64 - 1.0).abs());
        let are_times = times.len() == first.len() && !times.is_empty() && first.iter().all(|time| *time > 0);
        if are_times { pairs.fold(0.0, f64::max) } else { f64::INFINITY }
    };
    let worst = boots.iter().map(|boot| off(times(boot))).fold(0.0, f64::max);
    let total: u64 = first.iter().sum();
    let words = if worst == 0.0 { "equal to the nanosecond" } else { "not equal" };
    Check::new(name.to_owned(), format!("{words}, {total} ns in {} regions", first.len()), limit, worst)
}

/// Whether evidence saw each store to the sequence of `mount_lock`: the word itself says how many there were.
pub fn proven(regions: &[Region]) -> Check {
    let missed: Vec<Option<i64>> = regions.iter().map(|region| region.sequence_stores_missed).collect();
    let name = "evidence has seen each store to the sequence of mount_lock".to_owned();
    let stores = |region: &Region| region.evidence.as_ref()?.get("mount_lock_increments").copied();
    let total: u64 = regions.iter().filter_map(stores).sum();
    let off = if !missed.is_empty() && missed.iter().all(|missed| *missed == Some(0)) { 0.0 } else { f64::INFINITY };
    Check::new(name, format!("{total} stores"), 0.0, off)
}

/// The checks as lines of text.
pub fn table(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let line = |check: &Check| {
        let Check { name, measured, limit, off, held } = check;
        let verdict = if *held { "held" } else { "FAILED" };
        format!("  {name:width$}  {measured}: off by {:.2} %, at most {:.0} %: {verdict}\n", off * 100.0, limit * 100.0)
    };
    checks.iter().map(line).collect()
}

/// The effect of the window as lines of text.
pub fn quanta_table(quanta: &[Quantum]) -> String {
    let line = |quantum: &Quantum| {
        let Quantum { quantum_insns, mean_ms, deviation } = quantum;
        format!(
            "  window of {quantum_insns:4} instructions: the storm takes {mean_ms:.2} ms (simulated), standard deviation over seeds {:.1} %\n",
            deviation * 100.0
        )
    };
    quanta.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(virtual_ns: u64) -> Region {
        Region { virtual_ns, ..Region::default() }
    }

    #[test]
    fn spinners_that_disturb_each_other_are_found() {
        let loads = [Load::Spinners { threads: 1, insns: 1 }, Load::Spinners { threads: 64, insns: 1 }];
        let held = |ns| of_loads(&loads, &[region(1_000_000), region(ns)]).unwrap()[0].held;
        assert!(held(1_000_000) && held(1_019_000));
        assert!(!held(1_030_000) && !held(970_000));
    }

    #[test]
    fn a_lock_that_is_too_fast_or_too_slow_is_found() {
        let loads = [
            Load::Spinners { threads: 1, insns: 1 },
            Load::Spinlock { threads: 8, section_insns: 1000, sections: 100 },
        ];
        let held = |ns| of_loads(&loads, &[region(1), region(ns)]).unwrap()[0].held;
        assert!(held(100_000) && held(104_900));
        assert!(!held(106_000) && !held(50_000));
        assert!(of_loads(&loads, &[region(1)]).is_err());
    }

    #[test]
    fn boots_that_differ_are_found() {
        let check = |boots: &[Vec<Region>]| equal("x", 0.01, boots);
        assert_eq!(check(&[vec![region(100)], vec![region(100)]]).off, 0.0);
        assert!(!check(&[vec![region(100)], vec![region(102)]]).held);
        assert!(!check(&[vec![region(100)], vec![]]).held);
    }

    #[test]
    fn the_spread_over_seeds_is_a_sample_deviation() {
        let quantum = Quantum::of(100, &[9e6, 11e6]);
        assert!((quantum.mean_ms - 10.0).abs() < 1e-9 && (quantum.deviation - 0.1414).abs() < 1e-3, "{quantum:?}");
    }

    #[test]
    fn evidence_that_missed_a_store_is_found() {
        let of = |missed| proven(&[Region { sequence_stores_missed: missed, ..region(1) }]).held;
        assert!(of(Some(0)) && !of(Some(1)) && !of(None) && !proven(&[]).held);
    }

    #[test]
    fn a_failed_check_is_seen() {
        let text = table(&[Check::new("a".into(), "2".into(), 0.05, 0.2)]);
        assert_eq!(text, "  a  2: off by 20.00 %, at most 5 %: FAILED\n");
    }
}
