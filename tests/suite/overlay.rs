//! overlayfs over idmapped layers: what a container's root file system is made of.

use super::trials;
use anyhow::Context;
use mount_storms::call::{Call, Refused, Verdict, named, same};
use mount_storms::idmap::SHIFT;
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use nix::errno::Errno;
use rustix::mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags};
use std::fs;
use std::os::unix::fs::PermissionsExt;

trials!("overlay":
    the_first_layer_wins_and_the_others_show_through,
    owners_are_mapped_through_idmapped_layers,
    a_copy_up_keeps_the_mapped_owner,
    layers_umounted_right_after_the_mount_stay_usable,
    layers_umounted_lazily_stay_usable,
    layers_that_were_never_attached_stay_usable,
    as_many_layers_as_a_large_image_has_all_show,
    an_umounted_overlay_lets_its_layers_disk_go,
    an_unbindable_layer_is_refused,
    an_overlay_keeps_its_layer_when_something_is_mounted_on_it,
    layers_with_different_idmaps_each_show_their_own_owners,
    an_overlay_is_idmapped_on_top_of_its_layers,
    a_layer_that_turns_readonly_or_goes_leaves_the_overlay_writable,
    paths_are_shown_escaped_each_time,
);

/// A disk with `count` layers: layer N has the file "fileN", and all have the file "who" with their number in it.
fn layers_on_disk(s: &Scratch, count: usize) -> Verdict {
    requirement::overlayfs()?;
    requirement::idmapped_mounts()?;
    s.tmpfs("disk")?;
    for n in 0..count {
        s.dir(&format!("disk/{n}"))?;
        s.write(&format!("disk/{n}/file{n}"), &n.to_string())?;
        s.write(&format!("disk/{n}/who"), &n.to_string())?;
    }
    Ok(())
}

/// The same, each layer shown idmapped at "layers/N".
fn idmapped_layers(s: &Scratch, count: usize) -> Verdict {
    layers_on_disk(s, count)?;
    (0..count).try_for_each(|n| s.bind_idmapped(&format!("disk/{n}"), &format!("layers/{n}")))
}

/// The value of lowerdir= for layers 0 to `count` - 1. Short relative names keep it below a page.
fn lower_dirs(s: &Scratch, count: usize) -> String {
    (0..count).map(|n| s.path(&format!("layers/{n}")).display().to_string()).collect::<Vec<_>>().join(":")
}

/// Mounts an overlay of these layers at "view", with an upper directory.
fn overlay(s: &Scratch, count: usize) -> Call {
    let (upper, work) = (s.dir("upper")?, s.dir("work")?);
    let lower = lower_dirs(s, count);
    let options = format!("index=off,workdir={},upperdir={},lowerdir={lower}", work.display(), upper.display());
    s.mount("overlay", "overlay", "view", &options)
}

fn every_layer_shows(s: &Scratch, count: usize) -> Verdict {
    for n in 0..count {
        same("a layer's file", s.read(&format!("view/file{n}"))?, n.to_string())?;
        same("its owner", s.owner(&format!("view/file{n}"))?, SHIFT)?;
    }
    Ok(())
}

fn the_first_layer_wins_and_the_others_show_through(s: &Scratch) -> Verdict {
    idmapped_layers(s, 3)?;
    overlay(s, 3)?;
    same("the file that all layers have", s.read("view/who")?, "0")?;
    every_layer_shows(s, 3)
}

fn owners_are_mapped_through_idmapped_layers(s: &Scratch) -> Verdict {
    idmapped_layers(s, 2)?;
    std::os::unix::fs::chown(s.path("disk/1/file1"), Some(7), Some(7))?;
    overlay(s, 2)?;
    same("owner of a file of root", s.owner("view/file0")?, SHIFT)?;
    same("owner of another's file", s.owner("view/file1")?, SHIFT + 7)
}

fn a_copy_up_keeps_the_mapped_owner(s: &Scratch) -> Verdict {
    idmapped_layers(s, 2)?;
    overlay(s, 2)?;
    fs::set_permissions(s.path("view/file1"), fs::Permissions::from_mode(0o600))?;
    same("owner after copy-up", s.owner("view/file1")?, SHIFT)?;
    same("owner in the upper directory", s.owner("upper/file1")?, SHIFT)?;
    same("the copied content", s.read("upper/file1")?, "1")?;
    same("owner of the source", s.owner("disk/1/file1")?, 0)
}

fn layers_umounted_right_after_the_mount_stay_usable(s: &Scratch) -> Verdict {
    idmapped_layers(s, 4)?;
    overlay(s, 4)?;
    (0..4).try_for_each(|n| s.umount(&format!("layers/{n}")))?;
    s.mounted_are(&["disk", "view"])?;
    every_layer_shows(s, 4)
}

fn layers_umounted_lazily_stay_usable(s: &Scratch) -> Verdict {
    idmapped_layers(s, 4)?;
    overlay(s, 4)?;
    (0..4).try_for_each(|n| s.umount_lazily(&format!("layers/{n}")))?;
    s.umount_lazily("disk")?;
    s.mounted_are(&["view"])?;
    every_layer_shows(s, 4)?;
    Ok(s.write("view/new", "and it is writable")?)
}

fn layers_that_were_never_attached_stay_usable(s: &Scratch) -> Verdict {
    requirement::detached_trees()?;
    layers_on_disk(s, 3)?;
    let context = named("fsopen(overlay)", mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC))?;
    let layers: Vec<_> = (0..3).map(|n| s.idmapped_tree(&format!("disk/{n}"))).collect::<Result<_, _>>()?;
    for layer in &layers {
        named("fsconfig(lowerdir+)", mount::fsconfig_set_fd(&context, "lowerdir+", layer))?;
    }
    named("fsconfig(CREATE)", mount::fsconfig_create(&context))?;
    drop(layers);
    let tree = mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
    s.attach(named("fsmount", tree)?, "view")?;
    drop(context);
    s.mounted_are(&["disk", "view"])?;
    every_layer_shows(s, 3)
}

fn as_many_layers_as_a_large_image_has_all_show(s: &Scratch) -> Verdict {
    idmapped_layers(s, 50)?;
    overlay(s, 50)?;
    (0..50).try_for_each(|n| s.umount(&format!("layers/{n}")))?;
    every_layer_shows(s, 50)
}

fn an_umounted_overlay_lets_its_layers_disk_go(s: &Scratch) -> Verdict {
    requirement::ext4_on_loop()?;
    requirement::overlayfs()?;
    let disk = mount_storms::loop_disk::LoopDisk::with_ext4(s)?;
    s.mount(disk.path(), "ext4", "disk", "")?;
    (0..2).try_for_each(|n| s.dir(&format!("disk/{n}")).map(drop))?;
    (0..2).try_for_each(|n| s.bind(&format!("disk/{n}"), &format!("layers/{n}")))?;
    s.mount("overlay", "overlay", "view", &format!("lowerdir={}", lower_dirs(s, 2)))?;
    for mount in ["layers/0", "layers/1", "disk"] {
        s.umount(mount)?;
    }
    disk.claim().refused_with(Errno::EBUSY)?;
    s.umount("view")?;
    disk.claim()?;
    Ok(())
}

fn an_unbindable_layer_is_refused(s: &Scratch) -> Verdict {
    idmapped_layers(s, 2)?;
    s.make("layers/1", nix::mount::MsFlags::MS_UNBINDABLE)?;
    overlay(s, 2).refused_with(Errno::EINVAL)?;
    same("mounts at the view", s.mounts_at("view")?, 0)
}

fn an_overlay_keeps_its_layer_when_something_is_mounted_on_it(s: &Scratch) -> Verdict {
    idmapped_layers(s, 2)?;
    overlay(s, 2)?;
    s.tmpfs("layers/0")?;
    s.write("layers/0/who", "not a layer")?;
    same("the file that all layers have", s.read("view/who")?, "0")
}

fn layers_with_different_idmaps_each_show_their_own_owners(s: &Scratch) -> Verdict {
    layers_on_disk(s, 2)?;
    s.bind_idmapped("disk/0", "layers/0")?;
    s.bind("disk/1", "layers/1")?;
    overlay(s, 2)?;
    same("owner through the idmap", s.owner("view/file0")?, SHIFT)?;
    same("owner without one", s.owner("view/file1")?, 0)
}

fn an_overlay_is_idmapped_on_top_of_its_layers(s: &Scratch) -> Verdict {
    requirement::idmapped_overlays()?;
    layers_on_disk(s, 2)?;
    (0..2).try_for_each(|n| s.bind(&format!("disk/{n}"), &format!("layers/{n}")))?;
    overlay(s, 2)?;
    s.bind_idmapped("view", "mapped")?;
    same("owner through the idmap of the overlay", s.owner("mapped/file1")?, SHIFT)?;
    same("owner without it", s.owner("view/file1")?, 0)
}

fn a_layer_that_turns_readonly_or_goes_leaves_the_overlay_writable(s: &Scratch) -> Verdict {
    idmapped_layers(s, 2)?;
    overlay(s, 2)?;
    s.setattr("layers/0", 0, &mount_storms::idmap::set(mount_storms::sys::MOUNT_ATTR_RDONLY))?;
    s.umount("layers/1")?;
    fs::set_permissions(s.path("view/file1"), fs::Permissions::from_mode(0o600))?;
    s.write("view/new", "written above")?;
    same("the layer is as it was", s.exists("disk/0/new"), false)?;
    every_layer_shows(s, 2)
}

/// Mounts an overlay of these directories at `view` and gives what mountinfo must show of them.
fn overlay_of(s: &Scratch, lower: [&str; 2], upper: &str, work: &str, view: &str) -> anyhow::Result<String> {
    let context = named("fsopen(overlay)", mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC))?;
    let options = [("lowerdir+", lower[0]), ("lowerdir+", lower[1]), ("upperdir", upper), ("workdir", work)];
    let mut shown = Vec::new();
    for (option, name) in options {
        let path = s.dir(name)?.display().to_string();
        named(format!("fsconfig({option})"), mount::fsconfig_set_string(&context, option, &path))?;
        // include/linux/seq_file.h, seq_show_option(): of a value these as octal numbers.
        let escaped = [("\\", "\\134"), (",", "\\054"), (" ", "\\040"), ("\t", "\\011"), ("\n", "\\012")];
        shown.push(format!("{option}={}", escaped.iter().fold(path, |path, (from, to)| path.replace(from, to))));
    }
    named("fsconfig(CREATE)", mount::fsconfig_create(&context))?;
    let tree = mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
    s.attach(named("fsmount", tree)?, view)?;
    Ok(shown.join(","))
}

/// The options of the superblock that is mounted at `view`: the last field of its line.
fn superblock_options(s: &Scratch, view: &str) -> anyhow::Result<String> {
    let table = named("read(mountinfo)", fs::read_to_string("/proc/thread-self/mountinfo"))?;
    let point = format!(" {} ", s.path(view).display());
    let line = table.lines().find(|line| line.contains(&point)).context("mountinfo does not show the overlay")?;
    Ok(line.rsplit(' ').next().unwrap_or_default().to_owned())
}

fn paths_are_shown_escaped_each_time(s: &Scratch) -> Verdict {
    requirement::overlayfs()?;
    let plain = overlay_of(s, ["first", "second"], "upper", "work", "view")?;
    let special = overlay_of(s, ["third", "a, \t\n\\z"], "upper2", "work2", "view2")?;
    for _ in 0..3 {
        for (view, expected) in [("view", &plain), ("view2", &special)] {
            let options = superblock_options(s, view)?;
            let is_path =
                |option: &&str| ["lowerdir+=", "upperdir=", "workdir="].iter().any(|key| option.starts_with(key));
            let paths = options.split_inclusive(',').filter(is_path).collect::<String>();
            same("the paths", paths.trim_end_matches(','), expected.as_str())?;
        }
    }
    Ok(())
}
