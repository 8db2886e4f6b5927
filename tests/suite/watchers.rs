//! Who watches the mounts of a namespace hears of each change: by poll(2) on mountinfo, and by fanotify(7).

use super::statmount::unique_id;
use super::trials;
use anyhow::Result;
use mount_storms::call::{Verdict, named, same};
use mount_storms::mount_events::{MountEvent, MountEvents};
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use nix::mount::MsFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::os::fd::AsFd;

trials!("watchers":
    a_poller_of_mountinfo_hears_of_each_mount_and_umount,
    a_poller_hears_of_what_a_peer_mounts,
    a_poller_hears_nothing_when_nothing_changes,
    a_watcher_is_told_of_each_mount_move_and_umount,
    a_watcher_is_told_of_copies_in_peers,
);

/// An open mountinfo.
struct Poller(File);

impl Poller {
    fn open() -> Result<Poller> {
        let poller = Poller(File::open("/proc/self/mountinfo")?);
        poller.heard()?;
        Ok(poller)
    }

    /// Whether mounts changed since the last question (mounts_poll(), fs/proc_namespace.c).
    fn heard(&self) -> Result<bool> {
        let mut asked = [PollFd::new(self.0.as_fd(), PollFlags::POLLPRI)];
        named("poll(mountinfo)", poll(&mut asked, PollTimeout::ZERO))?;
        Ok(asked[0].revents().is_some_and(|events| events.contains(PollFlags::POLLPRI)))
    }
}

fn a_poller_of_mountinfo_hears_of_each_mount_and_umount(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    let poller = Poller::open()?;
    s.attach(s.clone_tree("disk")?, "place")?;
    same("heard of an attached tree", poller.heard()?, true)?;
    s.tmpfs("new")?;
    same("heard of a mount", poller.heard()?, true)?;
    s.move_mount("new", "newer")?;
    same("heard of a move", poller.heard()?, true)?;
    s.umount("newer")?;
    same("heard of an umount", poller.heard()?, true)?;
    s.umount_lazily("place")?;
    same("heard of a lazy umount", poller.heard()?, true)
}

fn a_poller_hears_of_what_a_peer_mounts(s: &Scratch) -> Verdict {
    s.tmpfs("parent")?;
    s.make("parent", MsFlags::MS_SHARED)?;
    let other = mount_storms::second_namespace::SecondNamespace::copy()?;
    let poller = Poller::open()?;
    other.inside(|| Ok(s.tmpfs("parent/disk")?))?;
    same("heard of the other's mount", poller.heard()?, true)?;
    other.inside(|| Ok(s.umount("parent/disk")?))?;
    same("heard of the other's umount", poller.heard()?, true)
}

fn a_poller_hears_nothing_when_nothing_changes(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("disk/file", "")?;
    let poller = Poller::open()?;
    let tree = s.clone_tree("disk")?;
    drop(tree);
    s.read("disk/file")?;
    same("heard of a clone that went nowhere", poller.heard()?, false)
}

fn a_watcher_is_told_of_each_mount_move_and_umount(s: &Scratch) -> Verdict {
    requirement::mount_events()?;
    let watcher = MountEvents::of_namespace(File::open("/proc/self/ns/mnt")?)?;
    s.tmpfs("disk")?;
    let id = unique_id(s, "disk")?;
    same("told of a mount", watcher.drain()?, [MountEvent::Attached(id)])?;
    s.move_mount("disk", "place")?;
    same("told of a move", watcher.drain()?, [MountEvent::Moved(id)])?;
    s.umount("place")?;
    same("told of an umount", watcher.drain()?, [MountEvent::Detached(id)])
}

fn a_watcher_is_told_of_copies_in_peers(s: &Scratch) -> Verdict {
    requirement::mount_events()?;
    s.tmpfs("parent")?;
    s.make("parent", MsFlags::MS_SHARED)?;
    s.bind("parent", "peer")?;
    let watcher = MountEvents::of_namespace(File::open("/proc/self/ns/mnt")?)?;
    s.tmpfs("parent/disk")?;
    let ids = [unique_id(s, "parent/disk")?, unique_id(s, "peer/disk")?];
    let mut told = watcher.drain()?;
    told.sort();
    let mut expected = ids.map(MountEvent::Attached);
    expected.sort();
    same("told of a mount and its copy", told, expected)?;
    s.umount_lazily("peer/disk")?;
    let mut told = watcher.drain()?;
    told.sort();
    let mut expected = ids.map(MountEvent::Detached);
    expected.sort();
    same("told of both umounts", told, expected)
}
