//! Limits: fs.mount-max, that what it refuses is not counted, and that there is no other.

use super::trials;
use anyhow::Context;
use mount_storms::call::{Refused, Verdict, named, same};
use mount_storms::mountinfo;
use mount_storms::requirement;
use mount_storms::scratch::{Scratch, through};
use mount_storms::sys;
use nix::errno::Errno;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

trials!("limits":
    a_full_namespace_refuses_a_mount_until_one_is_gone,
    a_tree_that_does_not_fit_is_refused_whole,
    a_mount_that_would_reach_too_many_peers_reaches_none,
    what_was_refused_is_not_counted,
    a_detached_tree_that_does_not_fit_stays_usable,
    thousands_of_mounts_are_made_while_no_worker_gets_a_cpu,
);

/// Trees that are made in one go. Their counters, 12 bytes each, take five times what the per-CPU allocator keeps ready for those who may not sleep
/// (PCPU_EMPTY_POP_PAGES_HIGH, mm/percpu.c: 4 pages).
const BURST: usize = 160;

const MOUNT_MAX: &str = "/proc/sys/fs/mount-max";

/// The limit set to some mounts more than there are; back to what it was when dropped.
struct Limit {
    before: String,
}

impl Limit {
    fn leaving_room_for_some() -> anyhow::Result<Limit> {
        requirement::own_kernel()?;
        requirement::mount_max()?;
        let before = fs::read_to_string(MOUNT_MAX)?;
        let limit = mountinfo::of_this_process()?.len() + 10;
        named("write(mount-max)", fs::write(MOUNT_MAX, limit.to_string()))?;
        Ok(Limit { before })
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = fs::write(MOUNT_MAX, &self.before);
    }
}

/// Binds the disk to new places until the kernel refuses; says how many there are.
fn fill(s: &Scratch) -> anyhow::Result<usize> {
    for n in 0..100 {
        if let Err(refusal) = s.bind("disk", &format!("place{n}")) {
            Err::<(), _>(refusal).refused_with(Errno::ENOSPC)?;
            return Ok(n);
        }
    }
    None.context("100 mounts fit below a limit that leaves room for 10 at most")
}

fn a_full_namespace_refuses_a_mount_until_one_is_gone(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    let _limit = Limit::leaving_room_for_some()?;
    let filled = fill(s)?;
    s.umount("disk").and_then(|()| s.tmpfs("disk")).context("one went, so one fits")?;
    s.bind("disk", "one more").refused_with(Errno::ENOSPC)?;
    s.umount(&format!("place{}", filled - 1))?;
    s.bind("disk", "one more")?;
    s.bind("disk", "and another").refused_with(Errno::ENOSPC)
}

fn a_tree_that_does_not_fit_is_refused_whole(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.tmpfs("tree")?;
    s.tmpfs("tree/sub")?;
    let _limit = Limit::leaving_room_for_some()?;
    let filled = fill(s)?;
    s.umount(&format!("place{}", filled - 1))?;
    s.bind_recursive("tree", "copy").refused_with(Errno::ENOSPC)?;
    s.bind("disk", "what fits")?;
    s.bind("disk", "what does not").refused_with(Errno::ENOSPC)
}

/// A shared mount with twenty peers: one mount on it is twenty-one.
fn crowd(s: &Scratch) -> Verdict {
    s.tmpfs("parent")?;
    s.make("parent", nix::mount::MsFlags::MS_SHARED)?;
    s.dir("parent/sub")?;
    (0..20).try_for_each(|n| s.bind("parent", &format!("peer{n}")))?;
    Ok(())
}

fn a_mount_that_would_reach_too_many_peers_reaches_none(s: &Scratch) -> Verdict {
    crowd(s)?;
    let before = s.mounts()?;
    let limit = Limit::leaving_room_for_some()?;
    s.tmpfs("parent/sub").refused_with(Errno::ENOSPC)?;
    same("the mount table", s.mounts()?, before.clone())?;
    drop(limit);
    s.tmpfs("parent/sub")?;
    same("mounts after the limit is gone", s.mounts()?.len(), before.len() + 21)
}

fn what_was_refused_is_not_counted(s: &Scratch) -> Verdict {
    crowd(s)?;
    s.tmpfs("disk")?;
    let _limit = Limit::leaving_room_for_some()?;
    let room = fill(s)?;
    (0..room).try_for_each(|n| s.umount(&format!("place{n}")))?;
    for _ in 0..5 {
        s.tmpfs("parent/sub").refused_with(Errno::ENOSPC)?;
    }
    same("mounts that still fit", fill(s)?, room)
}

fn a_detached_tree_that_does_not_fit_stays_usable(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("disk/file", "content")?;
    let _limit = Limit::leaving_room_for_some()?;
    let filled = fill(s)?;
    let tree = s.clone_tree("disk")?;
    s.attach(&tree, "one more").refused_with(Errno::ENOSPC)?;
    same("the file through it", fs::read_to_string(through(&tree, "file"))?, "content")?;
    s.umount(&format!("place{}", filled - 1))?;
    s.attach(&tree, "one more")?;
    same("the file", s.read("one more/file")?, "content")
}

fn thousands_of_mounts_are_made_while_no_worker_gets_a_cpu(s: &Scratch) -> Verdict {
    requirement::own_kernel()?;
    s.tmpfs("disk")?;
    (0..49).try_for_each(|n| s.tmpfs(&format!("disk/{n}")))?;
    let cpus = std::thread::available_parallelism()?.get();
    let over = AtomicBool::new(false);
    // The kernel prepares memory for what may not sleep in a worker, which runs on none of the CPUs that these are busy on.
    std::thread::scope(|scope| {
        for _ in 1..cpus {
            scope.spawn(|| {
                let alone = sys::run_before_all_others();
                while alone.is_ok() && !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let made = named("sched_setscheduler(SCHED_FIFO)", sys::run_before_all_others())
            .and_then(|()| (0..BURST).map(|_| s.clone_tree_recursively("disk")).collect::<Result<Vec<_>, _>>());
        over.store(true, Ordering::Relaxed);
        same("trees of fifty mounts", made?.len(), BURST)
    })
}
