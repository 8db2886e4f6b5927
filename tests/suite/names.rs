//! Names that something is mounted on: busy where the mount is seen, removable from where it is not.

use super::trials;
use anyhow::Context;
use mount_storms::call::{Call, Refused, Verdict, named, same};
use mount_storms::scratch::Scratch;
use mount_storms::second_namespace::SecondNamespace;
use nix::errno::Errno;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

trials!("names":
    a_mount_point_cannot_be_removed_or_renamed,
    a_file_with_a_mount_on_it_cannot_be_unlinked,
    removing_the_place_elsewhere_takes_the_mount_away,
    renaming_the_place_elsewhere_takes_the_mount_along,
    removing_the_place_elsewhere_takes_everything_below_away,
    unlinking_the_file_elsewhere_takes_the_mount_away,
    renaming_over_the_place_elsewhere_takes_the_mount_away,
    removing_the_place_elsewhere_spares_mounts_of_the_same_disk,
    an_open_file_outlives_the_removal_of_its_mount_point,
    nothing_can_be_mounted_in_a_removed_directory,
    a_source_of_all_characters_is_one_field_of_mountinfo,
    a_place_of_all_characters_is_two_fields_of_mountinfo,
);

fn rmdir(s: &Scratch, name: &str) -> Call {
    named(format!("rmdir({name})"), fs::remove_dir(s.path(name)))
}

fn rename(s: &Scratch, from: &str, to: &str) -> Call {
    named(format!("rename({from}, {to})"), fs::rename(s.path(from), s.path(to)))
}

/// Mounts a disk at "home/place" and gives a second namespace in which that place is bare.
fn mounted_here_and_bare_there(s: &Scratch) -> anyhow::Result<SecondNamespace> {
    s.tmpfs("home")?;
    s.tmpfs("home/place")?;
    s.write("home/place/file", "content")?;
    let other = SecondNamespace::copy()?;
    other.inside(|| Ok(s.umount("home/place")?))?;
    Ok(other)
}

fn a_mount_point_cannot_be_removed_or_renamed(s: &Scratch) -> Verdict {
    s.tmpfs("place")?;
    s.dir("plain")?;
    rmdir(s, "place").refused_with(Errno::EBUSY)?;
    rename(s, "place", "elsewhere").refused_with(Errno::EBUSY)?;
    rename(s, "plain", "place").refused_with(Errno::EBUSY)?;
    s.umount("place")?;
    Ok(rmdir(s, "place")?)
}

fn a_file_with_a_mount_on_it_cannot_be_unlinked(s: &Scratch) -> Verdict {
    s.write("below", "below")?;
    s.write("above", "above")?;
    let (above, below) = (s.path("above"), s.path("below"));
    let bind = rustix::mount::mount_bind(&above, &below);
    named("mount(above, below, MS_BIND)", bind)?;
    same("what is seen", s.read("below")?, "above")?;
    named("unlink(below)", fs::remove_file(&below)).refused_with(Errno::EBUSY)?;
    s.umount("below")?;
    named("unlink(below)", fs::remove_file(&below))?;
    same("what was on it", s.read("above")?, "above")
}

fn removing_the_place_elsewhere_takes_the_mount_away(s: &Scratch) -> Verdict {
    let other = mounted_here_and_bare_there(s)?;
    other.inside(|| Ok(rmdir(s, "home/place")?))?;
    same("the name", s.exists("home/place"), false)?;
    s.mounted_are(&["home"])
}

fn renaming_the_place_elsewhere_takes_the_mount_along(s: &Scratch) -> Verdict {
    let other = mounted_here_and_bare_there(s)?;
    other.inside(|| Ok(rename(s, "home/place", "home/new")?))?;
    same("the file under the new name", s.read("home/new/file")?, "content")?;
    s.mounted_are(&["home", "home/new"])
}

fn an_open_file_outlives_the_removal_of_its_mount_point(s: &Scratch) -> Verdict {
    let other = mounted_here_and_bare_there(s)?;
    let mut writer = s.open_writer("home/place/file")?;
    other.inside(|| Ok(rmdir(s, "home/place")?))?;
    Ok(writer.write_all(b"still writable")?)
}

fn nothing_can_be_mounted_in_a_removed_directory(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    std::env::set_current_dir(s.dir("gone")?)?;
    rmdir(s, "gone")?;
    let bind = rustix::mount::mount_bind(s.path("disk"), ".");
    named("mount(disk, ., MS_BIND)", bind).refused_with(Errno::ENOENT)?;
    std::env::set_current_dir("/")?;
    s.mounted_are(&["disk"])
}

fn removing_the_place_elsewhere_takes_everything_below_away(s: &Scratch) -> Verdict {
    let other = mounted_here_and_bare_there(s)?;
    s.tmpfs("home/place/sub")?;
    s.tmpfs("home/place")?;
    other.inside(|| Ok(rmdir(s, "home/place")?))?;
    same("the name", s.exists("home/place"), false)?;
    s.mounted_are(&["home"])
}

fn unlinking_the_file_elsewhere_takes_the_mount_away(s: &Scratch) -> Verdict {
    s.tmpfs("home")?;
    s.write("home/below", "below")?;
    s.write("above", "above")?;
    let other = SecondNamespace::copy()?;
    named("mount(MS_BIND)", rustix::mount::mount_bind(s.path("above"), s.path("home/below")))?;
    other.inside(|| Ok(named("unlink(below)", fs::remove_file(s.path("home/below")))?))?;
    same("the name", s.exists("home/below"), false)?;
    same("what was on it", s.read("above")?, "above")?;
    s.mounted_are(&["home"])
}

fn renaming_over_the_place_elsewhere_takes_the_mount_away(s: &Scratch) -> Verdict {
    let other = mounted_here_and_bare_there(s)?;
    s.dir("home/new")?;
    s.write("home/new/who", "what came instead")?;
    other.inside(|| Ok(rename(s, "home/new", "home/place")?))?;
    same("what the name shows", s.read("home/place/who")?, "what came instead")?;
    s.mounted_are(&["home"])
}

fn removing_the_place_elsewhere_spares_mounts_of_the_same_disk(s: &Scratch) -> Verdict {
    let other = mounted_here_and_bare_there(s)?;
    s.bind("home/place", "view")?;
    s.bind("home", "whole")?;
    other.inside(|| Ok(rmdir(s, "home/place")?))?;
    same("the file through another mount", s.read("view/file")?, "content")?;
    s.mounted_are(&["home", "view", "whole"])
}

/// A field of mountinfo: characters of `special` as octal numbers, everything else as it is.
fn escaped(text: &[u8], special: &[u8]) -> Vec<u8> {
    let shown = |byte: &u8| if special.contains(byte) { format!("\\{byte:03o}").into_bytes() } else { vec![*byte] };
    text.iter().flat_map(shown).collect()
}

fn a_source_of_all_characters_is_one_field_of_mountinfo(s: &Scratch) -> Verdict {
    let source: Vec<u8> = (1..=255).collect();
    let at = s.dir("disk")?;
    let flags = rustix::mount::MountFlags::empty();
    named("mount(all characters, disk, tmpfs)", rustix::mount::mount(&source[..], &at, "tmpfs", flags, c""))?;
    // fs/proc_namespace.c, mangle().
    let expected = escaped(&source, b" \t\n\\#");
    let table = named("read(mountinfo)", fs::read("/proc/thread-self/mountinfo"))?;
    let point = format!(" {} ", at.display());
    let is_ours = |line: &&[u8]| line.windows(point.len()).any(|part| part == point.as_bytes());
    let line = table.split(|byte| *byte == b'\n').find(is_ours).context("mountinfo does not show the disk")?;
    let field = line.split(|byte| *byte == b' ').rev().nth(1).context("mountinfo has few fields")?;
    same("the source", field.escape_ascii().to_string(), expected.escape_ascii().to_string())
}

fn a_place_of_all_characters_is_two_fields_of_mountinfo(s: &Scratch) -> Verdict {
    let name: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    s.tmpfs("disk")?;
    let place = s.path("disk").join(OsStr::from_bytes(&name));
    named("mkdir(disk/all characters)", fs::create_dir(&place))?;
    named("mount(disk/all characters, itself, MS_BIND)", rustix::mount::mount_bind(&place, &place))?;
    // fs/proc_namespace.c, show_mountinfo(), of root and mountpoint.
    let root = escaped(&[b"/", &name[..]].concat(), b" \t\n\\");
    let point = [s.path("disk").as_os_str().as_bytes(), &root].concat();
    let table = named("read(mountinfo)", fs::read("/proc/thread-self/mountinfo"))?;
    let lines = table.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b' ').collect::<Vec<_>>());
    let is_ours = |fields: &Vec<&[u8]>| fields.get(3).is_some_and(|root| root.starts_with(b"/\x01"));
    let line = lines.into_iter().find(is_ours).context("mountinfo does not show the place")?;
    same("the root", line[3].escape_ascii().to_string(), root.escape_ascii().to_string())?;
    same("the mountpoint", line[4].escape_ascii().to_string(), point.escape_ascii().to_string())
}
