//! mount_setattr(2): idmaps, attributes, propagation, and that a change which fails changes nothing.

use super::trials;
use mount_storms::call::{Refused, Verdict, named, same};
use mount_storms::idmap::{SHIFT, clear, idmap, propagation, set, setattr_tree, shifted};
use mount_storms::requirement;
use mount_storms::scratch::{Scratch, through};
use mount_storms::sys::{AT_RECURSIVE, MOUNT_ATTR_IDMAP, MOUNT_ATTR_RDONLY, MountAttr};
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::unistd::{Gid, Uid, setegid, seteuid};
use std::fs::{self, File};

trials!("mount_setattr":
    an_idmap_shows_mapped_owners_and_leaves_the_source_alone,
    a_file_made_through_an_idmap_is_owned_by_the_id_behind_it,
    an_id_that_the_idmap_lacks_may_not_make_files,
    a_recursive_idmap_reaches_submounts,
    an_attached_mount_refuses_an_idmap,
    an_idmapped_mount_refuses_a_second_idmap,
    an_idmap_cannot_be_taken_back,
    the_initial_user_namespace_is_no_idmap,
    a_descriptor_that_is_no_user_namespace_is_no_idmap,
    an_open_writer_refuses_an_idmap,
    readonly_refuses_writers_until_it_is_cleared,
    an_open_writer_refuses_readonly,
    readonly_of_one_mount_leaves_the_others_writable,
    recursion_reaches_submounts_and_its_absence_does_not,
    a_recursive_change_that_fails_changes_nothing,
    propagation_changes_as_mountinfo_shows,
    two_propagation_types_at_once_are_refused,
    a_directory_that_is_no_mount_is_refused,
);

fn disk_with_file(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    Ok(s.write("disk/file", "content")?)
}

fn an_idmap_shows_mapped_owners_and_leaves_the_source_alone(s: &Scratch) -> Verdict {
    requirement::idmapped_mounts()?;
    disk_with_file(s)?;
    s.bind_idmapped("disk", "view")?;
    same("owner through the idmap", s.owner("view/file")?, SHIFT)?;
    same("owner of the idmapped root", s.owner("view")?, SHIFT)?;
    same("owner on the disk", s.owner("disk/file")?, 0)
}

fn a_file_made_through_an_idmap_is_owned_by_the_id_behind_it(s: &Scratch) -> Verdict {
    requirement::idmapped_mounts()?;
    s.tmpfs("disk")?;
    s.bind_idmapped("disk", "view")?;
    setegid(Gid::from_raw(SHIFT + 7))?;
    seteuid(Uid::from_raw(SHIFT + 7))?;
    s.write("view/new", "")?;
    seteuid(Uid::from_raw(0))?;
    same("owner through the idmap", s.owner("view/new")?, SHIFT + 7)?;
    same("owner on the disk", s.owner("disk/new")?, 7)
}

fn an_id_that_the_idmap_lacks_may_not_make_files(s: &Scratch) -> Verdict {
    requirement::idmapped_mounts()?;
    s.tmpfs("disk")?;
    s.bind_idmapped("disk", "view")?;
    s.write("view/new", "").refused_with(Errno::EOVERFLOW)
}

fn a_recursive_idmap_reaches_submounts(s: &Scratch) -> Verdict {
    requirement::idmapped_mounts()?;
    disk_with_file(s)?;
    s.tmpfs("disk/sub")?;
    let (userns, tree) = (shifted()?, s.clone_tree_recursively("disk")?);
    setattr_tree(&tree, AT_RECURSIVE, &idmap(&userns))?;
    s.attach(tree, "view")?;
    same("owner of the submount", s.owner("view/sub")?, SHIFT)
}

fn an_attached_mount_refuses_an_idmap(s: &Scratch) -> Verdict {
    requirement::idmapped_mounts()?;
    disk_with_file(s)?;
    s.setattr("disk", 0, &idmap(&shifted()?)).refused_with(Errno::EINVAL)?;
    same("owner after the refusal", s.owner("disk/file")?, 0)
}

fn an_idmapped_mount_refuses_a_second_idmap(s: &Scratch) -> Verdict {
    requirement::idmapped_mounts()?;
    disk_with_file(s)?;
    let tree = s.idmapped_tree("disk")?;
    setattr_tree(&tree, 0, &idmap(&shifted()?)).refused_with(Errno::EPERM)
}

fn an_idmap_cannot_be_taken_back(s: &Scratch) -> Verdict {
    requirement::idmapped_mounts()?;
    disk_with_file(s)?;
    let tree = s.idmapped_tree("disk")?;
    setattr_tree(&tree, 0, &clear(MOUNT_ATTR_IDMAP)).refused_with(Errno::EINVAL)?;
    s.attach(tree, "view")?;
    same("owner after the refusal", s.owner("view/file")?, SHIFT)
}

fn the_initial_user_namespace_is_no_idmap(s: &Scratch) -> Verdict {
    requirement::idmapped_mounts()?;
    disk_with_file(s)?;
    let own = File::open("/proc/self/ns/user")?.into();
    setattr_tree(s.clone_tree("disk")?, 0, &idmap(&own)).refused_with(Errno::EPERM)
}

fn a_descriptor_that_is_no_user_namespace_is_no_idmap(s: &Scratch) -> Verdict {
    requirement::idmapped_mounts()?;
    disk_with_file(s)?;
    let tree = s.clone_tree("disk")?;
    let namespace_of_mounts = File::open("/proc/self/ns/mnt")?.into();
    setattr_tree(&tree, 0, &idmap(&namespace_of_mounts)).refused_with(Errno::EINVAL)?;
    let nothing = MountAttr { attr_set: MOUNT_ATTR_IDMAP, userns_fd: 9999, ..MountAttr::default() };
    setattr_tree(&tree, 0, &nothing).refused_with(Errno::EBADF)
}

fn an_open_writer_refuses_an_idmap(s: &Scratch) -> Verdict {
    requirement::idmapped_mounts()?;
    disk_with_file(s)?;
    let (userns, tree) = (shifted()?, s.clone_tree("disk")?);
    let writer = File::options().write(true).open(through(&tree, "file"))?;
    setattr_tree(&tree, 0, &idmap(&userns)).refused_with(Errno::EBUSY)?;
    drop(writer);
    Ok(setattr_tree(&tree, 0, &idmap(&userns))?)
}

fn readonly_refuses_writers_until_it_is_cleared(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    s.setattr("disk", 0, &set(MOUNT_ATTR_RDONLY))?;
    s.write("disk/file", "new").refused_with(Errno::EROFS)?;
    s.setattr("disk", 0, &clear(MOUNT_ATTR_RDONLY))?;
    Ok(s.write("disk/file", "new")?)
}

fn an_open_writer_refuses_readonly(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    let writer = s.open_writer("disk/file")?;
    s.setattr("disk", 0, &set(MOUNT_ATTR_RDONLY)).refused_with(Errno::EBUSY)?;
    s.write("disk/other", "still writable")?;
    drop(writer);
    Ok(s.setattr("disk", 0, &set(MOUNT_ATTR_RDONLY))?)
}

fn readonly_of_one_mount_leaves_the_others_writable(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    let _writer = s.open_writer("disk/file")?;
    s.bind("disk", "view")?;
    s.setattr("view", 0, &set(MOUNT_ATTR_RDONLY))?;
    s.write("view/file", "new").refused_with(Errno::EROFS)?;
    Ok(s.write("disk/file", "new")?)
}

fn recursion_reaches_submounts_and_its_absence_does_not(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.tmpfs("disk/sub")?;
    s.setattr("disk", 0, &set(MOUNT_ATTR_RDONLY))?;
    s.write("disk/sub/file", "the submount stays writable")?;
    s.setattr("disk", AT_RECURSIVE, &set(MOUNT_ATTR_RDONLY))?;
    s.write("disk/sub/file", "").refused_with(Errno::EROFS)
}

fn a_recursive_change_that_fails_changes_nothing(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.tmpfs("disk/sub")?;
    s.tmpfs("disk/sub/deep")?;
    let _writer = s.open_writer("disk/sub/deep/file")?;
    s.setattr("disk", AT_RECURSIVE, &set(MOUNT_ATTR_RDONLY)).refused_with(Errno::EBUSY)?;
    for mount in ["disk", "disk/sub", "disk/sub/deep"] {
        s.write(&format!("{mount}/new"), "writers are let in again")?;
    }
    Ok(())
}

fn propagation_changes_as_mountinfo_shows(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.setattr("disk", 0, &propagation(MsFlags::MS_SHARED))?;
    let group = s.mount_at("disk")?.shared;
    same("shared after MS_SHARED", group.is_some(), true)?;
    s.bind("disk", "view")?;
    s.setattr("view", 0, &propagation(MsFlags::MS_SLAVE))?;
    same("master after MS_SLAVE", s.mount_at("view")?.master, group)?;
    s.setattr("view", 0, &propagation(MsFlags::MS_PRIVATE))?;
    same("master after MS_PRIVATE", s.mount_at("view")?.master, None)?;
    s.setattr("view", 0, &propagation(MsFlags::MS_UNBINDABLE))?;
    same("unbindable after MS_UNBINDABLE", s.mount_at("view")?.unbindable, true)
}

fn two_propagation_types_at_once_are_refused(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    let both = propagation(MsFlags::MS_SHARED | MsFlags::MS_PRIVATE);
    s.setattr("disk", 0, &both).refused_with(Errno::EINVAL)
}

fn a_directory_that_is_no_mount_is_refused(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    s.dir("disk/plain")?;
    s.setattr("disk/plain", 0, &set(MOUNT_ATTR_RDONLY)).refused_with(Errno::EINVAL)?;
    let written = fs::write(s.path("disk/plain/file"), "the mount it lies on is as it was");
    Ok(named("write", written)?)
}
