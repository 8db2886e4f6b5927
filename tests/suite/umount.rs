//! umount2(2): busy mounts, lazy ones, expiring ones, and when the file system lets go of its device.

use super::trials;
use mount_storms::call::{Refused, Verdict, same};
use mount_storms::loop_disk::LoopDisk;
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use std::env::set_current_dir;
use std::io::Write;

trials!("umount":
    an_open_file_refuses_umount,
    a_working_directory_refuses_umount,
    a_submount_refuses_umount,
    a_busy_copy_in_a_peer_refuses_umount,
    a_refused_umount_leaves_the_mount_usable,
    a_lazy_umount_lets_open_files_work,
    a_lazy_umount_takes_everything_below,
    a_lazy_umount_removes_busy_copies_in_peers_too,
    a_working_directory_outlives_a_lazy_umount,
    an_umount_takes_the_topmost_of_a_stack,
    expiry_needs_two_calls,
    use_between_two_calls_puts_expiry_off,
    expiry_and_laziness_exclude_each_other,
    expiry_is_refused_while_something_is_mounted_inside,
    a_held_directory_refuses_umount_by_any_of_its_mounts,
    unknown_flags_are_refused,
    a_directory_that_is_no_mount_is_refused,
    a_symlink_is_not_followed_when_told_so,
    a_disk_is_free_when_its_umount_returns,
    a_disk_is_free_when_its_last_mount_is_gone_and_not_before,
    a_lazily_umounted_disk_is_free_when_its_last_file_is_closed,
);

fn disk_with_file(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    Ok(s.write("disk/file", "content")?)
}

fn an_open_file_refuses_umount(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    let file = s.open_writer("disk/file")?;
    s.umount("disk").refused_with(Errno::EBUSY)?;
    drop(file);
    s.umount("disk")?;
    s.mounted_are(&[])
}

fn a_working_directory_refuses_umount(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    set_current_dir(s.path("disk"))?;
    s.umount("disk").refused_with(Errno::EBUSY)?;
    set_current_dir("/")?;
    Ok(s.umount("disk")?)
}

fn a_submount_refuses_umount(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    s.tmpfs("disk/sub")?;
    s.umount("disk").refused_with(Errno::EBUSY)?;
    s.umount("disk/sub")?;
    Ok(s.umount("disk")?)
}

fn a_busy_copy_in_a_peer_refuses_umount(s: &Scratch) -> Verdict {
    s.tmpfs("parent")?;
    s.make("parent", MsFlags::MS_SHARED)?;
    s.bind("parent", "peer")?;
    s.tmpfs("parent/disk")?;
    let file = s.open_writer("peer/disk/file")?;
    s.umount("parent/disk").refused_with(Errno::EBUSY)?;
    s.mounted_are(&["parent", "peer", "parent/disk", "peer/disk"])?;
    drop(file);
    s.umount("parent/disk")?;
    s.mounted_are(&["parent", "peer"])
}

fn a_refused_umount_leaves_the_mount_usable(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    let _file = s.open_writer("disk/file")?;
    let before = s.mounts()?;
    for _ in 0..20 {
        s.umount("disk").refused_with(Errno::EBUSY)?;
    }
    same("the mount table", s.mounts()?, before)?;
    same("the file", s.read("disk/file")?, "content")
}

fn a_lazy_umount_lets_open_files_work(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    let mut writer = s.open_writer("disk/file")?;
    let reader = std::fs::File::open(s.path("disk/file"))?;
    s.umount_lazily("disk")?;
    s.mounted_are(&[])?;
    writer.write_all(b"written after")?;
    same("the file", std::io::read_to_string(reader)?, "written after")
}

fn a_lazy_umount_takes_everything_below(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    s.tmpfs("disk/sub")?;
    s.tmpfs("disk/sub/deep")?;
    let _file = s.open_writer("disk/sub/deep/file")?;
    s.umount_lazily("disk")?;
    s.mounted_are(&[])
}

fn a_lazy_umount_removes_busy_copies_in_peers_too(s: &Scratch) -> Verdict {
    s.tmpfs("parent")?;
    s.make("parent", MsFlags::MS_SHARED)?;
    s.bind("parent", "peer")?;
    s.tmpfs("parent/disk")?;
    let mut file = s.open_writer("peer/disk/file")?;
    s.umount_lazily("parent/disk")?;
    s.mounted_are(&["parent", "peer"])?;
    Ok(file.write_all(b"still writable")?)
}

fn a_working_directory_outlives_a_lazy_umount(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    s.write("secret", "beside the disk")?;
    set_current_dir(s.path("disk"))?;
    s.umount_lazily("disk")?;
    same("a relative file", std::fs::read_to_string("file")?, "content")?;
    std::fs::write("new", "and a new one")?;
    same("what .. leads to holds the disk's file", std::fs::exists("../file")?, true)?;
    same("what .. leads to holds the disk's sibling", std::fs::exists("../secret")?, false)
}

fn an_umount_takes_the_topmost_of_a_stack(s: &Scratch) -> Verdict {
    for who in ["first", "second", "third"] {
        s.tmpfs("place")?;
        s.write("place/who", who)?;
    }
    s.umount("place")?;
    same("what is seen after one umount", s.read("place/who")?, "second")?;
    s.umount("place")?;
    same("what is seen after two", s.read("place/who")?, "first")?;
    same("mounts left", s.mounts_at("place")?, 1)
}

fn expiry_needs_two_calls(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    s.umount_with("disk", MntFlags::MNT_EXPIRE).refused_with(Errno::EAGAIN)?;
    s.umount_with("disk", MntFlags::MNT_EXPIRE)?;
    s.mounted_are(&[])
}

fn use_between_two_calls_puts_expiry_off(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    s.umount_with("disk", MntFlags::MNT_EXPIRE).refused_with(Errno::EAGAIN)?;
    s.read("disk/file")?;
    s.umount_with("disk", MntFlags::MNT_EXPIRE).refused_with(Errno::EAGAIN)?;
    let file = s.open_writer("disk/file")?;
    s.umount_with("disk", MntFlags::MNT_EXPIRE).refused_with(Errno::EBUSY)?;
    drop(file);
    s.mounted_are(&["disk"])
}

fn expiry_and_laziness_exclude_each_other(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    s.umount_with("disk", MntFlags::MNT_EXPIRE | MntFlags::MNT_DETACH).refused_with(Errno::EINVAL)
}

fn a_directory_that_is_no_mount_is_refused(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    s.dir("disk/plain")?;
    s.umount("disk/plain").refused_with(Errno::EINVAL)?;
    s.umount_lazily("disk/plain").refused_with(Errno::EINVAL)?;
    s.mounted_are(&["disk"])
}

fn a_symlink_is_not_followed_when_told_so(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    std::os::unix::fs::symlink(s.path("disk"), s.path("link"))?;
    s.umount_with("link", MntFlags::UMOUNT_NOFOLLOW).refused_with(Errno::EINVAL)?;
    s.umount("link")?;
    s.mounted_are(&[])
}

fn expiry_is_refused_while_something_is_mounted_inside(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    s.tmpfs("disk/sub")?;
    s.umount_with("disk", MntFlags::MNT_EXPIRE).refused_with(Errno::EBUSY)?;
    s.umount("disk/sub")?;
    s.umount_with("disk", MntFlags::MNT_EXPIRE).refused_with(Errno::EAGAIN)?;
    s.umount_with("disk", MntFlags::MNT_EXPIRE)?;
    s.mounted_are(&[])
}

fn a_held_directory_refuses_umount_by_any_of_its_mounts(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    s.bind("disk", "view")?;
    let held = std::fs::File::open(s.path("view"))?;
    s.umount("disk")?;
    s.umount("view").refused_with(Errno::EBUSY)?;
    drop(held);
    Ok(s.umount("view")?)
}

fn unknown_flags_are_refused(s: &Scratch) -> Verdict {
    disk_with_file(s)?;
    s.umount_with("disk", MntFlags::from_bits_retain(0x10)).refused_with(Errno::EINVAL)?;
    s.mounted_are(&["disk"])
}

fn a_disk_is_free_when_its_umount_returns(s: &Scratch) -> Verdict {
    requirement::ext4_on_loop()?;
    let disk = LoopDisk::with_ext4(s)?;
    for _ in 0..20 {
        s.mount(disk.path(), "ext4", "disk", "")?;
        s.write("disk/file", "content")?;
        disk.claim().refused_with(Errno::EBUSY)?;
        s.umount("disk")?;
        disk.claim()?;
    }
    Ok(())
}

fn a_disk_is_free_when_its_last_mount_is_gone_and_not_before(s: &Scratch) -> Verdict {
    requirement::ext4_on_loop()?;
    let disk = LoopDisk::with_ext4(s)?;
    s.mount(disk.path(), "ext4", "disk", "")?;
    s.bind("disk", "view")?;
    let tree = s.clone_tree("disk")?;
    s.umount("disk")?;
    s.umount("view")?;
    disk.claim().refused_with(Errno::EBUSY)?;
    drop(tree);
    disk.claim()?;
    Ok(())
}

fn a_lazily_umounted_disk_is_free_when_its_last_file_is_closed(s: &Scratch) -> Verdict {
    requirement::ext4_on_loop()?;
    let disk = LoopDisk::with_ext4(s)?;
    for _ in 0..20 {
        s.mount(disk.path(), "ext4", "disk", "")?;
        let file = s.open_writer("disk/file")?;
        s.umount_lazily("disk")?;
        disk.claim().refused_with(Errno::EBUSY)?;
        drop(file);
        disk.claim()?;
    }
    Ok(())
}
