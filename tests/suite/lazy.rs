//! What a lazy umount leaves to those who still stand in the tree: their files, and nothing that was hidden from them.

use super::races::{covered_place, race, rounds};
use super::trials;
use mount_storms::call::{Verdict, named, same};
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use nix::errno::Errno;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags};
use std::env::set_current_dir;
use std::fs;
use std::io::Write;

trials!("lazy":
    a_tree_that_went_shows_what_its_own_mounts_covered,
    a_tree_that_went_hides_what_locked_mounts_covered,
    a_tree_that_went_cannot_be_mounted_on,
    a_writer_goes_on_in_a_view_that_went_while_the_disk_stays,
    a_tree_that_went_stays_apart_from_what_comes_to_its_place,
    a_directory_held_open_still_leads_up_to_the_root_of_its_mount,
    a_tree_removed_elsewhere_hides_what_its_mounts_covered,
    a_shared_working_directory_is_opened_while_its_mount_goes,
    a_directory_held_open_is_walked_while_its_mount_goes,
    a_locked_mount_hides_its_place_from_a_walker_while_its_tree_goes,
);

/// Opens a directory to walk from.
fn hold(s: &Scratch, name: &str) -> mount_storms::call::Call<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    named(format!("open({name}, O_DIRECTORY)"), rustix::fs::openat(CWD, s.path(name), flags, Mode::empty()))
}

/// Whether a file is found from a directory that is held open.
fn finds(from: &OwnedFd, name: &str) -> bool {
    rustix::fs::statat(from, name, rustix::fs::AtFlags::empty()).is_ok()
}

/// A disk with the file "sub/covered", and over its "sub" a mount with the file "above".
fn covering_disk(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.dir("disk/sub")?;
    s.write("disk/sub/covered", "")?;
    s.tmpfs("disk/sub")?;
    Ok(s.write("disk/sub/above", "")?)
}

fn a_tree_that_went_shows_what_its_own_mounts_covered(s: &Scratch) -> Verdict {
    covering_disk(s)?;
    let held = hold(s, "disk")?;
    same("the mount's file before", finds(&held, "sub/above"), true)?;
    s.umount_lazily("disk")?;
    same("the mount's file after", finds(&held, "sub/above"), false)?;
    same("what the mount covered", finds(&held, "sub/covered"), true)
}

fn a_tree_that_went_hides_what_locked_mounts_covered(s: &Scratch) -> Verdict {
    requirement::user_namespaces()?;
    covering_disk(s)?;
    s.become_less_privileged()?;
    s.bind_recursive("disk", "copy")?;
    let held = hold(s, "copy")?;
    s.umount_lazily("copy")?;
    same("what the locked mount covered", finds(&held, "sub/covered"), false)
}

fn a_tree_that_went_cannot_be_mounted_on(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.dir("disk/dir")?;
    s.tmpfs("other")?;
    set_current_dir(s.path("disk"))?;
    s.umount_lazily("disk")?;
    let bind = named("mount(other, dir, MS_BIND)", rustix::mount::mount_bind(s.path("other"), "dir"));
    let errno = bind.err().map(|refusal| refusal.errno);
    same("refused with ENOENT or EINVAL", matches!(errno, Some(Errno::ENOENT | Errno::EINVAL)), true)?;
    s.mounted_are(&["other"])
}

fn a_writer_goes_on_in_a_view_that_went_while_the_disk_stays(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.bind("disk", "view")?;
    let mut file = s.open_writer("view/file")?;
    s.umount_lazily("view")?;
    // Room for what is freed too early to be used again.
    for n in 0..20 {
        s.bind("disk", &format!("other{n}"))?;
        named("write", file.write_all(b"x"))?;
    }
    drop(file);
    same("what was written", s.read("disk/file")?.len(), 20)
}

fn a_tree_that_went_stays_apart_from_what_comes_to_its_place(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("disk/who", "went")?;
    set_current_dir(s.path("disk"))?;
    s.umount_lazily("disk")?;
    s.tmpfs("disk")?;
    s.write("disk/who", "came")?;
    same("from inside", fs::read_to_string("who")?, "went")?;
    same("from outside", s.read("disk/who")?, "came")?;
    set_current_dir("/")?;
    Ok(s.umount("disk")?)
}

fn a_directory_held_open_still_leads_up_to_the_root_of_its_mount(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("disk/file", "")?;
    s.write("secret", "beside the disk")?;
    s.dir("disk/a/b")?;
    let held = hold(s, "disk/a/b")?;
    s.umount_lazily("disk")?;
    same("the file of the root", finds(&held, "../../file"), true)?;
    same("what lies beside the disk", finds(&held, "../../../secret"), false)?;
    same("the file of the root from above it", finds(&held, "../../../../file"), true)
}

fn a_tree_removed_elsewhere_hides_what_its_mounts_covered(s: &Scratch) -> Verdict {
    requirement::removal_leaves_covers()?;
    s.tmpfs("home")?;
    let other = {
        s.dir("home/place")?;
        mount_storms::second_namespace::SecondNamespace::copy()?
    };
    s.tmpfs("home/place")?;
    s.dir("home/place/sub")?;
    s.write("home/place/sub/covered", "")?;
    s.tmpfs("home/place/sub")?;
    let held = hold(s, "home/place")?;
    other.inside(|| Ok(named("rmdir(home/place)", fs::remove_dir(s.path("home/place")))?))?;
    s.mounted_are(&["home"])?;
    same("what the inner mount covered", finds(&held, "sub/covered"), false)
}

fn a_shared_working_directory_is_opened_while_its_mount_goes(s: &Scratch) -> Verdict {
    covered_place(s)?;
    s.write("who", "neither")?;
    // Threads share one working directory: the kernel walks from it without a reference of its own.
    let open = || {
        named("open(.)", fs::File::open("."))?;
        let seen = named("read(who)", fs::read_to_string("who"))?;
        anyhow::ensure!(["above", "below", "neither"].contains(&seen.as_str()), "a relative walk read {seen:?}");
        Ok(())
    };
    set_current_dir(s.path(""))?;
    race(open, || {
        rounds(|| {
            s.bind("disk", "place")?;
            set_current_dir(s.path("place"))?;
            s.umount_lazily("place")?;
            Ok(set_current_dir(s.path(""))?)
        })
    })
}

fn a_directory_held_open_is_walked_while_its_mount_goes(s: &Scratch) -> Verdict {
    covered_place(s)?;
    s.dir("disk/a/b")?;
    s.dir("place/a/b")?;
    let walk = || {
        let held = hold(s, "place/a/b")?;
        for name in ["../../who", "../b/../../who"] {
            same(name, finds(&held, name), true)?;
        }
        Ok(())
    };
    race(walk, || {
        rounds(|| {
            s.bind("disk", "place")?;
            Ok(s.umount_lazily("place")?)
        })
    })
}

fn a_locked_mount_hides_its_place_from_a_walker_while_its_tree_goes(s: &Scratch) -> Verdict {
    requirement::user_namespaces()?;
    covering_disk(s)?;
    s.become_less_privileged()?;
    s.dir("copy")?;
    let walk = || {
        // The bare directory, the copy, or the copy as it goes: in none of them the covered file.
        let held = hold(s, "copy")?;
        for _ in 0..20 {
            same("what the locked mount covered", finds(&held, "sub/covered"), false)?;
        }
        Ok(())
    };
    race(walk, || {
        rounds(|| {
            s.bind_recursive("disk", "copy")?;
            Ok(s.umount_lazily("copy")?)
        })
    })
}
