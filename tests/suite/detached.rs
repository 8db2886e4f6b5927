//! Detached trees: mounts in anonymous namespaces, used, changed and joined before anybody sees them.

use super::trials;
use mount_storms::call::{Call, Refused, Verdict, named, same};
use mount_storms::idmap::{clear, propagation, set, setattr_tree};
use mount_storms::requirement;
use mount_storms::scratch::{Scratch, through};
use mount_storms::sys::{AT_RECURSIVE, MOUNT_ATTR_RDONLY};
use nix::errno::Errno;
use nix::mount::MsFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::Mode;
use rustix::mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};
use std::fs::{self, File};

trials!("detached":
    a_new_file_system_is_filled_before_it_is_attached,
    a_readonly_tree_refuses_writers_until_it_is_cleared,
    a_writer_in_a_tree_refuses_readonly,
    a_readonly_tree_leaves_its_source_writable,
    a_tree_of_a_readonly_mount_is_readonly,
    a_recursive_change_reaches_all_of_a_tree,
    a_tree_can_be_made_shared_before_it_is_attached,
    a_tree_is_attached_below_another_and_goes_along_with_it,
    a_tree_cannot_be_attached_inside_itself,
    an_attached_mount_cannot_be_moved_into_a_tree,
    the_inside_of_a_tree_cannot_be_moved_out,
    the_inside_of_a_tree_can_be_cloned,
    an_attached_tree_outlives_its_descriptor,
    an_umounted_tree_cannot_be_attached_again,
    a_mount_that_stands_nowhere_is_no_source,
);

fn disk_with_file(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    Ok(s.write("disk/file", "content")?)
}

/// Attaches one tree at a path inside another.
fn attach_inside(tree: impl AsFd, into: impl AsFd, path: &str) -> Call {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    named(format!("move_mount(tree, tree, {path})"), mount::move_mount(tree, "", into, path, flags))
}

/// open_tree(2) of a path inside a tree.
fn open_inside(tree: impl AsFd, path: &str, flags: OpenTreeFlags) -> Call<OwnedFd> {
    named(format!("open_tree(tree, {path}, {flags:?})"), mount::open_tree(tree, path, flags))
}

fn a_new_file_system_is_filled_before_it_is_attached(s: &Scratch) -> Verdict {
    let context = named("fsopen(tmpfs)", mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC))?;
    named("fsconfig(CREATE)", mount::fsconfig_create(&context))?;
    let tree = mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
    let tree = named("fsmount", tree)?;
    named("mkdirat", rustix::fs::mkdirat(&tree, "dir", Mode::RWXU))?;
    fs::write(through(&tree, "dir/file"), "before")?;
    s.mounted_are(&[])?;
    s.attach(tree, "place")?;
    same("the file", s.read("place/dir/file")?, "before")
}

fn a_readonly_tree_refuses_writers_until_it_is_cleared(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    let tree = s.clone_tree("disk")?;
    let write = || named("write(tree/file)", fs::write(through(&tree, "file"), "new"));
    write()?;
    setattr_tree(&tree, 0, &set(MOUNT_ATTR_RDONLY))?;
    write().refused_with(Errno::EROFS)?;
    setattr_tree(&tree, 0, &clear(MOUNT_ATTR_RDONLY))?;
    Ok(write()?)
}

fn a_writer_in_a_tree_refuses_readonly(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    let tree = s.clone_tree("disk")?;
    let writer = File::options().write(true).open(through(&tree, "file"))?;
    setattr_tree(&tree, 0, &set(MOUNT_ATTR_RDONLY)).refused_with(Errno::EBUSY)?;
    drop(writer);
    Ok(setattr_tree(&tree, 0, &set(MOUNT_ATTR_RDONLY))?)
}

fn a_readonly_tree_leaves_its_source_writable(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    let tree = s.clone_tree("disk")?;
    setattr_tree(&tree, 0, &set(MOUNT_ATTR_RDONLY))?;
    s.write("disk/file", "through the source")?;
    s.attach(&tree, "place")?;
    s.write("place/file", "").refused_with(Errno::EROFS)?;
    same("the file", s.read("place/file")?, "through the source")
}

fn a_tree_of_a_readonly_mount_is_readonly(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    s.setattr("disk", 0, &set(MOUNT_ATTR_RDONLY))?;
    let tree = s.clone_tree("disk")?;
    named("write(tree/file)", fs::write(through(&tree, "file"), "")).refused_with(Errno::EROFS)
}

fn a_recursive_change_reaches_all_of_a_tree(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    s.tmpfs("disk/sub")?;
    let tree = s.clone_tree_recursively("disk")?;
    setattr_tree(&tree, AT_RECURSIVE, &set(MOUNT_ATTR_RDONLY))?;
    named("write(tree/sub/new)", fs::write(through(&tree, "sub/new"), "")).refused_with(Errno::EROFS)?;
    Ok(s.write("disk/sub/new", "the source is as it was")?)
}

fn a_tree_can_be_made_shared_before_it_is_attached(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    let tree = s.clone_tree("disk")?;
    setattr_tree(&tree, 0, &propagation(MsFlags::MS_SHARED))?;
    s.attach(&tree, "place")?;
    same("the source's peer group", s.mount_at("disk")?.shared, None)?;
    same("the tree is shared", s.mount_at("place")?.shared.is_some(), true)?;
    s.bind("place", "peer")?;
    s.tmpfs("place/sub")?;
    same("mounts at its peer", s.mounts_at("peer/sub")?, 1)
}

fn a_tree_is_attached_below_another_and_goes_along_with_it(s: &Scratch) -> Verdict {
    requirement::detached_trees()?;
    disk_with_file(s)?;
    s.tmpfs("other")?;
    s.dir("other/dir")?;
    let (inner, outer) = (s.clone_tree("disk")?, s.clone_tree("other")?);
    attach_inside(&inner, &outer, "dir")?;
    same("the file before", fs::read_to_string(through(&outer, "dir/file"))?, "content")?;
    s.mounted_are(&["disk", "other"])?;
    s.attach(&outer, "place")?;
    s.mounted_are(&["disk", "other", "place", "place/dir"])
}

fn a_tree_cannot_be_attached_inside_itself(s: &Scratch) -> Verdict {
    requirement::detached_trees()?;
    s.tmpfs("disk")?;
    s.dir("disk/dir")?;
    let tree = s.clone_tree("disk")?;
    attach_inside(&tree, &tree, "dir").refused_with(Errno::EINVAL)?;
    s.attach(&tree, "place")?;
    attach_inside(&tree, &tree, "dir").refused_with(Errno::ELOOP)
}

fn an_attached_mount_cannot_be_moved_into_a_tree(s: &Scratch) -> Verdict {
    requirement::detached_trees()?;
    disk_with_file(s)?;
    s.tmpfs("other")?;
    s.dir("other/dir")?;
    let (disk, tree) = (s.open_tree("disk", OpenTreeFlags::empty())?, s.clone_tree("other")?);
    attach_inside(&disk, &tree, "dir").refused_with(Errno::EINVAL)?;
    s.mounted_are(&["disk", "other"])
}

fn the_inside_of_a_tree_cannot_be_moved_out(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    s.tmpfs("disk/sub")?;
    let tree = s.clone_tree_recursively("disk")?;
    let inside = open_inside(&tree, "sub", OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    s.attach(&inside, "place").refused_with(Errno::EINVAL)?;
    s.attach(&tree, "place")?;
    s.mounted_are(&["disk", "disk/sub", "place", "place/sub"])
}

fn the_inside_of_a_tree_can_be_cloned(s: &Scratch) -> Verdict {
    requirement::detached_trees()?;
    s.tmpfs("disk")?;
    s.tmpfs("disk/sub")?;
    s.write("disk/sub/file", "inner")?;
    let tree = s.clone_tree_recursively("disk")?;
    let inner = open_inside(&tree, "sub", OpenTreeFlags::OPEN_TREE_CLONE)?;
    drop(tree);
    s.attach(inner, "place")?;
    same("the file", s.read("place/file")?, "inner")
}

fn an_attached_tree_outlives_its_descriptor(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    let tree = s.clone_tree("disk")?;
    s.attach(&tree, "place")?;
    s.umount("place").refused_with(Errno::EBUSY)?;
    drop(tree);
    s.mounted_are(&["disk", "place"])?;
    Ok(s.umount("place")?)
}

fn an_umounted_tree_cannot_be_attached_again(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    let tree = s.clone_tree("disk")?;
    s.attach(&tree, "place")?;
    s.umount_lazily("place")?;
    s.attach(&tree, "place").refused_with(Errno::EINVAL)?;
    same("the file through the descriptor", fs::read_to_string(through(&tree, "file"))?, "content")?;
    s.mounted_are(&["disk"])
}

fn a_mount_that_stands_nowhere_is_no_source(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    let open = named("open(disk)", File::open(s.path("disk")))?;
    s.umount_lazily("disk")?;
    let clone = |flags| named("open_tree(umounted)", mount::open_tree(&open, "", flags));
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_EMPTY_PATH;
    clone(flags).refused_with(Errno::EINVAL)?;
    clone(flags | OpenTreeFlags::AT_RECURSIVE).refused_with(Errno::EINVAL)?;
    s.mounted_are(&[])
}
