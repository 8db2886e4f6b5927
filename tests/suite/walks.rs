//! Path walks that must not leave their root, and the two calls that list mounts, against mounts that come and go.

use super::races::{covered_place, race, rounds};
use super::trials;
use anyhow::ensure;
use mount_storms::call::{Call, Refusal, Verdict, named, same};
use mount_storms::idmap::{clear, set};
use mount_storms::mountinfo;
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use mount_storms::second_namespace::SecondNamespace;
use mount_storms::sys::{self, LSMT_ROOT, MOUNT_ATTR_RDONLY, STATMOUNT_MNT_BASIC, STATMOUNT_MNT_POINT};
use nix::errno::Errno;
use nix::mount::MsFlags;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use std::fs::{self, File};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

trials!("walks":
    a_walk_in_a_root_finds_the_mount_or_what_it_covers,
    a_walk_beneath_a_directory_never_leaves_it,
    a_walk_that_must_not_cross_mounts_crosses_none,
    a_walk_up_out_of_a_mount_that_goes_stays_below_its_root,
    statmount_of_a_mount_that_stays_is_the_same_every_time,
    what_listmount_lists_is_known_to_statmount_or_gone,
    a_moving_mount_is_listed_exactly_once,
    a_mount_that_changes_back_and_forth_is_never_seen_in_between,
    a_readonly_file_system_is_never_granted_over_an_open_writer,
    a_place_that_is_removed_elsewhere_is_found_whole_or_not_at_all,
);

/// openat2(2) of a file to read, from the scratch's root.
fn open_within(s: &Scratch, name: &str, resolve: ResolveFlags) -> Call<File> {
    let call = format!("openat2({name}, {resolve:?})");
    let root = named("open(root)", File::open(s.path("")))?;
    named(call, rustix::fs::openat2(&root, name, OFlags::RDONLY, Mode::empty(), resolve)).map(File::from)
}

/// Content of a file, or nothing where the kernel wants to be asked again (EAGAIN) because a mount moved meanwhile, or where the walk ended in
/// a mount that has just gone, and so is below the root no longer (EXDEV, complete_walk() in fs/namei.c).
fn read_within(s: &Scratch, name: &str, resolve: ResolveFlags) -> anyhow::Result<Option<String>> {
    match open_within(s, name, resolve) {
        Ok(file) => Ok(Some(std::io::read_to_string(file)?)),
        Err(Refusal { errno: Errno::EAGAIN | Errno::EXDEV, .. }) => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}

/// Runs a walk against a mount that comes and goes at "place".
fn against_a_mount_that_comes_and_goes(s: &Scratch, walk: impl Fn() -> Verdict + Sync) -> Verdict {
    race(walk, || {
        rounds(|| {
            s.bind("disk", "place")?;
            Ok(s.umount_lazily("place")?)
        })
    })
}

fn is_above_or_below(seen: Option<String>) -> Verdict {
    ensure!(seen.as_deref().is_none_or(|seen| seen == "above" || seen == "below"), "the walker read {seen:?}");
    Ok(())
}

fn a_walk_in_a_root_finds_the_mount_or_what_it_covers(s: &Scratch) -> Verdict {
    covered_place(s)?;
    let found = AtomicU64::new(0);
    against_a_mount_that_comes_and_goes(s, || {
        for name in ["place/who", "/place/../place/who", "../../place/who"] {
            let seen = read_within(s, name, ResolveFlags::IN_ROOT)?;
            found.fetch_add(seen.is_some().into(), Ordering::Relaxed);
            is_above_or_below(seen)?;
        }
        Ok(())
    })?;
    ensure!(found.into_inner() > 0, "the kernel wanted to be asked again each time");
    Ok(())
}

fn a_walk_beneath_a_directory_never_leaves_it(s: &Scratch) -> Verdict {
    covered_place(s)?;
    against_a_mount_that_comes_and_goes(s, || {
        is_above_or_below(read_within(s, "place/../place/who", ResolveFlags::BENEATH)?)?;
        let out = open_within(s, "place/../../proc", ResolveFlags::BENEATH).err().map(|refusal| refusal.errno);
        ensure!(matches!(out, Some(Errno::EXDEV | Errno::EAGAIN)), "a walk out of the directory gave {out:?}");
        Ok(())
    })
}

fn a_walk_that_must_not_cross_mounts_crosses_none(s: &Scratch) -> Verdict {
    covered_place(s)?;
    against_a_mount_that_comes_and_goes(s, || match open_within(s, "place/who", ResolveFlags::NO_XDEV) {
        Ok(file) => same("what it read", std::io::read_to_string(file)?, "below"),
        Err(refusal) => same("why it was refused", refusal.errno, Errno::EXDEV),
    })
}

fn a_walk_up_out_of_a_mount_that_goes_stays_below_its_root(s: &Scratch) -> Verdict {
    covered_place(s)?;
    s.dir("disk/a")?;
    s.dir("place/a")?;
    against_a_mount_that_comes_and_goes(s, || {
        let held = named("open(place/a)", File::open(s.path("place/a")))?;
        let up = rustix::fs::openat(&held, "../who", OFlags::RDONLY, Mode::empty());
        is_above_or_below(Some(std::io::read_to_string(File::from(named("openat(../who)", up)?))?))
    })
}

/// The unique id of the mount at a path.
fn unique_id(s: &Scratch, name: &str) -> Call<u64> {
    let mask = StatxFlags::from_bits_retain(0x4000); // STATX_MNT_ID_UNIQUE (include/uapi/linux/stat.h)
    named("statx", rustix::fs::statx(CWD, s.path(name), AtFlags::empty(), mask)).map(|stat| stat.stx_mnt_id)
}

fn list() -> Call<Vec<u64>> {
    let mut ids = vec![0; 4096];
    let count = named("listmount", sys::listmount(LSMT_ROOT, 0, &mut ids))?;
    ids.truncate(count);
    Ok(ids)
}

fn statmount_of_a_mount_that_stays_is_the_same_every_time(s: &Scratch) -> Verdict {
    requirement::statmount()?;
    covered_place(s)?;
    let id = unique_id(s, "disk")?;
    let see = || -> Call<_> {
        let mount = named("statmount", sys::statmount(id, STATMOUNT_MNT_BASIC | STATMOUNT_MNT_POINT))?;
        Ok((mount.mnt_id, mount.mnt_parent_id, mount.mnt_attr, mount.string(mount.mnt_point).to_owned()))
    };
    let before = see()?;
    against_a_mount_that_comes_and_goes(s, || same("the disk by statmount", see()?, before.clone()))
}

fn what_listmount_lists_is_known_to_statmount_or_gone(s: &Scratch) -> Verdict {
    requirement::statmount()?;
    covered_place(s)?;
    against_a_mount_that_comes_and_goes(s, || {
        for id in list()? {
            match named("statmount", sys::statmount(id, STATMOUNT_MNT_BASIC)) {
                Ok(mount) => same("id of the answer", mount.mnt_id, id)?,
                Err(refusal) => same("why there is no answer", refusal.errno, Errno::ENOENT)?,
            }
        }
        Ok(())
    })
}

fn a_moving_mount_is_listed_exactly_once(s: &Scratch) -> Verdict {
    requirement::statmount()?;
    covered_place(s)?;
    s.bind("disk", "first")?;
    let id = unique_id(s, "first")?;
    let look = || same("times that it is listed", list()?.into_iter().filter(|listed| *listed == id).count(), 1);
    race(look, || {
        rounds(|| {
            s.move_mount("first", "second")?;
            Ok(s.move_mount("second", "first")?)
        })
    })
}

fn a_mount_that_changes_back_and_forth_is_never_seen_in_between(s: &Scratch) -> Verdict {
    covered_place(s)?;
    s.bind("disk", "view")?;
    let look = || {
        let all = mountinfo::of_this_process()?;
        let view = s.path("view");
        let seen: Vec<_> = all.iter().filter(|line| view.to_str() == Some(line.point.as_str())).collect();
        same("mounts at the view", seen.len(), 1)?;
        same("its root", seen[0].root.as_str(), "/")?;
        same("master without a group", seen[0].master, None)
    };
    race(look, || {
        rounds(|| {
            s.make("view", MsFlags::MS_SHARED)?;
            s.setattr("view", 0, &set(MOUNT_ATTR_RDONLY))?;
            s.make("view", MsFlags::MS_PRIVATE)?;
            Ok(s.setattr("view", 0, &clear(MOUNT_ATTR_RDONLY))?)
        })
    })
}

fn a_readonly_file_system_is_never_granted_over_an_open_writer(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("disk/file", "")?;
    s.bind("disk", "view")?;
    let writers = AtomicI64::new(0);
    let write = || match s.open_writer("view/file") {
        // Counted only while the file is surely open, so a count seen under read-only is a writer that was let through.
        Ok(file) => {
            writers.fetch_add(1, Ordering::SeqCst);
            std::thread::yield_now();
            writers.fetch_sub(1, Ordering::SeqCst);
            drop(file);
            Ok(())
        }
        Err(refusal) => same("why a writer is refused", refusal.errno, Errno::EROFS),
    };
    race(write, || {
        rounds(|| match s.make("disk", MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY) {
            Ok(()) => {
                let open = (0..100).map(|_| writers.load(Ordering::SeqCst)).max();
                same("open writers under read-only", open, Some(0))?;
                Ok(s.make("disk", MsFlags::MS_REMOUNT)?)
            }
            Err(refusal) => same("why read-only is refused", refusal.errno, Errno::EBUSY),
        })
    })
}

fn a_place_that_is_removed_elsewhere_is_found_whole_or_not_at_all(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("disk/who", "above")?;
    s.tmpfs("home")?;
    s.dir("home/place")?;
    let other = SecondNamespace::copy()?;
    let walk = || match fs::read_to_string(s.path("home/place/who")) {
        Ok(seen) => same("what the walker read", seen.as_str(), "above"),
        Err(error) => same("why it read nothing", error.raw_os_error(), Some(Errno::ENOENT as i32)),
    };
    race(walk, || {
        // Only this thread goes back and forth between the namespaces.
        named("unshare(CLONE_FS)", nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS))?;
        rounds(|| {
            s.bind("disk", "home/place")?;
            other.inside(|| Ok(named("rmdir(home/place)", fs::remove_dir(s.path("home/place")))?))?;
            same("mounts at the place", s.mounts_at("home/place")?, 0)
        })
    })
}
