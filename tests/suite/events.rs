//! fanotify(7) of a mount namespace: each attach and detach is told once, and nothing else is.

use super::trials;
use anyhow::Result;
use mount_storms::call::{Verdict, named, same};
use mount_storms::mount_events::{MountEvent, MountEvents};
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use mount_storms::second_namespace::SecondNamespace;
use nix::mount::MsFlags;
use rustix::fs::{AtFlags, CWD, StatxFlags};
use std::fs::File;

trials!("events":
    each_mount_and_umount_is_told_once_in_order,
    a_move_is_told_as_one_event,
    a_recursive_bind_tells_of_each_mount_of_the_tree,
    propagation_tells_each_namespace_of_its_own_mount,
    what_is_refused_is_not_told,
    a_detached_tree_is_told_when_it_is_attached_and_not_before,
);

fn watch() -> Result<MountEvents> {
    requirement::mount_events()?;
    MountEvents::of_namespace(File::open("/proc/thread-self/ns/mnt")?)
}

/// The unique id of the mount at a path.
fn id(s: &Scratch, name: &str) -> Result<u64> {
    let mask = StatxFlags::from_bits_retain(0x4000); // STATX_MNT_ID_UNIQUE (include/uapi/linux/stat.h)
    Ok(named("statx", rustix::fs::statx(CWD, s.path(name), AtFlags::empty(), mask))?.stx_mnt_id)
}

fn each_mount_and_umount_is_told_once_in_order(s: &Scratch) -> Verdict {
    let events = watch()?;
    let mut expected = Vec::new();
    for _ in 0..10 {
        s.tmpfs("disk")?;
        let id = id(s, "disk")?;
        s.umount("disk")?;
        expected.extend([MountEvent::Attached(id), MountEvent::Detached(id)]);
    }
    same("events", events.drain()?, expected)
}

fn a_move_is_told_as_one_event(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.tmpfs("disk/sub")?;
    let events = watch()?;
    s.move_mount("disk", "place")?;
    same("events", events.drain()?, vec![MountEvent::Moved(id(s, "place")?)])
}

fn a_recursive_bind_tells_of_each_mount_of_the_tree(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.tmpfs("disk/sub")?;
    let events = watch()?;
    s.bind_recursive("disk", "copy")?;
    let ids = [id(s, "copy")?, id(s, "copy/sub")?];
    let mut told = events.drain()?;
    told.sort();
    same("events of the bind", told, ids.map(MountEvent::Attached).to_vec())?;
    s.umount_lazily("copy")?;
    let mut told = events.drain()?;
    told.sort();
    same("events of the umount", told, ids.map(MountEvent::Detached).to_vec())
}

fn propagation_tells_each_namespace_of_its_own_mount(s: &Scratch) -> Verdict {
    s.tmpfs("parent")?;
    s.make("parent", MsFlags::MS_SHARED)?;
    let other = SecondNamespace::copy()?;
    let (here, there) = (watch()?, other.inside(watch)?);
    s.tmpfs("parent/disk")?;
    let (ours, theirs) = (id(s, "parent/disk")?, other.inside(|| id(s, "parent/disk"))?);
    s.umount("parent/disk")?;
    for (events, id) in [(here, ours), (there, theirs)] {
        same("events", events.drain()?, vec![MountEvent::Attached(id), MountEvent::Detached(id)])?;
    }
    Ok(())
}

fn what_is_refused_is_not_told(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    let _writer = s.open_writer("disk/file")?;
    s.make("disk", MsFlags::MS_UNBINDABLE)?;
    s.dir("copy")?;
    let events = watch()?;
    for _ in 0..5 {
        let refused = s.umount("disk").is_err() && s.bind("disk", "copy").is_err() && s.clone_tree("disk").is_err();
        same("all calls are refused", refused, true)?;
    }
    same("events", events.drain()?, Vec::new())
}

fn a_detached_tree_is_told_when_it_is_attached_and_not_before(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    let events = watch()?;
    let tree = s.clone_tree("disk")?;
    drop(s.clone_tree("disk")?);
    same("events before", events.drain()?, Vec::new())?;
    s.attach(tree, "place")?;
    same("events after", events.drain()?, vec![MountEvent::Attached(id(s, "place")?)])
}
