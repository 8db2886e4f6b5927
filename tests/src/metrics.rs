//! Latencies of a storm's calls: logged by each thread as plain numbers, made into histograms when the clock has stopped.

use crate::ledger::Entries;
use crate::protocol::Latency;
use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer as _, V2Serializer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest call that a histogram tells from a longer one, in ns: ten minutes. A longer one counts as that long.
const LONGEST_CALL_NS: u64 = 600_000_000_000;

/// Significant decimal digits of a histogram: buckets are at most 0.1 % wide.
const SIGNIFICANT_DIGITS: u8 = 3;

/// Calls that a log has room for at once: growing it would map memory while the clock runs.
const ROOM: usize = 4096;

/// The calls whose latency is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// open_tree(2) with OPEN_TREE_CLONE.
    OpenTree,
    /// mount_setattr(2) with MOUNT_ATTR_IDMAP.
    MountSetattr,
    /// move_mount(2) of the idmapped tree to its place.
    MoveMount,
    /// mount(2) of the overlay.
    OverlayMount,
    /// umount2(2) of an idmapped tree.
    Umount,
    /// umount2(2) of an overlay: a container's root or an inspection's.
    UmountRootfs,
    /// stat(2) by a path that crosses mounts of one file system.
    StatPlain,
    /// open(2) and close(2) by the same path.
    OpenPlain,
    /// stat(2) by a path that crosses mounts of an overlay.
    StatOverlay,
    /// open(2) and close(2) by the same path.
    OpenOverlay,
    /// stat(2) by a path that leaves mounts by `..` and enters them again.
    StatUp,
}

impl CallKind {
    /// All of them, in the order a container start makes them, then those of the profile `paths`.
    pub const ALL: [CallKind; 11] = [
        CallKind::OpenTree,
        CallKind::MountSetattr,
        CallKind::MoveMount,
        CallKind::OverlayMount,
        CallKind::Umount,
        CallKind::UmountRootfs,
        CallKind::StatPlain,
        CallKind::OpenPlain,
        CallKind::StatOverlay,
        CallKind::OpenOverlay,
        CallKind::StatUp,
    ];

    /// Its name in a [`crate::protocol::Sample`].
    pub fn name(self) -> &'static str {
        match self {
            CallKind::OpenTree => "open_tree",
            CallKind::MountSetattr => "mount_setattr",
            CallKind::MoveMount => "move_mount",
            CallKind::OverlayMount => "overlay_mount",
            CallKind::Umount => "umount",
            CallKind::UmountRootfs => "umount_rootfs",
            CallKind::StatPlain => "stat_plain",
            CallKind::OpenPlain => "open_plain",
            CallKind::StatOverlay => "stat_overlay",
            CallKind::OpenOverlay => "open_overlay",
            CallKind::StatUp => "stat_up",
        }
    }
}

/// Counts the calls of one thread, so that somebody else can see that it is alive. Two cache lines (the adjacent-line prefetcher
/// takes them in pairs) that no other thread writes to: the storm's contention shall be the kernel's.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Beat(AtomicU64);

impl Beat {
    /// Calls so far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What one thread of a storm writes down.
#[derive(Debug)]
pub struct CallLog<'a> {
    calls: Calls,
    beat: &'a Beat,
}

/// The calls themselves, as one process hands them to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    latencies_ns: [Vec<u64>; CallKind::ALL.len()],
    busy: u64,
    /// Mounts that were left where they are, because this containerd leaves them.
    leaked: Vec<PathBuf>,
    /// What was attached and detached, if anybody writes it down.
    #[serde(default, skip_serializing_if = "Entries::is_empty")]
    entries: Entries,
}

impl<'a> CallLog<'a> {
    /// An empty log.
    pub fn new(beat: &'a Beat) -> CallLog<'a> {
        let latencies_ns = std::array::from_fn(|_| Vec::with_capacity(ROOM));
        CallLog { calls: Calls { latencies_ns, ..Calls::default() }, beat }
    }

    /// Makes a call and logs how long it took, if it succeeded.
    ///
    /// # Errors
    /// The call's.
    pub fn time<T, E>(&mut self, kind: CallKind, call: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let start = Instant::now();
        let result = call();
        let elapsed_ns = start.elapsed().as_nanos() as u64;
        if result.is_ok() {
            self.calls.latencies_ns[kind as usize].push(elapsed_ns);
        }
        self.beat.add();
        result
    }

    /// Logs calls that were timed together: their mean, once.
    pub fn add_mean(&mut self, kind: CallKind, elapsed: Duration, calls: u32) {
        self.calls.latencies_ns[kind as usize].push((elapsed / calls).as_nanos() as u64);
        self.beat.add();
    }

    /// Counts a umount2(2) that found its mount busy and has to be made again.
    pub fn add_busy(&mut self) {
        self.calls.busy += 1;
        self.beat.add();
    }

    /// Remembers a mount that was busy and is left behind.
    pub fn add_leaked(&mut self, target: &Path) {
        self.calls.leaked.push(target.to_owned());
    }

    /// Adds what a full ledger has to know.
    pub fn add_entries(&mut self, entries: Entries) {
        self.calls.entries.append(entries);
    }

    /// What was attached and detached.
    pub fn entries(&self) -> &Entries {
        &self.calls.entries
    }

    /// Mounts that were left behind.
    pub fn leaked(&self) -> &[PathBuf] {
        &self.calls.leaked
    }

    /// Adds what another process has logged.
    pub fn absorb(&mut self, calls: Calls) {
        for (mine, theirs) in self.calls.latencies_ns.iter_mut().zip(calls.latencies_ns) {
            mine.extend(theirs);
        }
        self.calls.busy += calls.busy;
        self.calls.leaked.extend(calls.leaked);
        self.calls.entries.append(calls.entries);
        self.beat.add();
    }

    /// What was logged, to be handed on.
    pub fn into_calls(self) -> Calls {
        self.calls
    }

    /// How often a mount was busy.
    pub fn busy(&self) -> u64 {
        self.calls.busy
    }
}

/// One distribution for each kind of call that was made, over all threads.
///
/// # Errors
/// A histogram that cannot be written down; never seen.
pub fn latencies(logs: &[CallLog<'_>]) -> Result<BTreeMap<String, Latency>> {
    let mut by_name = BTreeMap::new();
    for kind in CallKind::ALL {
        let calls_ns = logs.iter().flat_map(|log| &log.calls.latencies_ns[kind as usize]).copied();
        if let Some(latency) = latency(calls_ns)? {
            by_name.insert(kind.name().to_owned(), latency);
        }
    }
    Ok(by_name)
}

/// The distribution of these latencies, in ns; `None` without any.
///
/// # Errors
/// As [`latencies`].
pub fn latency(calls_ns: impl Iterator<Item = u64>) -> Result<Option<Latency>> {
    let mut histogram = Histogram::<u64>::new_with_bounds(1, LONGEST_CALL_NS, SIGNIFICANT_DIGITS)?;
    calls_ns.for_each(|ns| histogram.saturating_record(ns));
    if histogram.is_empty() {
        return Ok(None);
    }
    Ok(Some(Latency {
        count: histogram.len(),
        mean_ns: histogram.mean(),
        p50_ns: histogram.value_at_quantile(0.50),
        p99_ns: histogram.value_at_quantile(0.99),
        max_ns: histogram.max(),
        hdr_v2_base64: BASE64_STANDARD.encode(hdr_v2(&histogram)?),
    }))
}

fn hdr_v2(histogram: &Histogram<u64>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    V2Serializer::new()
        .serialize(histogram, &mut bytes)
        .map_err(io::Error::other)
        .context("cannot write a histogram")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::Deserializer;

    #[test]
    fn the_summary_and_the_histogram_tell_the_same() {
        let seen = latency(1..=1000).unwrap().unwrap();
        let bytes = BASE64_STANDARD.decode(&seen.hdr_v2_base64).unwrap();
        let histogram: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
        assert_eq!((seen.count, histogram.len()), (1000, 1000));
        assert_eq!((seen.p50_ns, seen.p99_ns, seen.max_ns), (500, 990, 1000));
        assert_eq!(histogram.value_at_quantile(0.99), 990);
        assert!((seen.mean_ns - 500.5).abs() < 0.5, "{}", seen.mean_ns);
    }

    #[test]
    fn only_calls_that_succeeded_are_counted_but_each_is_a_sign_of_life() {
        let (beats, others) = (Beat::default(), Beat::default());
        let mut log = CallLog::new(&beats);
        log.time(CallKind::Umount, || Ok::<_, io::Error>(())).unwrap();
        log.time(CallKind::Umount, || Err::<(), _>(io::Error::other("no"))).unwrap_err();
        let mut other = CallLog::new(&others);
        other.time(CallKind::Umount, || Ok::<_, io::Error>(())).unwrap();
        assert_eq!(beats.count(), 2);
        let by_name = latencies(&[log, other]).unwrap();
        assert_eq!(by_name.keys().collect::<Vec<_>>(), ["umount"]);
        assert_eq!(by_name["umount"].count, 2);
    }

    #[test]
    fn a_log_index_is_its_kind() {
        assert!(CallKind::ALL.iter().enumerate().all(|(index, kind)| *kind as usize == index));
    }
}
