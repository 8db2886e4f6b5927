//! move_mount(MOVE_MOUNT_BENEATH): exchanging what is mounted without a moment in which nothing is.

use super::trials;
use mount_storms::call::{Refused, Verdict, named, same};
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use nix::errno::Errno;
use nix::mount::MsFlags;
use rustix::fs::CWD;
use rustix::mount::MoveMountFlags;
use std::fs;

trials!("beneath":
    what_goes_beneath_goes_beneath_at_each_peer,
    what_goes_beneath_goes_below_the_whole_stack_but_its_top,
    an_attached_mount_is_moved_beneath_another,
    a_mount_is_not_moved_beneath_what_it_stands_on,
    what_is_covered_does_not_go_beneath,
    what_goes_beneath_a_locked_mount_takes_its_lock,
    the_new_mount_shows_at_once_when_the_old_one_goes,
    a_walker_never_sees_the_bare_place_during_an_exchange,
);

/// A disk that says "old" at "place", and a disk that says "new" at "disk".
fn old_and_new(s: &Scratch) -> Verdict {
    s.write("place/who", "bare").or_else(|_| s.dir("place").and_then(|_| s.write("place/who", "bare")))?;
    s.tmpfs("place")?;
    s.write("place/who", "old")?;
    s.tmpfs("disk")?;
    Ok(s.write("disk/who", "new")?)
}

/// Moves an attached mount beneath another.
fn move_beneath(s: &Scratch, from: &str, to: &str) -> mount_storms::call::Call {
    let (from_path, to_path) = (s.path(from), s.path(to));
    let flags = MoveMountFlags::MOVE_MOUNT_BENEATH;
    named(
        format!("move_mount({from}, {to}, {flags:?})"),
        rustix::mount::move_mount(CWD, from_path, CWD, to_path, flags),
    )
}

fn what_goes_beneath_goes_beneath_at_each_peer(s: &Scratch) -> Verdict {
    s.tmpfs("parent")?;
    s.make("parent", MsFlags::MS_SHARED)?;
    s.bind("parent", "peer")?;
    s.tmpfs("parent/at")?;
    s.write("parent/at/who", "old")?;
    s.tmpfs("disk")?;
    s.attach_beneath(s.clone_tree("disk")?, "parent/at")?;
    for place in ["parent/at", "peer/at"] {
        same(place, s.mounts_at(place)?, 2)?;
        same(place, s.read(&format!("{place}/who"))?, "old")?;
    }
    s.umount("peer/at")?;
    s.umount("parent/at")?;
    s.mounted_are(&["parent", "peer", "disk"])
}

fn what_goes_beneath_goes_below_the_whole_stack_but_its_top(s: &Scratch) -> Verdict {
    old_and_new(s)?;
    s.tmpfs("place")?;
    s.write("place/who", "top")?;
    s.attach_beneath(s.clone_tree("disk")?, "place")?;
    for who in ["top", "new", "old"] {
        same("what is seen", s.read("place/who")?, who)?;
        s.umount("place")?;
    }
    same("what is seen last", s.read("place/who")?, "bare")
}

fn an_attached_mount_is_moved_beneath_another(s: &Scratch) -> Verdict {
    old_and_new(s)?;
    s.tmpfs("disk/sub")?;
    move_beneath(s, "disk", "place")?;
    same("what is seen with both", s.read("place/who")?, "old")?;
    s.umount("place")?;
    same("what is seen after umount", s.read("place/who")?, "new")?;
    s.mounted_are(&["place", "place/sub"])
}

fn a_mount_is_not_moved_beneath_what_it_stands_on(s: &Scratch) -> Verdict {
    old_and_new(s)?;
    s.tmpfs("place/sub")?;
    move_beneath(s, "place/sub", "place").refused_with(Errno::EINVAL)?;
    move_beneath(s, "place", "place/sub").refused_with(Errno::ELOOP)?;
    s.mounted_are(&["place", "place/sub", "disk"])
}

fn what_is_covered_does_not_go_beneath(s: &Scratch) -> Verdict {
    old_and_new(s)?;
    let covered = s.open_tree("disk", rustix::mount::OpenTreeFlags::empty())?;
    s.tmpfs("disk")?;
    s.attach_beneath(covered, "place").refused_with(Errno::EINVAL)?;
    same("mounts at the place", s.mounts_at("place")?, 1)
}

fn what_goes_beneath_a_locked_mount_takes_its_lock(s: &Scratch) -> Verdict {
    requirement::lock_is_handed_down()?;
    old_and_new(s)?;
    s.become_less_privileged()?;
    s.umount("place").refused_with(Errno::EINVAL)?;
    s.tmpfs("own")?;
    s.attach_beneath(s.clone_tree("own")?, "place")?;
    s.umount("place")?;
    s.umount("place").refused_with(Errno::EINVAL)?;
    same("what the lock hides", s.exists("place/who"), false)
}

fn the_new_mount_shows_at_once_when_the_old_one_goes(s: &Scratch) -> Verdict {
    old_and_new(s)?;
    let mut held = Vec::new();
    for turn in 0..20 {
        s.write("disk/who", &turn.to_string())?;
        s.attach_beneath(s.clone_tree("disk")?, "place")?;
        held.push(fs::File::open(s.path("place"))?);
        s.umount_lazily("place")?;
        same("what is seen", s.read("place/who")?, turn.to_string())?;
    }
    same("mounts at the place", s.mounts_at("place")?, 1)
}

fn a_walker_never_sees_the_bare_place_during_an_exchange(s: &Scratch) -> Verdict {
    old_and_new(s)?;
    let walk = || {
        let seen = s.read("place/who")?;
        anyhow::ensure!(seen == "old" || seen == "new", "the walker read {seen:?}");
        Ok(())
    };
    super::races::race(walk, || {
        super::races::rounds(|| {
            s.attach_beneath(s.clone_tree("disk")?, "place")?;
            Ok(s.umount_lazily("place")?)
        })
    })
}
