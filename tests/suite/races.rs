//! Races: path walks, writers and other mounters against mounts that come and go. Bounded by iterations, never by time.

use super::trials;
use mount_storms::call::{Refusal, Verdict, named, same};
use mount_storms::idmap::{clear, set};
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use mount_storms::sys::MOUNT_ATTR_RDONLY;
use nix::errno::Errno;
use nix::mount::MsFlags;
use std::fs::{self, File};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

trials!("races":
    a_stable_path_is_found_while_others_come_and_go,
    a_walker_sees_the_mount_or_what_it_covers,
    an_umount_under_walkers_is_done_or_busy,
    a_working_directory_holds_while_its_mount_is_taken_away,
    readonly_is_never_granted_over_an_open_writer,
    mounters_below_one_shared_parent_leave_nothing_behind,
    cloners_of_one_mount_leave_nothing_behind,
    readers_of_the_mount_table_never_see_a_mount_twice,
);

/// Mounts and umounts that a race sees: enough for thousands of path walks, and some seconds on an emulated CPU.
const ROUNDS: usize = 200;

/// Runs of the rival beside the rounds, without which a race was none.
const MEETINGS: u64 = 50;

/// How often the rounds are repeated at most to meet it.
const REPEATS: usize = 100;

/// Runs `rival` again and again in a second thread while `rounds` runs here; fails if either fails, or if they never met.
pub(super) fn race(rival: impl Fn() -> Verdict + Sync, rounds: impl FnMut() -> Verdict) -> Verdict {
    requirement::two_cpus()?;
    let (over, runs) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let other = scope.spawn(|| -> Verdict {
            while !over.load(Ordering::Relaxed) {
                rival()?;
                runs.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        wait_for(|| runs.load(Ordering::Relaxed) > 0 || other.is_finished());
        let result = until_met(&runs, rounds);
        over.store(true, Ordering::Relaxed);
        other.join().map_err(|_| anyhow::anyhow!("the rival panicked"))??;
        result
    })
}

/// Repeats `rounds` until the rival came to its end often enough beside them.
fn until_met(runs: &AtomicU64, mut rounds: impl FnMut() -> Verdict) -> Verdict {
    let before = runs.load(Ordering::Relaxed);
    for _ in 0..REPEATS {
        rounds()?;
        if runs.load(Ordering::Relaxed) - before >= MEETINGS {
            return Ok(());
        }
    }
    anyhow::bail!("the rival came to its end less than {MEETINGS} times beside {REPEATS} times {ROUNDS} rounds")
}

/// Waits until `done`, at most ten seconds.
fn wait_for(done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() && start.elapsed() < Duration::from_secs(10) {
        std::thread::yield_now();
    }
}

fn rounds(mut one: impl FnMut() -> Verdict) -> Verdict {
    (0..ROUNDS).try_for_each(|_| {
        // Lets the rival in between where both have to share a CPU.
        std::thread::yield_now();
        one()
    })
}

/// A disk with the file "who", and the same name in the directory it will cover.
fn covered_place(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("disk/who", "above")?;
    s.dir("place")?;
    Ok(s.write("place/who", "below")?)
}

fn a_stable_path_is_found_while_others_come_and_go(s: &Scratch) -> Verdict {
    covered_place(s)?;
    s.dir("disk/a/b/c")?;
    let walk = || {
        named("stat(disk/a/b/c)", fs::metadata(s.path("disk/a/b/c")))?;
        named("stat(disk/../disk/who)", fs::metadata(s.path("disk/../disk/who")))?;
        Ok(())
    };
    race(walk, || {
        rounds(|| {
            s.bind("disk", "place")?;
            Ok(s.umount("place")?)
        })
    })
}

fn a_walker_sees_the_mount_or_what_it_covers(s: &Scratch) -> Verdict {
    covered_place(s)?;
    let walk = || {
        let seen = s.read("place/who")?;
        anyhow::ensure!(seen == "above" || seen == "below", "the walker read {seen:?}");
        Ok(())
    };
    race(walk, || {
        rounds(|| {
            s.bind("disk", "place")?;
            Ok(s.umount_lazily("place")?)
        })
    })
}

fn an_umount_under_walkers_is_done_or_busy(s: &Scratch) -> Verdict {
    covered_place(s)?;
    let walk = || Ok(s.read("place/who").map(drop)?);
    let busy = |refusal: &Refusal| refusal.errno == Errno::EBUSY;
    race(walk, || {
        rounds(|| {
            s.bind("disk", "place")?;
            while s.umount("place").is_err_and(|refusal| busy(&refusal)) {}
            same("mounts at the place", s.mounts_at("place")?, 0)
        })
    })
}

fn a_working_directory_holds_while_its_mount_is_taken_away(s: &Scratch) -> Verdict {
    covered_place(s)?;
    // Threads share their working directory, so this one's lookups start in a mount that the other's umount is ending.
    let visit = || {
        std::env::set_current_dir(s.path("place"))?;
        let seen = named("read(who)", fs::read_to_string("who"))?;
        anyhow::ensure!(seen == "above" || seen == "below", "a relative walk read {seen:?}");
        Ok(std::env::set_current_dir("/")?)
    };
    race(visit, || {
        rounds(|| {
            s.bind("disk", "place")?;
            Ok(s.umount_lazily("place")?)
        })
    })
}

fn readonly_is_never_granted_over_an_open_writer(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("disk/file", "")?;
    let writers = AtomicI64::new(0);
    let write = || match File::options().write(true).open(s.path("disk/file")) {
        // Counted only while the file is surely open, so a count seen under read-only is a writer that was let through.
        Ok(file) => {
            writers.fetch_add(1, Ordering::SeqCst);
            std::thread::yield_now();
            writers.fetch_sub(1, Ordering::SeqCst);
            drop(file);
            Ok(())
        }
        Err(error) => same("why a writer is refused", error.raw_os_error(), Some(Errno::EROFS as i32)),
    };
    race(write, || {
        rounds(|| match s.setattr("disk", 0, &set(MOUNT_ATTR_RDONLY)) {
            Ok(()) => {
                let open = (0..100).map(|_| writers.load(Ordering::SeqCst)).max();
                same("open writers under read-only", open, Some(0))?;
                Ok(s.setattr("disk", 0, &clear(MOUNT_ATTR_RDONLY))?)
            }
            Err(refusal) => same("why read-only is refused", refusal.errno, Errno::EBUSY),
        })
    })
}

fn mounters_below_one_shared_parent_leave_nothing_behind(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.tmpfs("parent")?;
    s.make("parent", MsFlags::MS_SHARED)?;
    s.bind("parent", "peer")?;
    let mount_and_umount = |place: &str| -> Verdict {
        s.attach(s.clone_tree("disk")?, &format!("parent/{place}"))?;
        same(place, s.mounts_at(&format!("peer/{place}"))?, 1)?;
        Ok(s.umount(&format!("parent/{place}"))?)
    };
    race(|| mount_and_umount("theirs"), || rounds(|| mount_and_umount("ours")))?;
    s.mounted_are(&["disk", "parent", "peer"])
}

fn cloners_of_one_mount_leave_nothing_behind(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.make("disk", MsFlags::MS_SHARED)?;
    let clone = || Ok(s.clone_tree("disk").map(drop)?);
    race(clone, || {
        rounds(|| {
            s.attach(s.clone_tree("disk")?, "place")?;
            Ok(s.umount("place")?)
        })
    })?;
    s.mounted_are(&["disk"])?;
    Ok(s.umount("disk")?)
}

fn readers_of_the_mount_table_never_see_a_mount_twice(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    let read = || {
        let mut ids: Vec<u32> = s.mounts()?.iter().map(|mount| mount.id).collect();
        let seen = ids.len();
        ids.sort_unstable();
        ids.dedup();
        same("different ids in mountinfo", ids.len(), seen)?;
        same("the disk in mountinfo", s.mounts_at("disk")?, 1)
    };
    race(read, || {
        rounds(|| {
            s.bind("disk", "place")?;
            Ok(s.umount("place")?)
        })
    })
}
