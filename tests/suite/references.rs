//! What a mount holds and what holds it: ids, the ids of peer groups, its file system; and that nothing is given back too early or never.

use super::races::race;
use super::statmount::unique_id;
use super::trials;
use anyhow::{Context, Result};
use mount_storms::call::{Refused, Verdict, named, same};
use mount_storms::idmap::{clear, set};
use mount_storms::loop_disk::LoopDisk;
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use mount_storms::sys::{self, MOUNT_ATTR_RDONLY, STATMOUNT_MNT_BASIC};
use nix::errno::Errno;
use nix::mount::MsFlags;
use rustix::fs::StatVfsMountFlags;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::time::Duration;

trials!("references":
    the_id_of_a_mount_in_use_is_not_given_to_another,
    ids_of_peer_groups_come_back_when_their_last_peer_is_gone,
    a_refused_layer_keeps_no_mount_id,
    a_parent_is_named_by_its_unique_id,
    a_disk_is_free_when_its_umount_returns_whoever_walks_by,
    a_disk_is_free_when_its_umount_returns_however_long_a_walk_takes,
    a_disk_can_be_read_only_after_mounts_of_it_are_gone,
    an_open_writer_never_sees_its_mount_turn_readonly,
);

/// Mounts and umounts of a disk under a walker. Each takes some milliseconds on an emulated CPU.
const DISK_ROUNDS: usize = 40;

/// Attempts to make a mount read-only beside a writer.
const READONLY_ROUNDS: usize = 20_000;

/// Steps that a walk makes on the disk without leaving its root: as many as a path holds (PATH_MAX, include/uapi/linux/limits.h), so that most
/// umounts come in the middle of a walk.
const DOTS: usize = 1900;

/// How long a walker keeps what it found.
const WALKER_KEEPS: Duration = Duration::from_micros(200);

/// The id of the mount that a file was opened through (Documentation/filesystems/proc.rst, section 3.8).
fn mount_id_of(file: &File) -> Result<u32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    Ok(id.context("fdinfo has no mnt_id")?.trim().parse()?)
}

fn the_id_of_a_mount_in_use_is_not_given_to_another(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    let file = s.open_writer("disk/file")?;
    let id = mount_id_of(&file)?;
    s.umount_lazily("disk")?;
    for n in 0..20 {
        let place = format!("place{n}");
        s.tmpfs(&place)?;
        anyhow::ensure!(s.mount_at(&place)?.id != id, "the new mount at {place} has the id {id}, which is in use");
    }
    same("the id of the mount in use", mount_id_of(&file)?, id)
}

fn ids_of_peer_groups_come_back_when_their_last_peer_is_gone(s: &Scratch) -> Verdict {
    let rounds = 100;
    let mut groups = BTreeSet::new();
    for _ in 0..rounds {
        s.tmpfs("disk")?;
        s.make("disk", MsFlags::MS_SHARED)?;
        groups.insert(s.mount_at("disk")?.shared);
        s.umount("disk")?;
    }
    // On a machine of our own it is one; elsewhere others take ids meanwhile.
    anyhow::ensure!(
        groups.len() < rounds / 2,
        "{rounds} shared mounts, one after the other, had {} groups",
        groups.len()
    );
    Ok(())
}

fn a_refused_layer_keeps_no_mount_id(s: &Scratch) -> Verdict {
    requirement::overlayfs()?;
    // Ids of mounts are given out from below.
    let next_id = || {
        s.tmpfs("place")?;
        let id = s.mount_at("place")?.id;
        s.umount("place")?;
        anyhow::Ok(id)
    };
    ["layer", "other"].iter().try_for_each(|name| s.tmpfs(name))?;
    s.make("layer", MsFlags::MS_UNBINDABLE)?;
    let options = format!("lowerdir={}:{}", s.path("layer").display(), s.path("other").display());
    let rounds = 200;
    let before = next_id()?;
    for _ in 0..rounds {
        s.mount("overlay", "overlay", "view", &options).refused_with(Errno::EINVAL)?;
    }
    let after = next_id()?;
    anyhow::ensure!(after < before + rounds / 2, "the next id was {before}, and {after} after {rounds} refused layers");
    Ok(())
}

fn a_parent_is_named_by_its_unique_id(s: &Scratch) -> Verdict {
    requirement::statmount()?;
    s.tmpfs("disk")?;
    s.tmpfs("disk/sub")?;
    let inner = named("statmount(disk/sub)", sys::statmount(unique_id(s, "disk/sub")?, STATMOUNT_MNT_BASIC))?;
    same("the parent's unique id", inner.mnt_parent_id, unique_id(s, "disk")?)
}

fn a_disk_is_free_when_its_umount_returns_whoever_walks_by(s: &Scratch) -> Verdict {
    a_disk_is_free_when_its_umount_returns(s, "place")
}

fn a_disk_is_free_when_its_umount_returns_however_long_a_walk_takes(s: &Scratch) -> Verdict {
    let dots = "/.".repeat(DOTS);
    a_disk_is_free_when_its_umount_returns(s, &format!("place{dots}"))
}

/// While somebody walks that path, through the place.
fn a_disk_is_free_when_its_umount_returns(s: &Scratch, walked: &str) -> Verdict {
    requirement::ext4_on_loop()?;
    let disk = LoopDisk::with_ext4(s)?;
    s.dir("place")?;
    // A walk that comes by takes the mount before the umount, which is busy then, or not at all. It keeps what it found for a while.
    let walk = || {
        let _found = named("open(place)", File::open(s.path(walked)))?;
        std::thread::sleep(WALKER_KEEPS);
        Ok(())
    };
    race(walk, || {
        (0..DISK_ROUNDS).try_for_each(|_| {
            s.mount(disk.path(), "ext4", "place", "")?;
            while let Err(refusal) = s.umount("place") {
                same("why an umount is refused", refusal.errno, Errno::EBUSY)?;
            }
            disk.claim()?;
            Ok(())
        })
    })
}

fn a_disk_can_be_read_only_after_mounts_of_it_are_gone(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    for _ in 0..20 {
        s.bind("disk", "view")?;
        s.umount("view")?;
    }
    s.make("disk", MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)?;
    s.umount("disk")?;
    s.mounted_are(&[])
}

fn an_open_writer_never_sees_its_mount_turn_readonly(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("disk/file", "")?;
    let write = || match File::options().write(true).open(s.path("disk/file")) {
        Ok(file) => {
            let flags = named("fstatvfs", rustix::fs::fstatvfs(&file))?.f_flag;
            same("read-only under an open writer", flags.contains(StatVfsMountFlags::RDONLY), false)
        }
        Err(error) => same("why a writer is refused", error.raw_os_error(), Some(Errno::EROFS as i32)),
    };
    race(write, || {
        (0..READONLY_ROUNDS).try_for_each(|_| match s.setattr("disk", 0, &set(MOUNT_ATTR_RDONLY)) {
            Ok(()) => {
                // Long enough for a writer that slipped in to look.
                std::thread::yield_now();
                Ok(s.setattr("disk", 0, &clear(MOUNT_ATTR_RDONLY))?)
            }
            Err(refusal) => same("why read-only is refused", refusal.errno, Errno::EBUSY),
        })
    })
}
