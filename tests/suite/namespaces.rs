//! Mount namespaces and their owners: copies, less privileged copies, and what ends with the last of them.

use super::trials;
use mount_storms::call::{Refused, Verdict, named, same};
use mount_storms::child::{Child, in_child};
use mount_storms::loop_disk::LoopDisk;
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use mount_storms::second_namespace::SecondNamespace;
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::unistd::{Uid, seteuid};

trials!("namespaces":
    a_copy_shows_the_same_mounts_and_lives_its_own_life,
    a_copy_keeps_unbindable_mounts,
    a_less_privileged_copy_is_a_slave_of_the_original,
    a_less_privileged_copy_hears_of_mounts_above_it,
    what_arrives_in_a_less_privileged_copy_goes_only_as_a_whole,
    what_a_less_privileged_copy_mounts_stays_there,
    a_user_without_a_namespace_may_not_mount,
    a_root_without_the_owning_namespace_may_not_enter,
    a_namespace_lives_as_long_as_its_file_is_open,
    a_namespace_is_bound_in_an_older_one_and_never_in_itself,
    a_disk_is_free_when_the_last_namespace_that_shows_it_is_gone,
    a_disk_is_free_when_the_last_process_in_it_has_ended,
);

fn shared_parent(s: &Scratch) -> Verdict {
    s.tmpfs("parent")?;
    Ok(s.make("parent", MsFlags::MS_SHARED)?)
}

fn a_copy_shows_the_same_mounts_and_lives_its_own_life(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.tmpfs("disk/sub")?;
    let other = SecondNamespace::copy()?;
    other.inside(|| {
        s.mounted_are(&["disk", "disk/sub"])?;
        s.umount("disk/sub")?;
        Ok(s.tmpfs("own")?)
    })?;
    s.mounted_are(&["disk", "disk/sub"])
}

fn a_copy_keeps_unbindable_mounts(s: &Scratch) -> Verdict {
    requirement::copies_stay_unbindable()?;
    s.tmpfs("disk")?;
    s.make("disk", MsFlags::MS_UNBINDABLE)?;
    let other = SecondNamespace::copy()?;
    other.inside(|| s.mounted_are(&["disk"]))?;
    other.inside(|| s.clone_tree("disk").refused_with(Errno::EINVAL))
}

fn a_less_privileged_copy_is_a_slave_of_the_original(s: &Scratch) -> Verdict {
    requirement::user_namespaces()?;
    shared_parent(s)?;
    let group = s.mount_at("parent")?.shared;
    in_child(|| {
        s.become_less_privileged()?;
        let seen = s.mount_at("parent")?;
        same("master of the copy", seen.master, group)?;
        same("peer group of the copy", seen.shared, None)
    })
}

/// Runs `there` in a less privileged copy of the namespace, where it meets us after `here`.
fn beside_a_less_privileged(s: &Scratch, here: impl FnOnce() -> Verdict, there: impl FnOnce() -> Verdict) -> Verdict {
    requirement::user_namespaces()?;
    let mut other = Child::start(|both| {
        s.become_less_privileged()?;
        both.meet()?;
        both.meet()?;
        there()
    })?;
    other.meet()?;
    here()?;
    other.meet()?;
    other.join()
}

fn a_less_privileged_copy_hears_of_mounts_above_it(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    let mount = || {
        s.tmpfs("parent/disk")?;
        Ok(s.write("parent/disk/file", "from above")?)
    };
    beside_a_less_privileged(s, mount, || {
        same("the file below", s.read("parent/disk/file")?, "from above")?;
        s.mounted_are(&["parent", "parent/disk"])
    })
}

fn what_arrives_in_a_less_privileged_copy_goes_only_as_a_whole(s: &Scratch) -> Verdict {
    shared_parent(s)?;
    s.tmpfs("tree")?;
    s.tmpfs("tree/sub")?;
    let mount = || Ok(s.bind_recursive("tree", "parent/tree")?);
    beside_a_less_privileged(s, mount, || {
        s.umount_lazily("parent/tree/sub").refused_with(Errno::EINVAL)?;
        s.clone_tree("parent/tree").refused_with(Errno::EINVAL)?;
        s.umount_lazily("parent/tree")?;
        s.mounted_are(&["parent", "tree", "tree/sub"])
    })?;
    s.mounted_are(&["parent", "tree", "tree/sub", "parent/tree", "parent/tree/sub"])
}

fn what_a_less_privileged_copy_mounts_stays_there(s: &Scratch) -> Verdict {
    requirement::user_namespaces()?;
    shared_parent(s)?;
    in_child(|| {
        s.become_less_privileged()?;
        // A group of its own: what it is a peer of is below, never above.
        s.make("parent", MsFlags::MS_SHARED)?;
        s.tmpfs("parent/own")?;
        s.mounted_are(&["parent", "parent/own"])
    })?;
    s.mounted_are(&["parent"])
}

fn a_user_without_a_namespace_may_not_mount(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.dir("place")?;
    seteuid(Uid::from_raw(1000))?;
    s.bind("disk", "place").refused_with(Errno::EPERM)?;
    s.umount("disk").refused_with(Errno::EPERM)?;
    s.clone_tree("disk").refused_with(Errno::EPERM)?;
    seteuid(Uid::from_raw(0))?;
    s.mounted_are(&["disk"])
}

fn a_root_without_the_owning_namespace_may_not_enter(s: &Scratch) -> Verdict {
    requirement::user_namespaces()?;
    let other = SecondNamespace::copy()?;
    s.become_less_privileged()?;
    let entered = other.inside(|| Ok(())).map_err(|error| error.to_string());
    same("setns() into a namespace of the privileged", entered.is_err_and(|why| why.contains("EPERM")), true)
}

fn a_namespace_lives_as_long_as_its_file_is_open(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("disk/file", "content")?;
    let other = SecondNamespace::copy()?;
    s.umount("disk")?;
    for _ in 0..10 {
        other.inside(|| same("the file over there", s.read("disk/file")?, "content"))?;
    }
    s.mounted_are(&[])
}

fn a_namespace_is_bound_in_an_older_one_and_never_in_itself(s: &Scratch) -> Verdict {
    let other = SecondNamespace::copy()?;
    s.write("file", "")?;
    let bind = || named("mount(namespace, file, MS_BIND)", rustix::mount::mount_bind(other.path(), s.path("file")));
    other.inside(|| bind().refused_with(Errno::EINVAL))?;
    bind()?;
    s.mounted_are(&["file"])?;
    // A namespace may not hold itself alive, not by a copy of the file that holds it either.
    other.inside(|| s.mounted_are(&[]))?;
    s.umount("file")?;
    s.mounted_are(&[])
}

fn a_disk_is_free_when_the_last_namespace_that_shows_it_is_gone(s: &Scratch) -> Verdict {
    requirement::ext4_on_loop()?;
    let disk = LoopDisk::with_ext4(s)?;
    for _ in 0..5 {
        s.mount(disk.path(), "ext4", "disk", "")?;
        let other = SecondNamespace::copy()?;
        s.umount("disk")?;
        disk.claim().refused_with(Errno::EBUSY)?;
        drop(other);
        disk.format()?;
    }
    Ok(())
}

fn a_disk_is_free_when_the_last_process_in_it_has_ended(s: &Scratch) -> Verdict {
    requirement::ext4_on_loop()?;
    let disk = LoopDisk::with_ext4(s)?;
    for _ in 0..5 {
        s.mount(disk.path(), "ext4", "disk", "")?;
        let mut user = Child::start(|both| {
            std::env::set_current_dir(s.path("disk"))?;
            let _file = s.open_writer("disk/file")?;
            both.meet()?;
            both.meet()
        })?;
        user.meet()?;
        s.umount_lazily("disk")?;
        disk.claim().refused_with(Errno::EBUSY)?;
        user.meet()?;
        user.join()?;
        disk.format()?;
    }
    Ok(())
}
