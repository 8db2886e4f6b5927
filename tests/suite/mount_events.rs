//! fanotify(7) events of mounts, and the ledger that is held against them.

use super::trials;
use anyhow::Result;
use mount_storms::call::{Verdict, same};
use mount_storms::check::Verdicts;
use mount_storms::ledger::{Entries, Ledger};
use mount_storms::mount_events::MountEvent::{Attached, Detached, Moved};
use mount_storms::mount_events::{MountEvent, MountEvents};
use mount_storms::namespace_view::{unique_id_at, unique_id_of};
use mount_storms::peers::Peer;
use mount_storms::protocol::{LedgerKind, Propagation};
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use nix::mount::MsFlags;
use std::fs::File;

trials!("mount_events":
    a_mount_and_its_umount_are_told_once_each,
    a_detached_tree_is_told_of_when_it_is_attached_and_not_before,
    a_move_is_one_event,
    a_lazy_umount_tells_of_each_mount_below,
    a_refused_umount_tells_of_nothing,
    a_peer_namespace_is_told_of_its_own_copy,
    a_namespace_is_not_told_of_what_stays_private_to_another,
    the_ledger_finds_a_mount_that_nobody_wrote_down,
    the_ledger_finds_a_mount_that_a_peer_did_not_get,
    the_ledger_finds_a_mount_that_is_left,
);

fn own_events() -> Result<MountEvents> {
    requirement::mount_events()?;
    MountEvents::of_namespace(File::open("/proc/thread-self/ns/mnt")?)
}

fn told(events: &MountEvents, expected: &[MountEvent]) -> Verdict {
    same("events", events.drain()?, expected)
}

fn a_mount_and_its_umount_are_told_once_each(s: &Scratch) -> Verdict {
    let events = own_events()?;
    s.tmpfs("disk")?;
    let id = unique_id_at(&s.path("disk"))?;
    told(&events, &[Attached(id)])?;
    s.umount("disk")?;
    told(&events, &[Detached(id)])
}

fn a_detached_tree_is_told_of_when_it_is_attached_and_not_before(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    let events = own_events()?;
    let tree = s.clone_tree("disk")?;
    let id = unique_id_of(&tree)?;
    drop(s.clone_tree("disk")?);
    told(&events, &[])?;
    s.attach(&tree, "place")?;
    told(&events, &[Attached(id)])?;
    s.umount_lazily("place")?;
    told(&events, &[Detached(id)])?;
    drop(tree);
    told(&events, &[])
}

fn a_move_is_one_event(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    let (events, id) = (own_events()?, unique_id_at(&s.path("disk"))?);
    s.move_mount("disk", "elsewhere")?;
    told(&events, &[Moved(id)])
}

fn a_lazy_umount_tells_of_each_mount_below(s: &Scratch) -> Verdict {
    let places = ["disk", "disk/sub", "disk/sub/deep"];
    places.iter().try_for_each(|place| s.tmpfs(place))?;
    let mut expected =
        places.iter().map(|place| unique_id_at(&s.path(place)).map(Detached)).collect::<Result<Vec<_>>>()?;
    let events = own_events()?;
    s.umount_lazily("disk")?;
    let mut seen = events.drain()?;
    seen.sort();
    expected.sort();
    same("events, sorted", seen, expected)
}

fn a_refused_umount_tells_of_nothing(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    let _open = s.open_writer("disk/file")?;
    let events = own_events()?;
    same("umount2 of a busy mount is refused", s.umount("disk").is_err(), true)?;
    told(&events, &[])
}

/// A shared mount at "parent", and another namespace with a copy of it.
fn shared_parent(s: &Scratch) -> Result<Peer> {
    requirement::mount_events()?;
    s.tmpfs("parent")?;
    s.make("parent", MsFlags::MS_SHARED)?;
    Peer::unshare(&s.path("parent"))
}

fn a_peer_namespace_is_told_of_its_own_copy(s: &Scratch) -> Verdict {
    let peer = shared_parent(s)?;
    let (own, theirs) = (own_events()?, MountEvents::of_namespace(peer.file())?);
    let before = peer.view().ids()?;
    s.tmpfs("parent/disk")?;
    let copies: Vec<u64> = peer.view().ids()?.difference(&before).copied().collect();
    same("copies in the peer", copies.len(), 1)?;
    let id = unique_id_at(&s.path("parent/disk"))?;
    same("the copy has an id of its own", copies[0] == id, false)?;
    s.umount("parent/disk")?;
    told(&own, &[Attached(id), Detached(id)])?;
    told(&theirs, &[Attached(copies[0]), Detached(copies[0])])
}

fn a_namespace_is_not_told_of_what_stays_private_to_another(s: &Scratch) -> Verdict {
    let peer = shared_parent(s)?;
    let theirs = MountEvents::of_namespace(peer.file())?;
    s.make("parent", MsFlags::MS_PRIVATE)?;
    s.tmpfs("parent/disk")?;
    s.umount("parent/disk")?;
    told(&theirs, &[])
}

/// Does something under a full ledger that writes down `entries` of it; what the ledger finds wrong.
fn found(peers: &[Peer], work: impl FnOnce() -> Result<Entries>) -> Result<Vec<String>> {
    let ledger = Ledger::open(LedgerKind::Full, Propagation::Shared, peers)?;
    let Some(mut ledger) = ledger else { anyhow::bail!("there is no ledger here") };
    let (tables, mut verdicts) = (ledger.tables()?, Verdicts::default());
    let entries = work()?;
    ledger.close(&mut verdicts, &tables, &entries)?;
    Ok(verdicts.into_oracle().failures)
}

/// Mounts and unmounts; what an honest storm would write down.
fn mount_and_umount(s: &Scratch, at: &str) -> Result<Entries> {
    s.tmpfs(at)?;
    let ids = vec![unique_id_at(&s.path(at))?];
    s.umount(at)?;
    Ok(Entries { attached: ids.clone(), detached: ids })
}

fn the_ledger_finds_a_mount_that_nobody_wrote_down(s: &Scratch) -> Verdict {
    let peers = [shared_parent(s)?];
    same("an honest ledger's failures", found(&peers, || mount_and_umount(s, "parent/disk"))?, Vec::<String>::new())?;
    let failures = found(&peers, || mount_and_umount(s, "parent/disk").map(|_| Entries::default()))?;
    same("failures", failures.len(), 2)?;
    same("the stream's", failures[0].contains("1 told as attached and not written down"), true)?;
    same("the peer's", failures[1].contains("1 attached where the storm attached 0"), true)
}

fn the_ledger_finds_a_mount_that_a_peer_did_not_get(s: &Scratch) -> Verdict {
    let peers = [shared_parent(s)?];
    // The scratch's own mount is private.
    let failures = found(&peers, || mount_and_umount(s, "disk"))?;
    same("failures", failures.len(), 1)?;
    same("the peer's", failures[0].contains("0 attached where the storm attached 1"), true)
}

fn the_ledger_finds_a_mount_that_is_left(s: &Scratch) -> Verdict {
    requirement::mount_events()?;
    let failures = found(&[], || {
        s.tmpfs("disk")?;
        Ok(Entries { attached: vec![unique_id_at(&s.path("disk"))?], detached: Vec::new() })
    })?;
    same("failures", failures.len(), 2)?;
    same("the table's", failures[0].contains("1 left behind"), true)?;
    same("the ledger's", failures[1].contains("1 attached and not detached"), true)
}
