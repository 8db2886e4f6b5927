//! pivot_root(2): a container's own root, and the roots that are refused.

use super::trials;
use mount_storms::call::{Call, Refused, Verdict, named, same};
use mount_storms::child::Child;
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::unistd::chroot;
use std::env::{current_dir, set_current_dir};
use std::fs;

trials!("pivot_root":
    the_new_root_takes_the_place_of_the_old,
    the_old_root_is_found_where_it_was_put_and_can_be_umounted,
    the_same_directory_twice_puts_the_old_root_on_top,
    other_processes_at_the_old_root_come_along,
    a_directory_that_is_no_mount_is_refused,
    a_place_outside_the_new_root_is_refused,
    the_root_itself_is_refused,
    a_shared_parent_is_refused,
    a_root_that_is_no_mount_is_refused,
    a_locked_mount_is_refused,
);

/// Enters a root that is a mount: "disk" of the scratch, with the mount "/new" in it, and a directory "/new/old".
fn rooted(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("disk/who", "the old root")?;
    s.tmpfs("disk/new")?;
    s.write("disk/new/who", "the new root")?;
    s.dir("disk/new/old")?;
    s.dir("disk/plain/old")?;
    s.bind("/proc", "disk/proc")?;
    enter(s, "disk")
}

fn enter(s: &Scratch, root: &str) -> Verdict {
    named(format!("chroot({root})"), chroot(&s.path(root)))?;
    Ok(set_current_dir("/")?)
}

fn pivot(new_root: &str, put_old: &str) -> Call {
    named(format!("pivot_root({new_root}, {put_old})"), nix::unistd::pivot_root(new_root, put_old))
}

fn the_new_root_takes_the_place_of_the_old(s: &Scratch) -> Verdict {
    rooted(s)?;
    pivot("/new", "/new/old")?;
    same("the file in the root", fs::read_to_string("/who")?, "the new root")?;
    same("the working directory", current_dir()?.to_string_lossy(), "/")?;
    same("the file in the working directory", fs::read_to_string("who")?, "the new root")?;
    same("what .. of the root leads to", fs::read_to_string("/../who")?, "the new root")
}

fn the_old_root_is_found_where_it_was_put_and_can_be_umounted(s: &Scratch) -> Verdict {
    rooted(s)?;
    pivot("/new", "/new/old")?;
    same("the old root's file", fs::read_to_string("/old/who")?, "the old root")?;
    named("umount2(/old, MNT_DETACH)", umount2("/old", MntFlags::MNT_DETACH))?;
    same("the old root's file after umount", fs::exists("/old/who")?, false)?;
    same("the file in the root", fs::read_to_string("/who")?, "the new root")
}

fn the_same_directory_twice_puts_the_old_root_on_top(s: &Scratch) -> Verdict {
    rooted(s)?;
    // runc's way: no directory in the new root is needed.
    set_current_dir("/new")?;
    pivot(".", ".")?;
    named("umount2(., MNT_DETACH)", umount2(".", MntFlags::MNT_DETACH))?;
    set_current_dir("/")?;
    same("the file in the root", fs::read_to_string("/who")?, "the new root")
}

fn other_processes_at_the_old_root_come_along(s: &Scratch) -> Verdict {
    rooted(s)?;
    let mut other = Child::start(|both| {
        both.meet()?;
        both.meet()?;
        same("the other's root", fs::read_to_string("/who")?, "the new root")?;
        same("the other's working directory", fs::read_to_string("who")?, "the new root")
    })?;
    other.meet()?;
    pivot("/new", "/new/old")?;
    other.meet()?;
    other.join()
}

fn a_directory_that_is_no_mount_is_refused(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.tmpfs("disk/new")?;
    s.tmpfs("disk/new/plain/old")?;
    enter(s, "disk")?;
    pivot("/new/plain", "/new/plain/old").refused_with(Errno::EINVAL)
}

fn a_place_outside_the_new_root_is_refused(s: &Scratch) -> Verdict {
    rooted(s)?;
    named("mount(tmpfs)", nix::mount::mount(Some("tmpfs"), "/plain", Some("tmpfs"), MsFlags::empty(), None::<&str>))?;
    pivot("/new", "/plain").refused_with(Errno::EINVAL)?;
    same("the file in the root", fs::read_to_string("/who")?, "the old root")
}

fn the_root_itself_is_refused(s: &Scratch) -> Verdict {
    rooted(s)?;
    pivot("/", "/new/old").refused_with(Errno::EBUSY)?;
    pivot("/new", "/plain").refused_with(Errno::EBUSY)
}

fn a_shared_parent_is_refused(s: &Scratch) -> Verdict {
    rooted(s)?;
    let make = |flags| named("mount(/)", nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>));
    make(MsFlags::MS_SHARED)?;
    pivot("/new", "/new/old").refused_with(Errno::EINVAL)?;
    make(MsFlags::MS_PRIVATE)?;
    Ok(pivot("/new", "/new/old")?)
}

fn a_root_that_is_no_mount_is_refused(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.tmpfs("disk/inner/new")?;
    s.dir("disk/inner/new/old")?;
    enter(s, "disk/inner")?;
    pivot("/new", "/new/old").refused_with(Errno::EINVAL)
}

fn a_locked_mount_is_refused(s: &Scratch) -> Verdict {
    requirement::user_namespaces()?;
    s.tmpfs("disk")?;
    s.tmpfs("disk/new")?;
    s.dir("disk/new/old")?;
    s.become_less_privileged()?;
    s.tmpfs("disk/own")?;
    s.dir("disk/own/old")?;
    enter(s, "disk")?;
    pivot("/new", "/new/old").refused_with(Errno::EINVAL)?;
    Ok(pivot("/own", "/own/old")?)
}
