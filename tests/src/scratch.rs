//! A trial's scratch: a mount namespace of its own, an empty tmpfs in it, and the calls a trial makes there by short names.
//!
//! Every path that a method takes is relative to the scratch's root. Mount points are made when they do not exist.

use crate::call::{Call, Verdict, named};
use crate::mountinfo::{self, MountLine};
use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the scratch's tmpfs is mounted: it covers the directory in the trial's own namespace only.
const ROOT: &str = "/tmp";

/// A trial's scratch. Its mounts end with the trial's process, whose namespace they are in.
#[derive(Debug)]
pub struct Scratch {
    root: PathBuf,
}

impl Scratch {
    /// Gives this process its own mount namespace, cuts it off from every other, and mounts an empty tmpfs.
    ///
    /// # Errors
    /// What the kernel refuses to a process without CAP_SYS_ADMIN, or to one with threads.
    pub fn enter() -> Result<Scratch> {
        named("unshare(CLONE_NEWNS)", nix::sched::unshare(CloneFlags::CLONE_NEWNS))?;
        let scratch = Scratch { root: PathBuf::from(ROOT) };
        fs::create_dir_all(ROOT).context("cannot make the scratch's mount point")?;
        make(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
        scratch.tmpfs("")?;
        Ok(scratch)
    }

    /// The absolute path of `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.root.clone() } else { self.root.join(name) }
    }

    /// Makes a directory, and those above it.
    ///
    /// # Errors
    /// As mkdir(2).
    pub fn dir(&self, name: &str) -> Call<PathBuf> {
        let path = self.path(name);
        named(format!("mkdir({})", path.display()), fs::create_dir_all(&path)).map(|()| path)
    }

    /// Writes a file.
    ///
    /// # Errors
    /// As open(2) and write(2).
    pub fn write(&self, name: &str, content: &str) -> Call {
        named(format!("write({name})"), fs::write(self.path(name), content))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// As open(2) and read(2).
    pub fn read(&self, name: &str) -> Call<String> {
        named(format!("read({name})"), fs::read_to_string(self.path(name)))
    }

    /// Whether a name can be looked up.
    pub fn exists(&self, name: &str) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    /// Opens a file for writing and keeps it open.
    ///
    /// # Errors
    /// As open(2).
    pub fn open_writer(&self, name: &str) -> Call<File> {
        named(
            format!("open({name}, O_WRONLY)"),
            File::options().write(true).create(true).truncate(false).open(self.path(name)),
        )
    }

    /// The owner's uid, as stat(2) shows it at this path.
    ///
    /// # Errors
    /// As stat(2).
    pub fn owner(&self, name: &str) -> Call<u32> {
        named(format!("stat({name})"), self.path(name).symlink_metadata()).map(|meta| meta.uid())
    }

    /// Mounts an empty tmpfs.
    ///
    /// # Errors
    /// As mount(2).
    pub fn tmpfs(&self, name: &str) -> Call {
        self.mount("tmpfs", "tmpfs", name, "mode=0777")
    }

    /// Mounts a file system of any type. `source` is taken as it is.
    ///
    /// # Errors
    /// As mount(2).
    pub fn mount(&self, source: &str, fs_type: &str, name: &str, options: &str) -> Call {
        let at = self.dir(name)?;
        let call = format!("mount({source}, {}, {fs_type}, {options})", at.display());
        named(call, nix::mount::mount(Some(source), &at, Some(fs_type), MsFlags::empty(), Some(options)))
    }

    /// Binds one directory to another place.
    ///
    /// # Errors
    /// As mount(2) with MS_BIND.
    pub fn bind(&self, from: &str, to: &str) -> Call {
        self.bind_with(from, to, MsFlags::MS_BIND)
    }

    /// Binds one directory with all mounts below it to another place.
    ///
    /// # Errors
    /// As mount(2) with MS_BIND | MS_REC.
    pub fn bind_recursive(&self, from: &str, to: &str) -> Call {
        self.bind_with(from, to, MsFlags::MS_BIND | MsFlags::MS_REC)
    }

    fn bind_with(&self, from: &str, to: &str, flags: MsFlags) -> Call {
        let (from, to) = (self.path(from), self.dir(to)?);
        let call = format!("mount({}, {}, {flags:?})", from.display(), to.display());
        named(call, nix::mount::mount(Some(&from), &to, None::<&str>, flags, None::<&str>))
    }

    /// Changes a mount or its propagation: MS_SHARED, MS_PRIVATE, MS_SLAVE, MS_UNBINDABLE, or MS_REMOUNT with others.
    ///
    /// # Errors
    /// As mount(2).
    pub fn make(&self, name: &str, flags: MsFlags) -> Call {
        make(&self.path(name), flags)
    }

    /// Unmounts what is mounted at a path: umount2(path, 0).
    ///
    /// # Errors
    /// As umount2(2).
    pub fn umount(&self, name: &str) -> Call {
        self.umount_with(name, MntFlags::empty())
    }

    /// Unmounts lazily: umount2(path, MNT_DETACH).
    ///
    /// # Errors
    /// As umount2(2).
    pub fn umount_lazily(&self, name: &str) -> Call {
        self.umount_with(name, MntFlags::MNT_DETACH)
    }

    /// Unmounts with flags.
    ///
    /// # Errors
    /// As umount2(2).
    pub fn umount_with(&self, name: &str, flags: MntFlags) -> Call {
        let path = self.path(name);
        named(format!("umount2({}, {flags:?})", path.display()), nix::mount::umount2(&path, flags))
    }

    /// A detached copy of the mount at a path: open_tree(OPEN_TREE_CLONE).
    ///
    /// # Errors
    /// As open_tree(2).
    pub fn clone_tree(&self, name: &str) -> Call<OwnedFd> {
        self.open_tree(name, OpenTreeFlags::OPEN_TREE_CLONE)
    }

    /// A detached copy of a mount and of all mounts below it.
    ///
    /// # Errors
    /// As open_tree(2).
    pub fn clone_tree_recursively(&self, name: &str) -> Call<OwnedFd> {
        self.open_tree(name, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE)
    }

    /// open_tree(2) with these flags and OPEN_TREE_CLOEXEC.
    ///
    /// # Errors
    /// As open_tree(2).
    pub fn open_tree(&self, name: &str, flags: OpenTreeFlags) -> Call<OwnedFd> {
        let path = self.path(name);
        let call = format!("open_tree({}, {flags:?})", path.display());
        named(call, rustix::mount::open_tree(CWD, &path, flags | OpenTreeFlags::OPEN_TREE_CLOEXEC))
    }

    /// Attaches a detached tree at a path.
    ///
    /// # Errors
    /// As move_mount(2).
    pub fn attach(&self, tree: impl AsFd, to: &str) -> Call {
        self.attach_with(tree, to, MoveMountFlags::empty())
    }

    /// Attaches a detached tree beneath the mount at a path.
    ///
    /// # Errors
    /// As move_mount(2) with MOVE_MOUNT_BENEATH.
    pub fn attach_beneath(&self, tree: impl AsFd, to: &str) -> Call {
        self.attach_with(tree, to, MoveMountFlags::MOVE_MOUNT_BENEATH)
    }

    fn attach_with(&self, tree: impl AsFd, to: &str, flags: MoveMountFlags) -> Call {
        let to = self.dir(to)?;
        let call = format!("move_mount(tree, {}, {flags:?})", to.display());
        named(call, rustix::mount::move_mount(tree, "", CWD, &to, flags | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH))
    }

    /// Moves an attached mount.
    ///
    /// # Errors
    /// As move_mount(2).
    pub fn move_mount(&self, from: &str, to: &str) -> Call {
        let (from, to) = (self.path(from), self.dir(to)?);
        let call = format!("move_mount({}, {})", from.display(), to.display());
        named(call, rustix::mount::move_mount(CWD, &from, CWD, &to, MoveMountFlags::empty()))
    }

    /// Everything mounted below the scratch's root, as mountinfo shows it, with mount points relative to the root.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn mounts(&self) -> Result<Vec<MountLine>> {
        let all = mountinfo::of_this_process()?;
        Ok(all.into_iter().filter_map(|line| line.below(&self.root)).collect())
    }

    /// How many mounts stand at a path, one on top of the other.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn mounts_at(&self, name: &str) -> Result<usize> {
        Ok(self.mounts()?.iter().filter(|mount| mount.point == name).count())
    }

    /// The topmost mount at a path.
    ///
    /// # Errors
    /// When nothing is mounted there.
    pub fn mount_at(&self, name: &str) -> Result<MountLine> {
        let found = self.mounts()?.into_iter().rfind(|mount| mount.point == name);
        found.with_context(|| format!("mountinfo shows nothing at {name}"))
    }

    /// Holds if exactly `expected` is what mountinfo shows below the root, in any order.
    ///
    /// # Errors
    /// The difference.
    #[track_caller]
    pub fn mounted_are(&self, expected: &[&str]) -> Verdict {
        let mut seen: Vec<String> = self.mounts()?.into_iter().map(|mount| mount.point).collect();
        let mut expected = expected.to_vec();
        seen.sort();
        expected.sort_unstable();
        crate::call::same("mount points in mountinfo", seen, expected)
    }
}

/// The path of a file inside a tree that may be attached nowhere.
pub fn through(tree: impl AsFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", tree.as_fd().as_raw_fd()))
}

fn make(path: &Path, flags: MsFlags) -> Call {
    let call = format!("mount({}, {flags:?})", path.display());
    named(call, nix::mount::mount(None::<&str>, path, None::<&str>, flags, None::<&str>))
}
