//! The ledger of a storm: which mounts it makes and takes down, by unique mount id, held against what the kernel shows.
//!
//! *Table*, in each run: listmount(2) and statmount(2) before the clock, after it, when just the containers' roots are mounted, and after the
//! storm; of the storm's own namespace and of each peer. None of it is under the clock.
//!
//! *Full*, only when asked for: the calls of the storm write down each attach and detach (one statx(2) each), fanotify's stream of each
//! namespace must tell the same, and a thread checks the mount table while it changes. Each of these costs time under the clock: the
//! statx(2) some hundred instructions, the events an allocation each under `namespace_sem`, the thread a CPU and `namespace_sem` shared.

use crate::check::Verdicts;
use crate::mount_events::{MountEvent, MountEvents};
use crate::namespace_view::{self, History, Shown, View, check_once};
use crate::peers::Peer;
use crate::protocol::{LedgerKind, Propagation};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The mount table is as before the storm, by unique id, in the storm's namespace and in its peers.
pub const LEDGER_TABLE: &str = "ledger_table";
/// Between start and stop there is one root per container, and the same in each peer.
pub const LEDGER_ROOTS: &str = "ledger_roots";
/// What was written down adds up: each attach once, each detach once, nothing left.
pub const LEDGER_ENTRIES: &str = "ledger_entries";
/// fanotify's stream equals what was written down; each peer has one event for each.
pub const LEDGER_STREAM: &str = "ledger_stream";
/// A look at the mount table while the storm ran.
pub const LEDGER_DURING: &str = "ledger_during";

/// Pause between two looks of the thread that checks during the storm.
const PAUSE: Duration = Duration::from_millis(1);

/// Ids that a sentence names; the others are counted.
const NAMED: usize = 5;

/// Mounts that a storm's calls have attached and detached, by unique id, in the order of the calls of each thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entries {
    /// Attached.
    pub attached: Vec<u64>,
    /// Detached.
    pub detached: Vec<u64>,
}

impl Entries {
    /// Whether nothing was written down.
    pub fn is_empty(&self) -> bool {
        self.attached.is_empty() && self.detached.is_empty()
    }

    /// Adds what another thread has written down.
    pub fn append(&mut self, other: Entries) {
        self.attached.extend(other.attached);
        self.detached.extend(other.detached);
    }
}

/// The book of one storm on one mount.
#[derive(Debug)]
pub struct Ledger<'a> {
    peers: &'a [Peer],
    /// What peers hear of the storm: everything if its mount is shared, else nothing.
    peers_hear: bool,
    streams: Option<Streams>,
    /// Ids of all iterations: none may be used again.
    used: BTreeSet<u64>,
}

/// fanotify's streams, if the ledger is full.
#[derive(Debug)]
struct Streams {
    own: MountEvents,
    peers: Vec<MountEvents>,
}

/// The mount tables before an iteration: the storm's, and each peer's.
#[derive(Debug)]
pub struct Tables {
    own: BTreeSet<u64>,
    peers: Vec<BTreeSet<u64>>,
}

impl<'a> Ledger<'a> {
    /// Opens the book; nothing on a kernel that knows no unique ids.
    ///
    /// # Errors
    /// A full ledger on a kernel without mount events, or not root.
    pub fn open(kind: LedgerKind, propagation: Propagation, peers: &'a [Peer]) -> Result<Option<Ledger<'a>>> {
        if !namespace_view::known() {
            return match kind {
                LedgerKind::Table => Ok(None),
                LedgerKind::Full => bail!("a full ledger needs unique mount ids (Linux 6.11), and mount events (6.15)"),
            };
        }
        let streams = if kind == LedgerKind::Full { Some(Streams::open(peers)?) } else { None };
        let peers_hear = propagation == Propagation::Shared;
        Ok(Some(Ledger { peers, peers_hear, streams, used: BTreeSet::new() }))
    }

    /// The tables as they are. Forgets events of before.
    ///
    /// # Errors
    /// listmount(2) failed.
    pub fn tables(&self) -> Result<Tables> {
        if let Some(streams) = &self.streams {
            streams.drain()?;
        }
        Ok(Tables {
            own: View::OWN.ids()?,
            peers: self.peers.iter().map(|peer| peer.view().ids()).collect::<Result<_>>()?,
        })
    }

    /// Runs a storm; with a full ledger, a thread looks at the mount table meanwhile.
    ///
    /// # Errors
    /// The storm's.
    pub fn during<T>(&self, verdicts: &mut Verdicts, storm: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.streams.is_none() {
            return storm();
        }
        let over = AtomicBool::new(false);
        let (result, seen) = std::thread::scope(|scope| {
            let looking = scope.spawn(|| look_until(&over));
            let result = storm();
            over.store(true, Ordering::Release);
            (result, looking.join())
        });
        let Ok(seen) = seen else { bail!("the thread that checks the mount table panicked") };
        verdicts.merge(seen);
        result
    }

    /// Checks what is mounted when all containers have started: `roots` mounts more than before, seen alike by each peer.
    ///
    /// # Errors
    /// listmount(2) or statmount(2) failed.
    pub fn check_roots(&self, verdicts: &mut Verdicts, before: &Tables, roots: usize) -> Result<()> {
        let new = new_mounts(View::OWN, &before.own)?;
        verdicts.add(LEDGER_ROOTS, judge_count("the storm's namespace", new.len(), roots));
        for (number, (peer, before)) in self.peers.iter().zip(&before.peers).enumerate() {
            let expected: &[Shown] = if self.peers_hear { &new } else { &[] };
            let seen = new_mounts(peer.view(), before)?;
            verdicts.add(LEDGER_ROOTS, judge_peer(number, &seen, expected));
        }
        Ok(())
    }

    /// Closes an iteration: the tables are as before, and all that was written down adds up and was told by fanotify.
    ///
    /// # Errors
    /// listmount(2) failed, or an event is not understood.
    pub fn close(&mut self, verdicts: &mut Verdicts, before: &Tables, entries: &Entries) -> Result<()> {
        let mut events = self.streams.as_ref().map(Streams::drain).transpose()?;
        let after = self.tables()?;
        verdicts.add(LEDGER_TABLE, judge_table("the storm's namespace", &before.own, &after.own));
        for (number, (before, after)) in before.peers.iter().zip(&after.peers).enumerate() {
            verdicts.add(LEDGER_TABLE, judge_table(&format!("peer {number}"), before, after));
        }
        let Some((own, peers)) = events.take() else { return Ok(()) };
        verdicts.add(LEDGER_ENTRIES, judge_entries(entries, &before.own, &self.used));
        self.used.extend(&entries.attached);
        verdicts.add(LEDGER_STREAM, judge_stream(entries, &own));
        let expected = if self.peers_hear { entries.attached.len() } else { 0 };
        for (number, events) in peers.iter().enumerate() {
            verdicts.add(LEDGER_STREAM, judge_peer_stream(number, expected, events));
        }
        Ok(())
    }
}

impl Streams {
    fn open(peers: &[Peer]) -> Result<Streams> {
        let own = File::open("/proc/thread-self/ns/mnt").context("cannot open /proc/thread-self/ns/mnt")?;
        let peers = peers.iter().map(|peer| MountEvents::of_namespace(peer.file())).collect::<Result<_>>()?;
        Ok(Streams { own: MountEvents::of_namespace(own)?, peers })
    }

    fn drain(&self) -> Result<(Vec<MountEvent>, Vec<Vec<MountEvent>>)> {
        Ok((self.own.drain()?, self.peers.iter().map(MountEvents::drain).collect::<Result<_>>()?))
    }
}

fn look_until(over: &AtomicBool) -> Verdicts {
    let (mut verdicts, mut history) = (Verdicts::default(), History::default());
    while !over.load(Ordering::Acquire) {
        verdicts.add(LEDGER_DURING, check_once(View::OWN, &mut history));
        std::thread::sleep(PAUSE);
    }
    verdicts
}

fn new_mounts(view: View, before: &BTreeSet<u64>) -> Result<Vec<Shown>> {
    let mut new = Vec::new();
    for id in view.ids()?.difference(before) {
        new.push(view.shown(*id)?.with_context(|| format!("mount {id} is listed and does not exist"))?);
    }
    new.sort();
    Ok(new)
}

fn judge_count(whose: &str, seen: usize, expected: usize) -> Result<(), String> {
    let why =
        || format!("{whose} has {seen} mounts more than before the storm, {expected} were made and not taken down");
    if seen == expected { Ok(()) } else { Err(why()) }
}

fn judge_peer(number: usize, seen: &[Shown], expected: &[Shown]) -> Result<(), String> {
    if seen == expected {
        return Ok(());
    }
    let first = seen.iter().find(|mount| !expected.contains(mount));
    let first = first.or_else(|| expected.iter().find(|mount| !seen.contains(mount)));
    let at = first.map_or("a mount that is there twice", |mount| mount.mount_point.as_str());
    let (seen, expected) = (seen.len(), expected.len());
    Err(format!("peer {number} has {seen} mounts of the storm and must have {expected}; they differ first at {at}"))
}

fn judge_table(whose: &str, before: &BTreeSet<u64>, after: &BTreeSet<u64>) -> Result<(), String> {
    let (left, lost) = (after.difference(before), before.difference(after));
    let wrong = [named("left behind", left), named("lost", lost)];
    joined(format!("after the storm the mount table of {whose} is another"), &wrong)
}

fn judge_entries(entries: &Entries, before: &BTreeSet<u64>, used: &BTreeSet<u64>) -> Result<(), String> {
    let (attached, attached_again) = once(entries.attached.iter().copied());
    let (detached, detached_again) = once(entries.detached.iter().copied());
    let wrong = [
        named("attached twice", attached_again.iter()),
        named("detached twice", detached_again.iter()),
        named("attached and not detached", attached.difference(&detached)),
        named("detached and not attached", detached.difference(&attached)),
        named("used before", attached.iter().filter(|id| before.contains(id) || used.contains(id))),
    ];
    joined("the ledger does not add up".into(), &wrong)
}

fn judge_stream(entries: &Entries, events: &[MountEvent]) -> Result<(), String> {
    let told = Told::of(events);
    let (attached, _) = once(entries.attached.iter().copied());
    let (detached, _) = once(entries.detached.iter().copied());
    let mut wrong = told.wrong();
    wrong.push(named("attached and not told", attached.difference(&told.attached)));
    wrong.push(named("told as attached and not written down", told.attached.difference(&attached)));
    wrong.push(named("detached and not told", detached.difference(&told.detached)));
    wrong.push(named("told as detached and not written down", told.detached.difference(&detached)));
    joined("fanotify's stream is not the ledger".into(), &wrong)
}

/// A peer's mounts have ids of their own, so they are counted.
fn judge_peer_stream(number: usize, expected: usize, events: &[MountEvent]) -> Result<(), String> {
    let told = Told::of(events);
    let mut wrong = told.wrong();
    wrong.push(named("attached and not detached", told.attached.difference(&told.detached)));
    wrong.push(named("detached and not attached", told.detached.difference(&told.attached)));
    if told.attached.len() != expected {
        wrong.push(Some(format!("{} attached where the storm attached {expected}", told.attached.len())));
    }
    joined(format!("peer {number} did not see each event once"), &wrong)
}

/// A stream, sorted by what it tells.
struct Told {
    attached: BTreeSet<u64>,
    detached: BTreeSet<u64>,
    again: Vec<u64>,
    early: Vec<u64>,
    moved: Vec<u64>,
    overflows: usize,
}

impl Told {
    fn of(events: &[MountEvent]) -> Told {
        let mut told = Told {
            attached: BTreeSet::new(),
            detached: BTreeSet::new(),
            again: Vec::new(),
            early: Vec::new(),
            moved: Vec::new(),
            overflows: 0,
        };
        events.iter().for_each(|event| told.hear(*event));
        told
    }

    fn hear(&mut self, event: MountEvent) {
        match event {
            MountEvent::Attached(id) if !self.attached.insert(id) => self.again.push(id),
            MountEvent::Detached(id) if !self.detached.insert(id) => self.again.push(id),
            MountEvent::Detached(id) if !self.attached.contains(&id) => self.early.push(id),
            MountEvent::Attached(_) | MountEvent::Detached(_) => {}
            MountEvent::Moved(id) => self.moved.push(id),
            MountEvent::Overflow => self.overflows += 1,
        }
    }

    fn wrong(&self) -> Vec<Option<String>> {
        let overflow = (self.overflows > 0).then(|| "the queue overflowed: events are missing".to_owned());
        vec![
            overflow,
            named("told twice", self.again.iter()),
            named("told as detached before it was attached", self.early.iter()),
            named("moved, which no storm does", self.moved.iter()),
        ]
    }
}

/// The ids, and those that come more than once.
fn once(ids: impl Iterator<Item = u64>) -> (BTreeSet<u64>, Vec<u64>) {
    let (mut all, mut again) = (BTreeSet::new(), Vec::new());
    for id in ids {
        if !all.insert(id) {
            again.push(id);
        }
    }
    (all, again)
}

/// "3 left behind (7, 8, 9)"; nothing of nothing.
fn named<'a>(what: &str, ids: impl Iterator<Item = &'a u64>) -> Option<String> {
    let ids: Vec<String> = ids.map(u64::to_string).collect();
    let more = if ids.len() > NAMED { ", ..." } else { "" };
    (!ids.is_empty()).then(|| format!("{} {what} ({}{more})", ids.len(), ids[..ids.len().min(NAMED)].join(", ")))
}

fn joined(sentence: String, wrong: &[Option<String>]) -> Result<(), String> {
    let wrong: Vec<&str> = wrong.iter().flatten().map(String::as_str).collect();
    if wrong.is_empty() { Ok(()) } else { Err(format!("{sentence}: mount ids {}", wrong.join("; "))) }
}

#[cfg(test)]
mod tests {
    use super::MountEvent::{Attached, Detached, Moved, Overflow};
    use super::*;

    fn entries(attached: &[u64], detached: &[u64]) -> Entries {
        Entries { attached: attached.to_vec(), detached: detached.to_vec() }
    }

    fn ids(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    #[test]
    fn a_ledger_that_adds_up_holds() {
        assert_eq!(judge_entries(&entries(&[7, 8], &[8, 7]), &ids(&[1]), &ids(&[5])), Ok(()));
    }

    #[test]
    fn a_ledger_that_does_not_add_up_says_where() {
        let judged = |entries| judge_entries(&entries, &ids(&[1]), &ids(&[5])).unwrap_err();
        assert!(judged(entries(&[7, 7], &[7])).ends_with("mount ids 1 attached twice (7)"));
        assert!(judged(entries(&[7], &[7, 7])).contains("1 detached twice (7)"));
        assert!(judged(entries(&[7, 8], &[7])).contains("1 attached and not detached (8)"));
        assert!(judged(entries(&[7], &[7, 9])).contains("1 detached and not attached (9)"));
        // An id that was there before the storm, and one of an earlier iteration.
        assert!(judged(entries(&[1, 5], &[1, 5])).contains("2 used before (1, 5)"));
    }

    #[test]
    fn the_stream_must_tell_what_was_written_down() {
        let book = entries(&[7, 8], &[7, 8]);
        let all = [Attached(7), Attached(8), Detached(7), Detached(8)];
        assert_eq!(judge_stream(&book, &all), Ok(()));
        let judged = |events: &[MountEvent]| judge_stream(&book, events).unwrap_err();
        assert!(judged(&all[..3]).contains("1 detached and not told (8)"));
        assert!(judged(&all[1..]).contains("1 attached and not told (7)"));
        assert!(judged(&[&all[..], &[Attached(9)]].concat()).contains("1 told as attached and not written down (9)"));
        assert!(judged(&[&all[..], &[Attached(8)]].concat()).contains("1 told twice (8)"));
        assert!(judged(&[&all[..], &[Overflow]].concat()).contains("overflowed"));
        assert!(judged(&[&all[..], &[Moved(8)]].concat()).contains("1 moved"));
        assert!(judged(&[all[2], all[0], all[1], all[3]]).contains("before it was attached (7)"));
    }

    #[test]
    fn a_peer_sees_each_event_once() {
        let all = [Attached(17), Attached(18), Detached(17), Detached(18)];
        assert_eq!(judge_peer_stream(0, 2, &all), Ok(()));
        assert!(judge_peer_stream(0, 2, &all[..3]).unwrap_err().contains("1 attached and not detached (18)"));
        assert!(judge_peer_stream(0, 2, &[]).unwrap_err().contains("0 attached where the storm attached 2"));
        assert!(judge_peer_stream(0, 0, &all).unwrap_err().starts_with("peer 0 did not see each event once"));
    }

    #[test]
    fn a_table_is_judged_by_unique_ids() {
        assert_eq!(judge_table("x", &ids(&[1, 2]), &ids(&[1, 2])), Ok(()));
        let sentence = judge_table("x", &ids(&[1, 2]), &ids(&[1, 3, 4, 5, 6, 7, 8])).unwrap_err();
        let end = "mount table of x is another: mount ids 6 left behind (3, 4, 5, 6, 7, ...); 1 lost (2)";
        assert!(sentence.ends_with(end), "{sentence}");
    }

    #[test]
    fn a_peer_shows_what_the_storm_shows() {
        let at =
            |mount_point: &str| Shown { mount_point: mount_point.into(), root: "/".into(), fs_type: "overlay".into() };
        assert_eq!(judge_peer(1, &[at("/a")], &[at("/a")]), Ok(()));
        assert!(judge_peer(1, &[], &[at("/a")]).unwrap_err().ends_with("they differ first at /a"));
        assert!(judge_peer(1, &[at("/a"), at("/a")], &[at("/a")]).unwrap_err().contains("there twice"));
        assert!(judge_count("x", 3, 2).unwrap_err().contains("3 mounts more"));
    }
}
