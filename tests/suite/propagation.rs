//! Propagation: who hears of a mount and of an umount, and that each hears of it once.

use super::trials;
use mount_storms::call::{Verdict, same};
use mount_storms::scratch::{Scratch, through};
use mount_storms::second_namespace::SecondNamespace;
use nix::mount::MsFlags;

trials!("propagation":
    a_mount_reaches_each_peer_once,
    an_umount_reaches_each_peer,
    a_slave_receives_and_does_not_send,
    a_private_mount_tells_nobody_and_hears_nothing,
    a_peer_made_private_hears_nothing_more,
    a_chain_of_slaves_follows_its_master,
    a_shared_slave_passes_on_what_it_receives,
    a_peer_that_cannot_see_the_mount_point_gets_nothing,
    a_detached_peer_gets_nothing,
    hundreds_of_detached_peers_change_nothing,
    what_a_slave_mounted_on_top_outlives_the_umount_below_it,
    what_a_peer_mounted_inside_keeps_its_copy,
    umount_in_one_namespace_leaves_its_private_copy_untouched,
    umount_in_one_namespace_reaches_its_shared_peer,
    a_mount_in_one_namespace_reaches_its_shared_peer_once,
    a_slave_namespace_hears_and_is_not_heard,
    a_dying_namespace_leaves_its_peers_untouched,
);

/// A shared mount at "parent".
fn shared_parent(s: &Scratch) -> Verdict {
    s.tmpfs("parent")?;
    Ok(s.make("parent", MsFlags::MS_SHARED)?)
}

/// A slave of "parent" at this place.
fn slave(s: &Scratch, at: &str) -> Verdict {
    s.bind("parent", at)?;
    Ok(s.make(at, MsFlags::MS_SLAVE)?)
}

fn a_mount_reaches_each_peer_once(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    let peers = ["peer1", "peer2", "peer3", "peer4"];
    for peer in peers {
        s.bind("parent", peer)?;
    }
    s.tmpfs("peer2/disk")?;
    s.write("peer3/disk/file", "one disk")?;
    for peer in peers.iter().chain(&["parent"]) {
        same(peer, s.mounts_at(&format!("{peer}/disk"))?, 1)?;
        same(peer, s.read(&format!("{peer}/disk/file"))?, "one disk")?;
    }
    Ok(())
}

fn an_umount_reaches_each_peer(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    s.bind("parent", "peer1")?;
    s.bind("parent", "peer2")?;
    s.tmpfs("parent/disk")?;
    s.umount("peer1/disk")?;
    s.mounted_are(&["parent", "peer1", "peer2"])
}

fn a_slave_receives_and_does_not_send(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    slave(s, "slave")?;
    s.tmpfs("parent/from_master")?;
    s.tmpfs("slave/own")?;
    s.mounted_are(&["parent", "slave", "parent/from_master", "slave/from_master", "slave/own"])?;
    s.umount("slave/from_master")?;
    s.mounted_are(&["parent", "slave", "parent/from_master", "slave/own"])
}

fn a_private_mount_tells_nobody_and_hears_nothing(s: &Scratch) -> Verdict {
    s.tmpfs("parent")?;
    s.bind("parent", "copy")?;
    s.tmpfs("parent/a")?;
    s.tmpfs("copy/b")?;
    s.mounted_are(&["parent", "copy", "parent/a", "copy/b"])
}

fn a_peer_made_private_hears_nothing_more(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    s.bind("parent", "peer")?;
    s.tmpfs("parent/before")?;
    s.make("peer", MsFlags::MS_PRIVATE)?;
    s.tmpfs("parent/after")?;
    s.umount("parent/before")?;
    s.mounted_are(&["parent", "peer", "parent/after", "peer/before"])
}

fn a_chain_of_slaves_follows_its_master(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    slave(s, "first")?;
    s.make("first", MsFlags::MS_SHARED)?;
    s.bind("first", "second")?;
    s.make("second", MsFlags::MS_SLAVE)?;
    s.tmpfs("parent/disk")?;
    s.mounted_are(&["parent", "first", "second", "parent/disk", "first/disk", "second/disk"])?;
    s.umount("parent/disk")?;
    s.mounted_are(&["parent", "first", "second"])
}

fn a_shared_slave_passes_on_what_it_receives(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    slave(s, "slave")?;
    s.make("slave", MsFlags::MS_SHARED)?;
    s.bind("slave", "peer_of_slave")?;
    s.tmpfs("parent/disk")?;
    s.tmpfs("peer_of_slave/own")?;
    same("the master's mount at the slave's peer", s.mounts_at("peer_of_slave/disk")?, 1)?;
    same("the slaves' mount at the master", s.mounts_at("parent/own")?, 0)?;
    same("master of the slave's copy", s.mount_at("slave/disk")?.master, s.mount_at("parent/disk")?.shared)
}

fn a_peer_that_cannot_see_the_mount_point_gets_nothing(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    s.dir("parent/seen")?;
    s.bind("parent/seen", "peer")?;
    s.tmpfs("parent/beside")?;
    s.tmpfs("parent/seen/disk")?;
    s.mounted_are(&["parent", "peer", "parent/beside", "parent/seen/disk", "peer/disk"])?;
    s.umount("parent/beside")?;
    s.umount("parent/seen/disk")?;
    s.mounted_are(&["parent", "peer"])
}

fn a_detached_peer_gets_nothing(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    let tree = s.clone_tree("parent")?;
    s.tmpfs("parent/disk")?;
    s.write("parent/disk/file", "")?;
    same("the file through the detached peer", through(&tree, "disk/file").exists(), false)?;
    s.attach(tree, "peer")?;
    s.mounted_are(&["parent", "peer", "parent/disk"])?;
    s.tmpfs("parent/later")?;
    same("a mount after it was attached", s.mounts_at("peer/later")?, 1)
}

fn hundreds_of_detached_peers_change_nothing(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    s.bind("parent", "peer")?;
    let mut trees = Vec::new();
    for _ in 0..300 {
        trees.push(s.clone_tree("parent")?);
    }
    s.tmpfs("parent/disk")?;
    s.mounted_are(&["parent", "peer", "parent/disk", "peer/disk"])?;
    s.umount("parent/disk")?;
    s.mounted_are(&["parent", "peer"])
}

fn what_a_slave_mounted_on_top_outlives_the_umount_below_it(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    slave(s, "slave")?;
    s.tmpfs("parent/disk")?;
    s.tmpfs("slave/disk")?;
    s.write("slave/disk/who", "the slave's own")?;
    same("mounts at the slave's place", s.mounts_at("slave/disk")?, 2)?;
    s.umount("parent/disk")?;
    same("the slave's own mount", s.read("slave/disk/who")?, "the slave's own")?;
    s.mounted_are(&["parent", "slave", "slave/disk"])
}

fn what_a_peer_mounted_inside_keeps_its_copy(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    s.bind("parent", "peer")?;
    s.tmpfs("parent/disk")?;
    s.make("peer/disk", MsFlags::MS_PRIVATE)?;
    s.tmpfs("peer/disk/sub")?;
    s.umount("parent/disk")?;
    s.mounted_are(&["parent", "peer", "peer/disk", "peer/disk/sub"])
}

fn umount_in_one_namespace_leaves_its_private_copy_untouched(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("disk/file", "content")?;
    let other = SecondNamespace::copy()?;
    s.umount("disk")?;
    s.mounted_are(&[])?;
    other.inside(|| same("the file over there", s.read("disk/file")?, "content"))
}

fn umount_in_one_namespace_reaches_its_shared_peer(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    s.tmpfs("parent/disk")?;
    let other = SecondNamespace::copy()?;
    other.inside(|| s.mounted_are(&["parent", "parent/disk"]))?;
    s.umount("parent/disk")?;
    other.inside(|| s.mounted_are(&["parent"]))
}

fn a_mount_in_one_namespace_reaches_its_shared_peer_once(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    let other = SecondNamespace::copy()?;
    other.inside(|| Ok(s.tmpfs("parent/disk")?))?;
    s.mounted_are(&["parent", "parent/disk"])?;
    other.inside(|| s.mounted_are(&["parent", "parent/disk"]))
}

fn a_slave_namespace_hears_and_is_not_heard(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    let other = SecondNamespace::copy()?;
    other.inside(|| Ok(s.make("parent", MsFlags::MS_SLAVE)?))?;
    s.tmpfs("parent/from_master")?;
    other.inside(|| Ok(s.tmpfs("parent/own")?))?;
    s.mounted_are(&["parent", "parent/from_master"])?;
    other.inside(|| s.mounted_are(&["parent", "parent/from_master", "parent/own"]))
}

fn a_dying_namespace_leaves_its_peers_untouched(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    s.tmpfs("parent/disk")?;
    s.write("parent/disk/file", "content")?;
    drop(SecondNamespace::copy()?);
    same("the file", s.read("parent/disk/file")?, "content")?;
    s.mounted_are(&["parent", "parent/disk"])
}
