//! What mountinfo and mountstats show while mounts come, go and change: each line is true, and nobody who reads is in anybody's way.

use super::races::{race, rounds};
use super::trials;
use anyhow::{Context, ensure};
use mount_storms::call::{Verdict, same};
use mount_storms::mountinfo::parse;
use mount_storms::scratch::Scratch;
use nix::mount::MsFlags;
use std::fs::{self, File};
use std::io::Read;

trials!("shown":
    a_reader_of_mountinfo_makes_no_umount_busy,
    what_is_shown_is_not_freed,
    a_mount_that_stays_is_shown_once_in_small_pieces,
    a_line_is_of_one_moment,
    what_stays_shared_is_shown_so_while_others_receive,
);

/// What one read(2) gets of mountinfo in small pieces, in bytes: less than a line.
const PIECE_BYTES: usize = 64;

/// The longest name of a directory, NAME_MAX in linux/limits.h, and how many of them a path below PATH_MAX has room for:
/// a mount there has a line that takes long.
const NAME_BYTES: usize = 255;
const LONG_PATH_DEPTH: usize = 15;

/// Changes of propagation one after the other: a look at such a line takes longer than one of them, and 64 looks, which is
/// when the series has changes kept out (SHOW_AT_ONCE_TRIES, fs/namespace.c), take hundreds.
const CHANGES: usize = 5_000;

/// Copies that become slaves one after the other, so that most reads meet a change.
const COPIES: usize = 8;

fn a_reader_of_mountinfo_makes_no_umount_busy(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    let read = || Ok(fs::read_to_string("/proc/self/mountinfo").map(drop)?);
    race(read, || {
        rounds(|| {
            s.bind("disk", "place")?;
            Ok(s.umount("place")?)
        })
    })
}

fn what_is_shown_is_not_freed(s: &Scratch) -> Verdict {
    let read = || {
        ["mountinfo", "mounts", "mountstats"]
            .iter()
            .try_for_each(|file| Ok(fs::read_to_string(format!("/proc/self/{file}")).map(drop)?))
    };
    race(read, || {
        rounds(|| {
            // A superblock of its own, which goes with the mount.
            s.tmpfs("disk")?;
            Ok(s.umount("disk")?)
        })
    })
}

fn a_mount_that_stays_is_shown_once_in_small_pieces(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    let mut stays: Vec<String> = (0..5).map(|number| format!("stays-{number}")).collect();
    // A line that takes long.
    stays.push(vec!["d".repeat(NAME_BYTES); LONG_PATH_DEPTH].join("/"));
    stays.iter().try_for_each(|place| s.bind("disk", place))?;
    let points: Vec<_> = stays.iter().map(|place| s.path(place).display().to_string()).collect();
    let read = || {
        let lines = parse(&read_in_pieces("/proc/self/mountinfo")?)?;
        points.iter().try_for_each(|point| same(point, lines.iter().filter(|line| line.point == *point).count(), 1))
    };
    race(read, || {
        rounds(|| {
            s.bind("disk", "place")?;
            Ok(s.umount("place")?)
        })
    })?;
    race(read, || {
        (0..CHANGES).try_for_each(|_| {
            s.make("stays-0", MsFlags::MS_SHARED)?;
            Ok(s.make("stays-0", MsFlags::MS_PRIVATE)?)
        })
    })
}

fn a_line_is_of_one_moment(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.make("disk", MsFlags::MS_SHARED)?;
    let copies: Vec<String> = (0..COPIES).map(|number| format!("copy-{number}")).collect();
    let points: Vec<_> = copies.iter().map(|copy| s.path(copy).display().to_string()).collect();
    let read = || {
        let lines = parse(&fs::read_to_string("/proc/self/mountinfo")?)?;
        lines.iter().filter(|line| points.contains(&line.point)).try_for_each(|line| {
            let is_one = line.shared.is_some() != line.master.is_some();
            ensure!(is_one, "a peer that becomes a slave was shown as neither or as both: {line:?}");
            Ok(())
        })
    };
    race(read, || {
        rounds(|| {
            copies.iter().try_for_each(|copy| s.bind("disk", copy))?;
            copies.iter().try_for_each(|copy| s.make(copy, MsFlags::MS_SLAVE))?;
            copies.iter().try_for_each(|copy| Ok(s.umount(copy)?))
        })
    })
}

fn what_stays_shared_is_shown_so_while_others_receive(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.make("disk", MsFlags::MS_SHARED)?;
    // A master with slaves: each mount below it marks it while copies are made, beside the bit that says that it is shared.
    let slaves: Vec<String> = (0..COPIES).map(|number| format!("slave-{number}")).collect();
    for slave in &slaves {
        s.bind("disk", slave)?;
        s.make(slave, MsFlags::MS_SLAVE)?;
    }
    s.dir("disk/place")?;
    let point = s.path("disk").display().to_string();
    let group = || {
        let lines = parse(&fs::read_to_string("/proc/self/mountinfo")?)?;
        let line = lines.iter().find(|line| line.point == point).context("a mount that stays is not shown")?;
        line.shared.with_context(|| format!("a mount that stays shared was shown as if it were not: {line:?}"))
    };
    let stays = group()?;
    race(
        || same("peer group of a mount that stays in it", group()?, stays),
        || {
            rounds(|| {
                s.bind("disk", "disk/place")?;
                s.umount("disk/place")?;
                // One more peer, which takes its group's number along as it leaves.
                s.bind("slave-0", "copy")?;
                s.make("copy", MsFlags::MS_PRIVATE)?;
                s.make("copy", MsFlags::MS_SHARED)?;
                s.make("copy", MsFlags::MS_PRIVATE)?;
                Ok(s.umount("copy")?)
            })
        },
    )
}

/// A file of /proc by many read(2)s.
fn read_in_pieces(path: &str) -> anyhow::Result<String> {
    let (mut file, mut piece, mut text) = (File::open(path)?, [0; PIECE_BYTES], Vec::new());
    loop {
        match file.read(&mut piece).with_context(|| format!("cannot read {path}"))? {
            0 => return Ok(String::from_utf8(text)?),
            bytes => text.extend_from_slice(&piece[..bytes]),
        }
    }
}
