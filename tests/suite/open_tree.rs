//! open_tree(2): copies of mounts that are attached nowhere.

use super::trials;
use mount_storms::call::{Refused, Verdict, named, same};
use mount_storms::requirement;
use mount_storms::scratch::{Scratch, through};
use mount_storms::second_namespace::SecondNamespace;
use nix::errno::Errno;
use nix::mount::MsFlags;
use rustix::mount::OpenTreeFlags;
use std::fs;

trials!("open_tree":
    a_clone_shows_the_same_files,
    a_clone_without_recursion_leaves_submounts_behind,
    a_recursive_clone_carries_its_submounts,
    a_recursive_clone_leaves_unbindable_submounts_behind,
    a_detached_tree_is_used_through_its_descriptor,
    a_detached_tree_outlives_its_source,
    a_detached_tree_does_not_keep_its_source_busy,
    an_open_file_outlives_the_detached_tree_it_came_from,
    a_detached_tree_ends_at_its_own_root,
    a_detached_tree_can_be_cloned_again,
    a_clone_of_a_shared_mount_joins_its_peer_group,
    a_clone_of_a_private_mount_has_no_peers,
    a_clone_of_a_slave_hears_the_same_master,
    a_clone_of_a_peer_that_is_a_slave_joins_both,
    a_detached_tree_of_another_namespace_refuses_to_be_cloned,
    an_unbindable_mount_refuses_to_be_cloned,
    recursion_without_a_clone_is_refused,
    clones_leave_no_trace_in_the_mount_table,
);

/// A disk with a file, and a second disk mounted in it with a file of its own.
fn nested_disks(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("disk/file", "outer")?;
    s.tmpfs("disk/sub")?;
    Ok(s.write("disk/sub/file", "inner")?)
}

fn a_clone_shows_the_same_files(s: &Scratch) -> Verdict {
    nested_disks(s)?;
    s.attach(s.clone_tree("disk")?, "copy")?;
    same("the copy's file", s.read("copy/file")?, "outer")?;
    s.write("copy/new", "through the copy")?;
    same("the disk's new file", s.read("disk/new")?, "through the copy")
}

fn a_clone_without_recursion_leaves_submounts_behind(s: &Scratch) -> Verdict {
    nested_disks(s)?;
    s.attach(s.clone_tree("disk")?, "copy")?;
    same("a file of the submount", s.exists("copy/sub/file"), false)?;
    s.mounted_are(&["disk", "disk/sub", "copy"])
}

fn a_recursive_clone_carries_its_submounts(s: &Scratch) -> Verdict {
    nested_disks(s)?;
    s.attach(s.clone_tree_recursively("disk")?, "copy")?;
    same("the submount's file", s.read("copy/sub/file")?, "inner")?;
    s.mounted_are(&["disk", "disk/sub", "copy", "copy/sub"])
}

fn a_recursive_clone_leaves_unbindable_submounts_behind(s: &Scratch) -> Verdict {
    nested_disks(s)?;
    s.make("disk/sub", MsFlags::MS_UNBINDABLE)?;
    s.attach(s.clone_tree_recursively("disk")?, "copy")?;
    s.mounted_are(&["disk", "disk/sub", "copy"])
}

fn a_detached_tree_is_used_through_its_descriptor(s: &Scratch) -> Verdict {
    nested_disks(s)?;
    let tree = s.clone_tree_recursively("disk")?;
    same("a file in it", fs::read_to_string(through(&tree, "sub/file"))?, "inner")?;
    fs::write(through(&tree, "new"), "from nowhere")?;
    same("the new file on the disk", s.read("disk/new")?, "from nowhere")
}

fn a_detached_tree_outlives_its_source(s: &Scratch) -> Verdict {
    nested_disks(s)?;
    let tree = s.clone_tree_recursively("disk")?;
    s.umount("disk/sub")?;
    s.umount("disk")?;
    s.attach(tree, "copy")?;
    same("the file of the umounted disk", s.read("copy/sub/file")?, "inner")
}

fn a_detached_tree_does_not_keep_its_source_busy(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    let _tree = s.clone_tree("disk")?;
    s.umount("disk")?;
    s.mounted_are(&[])
}

fn an_open_file_outlives_the_detached_tree_it_came_from(s: &Scratch) -> Verdict {
    nested_disks(s)?;
    let tree = s.clone_tree_recursively("disk")?;
    let file = fs::File::open(through(&tree, "sub/file"))?;
    drop(tree);
    s.umount_lazily("disk")?;
    same("the file", std::io::read_to_string(file)?, "inner")
}

fn a_detached_tree_ends_at_its_own_root(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.dir("disk/a")?;
    s.write("disk/secret", "beside the tree")?;
    let tree = s.clone_tree("disk/a")?;
    fs::write(through(&tree, "inside"), "")?;
    same("what .. leads to holds the tree's file", through(&tree, "../inside").exists(), true)?;
    same("what .. leads to holds its sibling", through(&tree, "../secret").exists(), false)
}

fn a_detached_tree_can_be_cloned_again(s: &Scratch) -> Verdict {
    requirement::detached_trees()?;
    nested_disks(s)?;
    let first = s.clone_tree_recursively("disk")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::AT_EMPTY_PATH;
    let second = named("open_tree(tree)", rustix::mount::open_tree(&first, "", flags))?;
    drop(first);
    s.attach(second, "copy")?;
    same("the submount's file", s.read("copy/sub/file")?, "inner")
}

fn a_clone_of_a_shared_mount_joins_its_peer_group(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.make("disk", MsFlags::MS_SHARED)?;
    s.attach(s.clone_tree("disk")?, "copy")?;
    let group = s.mount_at("disk")?.shared;
    same("the disk is shared", group.is_some(), true)?;
    same("the copy's peer group", s.mount_at("copy")?.shared, group)
}

fn a_clone_of_a_private_mount_has_no_peers(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.attach(s.clone_tree("disk")?, "copy")?;
    same("the copy's peer group", s.mount_at("copy")?.shared, None)
}

/// A mount at "disk", and a slave of it at "slave".
fn master_and_slave(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.make("disk", MsFlags::MS_SHARED)?;
    s.bind("disk", "slave")?;
    Ok(s.make("slave", MsFlags::MS_SLAVE)?)
}

fn a_clone_of_a_slave_hears_the_same_master(s: &Scratch) -> Verdict {
    master_and_slave(s)?;
    s.attach(s.clone_tree("slave")?, "copy")?;
    same("the copy's master", s.mount_at("copy")?.master, s.mount_at("disk")?.shared)?;
    s.tmpfs("disk/sub")?;
    s.mounted_are(&["disk", "slave", "copy", "disk/sub", "slave/sub", "copy/sub"])?;
    s.umount("disk/sub")?;
    s.mounted_are(&["disk", "slave", "copy"])
}

fn a_clone_of_a_peer_that_is_a_slave_joins_both(s: &Scratch) -> Verdict {
    master_and_slave(s)?;
    s.make("slave", MsFlags::MS_SHARED)?;
    s.attach(s.clone_tree("slave")?, "copy")?;
    same("the copy's group", s.mount_at("copy")?.shared, s.mount_at("slave")?.shared)?;
    same("the copy's master", s.mount_at("copy")?.master, s.mount_at("disk")?.shared)?;
    s.tmpfs("disk/sub")?;
    s.tmpfs("copy/own")?;
    s.mounted_are(&["disk", "slave", "copy", "disk/sub", "slave/sub", "copy/sub", "slave/own", "copy/own"])
}

fn a_detached_tree_of_another_namespace_refuses_to_be_cloned(s: &Scratch) -> Verdict {
    requirement::detached_trees()?;
    s.tmpfs("disk")?;
    let other = SecondNamespace::copy()?;
    let tree = s.clone_tree("disk")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = || named("open_tree(tree)", rustix::mount::open_tree(&tree, "", flags));
    other.inside(|| clone().refused_with(Errno::EINVAL))?;
    Ok(clone().map(drop)?)
}

fn an_unbindable_mount_refuses_to_be_cloned(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.make("disk", MsFlags::MS_UNBINDABLE)?;
    s.clone_tree("disk").refused_with(Errno::EINVAL)?;
    s.clone_tree_recursively("disk").refused_with(Errno::EINVAL)
}

fn recursion_without_a_clone_is_refused(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.open_tree("disk", OpenTreeFlags::AT_RECURSIVE).refused_with(Errno::EINVAL)
}

fn clones_leave_no_trace_in_the_mount_table(s: &Scratch) -> Verdict {
    nested_disks(s)?;
    let before = s.mounts()?;
    for _ in 0..100 {
        drop(s.clone_tree_recursively("disk")?);
    }
    let kept = s.clone_tree("disk")?;
    same("the mount table", s.mounts()?, before)?;
    drop(kept);
    s.umount("disk/sub")?;
    Ok(s.umount("disk")?)
}
