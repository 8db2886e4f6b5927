//! Who receives a mount and who an umount, where it is easily forgotten: at the edge of a peer, and behind one that is gone.

use super::trials;
use anyhow::{Result, bail};
use mount_storms::call::{Refused, Verdict, same};
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use nix::errno::Errno;
use nix::mount::MsFlags;
use std::time::{Duration, Instant};

trials!("receivers":
    a_mount_reaches_a_peer_that_was_bound_from_its_very_place,
    slaves_of_an_umounted_mount_hear_its_master,
    slaves_of_an_umounted_peer_hear_the_others,
    slaves_of_a_peer_that_was_made_private_hear_the_others,
    a_busy_original_refuses_the_umount_of_its_copy,
    an_umount_of_any_copy_takes_all,
    a_mount_that_has_changed_its_group_hears_the_new_one,
    a_mount_finds_its_own_slaves_among_thousands_of_other_masters,
    an_umount_among_many_peers_reaches_its_receivers_alone,
    among_many_peers_a_busy_receiver_refuses_an_umount_and_a_busy_stranger_does_not,
    an_umount_takes_no_longer_for_strangers_on_the_same_dentry,
    an_umount_takes_no_longer_for_a_chain_of_masters,
);

/// Trees of masters beside the one whose slaves are looked up, and the mounts of each. A table of mounts by group has a chain for each half MiB
/// of memory: these are more masters than chains on the smallest machine.
const TREES: usize = 60;
const TREE: usize = 100;

/// Peers that do not see a mountpoint, enough of them that looking into each takes longer than what is mounted there.
const PEERS_ELSEWHERE: usize = 40;

/// Mounts whose umount is timed. A look at one of the others on a dentry takes a thousandth of an umount: there must be thousands of them.
const STRANGERS: usize = 8000;

/// Masters in a row, each a slave of the one before.
const MASTERS: usize = 5000;

/// How many times as long an umount may take that has such in its way. An umount that looks at all of them takes three times as
/// long and more.
const NO_LONGER: f64 = 2.5;

/// How often to time it: the host may be busy with something else meanwhile.
const ATTEMPTS: usize = 3;

/// A shared mount at "parent".
fn shared_parent(s: &Scratch) -> Verdict {
    s.tmpfs("parent")?;
    Ok(s.make("parent", MsFlags::MS_SHARED)?)
}

/// A slave of the mount at one place, at another.
fn slave_of(s: &Scratch, master: &str, at: &str) -> Verdict {
    s.bind(master, at)?;
    Ok(s.make(at, MsFlags::MS_SLAVE)?)
}

fn a_mount_reaches_a_peer_that_was_bound_from_its_very_place(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    s.dir("parent/seen")?;
    s.bind("parent/seen", "peer")?;
    s.tmpfs("parent/seen")?;
    s.write("parent/seen/file", "content")?;
    same("mounts at the peer", s.mounts_at("peer")?, 2)?;
    same("the file at the peer", s.read("peer/file")?, "content")?;
    s.umount("parent/seen")?;
    s.mounted_are(&["parent", "peer"])
}

fn slaves_of_an_umounted_mount_hear_its_master(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    slave_of(s, "parent", "middle")?;
    s.make("middle", MsFlags::MS_SHARED)?;
    slave_of(s, "middle", "last")?;
    s.umount("middle")?;
    same("the last one's master", s.mount_at("last")?.master, s.mount_at("parent")?.shared)?;
    s.tmpfs("parent/disk")?;
    s.mounted_are(&["parent", "last", "parent/disk", "last/disk"])
}

/// A shared mount at "parent", a peer of it, and a slave that has the peer for master: it was copied from what became the slave, and so is
/// the next one in the ring after that (fs/pnode.c, change_mnt_propagation()).
fn slave_of_a_peer(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    s.bind("parent", "slave")?;
    s.bind("slave", "peer")?;
    Ok(s.make("slave", MsFlags::MS_SLAVE)?)
}

fn slaves_of_an_umounted_peer_hear_the_others(s: &Scratch) -> Verdict {
    slave_of_a_peer(s)?;
    s.umount("peer")?;
    s.tmpfs("parent/disk")?;
    s.mounted_are(&["parent", "slave", "parent/disk", "slave/disk"])
}

fn slaves_of_a_peer_that_was_made_private_hear_the_others(s: &Scratch) -> Verdict {
    slave_of_a_peer(s)?;
    s.make("peer", MsFlags::MS_PRIVATE)?;
    s.tmpfs("parent/disk")?;
    s.mounted_are(&["parent", "slave", "peer", "parent/disk", "slave/disk"])
}

fn a_busy_original_refuses_the_umount_of_its_copy(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    s.bind("parent", "peer")?;
    s.tmpfs("parent/disk")?;
    let file = s.open_writer("parent/disk/file")?;
    s.umount("peer/disk").refused_with(Errno::EBUSY)?;
    s.mounted_are(&["parent", "peer", "parent/disk", "peer/disk"])?;
    drop(file);
    s.umount("peer/disk")?;
    s.mounted_are(&["parent", "peer"])
}

fn an_umount_of_any_copy_takes_all(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    s.bind("parent", "peer")?;
    slave_of(s, "parent", "slave")?;
    for copy in ["parent/disk", "peer/disk"] {
        for mounted in ["parent/disk", "peer/disk"] {
            s.tmpfs(mounted)?;
            s.umount(copy)?;
            s.mounted_are(&["parent", "peer", "slave"])?;
        }
    }
    Ok(())
}

fn a_mount_that_has_changed_its_group_hears_the_new_one(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    let before = s.mount_at("parent")?.shared;
    s.make("parent", MsFlags::MS_PRIVATE)?;
    // Takes the id of the group that is gone, so that the parent gets another.
    s.tmpfs("other")?;
    s.make("other", MsFlags::MS_SHARED)?;
    s.make("parent", MsFlags::MS_SHARED)?;
    same("whether the group is another", s.mount_at("parent")?.shared != before, true)?;
    s.bind("parent", "peer")?;
    s.tmpfs("peer/disk")?;
    s.mounted_are(&["parent", "other", "peer", "peer/disk", "parent/disk"])?;
    s.umount("parent/disk")?;
    s.mounted_are(&["parent", "other", "peer"])
}

fn a_mount_finds_its_own_slaves_among_thousands_of_other_masters(s: &Scratch) -> Verdict {
    // First, so that its group has the lowest id that is free.
    shared_parent(s)?;
    slave_of(s, "parent", "slave")?;
    s.tmpfs("disk")?;
    (1..TREE).try_for_each(|n| s.tmpfs(&format!("disk/{n}")))?;
    for n in 0..TREES {
        let (masters, slaves) = (format!("masters{n}"), format!("slaves{n}"));
        s.bind_recursive("disk", &masters)?;
        s.make(&masters, MsFlags::MS_SHARED | MsFlags::MS_REC)?;
        s.bind_recursive(&masters, &slaves)?;
        s.make(&slaves, MsFlags::MS_SLAVE | MsFlags::MS_REC)?;
    }
    s.tmpfs("parent/disk")?;
    same("mounts at all", s.mounts()?.len(), (2 * TREES + 1) * TREE + 4)?;
    s.write("parent/disk/file", "content")?;
    same("the file at the slave", s.read("slave/disk/file")?, "content")?;
    s.umount("parent/disk")?;
    same("whether the slave has it still", s.exists("slave/disk/file"), false)
}

/// A shared mount with many peers elsewhere, and mounts on one dentry of it: in a peer, a slave and a slave of that, and in a stranger.
fn among_many_peers(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    for n in 0..PEERS_ELSEWHERE {
        s.dir(&format!("parent/elsewhere{n}"))?;
        s.bind(&format!("parent/elsewhere{n}"), &format!("elsewhere{n}"))?;
    }
    s.bind("parent", "peer")?;
    slave_of(s, "parent", "slave")?;
    s.make("slave", MsFlags::MS_SHARED)?;
    slave_of(s, "slave", "last")?;
    s.bind("parent", "stranger")?;
    s.make("stranger", MsFlags::MS_PRIVATE)?;
    s.make("stranger", MsFlags::MS_SHARED)?;
    s.tmpfs("parent/disk")?;
    Ok(s.tmpfs("stranger/disk")?)
}

fn have_disks(s: &Scratch, places: &[&str]) -> Verdict {
    let mut having = Vec::new();
    for place in ["parent", "peer", "slave", "last", "stranger"] {
        if s.mounts_at(&format!("{place}/disk"))? == 1 {
            having.push(place);
        }
    }
    same("who has a disk", having.as_slice(), places)
}

fn an_umount_among_many_peers_reaches_its_receivers_alone(s: &Scratch) -> Verdict {
    among_many_peers(s)?;
    have_disks(s, &["parent", "peer", "slave", "last", "stranger"])?;
    s.umount("peer/disk")?;
    have_disks(s, &["stranger"])?;
    s.tmpfs("parent/disk")?;
    s.umount("slave/disk")?;
    have_disks(s, &["parent", "peer", "stranger"])?;
    s.umount_lazily("parent/disk")?;
    have_disks(s, &["stranger"])
}

fn among_many_peers_a_busy_receiver_refuses_an_umount_and_a_busy_stranger_does_not(s: &Scratch) -> Verdict {
    among_many_peers(s)?;
    let file = s.open_writer("last/disk/file")?;
    s.umount("peer/disk").refused_with(Errno::EBUSY)?;
    drop(file);
    let _strangers = s.open_writer("stranger/disk/file")?;
    s.umount("peer/disk")?;
    have_disks(s, &["stranger"])
}

/// The time that a lazy umount of everything at a place takes.
fn time_of_umount(s: &Scratch, name: &str) -> Result<Duration> {
    let start = Instant::now();
    s.umount_lazily(name)?;
    Ok(start.elapsed())
}

/// Below "tree", binds of one filesystem that have nothing to do with each other, and on each a mount: on a dentry of its own, or all on one.
fn strangers(s: &Scratch, on_one_dentry: bool) -> Verdict {
    s.tmpfs("source")?;
    s.tmpfs("tree")?;
    let place = |n| if on_one_dentry { "disk".to_owned() } else { format!("disk{n}") };
    for n in 0..STRANGERS {
        s.dir(&format!("source/{}", place(n)))?;
        s.bind("source", &format!("tree/{n}"))?;
        s.bind("source", &format!("tree/{n}/{}", place(n)))?;
    }
    // Each becomes a peer group of its own.
    Ok(s.make("tree", MsFlags::MS_SHARED | MsFlags::MS_REC)?)
}

fn an_umount_takes_no_longer_for_strangers_on_the_same_dentry(s: &Scratch) -> Verdict {
    no_longer(|on_one_dentry| {
        strangers(s, on_one_dentry)?;
        let time = time_of_umount(s, "tree")?;
        s.umount("source")?;
        Ok(time)
    })
}

/// The umount of a mount that propagates to thousands of slaves: all of one master, or each of the one before.
fn an_umount_takes_no_longer_for_a_chain_of_masters(s: &Scratch) -> Verdict {
    no_longer(|is_chain| {
        s.tmpfs("links")?;
        s.tmpfs("links/0")?;
        s.make("links/0", MsFlags::MS_SHARED)?;
        s.dir("links/0/disk")?;
        for n in 1..MASTERS {
            let (master, link) = (format!("links/{}", if is_chain { n - 1 } else { 0 }), format!("links/{n}"));
            slave_of(s, &master, &link)?;
            s.make(&link, MsFlags::MS_SHARED)?;
        }
        s.tmpfs("links/0/disk")?;
        let last = format!("links/{}/disk", MASTERS - 1);
        same("mounts at the last of them", s.mounts_at(&last)?, 1)?;
        let time = time_of_umount(s, "links/0/disk")?;
        same("mounts at the last of them, then", s.mounts_at(&last)?, 0)?;
        s.umount_lazily("links")?;
        Ok(time)
    })
}

/// Holds the time of an umount with something in its way against that without.
fn no_longer(mut time: impl FnMut(bool) -> Result<Duration>) -> Verdict {
    requirement::thousands_of_mounts_take_seconds()?;
    let mut seen = Vec::new();
    for _ in 0..ATTEMPTS {
        let (without, with) = (time(false)?, time(true)?);
        if with.as_secs_f64() <= without.as_secs_f64() * NO_LONGER {
            return Ok(());
        }
        seen.push(format!("{with:?} instead of {without:?}"));
    }
    bail!("each time it took longer: {}", seen.join(", "))
}
