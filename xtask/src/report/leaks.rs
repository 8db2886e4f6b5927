//! The figures behind two oracles' verdicts: what the kernel kept after the iterations of a boot, and how many mounts a full ledger has seen.

use super::{kernel_of, storm_of};
use crate::compare::Comparison;
use crate::results::{Arm, Run, StoredSample};
use mount_storms::leak::{Bound, Footprint, Look};
use mount_storms::ledger::LEDGER_DURING;
use mount_storms::protocol::{LedgerKind, Propagation, Sample, StormPoint};
use std::collections::BTreeMap;

/// Calls that attach a mount, by their names in a sample.
const ATTACHING: [&str; 2] = ["move_mount", "overlay_mount"];

/// How to read it.
const READING: &str = "\
After the first iteration of a boot, and after the last: of each figure the boot in which it grew most. Mounts attached are those between both \
looks, copies at peers among them, in the boot with the fewest. The oracle withholds a storm in which anything grew beyond the bound.";

/// The section; nothing if no boot had two iterations.
pub fn section(run: &Run, comparison: &Comparison) -> String {
    let mut lines = String::new();
    for point in &run.manifest.points {
        let storm = storm_of(point, run);
        let mut bound = None;
        for arm in [Arm::Baseline, Arm::Control, Arm::Candidate] {
            let of_arm = run.samples.iter().filter(|stored| stored.arm == arm && stored.sample.point == *point);
            let boots = boots(of_arm, copies(point, run));
            let Some(fewest) = boots.iter().map(|boot| boot.attached).min() else { continue };
            bound = Some(boots[0].look.bound);
            let kernel = kernel_of(arm, comparison);
            let figures = figures(&boots).join(" | ");
            lines += &format!("| {storm} | {kernel} | {} | {fewest} | {figures} |\n", boots.len());
        }
        lines +=
            &bound.map_or(String::new(), |bound| format!("| {storm} | bound | | | {} |\n", told(bound).join(" | ")));
    }
    if lines.is_empty() {
        return lines;
    }
    let header = "| storm | kernel | boots | mounts attached | mounts | dentries in use | per-CPU, KiB | slabs, KiB | lowest free mount id |\n\
                  |---|---|---:|---:|---:|---:|---:|---:|---:|\n";
    format!("## Leaks\n\n{READING}\n\n{header}{lines}")
}

/// What one boot attached between the two looks, and the last look.
struct Boot {
    attached: u64,
    look: Look,
}

/// What a full ledger is about: a line for each kernel; nothing without one.
pub fn full_ledger(run: &Run, comparison: &Comparison) -> String {
    if run.manifest.surroundings.ledger != LedgerKind::Full {
        return String::new();
    }
    let peers = run.manifest.surroundings.peer_namespaces;
    let line = |arm| {
        let samples: Vec<&Sample> =
            run.samples.iter().filter(|stored| stored.arm == arm).map(|stored| &stored.sample).collect();
        let failures: usize = samples.iter().map(|sample| sample.oracle.failures.len()).sum();
        let verdict = if failures == 0 { "clean".to_owned() } else { format!("{failures} failures") };
        let mounts: u64 = samples.iter().map(|sample| attached(sample)).sum();
        let looks: u64 = samples.iter().filter_map(|sample| sample.oracle.checks.get(LEDGER_DURING)).sum();
        format!(
            "* full ledger on {}: {verdict}; {mounts} mounts in {} timed storms, each written down as attached once and detached once and told \
             so by fanotify, at each of {peers} peers as well; the table held in {looks} looks meanwhile\n",
            kernel_of(arm, comparison),
            samples.len()
        )
    };
    [Arm::Baseline, Arm::Control, Arm::Candidate].into_iter().filter(|arm| has(run, *arm)).map(line).collect()
}

fn has(run: &Run, arm: Arm) -> bool {
    run.samples.iter().any(|stored| stored.arm == arm)
}

/// What each attach makes: a mount, and one at each peer that hears of it.
fn copies(point: &StormPoint, run: &Run) -> u64 {
    let peers = run.manifest.surroundings.peer_namespaces;
    1 + if point.propagation == Propagation::Shared { u64::from(peers) } else { 0 }
}

fn boots<'a>(samples: impl Iterator<Item = &'a StoredSample>, copies: u64) -> Vec<Boot> {
    let mut boots: BTreeMap<u32, Boot> = BTreeMap::new();
    for stored in samples {
        let Some(look) = stored.sample.leak.as_deref().copied() else { continue };
        let boot = boots.entry(stored.boot).or_insert(Boot { attached: 0, look });
        boot.attached += attached(&stored.sample) * copies;
        // Samples are in the order of their iterations.
        boot.look = look;
    }
    boots.into_values().collect()
}

fn attached(sample: &Sample) -> u64 {
    ATTACHING.iter().filter_map(|call| sample.calls.get(*call)).map(|latency| latency.count).sum()
}

/// "40 -> 52" of each figure, from the boot in which it grew most.
fn figures(boots: &[Boot]) -> [String; 5] {
    let most = |figure: fn(&Footprint) -> u64| {
        let pairs = boots.iter().map(|boot| (figure(&boot.look.since), figure(&boot.look.now)));
        let most = pairs.max_by_key(|(since, now)| i128::from(*now) - i128::from(*since));
        most.map_or(String::new(), |(since, now)| format!("{since} -> {now}"))
    };
    let counted = boots.iter().all(|boot| boot.look.now.mounts.is_some());
    [
        if counted { most(|footprint| footprint.mounts.unwrap_or(0)) } else { "not counted".into() },
        most(|footprint| footprint.dentries),
        most(|footprint| footprint.percpu_kib),
        most(|footprint| footprint.slab_kib),
        most(|footprint| footprint.mount_id),
    ]
}

fn told(bound: Bound) -> [String; 5] {
    let memory = |figure: u64| format!("+ {figure}");
    let none = || "none".to_owned();
    let of = bound.memory;
    [
        memory(bound.mounts),
        of.map_or_else(none, |bound| memory(bound.dentries)),
        of.map_or_else(none, |bound| memory(bound.percpu_kib)),
        of.map_or_else(none, |bound| memory(bound.slab_kib)),
        of.map_or_else(none, |bound| memory(bound.mount_ids)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::of_run;
    use crate::results::fixture;

    const SINCE: Footprint =
        Footprint { mounts: Some(40), dentries: 900, percpu_kib: 1200, slab_kib: 9000, mount_id: 60 };

    #[test]
    fn the_boot_that_kept_most_is_told_beside_the_bound() {
        let mut run = fixture::run(&[(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 100.0)]);
        let comparison = of_run(&run).unwrap();
        assert_eq!(section(&run, &comparison), "");
        for stored in run.samples.iter_mut().filter(|stored| stored.sample.iteration == 1) {
            let now = Footprint { slab_kib: 9000 + u64::from(stored.boot), dentries: 800, ..SINCE };
            stored.sample.leak = Some(Box::new(Look { since: SINCE, now, bound: Bound::of_cpus(2) }));
            let calls = [("move_mount", 50_000), ("overlay_mount", 2), ("umount", 7)];
            stored.sample.calls = calls
                .map(|(name, count)| {
                    (name.to_owned(), mount_storms::protocol::Latency { count, ..fixture::latency(9) })
                })
                .into();
        }
        run.manifest.surroundings.peer_namespaces = 4;
        assert!(section(&run, &comparison).contains("| patched | 3 | 250010 |"), "{}", section(&run, &comparison));
        run.manifest.surroundings.peer_namespaces = 0;
        let text = section(&run, &comparison);
        let line = "| detach, tmpfs, shared, 3 layers, 2 CPUs | patched | 3 | 50002 | 40 -> 40 | 900 -> 800 | 1200 -> 1200 | 9000 -> 9002 | 60 -> 60 |";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("| bound | | | + 512 | + 64 | + 384 | + 1536 | + 64 |"), "{text}");
    }

    #[test]
    fn a_full_ledger_says_of_how_many_mounts_it_is() {
        let mut run = fixture::run(&[(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 100.0)]);
        let comparison = of_run(&run).unwrap();
        assert_eq!(full_ledger(&run, &comparison), "");
        run.manifest.surroundings.ledger = LedgerKind::Full;
        for stored in &mut run.samples {
            stored.sample.calls = [("move_mount".to_owned(), fixture::latency(9))].into();
            stored.sample.oracle.checks.insert(LEDGER_DURING.into(), 7);
        }
        let text = full_ledger(&run, &comparison);
        assert!(text.contains("on patched: clean; 360 mounts in 6 timed storms"), "{text}");
        assert!(text.contains("in 42 looks"), "{text}");
        run.samples.last_mut().unwrap().sample.oracle.failures.push("the ledger does not add up".into());
        assert!(full_ledger(&run, &comparison).contains("on patched: 1 failures; "));
    }
}
