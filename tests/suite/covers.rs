//! What is mounted over something hides it: from walkers, from the less privileged, and in trees that are attached nowhere any more.

use super::races::race;
use super::trials;
use mount_storms::call::{Refused, Verdict, same};
use mount_storms::requirement;
use mount_storms::scratch::{Scratch, through};
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::mount::OpenTreeFlags;
use std::env::set_current_dir;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

trials!("covers":
    what_a_locked_mount_hid_stays_hidden_in_a_lazily_umounted_tree,
    what_a_submount_hid_stays_hidden_when_its_detached_tree_is_dissolved,
    a_locked_child_inside_refuses_a_clone_whatever_is_locked_outside,
    a_mount_that_reaches_a_taken_place_slips_beneath_what_is_there,
    a_walker_never_sees_what_slips_beneath,
    a_mount_whose_top_is_gone_slips_beneath_another,
);

/// Mounts slipped beneath another, while a walker looks at it. Each makes the next walk longer.
const SLIPPED: usize = 120;

/// Open files of mountinfo that are polled meanwhile. The kernel wakes them in the middle of an attachment, which so takes long enough
/// for a walker to come by (commit_tree(), fs/namespace.c).
const POLLED: usize = 200;

/// How long their poller sleeps at most, and is given to fall asleep again.
const POLLER_SLEEP: Duration = Duration::from_millis(20);

/// A disk with a secret in "sub", and another disk mounted over it.
fn hidden_secret(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.dir("disk/sub")?;
    s.write("disk/sub/secret", "what the mount hides")?;
    Ok(s.tmpfs("disk/sub")?)
}

fn what_a_locked_mount_hid_stays_hidden_in_a_lazily_umounted_tree(s: &Scratch) -> Verdict {
    requirement::user_namespaces()?;
    hidden_secret(s)?;
    s.become_less_privileged()?;
    s.bind_recursive("disk", "copy")?;
    set_current_dir(s.path("copy"))?;
    s.umount_lazily("copy")?;
    same("the place is there", fs::exists("sub")?, true)?;
    same("the secret is there", fs::exists("sub/secret")?, false)
}

fn what_a_submount_hid_stays_hidden_when_its_detached_tree_is_dissolved(s: &Scratch) -> Verdict {
    hidden_secret(s)?;
    let tree = s.clone_tree_recursively("disk")?;
    let inside = File::open(through(&tree, "."))?;
    drop(tree);
    same("the place is there", fs::exists(through(&inside, "sub"))?, true)?;
    same("the secret is there", fs::exists(through(&inside, "sub/secret"))?, false)
}

fn a_locked_child_inside_refuses_a_clone_whatever_is_locked_outside(s: &Scratch) -> Verdict {
    requirement::user_namespaces()?;
    s.tmpfs("disk")?;
    for place in ["disk/before", "disk/here/inside", "disk/after"] {
        s.tmpfs(place)?;
    }
    s.become_less_privileged()?;
    s.clone_tree("disk/here").refused_with(Errno::EINVAL)?;
    s.bind("disk/here", "copy").refused_with(Errno::EINVAL)
}

fn a_mount_that_reaches_a_taken_place_slips_beneath_what_is_there(s: &Scratch) -> Verdict {
    s.tmpfs("parent")?;
    s.make("parent", MsFlags::MS_SHARED)?;
    s.bind("parent", "slave")?;
    s.make("slave", MsFlags::MS_SLAVE)?;
    s.tmpfs("slave/disk")?;
    s.write("slave/disk/who", "the slave's own")?;
    s.tmpfs("parent/disk")?;
    s.write("parent/disk/who", "the master's")?;
    same("mounts at the slave's place", s.mounts_at("slave/disk")?, 2)?;
    same("what is seen there", s.read("slave/disk/who")?, "the slave's own")?;
    s.umount("slave/disk")?;
    same("what is seen below it", s.read("slave/disk/who")?, "the master's")
}

fn a_walker_never_sees_what_slips_beneath(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.tmpfs("place")?;
    s.write("place/on_top", "")?;
    let mark = s.path("place/on_top");
    let walk = || same("the mark of the mount on top", fs::exists(&mark)?, true);
    polled(|| {
        race(walk, || {
            (0..SLIPPED).try_for_each(|_| {
                std::thread::sleep(POLLER_SLEEP);
                Ok(s.attach_beneath(s.clone_tree("disk")?, "place")?)
            })
        })
    })
}

/// Does something while mountinfo is polled through many files.
fn polled(act: impl FnOnce() -> Verdict) -> Verdict {
    let files = (0..POLLED).map(|_| File::open("/proc/self/mountinfo")).collect::<Result<Vec<_>, _>>()?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut asked: Vec<PollFd<'_>> =
                files.iter().map(|file| PollFd::new(file.as_fd(), PollFlags::POLLPRI)).collect();
            let limit = PollTimeout::try_from(POLLER_SLEEP).unwrap_or(PollTimeout::ZERO);
            while !over.load(Ordering::Relaxed) {
                let _ = poll(&mut asked, limit);
            }
        });
        let result = act();
        over.store(true, Ordering::Relaxed);
        result
    })
}

fn a_mount_whose_top_is_gone_slips_beneath_another(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("disk/who", "the disk")?;
    s.tmpfs("disk")?;
    s.umount("disk")?;
    s.tmpfs("place")?;
    s.attach_beneath(s.open_tree("disk", OpenTreeFlags::empty())?, "place")?;
    s.umount("place")?;
    same("what was beneath", s.read("place/who")?, "the disk")
}
