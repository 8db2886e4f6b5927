//! statmount(2) and listmount(2): they say what mountinfo says, and by ids that are never used again.

use super::trials;
use anyhow::Result;
use mount_storms::call::{Call, Refused, Verdict, named, same};
use mount_storms::idmap::SHIFT;
use mount_storms::mountinfo;
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use mount_storms::sys::{self, LSMT_ROOT, StatMount};
use nix::errno::Errno;
use nix::mount::MsFlags;
use rustix::fs::{AtFlags, CWD, StatxFlags};

trials!("statmount":
    it_agrees_with_mountinfo_about_every_mount,
    listmount_follows_each_mount_and_umount,
    listmount_of_one_mount_shows_what_is_below_it,
    listmount_gives_the_same_in_small_steps,
    an_umounted_id_is_gone_for_good,
    a_moved_mount_keeps_its_id,
    it_shows_the_idmap_of_a_mount,
    it_shows_the_attributes_that_were_set,
);

/// STATX_MNT_ID_UNIQUE (include/uapi/linux/stat.h).
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

/// The unique id of the mount at a path.
pub(super) fn unique_id(s: &Scratch, name: &str) -> Call<u64> {
    let mask = StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE);
    named(format!("statx({name})"), rustix::fs::statx(CWD, s.path(name), AtFlags::empty(), mask)).map(|s| s.stx_mnt_id)
}

fn statmount(id: u64, mask: u64) -> Call<Box<StatMount>> {
    named(format!("statmount({id}, {mask:#x})"), sys::statmount(id, mask))
}

/// Every id below `id`, read in steps of `step`.
fn list_in_steps(id: u64, step: usize) -> Result<Vec<u64>> {
    let mut all: Vec<u64> = Vec::new();
    let mut ids = vec![0; step];
    loop {
        let last = all.last().copied().unwrap_or(0);
        let count = named(format!("listmount({id}, {last})"), sys::listmount(id, last, &mut ids))?;
        all.extend(&ids[..count]);
        if count < step {
            return Ok(all);
        }
    }
}

fn list(id: u64) -> Result<Vec<u64>> {
    list_in_steps(id, 4096)
}

/// A mount table with shared, slave, idmapped, bound and stacked mounts in it.
fn varied_mounts(s: &Scratch) -> Verdict {
    requirement::statmount()?;
    s.tmpfs("disk")?;
    s.dir("disk/a dir")?;
    s.bind("disk/a dir", "bound")?;
    s.tmpfs("shared")?;
    s.make("shared", MsFlags::MS_SHARED)?;
    s.bind("shared", "slave")?;
    s.make("slave", MsFlags::MS_SLAVE)?;
    s.tmpfs("shared/sub")?;
    s.tmpfs("disk")?;
    s.bind_idmapped("shared", "idmapped")
}

/// What both interfaces say of a mount: ids, place, root, type, peer group, master.
type Seen = (u32, u32, String, String, String, u64, u64);

fn seen_by_statmount(id: u64) -> Result<Seen> {
    let mask = sys::STATMOUNT_MNT_BASIC | sys::STATMOUNT_MNT_ROOT | sys::STATMOUNT_MNT_POINT | sys::STATMOUNT_FS_TYPE;
    let mount = statmount(id, mask)?;
    same("mask of the answer", mount.mask, mask)?;
    same("id of the answer", mount.mnt_id, id)?;
    let [point, root, fs_type] =
        [mount.mnt_point, mount.mnt_root, mount.fs_type].map(|text| mount.string(text).to_owned());
    let ids = (mount.mnt_id_old, mount.mnt_parent_id_old);
    Ok((ids.0, ids.1, point, root, fs_type, mount.mnt_peer_group, mount.mnt_master))
}

fn it_agrees_with_mountinfo_about_every_mount(s: &Scratch) -> Verdict {
    varied_mounts(s)?;
    let mut by_statmount: Vec<Seen> = list(LSMT_ROOT)?.into_iter().map(seen_by_statmount).collect::<Result<_>>()?;
    let lines = mountinfo::of_this_process()?.into_iter();
    let mut by_mountinfo: Vec<Seen> = lines
        .map(|m| (m.id, m.parent, m.point, m.root, m.fs_type, m.shared.unwrap_or(0), m.master.unwrap_or(0)))
        .collect();
    by_statmount.sort();
    by_mountinfo.sort();
    same("mounts by statmount", by_statmount, by_mountinfo)
}

fn listmount_follows_each_mount_and_umount(s: &Scratch) -> Verdict {
    varied_mounts(s)?;
    let before = list(LSMT_ROOT)?;
    s.tmpfs("new")?;
    let id = unique_id(s, "new")?;
    let mut during = before.clone();
    during.push(id);
    same("ids after mount", list(LSMT_ROOT)?, during)?;
    s.umount("new")?;
    same("ids after umount", list(LSMT_ROOT)?, before)
}

fn listmount_of_one_mount_shows_what_is_below_it(s: &Scratch) -> Verdict {
    requirement::statmount()?;
    s.tmpfs("disk")?;
    s.tmpfs("disk/sub")?;
    s.tmpfs("disk/sub/deep")?;
    s.tmpfs("beside")?;
    let below = [unique_id(s, "disk/sub")?, unique_id(s, "disk/sub/deep")?];
    same("ids below the disk", list(unique_id(s, "disk")?)?, below)
}

fn listmount_gives_the_same_in_small_steps(s: &Scratch) -> Verdict {
    varied_mounts(s)?;
    let whole = list(LSMT_ROOT)?;
    same("ids in ascending order", whole.is_sorted(), true)?;
    same("ids in steps of one", list_in_steps(LSMT_ROOT, 1)?, whole.clone())?;
    same("ids in steps of three", list_in_steps(LSMT_ROOT, 3)?, whole)
}

fn an_umounted_id_is_gone_for_good(s: &Scratch) -> Verdict {
    requirement::statmount()?;
    let mut last = 0;
    for _ in 0..50 {
        s.tmpfs("disk")?;
        let id = unique_id(s, "disk")?;
        anyhow::ensure!(id > last, "id {id} came after {last}");
        s.umount("disk")?;
        statmount(id, sys::STATMOUNT_MNT_BASIC).refused_with(Errno::ENOENT)?;
        last = id;
    }
    Ok(())
}

fn a_moved_mount_keeps_its_id(s: &Scratch) -> Verdict {
    requirement::statmount()?;
    s.tmpfs("disk")?;
    let id = unique_id(s, "disk")?;
    s.move_mount("disk", "place")?;
    same("id at the new place", unique_id(s, "place")?, id)?;
    let mount = statmount(id, sys::STATMOUNT_MNT_POINT)?;
    same("its mount point", mount.string(mount.mnt_point), s.path("place").to_str().unwrap_or_default())
}

fn it_shows_the_idmap_of_a_mount(s: &Scratch) -> Verdict {
    requirement::detached_trees()?;
    varied_mounts(s)?;
    let idmapped = statmount(unique_id(s, "idmapped")?, sys::STATMOUNT_MNT_UIDMAP)?;
    same("extents of the idmap", idmapped.mnt_uidmap_num, 1)?;
    same("the extent", idmapped.string(idmapped.mnt_uidmap), format!("0 {SHIFT} 65536"))?;
    let plain = statmount(unique_id(s, "shared")?, sys::STATMOUNT_MNT_UIDMAP)?;
    same("an idmap of a plain mount", plain.mask & sys::STATMOUNT_MNT_UIDMAP, 0)
}

fn it_shows_the_attributes_that_were_set(s: &Scratch) -> Verdict {
    requirement::statmount()?;
    s.tmpfs("disk")?;
    let attributes = || -> Result<u64> { Ok(statmount(unique_id(s, "disk")?, sys::STATMOUNT_MNT_BASIC)?.mnt_attr) };
    same("readonly before", attributes()? & sys::MOUNT_ATTR_RDONLY, 0)?;
    s.setattr("disk", 0, &mount_storms::idmap::set(sys::MOUNT_ATTR_RDONLY))?;
    same("readonly after", attributes()? & sys::MOUNT_ATTR_RDONLY, sys::MOUNT_ATTR_RDONLY)?;
    same("mountinfo's options", s.mount_at("disk")?.options.starts_with("ro"), true)
}
