//! Locked mounts: what came along into a less privileged mount namespace cannot be taken apart there.

use super::trials;
use mount_storms::call::{Refused, Verdict, same};
use mount_storms::idmap::{clear, set};
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use mount_storms::sys::{AT_RECURSIVE, MOUNT_ATTR_RDONLY};
use nix::errno::Errno;
use nix::mount::MsFlags;

trials!("locked":
    a_locked_mount_refuses_umount,
    a_locked_mount_refuses_to_move,
    locked_children_refuse_a_clone_without_recursion,
    a_place_without_locked_children_may_be_cloned,
    locked_children_come_along_in_a_recursive_clone_and_stay_locked,
    an_overlay_refuses_a_layer_with_locked_children,
    locked_readonly_cannot_be_cleared,
    mounts_of_the_less_privileged_are_their_own,
    what_a_recursive_bind_copied_goes_as_a_whole,
    a_child_that_is_not_locked_does_not_refuse_a_clone,
);

/// A disk with a mount inside, seen from a less privileged namespace in which both are locked.
fn locked_disk(s: &Scratch) -> Verdict {
    requirement::user_namespaces()?;
    s.tmpfs("disk")?;
    s.dir("disk/plain")?;
    s.tmpfs("disk/sub")?;
    s.write("disk/sub/file", "what hides the place")?;
    s.dir("layer")?;
    s.become_less_privileged()
}

fn a_locked_mount_refuses_umount(s: &Scratch) -> Verdict {
    locked_disk(s)?;
    s.umount("disk/sub").refused_with(Errno::EINVAL)?;
    s.umount_lazily("disk/sub").refused_with(Errno::EINVAL)?;
    s.umount_lazily("disk").refused_with(Errno::EINVAL)?;
    s.mounted_are(&["disk", "disk/sub"])
}

fn a_locked_mount_refuses_to_move(s: &Scratch) -> Verdict {
    locked_disk(s)?;
    s.move_mount("disk/sub", "place").refused_with(Errno::EINVAL)?;
    s.mounted_are(&["disk", "disk/sub"])
}

fn locked_children_refuse_a_clone_without_recursion(s: &Scratch) -> Verdict {
    locked_disk(s)?;
    s.clone_tree("disk").refused_with(Errno::EINVAL)?;
    s.bind("disk", "copy").refused_with(Errno::EINVAL)
}

fn a_place_without_locked_children_may_be_cloned(s: &Scratch) -> Verdict {
    locked_disk(s)?;
    s.attach(s.clone_tree("disk/plain")?, "copy")?;
    s.attach(s.clone_tree("disk/sub")?, "other")?;
    same("the inner mount's file", s.read("other/file")?, "what hides the place")
}

fn locked_children_come_along_in_a_recursive_clone_and_stay_locked(s: &Scratch) -> Verdict {
    locked_disk(s)?;
    s.attach(s.clone_tree_recursively("disk")?, "copy")?;
    same("the inner mount's file", s.read("copy/sub/file")?, "what hides the place")?;
    s.umount_lazily("copy/sub").refused_with(Errno::EINVAL)?;
    s.clone_tree("copy").refused_with(Errno::EINVAL)
}

fn an_overlay_refuses_a_layer_with_locked_children(s: &Scratch) -> Verdict {
    requirement::overlayfs()?;
    locked_disk(s)?;
    let overlay = |lower: &str| {
        let options = format!("lowerdir={}:{}", s.path(lower).display(), s.path("layer").display());
        s.mount("overlay", "overlay", "view", &options)
    };
    overlay("disk").refused_with(Errno::EINVAL)?;
    Ok(overlay("disk/plain")?)
}

fn locked_readonly_cannot_be_cleared(s: &Scratch) -> Verdict {
    requirement::user_namespaces()?;
    s.tmpfs("disk")?;
    s.setattr("disk", 0, &set(MOUNT_ATTR_RDONLY))?;
    s.become_less_privileged()?;
    s.setattr("disk", 0, &clear(MOUNT_ATTR_RDONLY)).refused_with(Errno::EPERM)?;
    s.make("disk", MsFlags::MS_REMOUNT | MsFlags::MS_BIND).refused_with(Errno::EPERM)?;
    s.bind("disk", "copy")?;
    s.setattr("copy", AT_RECURSIVE, &clear(MOUNT_ATTR_RDONLY)).refused_with(Errno::EPERM)?;
    s.write("disk/file", "").refused_with(Errno::EROFS)
}

fn mounts_of_the_less_privileged_are_their_own(s: &Scratch) -> Verdict {
    locked_disk(s)?;
    s.tmpfs("own")?;
    s.tmpfs("own/sub")?;
    drop(s.clone_tree("own")?);
    s.umount("own/sub")?;
    s.umount("own")?;
    s.mounted_are(&["disk", "disk/sub"])
}

fn what_a_recursive_bind_copied_goes_as_a_whole(s: &Scratch) -> Verdict {
    locked_disk(s)?;
    s.bind_recursive("disk", "copy")?;
    s.umount_lazily("copy/sub").refused_with(Errno::EINVAL)?;
    s.umount_lazily("copy")?;
    s.mounted_are(&["disk", "disk/sub"])
}

fn a_child_that_is_not_locked_does_not_refuse_a_clone(s: &Scratch) -> Verdict {
    locked_disk(s)?;
    s.tmpfs("disk/plain")?;
    s.tmpfs("disk/plain/own")?;
    s.attach(s.clone_tree("disk/plain")?, "copy")?;
    s.mounted_are(&["disk", "disk/sub", "disk/plain", "disk/plain/own", "copy"])
}
