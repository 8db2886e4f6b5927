//! move_mount(2): attaching detached trees, moving attached ones, and the places that refuse them.

use super::trials;
use mount_storms::call::{Refused, Verdict, named, same};
use mount_storms::scratch::Scratch;
use nix::errno::Errno;
use nix::mount::MsFlags;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

trials!("move_mount":
    a_detached_tree_appears_where_it_is_attached,
    an_attached_tree_moves_when_it_is_attached_again,
    a_mount_moves_with_everything_below_it,
    a_mount_cannot_move_onto_its_own_child,
    a_mount_below_a_shared_parent_refuses_to_move,
    attaching_below_a_shared_parent_reaches_its_peers,
    attaching_below_a_private_parent_reaches_nobody,
    an_unbindable_mount_refuses_a_shared_place,
    a_mount_beneath_another_stays_hidden_until_that_is_gone,
    nothing_goes_beneath_a_plain_directory,
    nothing_goes_beneath_a_mount_that_would_receive_it_on_top,
    attaching_on_top_hides_what_was_there,
    a_directory_inside_a_mount_cannot_be_moved,
    the_file_of_the_own_namespace_cannot_be_mounted,
    a_mount_does_not_move_to_a_file,
    a_mount_that_moves_leaves_its_covered_place_as_it_was,
    moving_below_a_shared_parent_reaches_its_peers_with_all_children,
);

fn a_detached_tree_appears_where_it_is_attached(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("disk/file", "content")?;
    let tree = s.clone_tree("disk")?;
    same("a file before", s.exists("place/file"), false)?;
    s.attach(tree, "place")?;
    same("the file", s.read("place/file")?, "content")?;
    s.mounted_are(&["disk", "place"])
}

fn an_attached_tree_moves_when_it_is_attached_again(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    let tree = s.clone_tree("disk")?;
    s.attach(&tree, "first")?;
    s.attach(&tree, "second")?;
    s.mounted_are(&["disk", "second"])
}

fn a_mount_moves_with_everything_below_it(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.tmpfs("disk/sub")?;
    s.write("disk/sub/file", "content")?;
    let id = s.mount_at("disk/sub")?.id;
    s.move_mount("disk", "place")?;
    same("the submount's file", s.read("place/sub/file")?, "content")?;
    same("the submount's id", s.mount_at("place/sub")?.id, id)?;
    s.mounted_are(&["place", "place/sub"])
}

fn a_mount_cannot_move_onto_its_own_child(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.tmpfs("disk/sub")?;
    s.move_mount("disk", "disk/sub").refused_with(Errno::ELOOP)?;
    s.move_mount("disk", "disk/sub/deeper").refused_with(Errno::ELOOP)?;
    s.mounted_are(&["disk", "disk/sub"])
}

fn a_mount_below_a_shared_parent_refuses_to_move(s: &Scratch) -> Verdict {
    s.tmpfs("parent")?;
    s.make("parent", MsFlags::MS_SHARED)?;
    s.tmpfs("parent/disk")?;
    s.move_mount("parent/disk", "place").refused_with(Errno::EINVAL)?;
    s.mounted_are(&["parent", "parent/disk"])
}

fn attaching_below_a_shared_parent_reaches_its_peers(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.tmpfs("parent")?;
    s.make("parent", MsFlags::MS_SHARED)?;
    s.bind("parent", "peer")?;
    s.attach(s.clone_tree("disk")?, "parent/at")?;
    s.mounted_are(&["disk", "parent", "peer", "parent/at", "peer/at"])?;
    same("peer group of the copy", s.mount_at("peer/at")?.shared, s.mount_at("parent/at")?.shared)
}

fn attaching_below_a_private_parent_reaches_nobody(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.tmpfs("parent")?;
    s.bind("parent", "copy")?;
    s.attach(s.clone_tree("disk")?, "parent/at")?;
    s.mounted_are(&["disk", "parent", "copy", "parent/at"])
}

fn an_unbindable_mount_refuses_a_shared_place(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.make("disk", MsFlags::MS_UNBINDABLE)?;
    s.tmpfs("parent")?;
    s.make("parent", MsFlags::MS_SHARED)?;
    s.move_mount("disk", "parent/at").refused_with(Errno::EINVAL)?;
    s.mounted_are(&["disk", "parent"])
}

fn a_mount_beneath_another_stays_hidden_until_that_is_gone(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("disk/who", "beneath")?;
    s.tmpfs("place")?;
    s.write("place/who", "on top")?;
    s.attach_beneath(s.clone_tree("disk")?, "place")?;
    same("what is seen with both", s.read("place/who")?, "on top")?;
    same("mounts at the place", s.mounts_at("place")?, 2)?;
    s.umount("place")?;
    same("what is seen after umount", s.read("place/who")?, "beneath")
}

fn nothing_goes_beneath_a_plain_directory(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.attach_beneath(s.clone_tree("disk")?, "plain").refused_with(Errno::EINVAL)
}

fn nothing_goes_beneath_a_mount_that_would_receive_it_on_top(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.tmpfs("parent")?;
    s.make("parent", MsFlags::MS_SHARED)?;
    s.dir("parent/at")?;
    // Its root is the directory it stands on, and its parent's peer it is: what goes on the parent there goes on top of it too.
    s.bind("parent/at", "parent/at")?;
    s.attach_beneath(s.clone_tree("disk")?, "parent/at").refused_with(Errno::EINVAL)?;
    s.mounted_are(&["disk", "parent", "parent/at"])
}

fn attaching_on_top_hides_what_was_there(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("disk/who", "on top")?;
    s.tmpfs("place")?;
    s.write("place/who", "below")?;
    s.attach(s.clone_tree("disk")?, "place")?;
    same("what is seen with both", s.read("place/who")?, "on top")?;
    s.umount("place")?;
    same("what is seen after umount", s.read("place/who")?, "below")
}

fn a_directory_inside_a_mount_cannot_be_moved(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.dir("disk/plain")?;
    s.move_mount("disk/plain", "place").refused_with(Errno::EINVAL)?;
    s.mounted_are(&["disk"])
}

fn the_file_of_the_own_namespace_cannot_be_mounted(s: &Scratch) -> Verdict {
    s.write("file", "")?;
    let own = named("open_tree(ns/mnt)", open_tree(CWD, "/proc/self/ns/mnt", OpenTreeFlags::OPEN_TREE_CLONE))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    let attached = named("move_mount(ns/mnt, file)", move_mount(own, "", CWD, s.path("file"), flags));
    attached.refused_with(Errno::ELOOP)?;
    s.mounted_are(&[])
}

fn a_mount_does_not_move_to_a_file(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("file", "")?;
    let moved = move_mount(CWD, s.path("disk"), CWD, s.path("file"), MoveMountFlags::empty());
    named("move_mount(disk, file)", moved).refused_with(Errno::EINVAL)?;
    s.mounted_are(&["disk"])
}

fn a_mount_that_moves_leaves_its_covered_place_as_it_was(s: &Scratch) -> Verdict {
    s.dir("place")?;
    s.write("place/who", "covered")?;
    s.tmpfs("place")?;
    s.write("place/who", "moving")?;
    for _ in 0..10 {
        s.move_mount("place", "elsewhere")?;
        same("what is seen at the old place", s.read("place/who")?, "covered")?;
        s.move_mount("elsewhere", "place")?;
        same("what is seen back there", s.read("place/who")?, "moving")?;
    }
    Ok(())
}

fn moving_below_a_shared_parent_reaches_its_peers_with_all_children(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.tmpfs("disk/sub")?;
    s.tmpfs("parent")?;
    s.make("parent", MsFlags::MS_SHARED)?;
    s.bind("parent", "peer")?;
    s.move_mount("disk", "parent/at")?;
    s.mounted_are(&["parent", "peer", "parent/at", "parent/at/sub", "peer/at", "peer/at/sub"])?;
    s.umount("peer/at/sub")?;
    s.mounted_are(&["parent", "peer", "parent/at", "peer/at"])
}
