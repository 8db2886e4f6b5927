//! Each allocation of a mount call fails once, in its turn: the call is refused, and nothing has changed and nothing is kept.

use super::trials;
use anyhow::{Context, Result, ensure};
use mount_storms::call::{Verdict, same};
use mount_storms::fault::{Faults, Tried};
use mount_storms::idmap;
use mount_storms::loop_disk::LoopDisk;
use mount_storms::mountinfo::{self, MountLine};
use mount_storms::requirement;
use mount_storms::scratch::{Scratch, through};
use mount_storms::sys::{self, AT_EMPTY_PATH, AT_RECURSIVE, MOUNT_ATTR_RDONLY, MountAttr};
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use rustix::fd::OwnedFd;
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind,
    mount_bind_recursive, mount_change, mount_move, move_mount, open_tree, unmount,
};
use std::cell::RefCell;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

trials!("faults":
    a_clone_that_lacks_memory_leaves_nothing,
    a_recursive_clone_that_lacks_memory_leaves_nothing,
    attributes_that_lack_memory_change_no_mount,
    an_idmap_that_lacks_memory_changes_no_mount,
    a_tree_that_lacks_memory_is_attached_nowhere,
    a_move_that_lacks_memory_moves_nothing,
    a_bind_that_lacks_memory_reaches_no_peer,
    a_recursive_bind_that_lacks_memory_reaches_no_peer,
    peer_groups_that_lack_memory_are_not_made,
    a_copy_that_gets_no_peer_group_reaches_no_slave,
    an_overlay_that_lacks_memory_holds_no_layer,
    an_umount_that_lacks_memory_unmounts_nothing,
    a_lazy_umount_that_lacks_memory_unmounts_nothing,
    a_namespace_that_lacks_memory_holds_no_mount,
);

/// Gives mounts and peer groups their numbers (lib/idr.c). It tries a second time for memory, so that no single allocation makes it fail.
const GIVES_NUMBERS: &str = "ida_alloc_range";

/// More peer groups than there can be until a number takes memory: 62 in an entry of an xarray (BITS_PER_XA_VALUE, include/linux/xarray.h), or
/// IDA_BITMAP_BITS where there have been so many before.
const MOST_GROUPS: u32 = 1100;

/// How long the kernel may take to let go of a disk after its last umount: some of it is done by a worker.
const LET_GO_LIMIT: Duration = Duration::from_secs(5);

/// A disk whose every mount is seen in the end: as long as one is kept, the disk cannot be claimed. It is shared and has peers, a slave, and
/// mounts on it, so that whatever is mounted on it is mounted in several places.
struct Stage<'a> {
    s: &'a Scratch,
    disk: LoopDisk,
    faults: Faults,
}

impl<'a> Stage<'a> {
    fn set(s: &'a Scratch) -> Result<Stage<'a>> {
        let faults = Faults::of_this_thread()?;
        requirement::ext4_on_loop()?;
        let disk = LoopDisk::with_ext4(s)?;
        s.mount(disk.path(), "ext4", "disk", "")?;
        s.make("disk", MsFlags::MS_SHARED)?;
        for layer in ["disk/one", "disk/two"] {
            s.dir(layer)?;
            s.bind(layer, layer)?;
        }
        s.dir("disk/place")?;
        s.bind_recursive("disk", "peer")?;
        s.bind_recursive("disk", "slave")?;
        s.make("slave", MsFlags::MS_SLAVE)?;
        Ok(Stage { s, disk, faults })
    }

    /// A path for the kernel, made before anything fails.
    fn path(&self, name: &str) -> Result<CString> {
        Ok(CString::new(self.s.path(name).as_os_str().as_bytes())?)
    }

    /// Makes a call with each of its allocations failing in turn. A refusal must be ENOMEM and have changed nothing that mountinfo shows; what
    /// succeeds, with or without a failed allocation, is undone, and then everything is as it was.
    fn each<T>(&self, call: impl FnMut() -> rustix::io::Result<T>, undo: impl FnMut(T) -> Verdict) -> Verdict {
        self.each_checked(&[Errno::ENOMEM], call, undo, || Ok(()))
    }

    /// The same with other refusals; `refused` looks further after each.
    fn each_checked<T>(
        &self,
        refusals: &[Errno],
        call: impl FnMut() -> rustix::io::Result<T>,
        mut undo: impl FnMut(T) -> Verdict,
        mut refused: impl FnMut() -> Verdict,
    ) -> Verdict {
        let mut before = mountinfo::of_this_process()?;
        self.faults.each(call, |tried: Tried<T>| match tried.outcome {
            Ok(made) => {
                undo(made).context("undoing it")?;
                let now = mountinfo::of_this_process()?;
                same("the mount table after it was undone", &shape(&now), &shape(&before))?;
                before = now;
                Ok(())
            }
            Err(refusal) => {
                ensure!(refusals.contains(&refusal.errno), "{refusal}; expected one of {refusals:?}");
                same("the mount table", &mountinfo::of_this_process()?, &before)?;
                refused()
            }
        })?;
        Ok(())
    }

    /// Unmounts everything and claims the disk.
    fn nothing_is_kept(self) -> Verdict {
        self.s.make("", MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
        for place in ["slave", "peer", "disk"] {
            self.s.umount_lazily(place)?;
        }
        let start = Instant::now();
        loop {
            match self.disk.claim() {
                Ok(_) => return Ok(()),
                Err(refusal) if start.elapsed() > LET_GO_LIMIT => {
                    return Err(refusal).context("a mount of the disk is kept by nobody");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

/// The mount table without what another mount at the same place may differ in: its number, and its place in the list.
fn shape(table: &[MountLine]) -> Vec<MountLine> {
    let mut lines: Vec<MountLine> = table.iter().map(|line| MountLine { id: 0, parent: 0, ..line.clone() }).collect();
    lines.sort_by(|a, b| (&a.point, &a.root).cmp(&(&b.point, &b.root)));
    lines
}

fn a_clone_that_lacks_memory_leaves_nothing(s: &Scratch) -> Verdict {
    let stage = Stage::set(s)?;
    let disk = stage.path("disk")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    stage.each(|| open_tree(CWD, &disk, flags), closed)?;
    stage.nothing_is_kept()
}

fn a_recursive_clone_that_lacks_memory_leaves_nothing(s: &Scratch) -> Verdict {
    let stage = Stage::set(s)?;
    let disk = stage.path("disk")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    stage.each(|| open_tree(CWD, &disk, flags), closed)?;
    stage.nothing_is_kept()
}

fn closed(tree: OwnedFd) -> Verdict {
    drop(tree);
    Ok(())
}

fn attributes_that_lack_memory_change_no_mount(s: &Scratch) -> Verdict {
    let stage = Stage::set(s)?;
    let disk = stage.path("disk")?;
    let (set, clear) = (idmap::set(MOUNT_ATTR_RDONLY), idmap::clear(MOUNT_ATTR_RDONLY));
    let call = |attr: &MountAttr| refusal(sys::mount_setattr(CWD, &disk, AT_RECURSIVE, attr));
    stage.each(|| call(&set), |()| Ok(call(&clear)?))?;
    stage.nothing_is_kept()
}

fn an_idmap_that_lacks_memory_changes_no_mount(s: &Scratch) -> Verdict {
    requirement::idmapped_mounts()?;
    let stage = Stage::set(s)?;
    let users = idmap::shifted()?;
    let attr = idmap::idmap(&users);
    let disk = stage.path("disk")?;
    // An idmap stays for as long as its mount: after one that was set there is a new clone.
    let clone = || open_tree(CWD, &disk, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
    let tree = RefCell::new(clone()?);
    stage.each_checked(
        &[Errno::ENOMEM],
        || refusal(sys::mount_setattr(&*tree.borrow(), c"", AT_EMPTY_PATH, &attr)),
        |()| {
            same("the owner through an idmapped tree", owner_through(&tree.borrow())?, idmap::SHIFT)?;
            *tree.borrow_mut() = clone()?;
            Ok(())
        },
        || same("the owner through a tree that got no idmap", owner_through(&tree.borrow())?, 0),
    )?;
    drop(tree);
    stage.nothing_is_kept()
}

fn owner_through(tree: &OwnedFd) -> Result<u32> {
    Ok(fs::metadata(through(tree, ""))?.uid())
}

/// A call of [`sys`] as one of rustix's.
fn refusal<T>(result: std::io::Result<T>) -> rustix::io::Result<T> {
    result.map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))
}

fn a_tree_that_lacks_memory_is_attached_nowhere(s: &Scratch) -> Verdict {
    let stage = Stage::set(s)?;
    let place = stage.path("disk/place")?;
    let one = stage.path("disk/one")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    // The same tree until it is attached: a refusal leaves it as it was.
    let tree = RefCell::new(open_tree(CWD, &one, flags)?);
    let attach = || move_mount(&*tree.borrow(), c"", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    stage.each(attach, |()| {
        unmount(&place, UnmountFlags::DETACH)?;
        *tree.borrow_mut() = open_tree(CWD, &one, flags)?;
        Ok(())
    })?;
    drop(tree);
    stage.nothing_is_kept()
}

fn a_move_that_lacks_memory_moves_nothing(s: &Scratch) -> Verdict {
    let stage = Stage::set(s)?;
    // What is moved stands on a mount that is not shared, as mount(2) wants it.
    s.tmpfs("private")?;
    s.bind("disk/one", "private/from")?;
    let (from, to) = (stage.path("private/from")?, stage.path("disk/place")?);
    let moved = || mount_move(&from, &to);
    stage.each(moved, |()| {
        unmount(&to, UnmountFlags::DETACH)?;
        mount_bind(&stage.path("disk/one")?, &from)?;
        Ok(())
    })?;
    s.umount_lazily("private")?;
    stage.nothing_is_kept()
}

fn a_bind_that_lacks_memory_reaches_no_peer(s: &Scratch) -> Verdict {
    let stage = Stage::set(s)?;
    let (one, place) = (stage.path("disk/one")?, stage.path("disk/place")?);
    stage.each(|| mount_bind(&one, &place), |()| Ok(unmount(&place, UnmountFlags::DETACH)?))?;
    stage.nothing_is_kept()
}

fn a_recursive_bind_that_lacks_memory_reaches_no_peer(s: &Scratch) -> Verdict {
    let stage = Stage::set(s)?;
    s.tmpfs("tree")?;
    s.tmpfs("tree/sub")?;
    s.bind("disk/one", "tree/layer")?;
    let (tree, place) = (stage.path("tree")?, stage.path("disk/place")?);
    stage.each(|| mount_bind_recursive(&tree, &place), |()| Ok(unmount(&place, UnmountFlags::DETACH)?))?;
    s.umount_lazily("tree")?;
    stage.nothing_is_kept()
}

fn peer_groups_that_lack_memory_are_not_made(s: &Scratch) -> Verdict {
    let stage = Stage::set(s)?;
    s.make("slave", MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    let slave = stage.path("slave")?;
    let recursive = MountPropagationFlags::REC;
    stage.each(
        || mount_change(&slave, recursive | MountPropagationFlags::SHARED),
        |()| Ok(mount_change(&slave, recursive | MountPropagationFlags::PRIVATE)?),
    )?;
    stage.nothing_is_kept()
}

fn a_copy_that_gets_no_peer_group_reaches_no_slave(s: &Scratch) -> Verdict {
    let stage = Stage::set(s)?;
    // A shared slave: each mount that it receives is one too, with a peer group of its own.
    s.make("slave", MsFlags::MS_SHARED)?;
    s.tmpfs("groups")?;
    s.dir("groups/alone")?;
    let (one, place, alone) = (stage.path("disk/one")?, stage.path("disk/place")?, stage.path("groups/alone")?);
    let without_numbers = |place: &CString| stage.faults.below(GIVES_NUMBERS, || mount_bind(&one, place));
    for group in 0..MOST_GROUPS {
        if let Err(refused) = without_numbers(&place)? {
            same("the refusal", refused.errno, Errno::ENOMEM)?;
            let before = mountinfo::of_this_process()?;
            ensure!(without_numbers(&place)?.is_err(), "the call succeeded although it was refused before");
            same("the mount table", &mountinfo::of_this_process()?, &before)?;
            // It lacked the number of a group: a mount that needs none is made.
            without_numbers(&alone)??;
            s.umount_lazily("groups")?;
            return stage.nothing_is_kept();
        }
        unmount(&place, UnmountFlags::DETACH)?;
        let name = format!("groups/{group}");
        s.dir(&name)?;
        s.bind(&name, &name)?;
        s.make(&name, MsFlags::MS_SHARED)?;
    }
    anyhow::bail!("none of {MOST_GROUPS} numbers of peer groups took memory")
}

fn an_overlay_that_lacks_memory_holds_no_layer(s: &Scratch) -> Verdict {
    requirement::overlayfs()?;
    let stage = Stage::set(s)?;
    s.dir("view")?;
    // Without an upper directory: an overlay that has one does without much of what it lacks, and warns of it each time.
    let layers = [s.path("disk/one"), s.path("disk/two")].map(|path| path.display().to_string()).join(":");
    let (options, view) = (CString::new(format!("lowerdir={layers}"))?, stage.path("view")?);
    let call = || mount(c"overlay", &view, c"overlay", MountFlags::empty(), options.as_c_str());
    // clone_private_mount() says EINVAL whatever its copy of the layer's mount lacked.
    let refusals = [Errno::ENOMEM, Errno::EINVAL];
    stage.each_checked(&refusals, call, |()| Ok(unmount(&view, UnmountFlags::empty())?), || Ok(()))?;
    stage.nothing_is_kept()
}

fn an_umount_that_lacks_memory_unmounts_nothing(s: &Scratch) -> Verdict {
    unmounts(s, UnmountFlags::empty())
}

fn a_lazy_umount_that_lacks_memory_unmounts_nothing(s: &Scratch) -> Verdict {
    unmounts(s, UnmountFlags::DETACH)
}

fn unmounts(s: &Scratch, flags: UnmountFlags) -> Verdict {
    let stage = Stage::set(s)?;
    let (one, place) = (stage.path("disk/one")?, stage.path("disk/place")?);
    mount_bind(&one, &place)?;
    let mounted = || mountinfo::of_this_process().map(|table| table.len());
    let before = mounted()?;
    let call = || unmount(&place, flags);
    stage.each(call, |()| {
        ensure!(mounted()? < before, "the umount succeeded and nothing is gone");
        Ok(mount_bind(&one, &place)?)
    })?;
    stage.nothing_is_kept()
}

fn a_namespace_that_lacks_memory_holds_no_mount(s: &Scratch) -> Verdict {
    let stage = Stage::set(s)?;
    let home = fs::File::open("/proc/self/ns/mnt")?;
    let first = namespace()?;
    stage.each(
        || refusal(nix::sched::unshare(CloneFlags::CLONE_NEWNS).map_err(Into::into)),
        |()| {
            ensure!(namespace()? != first, "the call succeeded, and the namespace is the old one");
            Ok(nix::sched::setns(&home, CloneFlags::CLONE_NEWNS)?)
        },
    )?;
    same("the namespace", namespace()?, first)?;
    stage.nothing_is_kept()
}

fn namespace() -> Result<PathBuf> {
    Ok(fs::read_link("/proc/self/ns/mnt")?)
}
