//! What the kernel keeps after thousands of mounts that came and went: nothing that grows.

use super::trials;
use mount_storms::call::{Refused, Verdict};
use mount_storms::leak::{Bound, MemoryBound, judge, settled, steady};
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use mount_storms::second_namespace::SecondNamespace;
use nix::errno::Errno;
use nix::mount::MsFlags;

trials!("leaks":
    ten_thousand_mounts_leave_nothing_behind,
    thousands_of_propagated_mounts_leave_nothing_behind,
    namespaces_leave_nothing_behind,
    refused_clones_leave_nothing_behind,
    mounts_that_stay_are_noticed,
);

/// What the kernel may hold more of afterwards: half of what the fewest of these mounts would take, at 320 bytes and more for each.
/// The per-CPU allocator keeps empty pages and a chunk of its own, so that its bound is what `Bound::of_cpus` allows two CPUs.
const BOUND: Bound =
    Bound { mounts: 512, memory: Some(MemoryBound { dentries: 256, percpu_kib: 384, slab_kib: 384, mount_ids: 64 }) };

/// Does some rounds to warm caches, then twenty times that, after which the kernel must hold as much as after the first.
fn leaves_nothing(rounds: usize, round: impl FnMut() -> Verdict) -> Verdict {
    judged(rounds, round)?.map_err(anyhow::Error::msg)
}

/// What the oracle says of these rounds.
fn judged(rounds: usize, mut round: impl FnMut() -> Verdict) -> anyhow::Result<Result<(), String>> {
    requirement::own_kernel()?;
    requirement::freed_memory_is_free()?;
    (0..rounds / 20).try_for_each(|_| round())?;
    let before = steady()?;
    (0..rounds).try_for_each(|_| round())?;
    Ok(judge(before, settled(before, BOUND)?, BOUND))
}

fn ten_thousand_mounts_leave_nothing_behind(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    (0..49).try_for_each(|n| s.tmpfs(&format!("disk/{n}")))?;
    s.dir("place")?;
    // Fifty at a time: each umount waits for a grace period of its own.
    leaves_nothing(200, || {
        s.attach(s.clone_tree_recursively("disk")?, "place")?;
        Ok(s.umount_lazily("place")?)
    })
}

fn thousands_of_propagated_mounts_leave_nothing_behind(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.tmpfs("parent")?;
    s.make("parent", MsFlags::MS_SHARED)?;
    (0..19).try_for_each(|n| s.bind("parent", &format!("peer{n}")))?;
    leaves_nothing(120, || {
        s.bind("disk", "parent/at")?;
        Ok(s.umount("parent/at")?)
    })
}

fn namespaces_leave_nothing_behind(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    (0..19).try_for_each(|n| s.bind("disk", &format!("view{n}")))?;
    leaves_nothing(100, || SecondNamespace::copy().map(drop))
}

fn refused_clones_leave_nothing_behind(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.make("disk", MsFlags::MS_UNBINDABLE)?;
    leaves_nothing(200, || (0..50).try_for_each(|_| s.clone_tree("disk").refused_with(Errno::EINVAL)))
}

fn mounts_that_stay_are_noticed(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    (0..49).try_for_each(|n| s.tmpfs(&format!("disk/{n}")))?;
    let mut kept = Vec::new();
    let verdict = judged(60, || {
        kept.push(s.clone_tree_recursively("disk")?);
        Ok(())
    })?;
    anyhow::ensure!(verdict.is_err(), "{} mounts stayed, and nothing was found", kept.len() * 50);
    Ok(())
}
