//! Block devices: free for mkfs and for losetup the moment the last umount returns.

use super::trials;
use mount_storms::call::{Refused, Verdict, same};
use mount_storms::disk;
use mount_storms::loop_disk::LoopDisk;
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use nix::errno::Errno;
use nix::mount::MsFlags;

trials!("devices":
    a_disk_is_formatted_at_once_after_umount,
    a_loop_device_is_cleared_at_once_after_umount,
    a_loop_device_is_cleared_at_once_after_the_last_file_is_closed,
    a_mounted_loop_device_is_cleared_when_its_umount_returns,
    an_umount_that_propagates_frees_the_disk_of_all_copies,
    a_detached_tree_that_is_closed_frees_its_disk,
    a_layers_disk_is_formatted_at_once_after_the_overlay_is_gone,
    a_storm_sees_that_its_disk_is_held,
);

fn mounted(s: &Scratch, disk: &LoopDisk) -> Verdict {
    s.mount(disk.path(), "ext4", "disk", "")?;
    Ok(s.write("disk/file", "content")?)
}

fn a_disk_is_formatted_at_once_after_umount(s: &Scratch) -> Verdict {
    requirement::ext4_on_loop()?;
    let disk = LoopDisk::with_ext4(s)?;
    for _ in 0..10 {
        mounted(s, &disk)?;
        disk.format().refused_with(Errno::EBUSY)?;
        s.umount("disk")?;
        disk.format()?;
        s.mount(disk.path(), "ext4", "disk", "")?;
        same("the file on the new file system", s.exists("disk/file"), false)?;
        s.umount("disk")?;
    }
    Ok(())
}

fn a_loop_device_is_cleared_at_once_after_umount(s: &Scratch) -> Verdict {
    requirement::ext4_on_loop()?;
    for _ in 0..10 {
        let disk = LoopDisk::with_ext4(s)?;
        mounted(s, &disk)?;
        s.umount("disk")?;
        same("a file behind the device", disk.is_bound(), true)?;
        disk.clear()?;
        same("a file behind the device that was cleared", disk.is_bound(), false)?;
    }
    Ok(())
}

fn a_loop_device_is_cleared_at_once_after_the_last_file_is_closed(s: &Scratch) -> Verdict {
    requirement::ext4_on_loop()?;
    for _ in 0..10 {
        let disk = LoopDisk::with_ext4(s)?;
        mounted(s, &disk)?;
        let file = s.open_writer("disk/file")?;
        s.umount_lazily("disk")?;
        drop(file);
        disk.clear()?;
        same("a file behind the device that was cleared", disk.is_bound(), false)?;
    }
    Ok(())
}

fn a_mounted_loop_device_is_cleared_when_its_umount_returns(s: &Scratch) -> Verdict {
    requirement::ext4_on_loop()?;
    for _ in 0..10 {
        let disk = LoopDisk::with_ext4(s)?;
        mounted(s, &disk)?;
        disk.clear()?;
        same("a file behind the device in use", disk.is_bound(), true)?;
        same("the file", s.read("disk/file")?, "content")?;
        s.umount("disk")?;
        disk.claim()?;
    }
    Ok(())
}

fn an_umount_that_propagates_frees_the_disk_of_all_copies(s: &Scratch) -> Verdict {
    requirement::ext4_on_loop()?;
    let disk = LoopDisk::with_ext4(s)?;
    s.tmpfs("parent")?;
    s.make("parent", MsFlags::MS_SHARED)?;
    (0..4).try_for_each(|n| s.bind("parent", &format!("peer{n}")))?;
    for _ in 0..5 {
        s.mount(disk.path(), "ext4", "parent/disk", "")?;
        same("mounts at a peer", s.mounts_at("peer3/disk")?, 1)?;
        s.umount("peer2/disk")?;
        disk.format()?;
    }
    Ok(())
}

fn a_detached_tree_that_is_closed_frees_its_disk(s: &Scratch) -> Verdict {
    requirement::ext4_on_loop()?;
    let disk = LoopDisk::with_ext4(s)?;
    for _ in 0..10 {
        mounted(s, &disk)?;
        let tree = s.clone_tree("disk")?;
        s.umount("disk")?;
        disk.format().refused_with(Errno::EBUSY)?;
        drop(tree);
        disk.format()?;
    }
    Ok(())
}

fn a_layers_disk_is_formatted_at_once_after_the_overlay_is_gone(s: &Scratch) -> Verdict {
    requirement::ext4_on_loop()?;
    requirement::overlayfs()?;
    let disk = LoopDisk::with_ext4(s)?;
    for _ in 0..5 {
        mounted(s, &disk)?;
        s.dir("disk/a")?;
        s.dir("disk/b")?;
        let layers = format!("lowerdir={}:{}", s.path("disk/a").display(), s.path("disk/b").display());
        s.mount("overlay", "overlay", "view", &layers)?;
        s.umount_lazily("disk")?;
        disk.format().refused_with(Errno::EBUSY)?;
        s.umount("view")?;
        disk.format()?;
    }
    Ok(())
}

/// The check that each storm on a disk makes when it has unmounted its file system.
fn a_storm_sees_that_its_disk_is_held(s: &Scratch) -> Verdict {
    requirement::ext4_on_loop()?;
    let disk = LoopDisk::with_ext4(s)?;
    let device = std::path::Path::new(disk.path());
    for _ in 0..10 {
        mounted(s, &disk)?;
        let tree = s.clone_tree("disk")?;
        s.umount("disk")?;
        let error = disk::claim(device).err().map(|error| format!("{error:#}"));
        let told = error.is_some_and(|error| error.contains("something holds the superblock"));
        same("the check tells of a held superblock", told, true)?;
        drop(tree);
        same("the check tells of a free disk", disk::claim(device).is_ok(), true)?;
    }
    Ok(())
}
