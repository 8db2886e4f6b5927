//! The kernel's side of the model: the same operations as calls, and what mountinfo then shows.

use crate::call::{Call, named};
use crate::model::{DIRS, Kind, Model, Op, Place, Raw, View};
use crate::mountinfo;
use crate::scratch::Scratch;
use crate::second_namespace::SecondNamespace;
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags};
use rustix::mount::{OpenTreeFlags, UnmountFlags};
use std::path::PathBuf;

/// Mounts above which a sequence ends: peers that are bound into each other double, and a longer list proves no more.
const ENOUGH: usize = 60;

/// A world in the kernel, that ends with this value.
#[derive(Debug)]
pub struct Kernel<'a> {
    scratch: &'a Scratch,
    second: Option<SecondNamespace>,
    held: Vec<OwnedFd>,
}

/// Does every operation in both; they must answer alike and then show the same trees.
///
/// # Errors
/// The first difference.
pub fn alike(kernel: &mut Kernel<'_>, mut model: Model, ops: &[(usize, Op)]) -> Result<()> {
    for (namespace, op) in ops {
        let mut next = model.clone();
        let Some(expected) = next.apply(*namespace, op) else { continue };
        if next.count() > ENOUGH {
            continue;
        }
        let seen = kernel.apply(*namespace, op)?;
        ensure!(seen == expected, "{op:?} gave {seen:?}, the model says {expected:?}; before it\n{}", model.view());
        let shown = View::of(&kernel.raws()?);
        ensure!(
            shown == next.view(),
            "{op:?}: the kernel shows\n{shown}the model\n{}before it\n{}",
            next.view(),
            model.view()
        );
        model = next;
    }
    Ok(())
}

impl<'a> Kernel<'a> {
    /// A new world: a private mount of a new file system in the scratch.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn new(scratch: &'a Scratch) -> Result<Kernel<'a>> {
        let kernel = Kernel { scratch, second: None, held: Vec::new() };
        scratch.dir("world")?;
        kernel.mount_new(&Place(Vec::new())).context("cannot mount the world")?;
        Ok(kernel)
    }

    fn path(&self, place: &Place) -> PathBuf {
        let (world, inside) = (self.scratch.path("world"), place.path());
        if inside.is_empty() { world } else { world.join(inside) }
    }

    /// What mountinfo shows of the world, in all namespaces.
    ///
    /// # Errors
    /// When a mount has no parent, or mountinfo cannot be read.
    pub fn raws(&self) -> Result<Vec<Raw>> {
        let at = self.scratch.path("world").to_string_lossy().into_owned();
        let mut raws = Raw::of_mountinfo(0, &at, &mountinfo::of_this_process()?)?;
        if let Some(second) = &self.second {
            raws.extend(Raw::of_mountinfo(1, &at, &second.inside(mountinfo::of_this_process)?)?);
        }
        Ok(raws)
    }

    /// Does an operation in a namespace; in the first where there is no such one.
    ///
    /// # Errors
    /// When a namespace cannot be made or entered. What the kernel answers is the value.
    pub fn apply(&mut self, namespace: usize, op: &Op) -> Result<Result<(), Errno>> {
        match op {
            Op::Copy => self.second = Some(SecondNamespace::copy()?),
            Op::Forget => self.second = None,
            Op::Release => self.held.clear(),
            Op::LosePrivileges => {
                self.held.clear();
                self.scratch.become_less_privileged()?;
            }
            _ => {
                let done = match self.second.as_ref().filter(|_| namespace > 0) {
                    Some(second) => second.inside(|| Ok(self.call(op)))?,
                    None => self.call(op),
                };
                return Ok(done.map(|held| self.held.extend(held)).map_err(|refusal| refusal.errno));
            }
        }
        Ok(Ok(()))
    }

    /// Does an operation as one of many threads, and a lazy umount instead where there are more than `crowd` mounts. Nothing is held.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn attempt(&self, op: &Op, crowd: usize) -> Result<()> {
        match op {
            op if may_touch_the_world_itself(op) => {}
            Op::New(at) | Op::Bind { to: at, .. } if mountinfo::of_this_process()?.len() > crowd => {
                self.umount(at, UnmountFlags::DETACH)?;
            }
            op => drop(self.call(op)?),
        }
        Ok(())
    }

    /// Returns what is to be held.
    fn call(&self, op: &Op) -> Call<Option<OwnedFd>> {
        match op {
            Op::New(at) => self.mount_new(at)?,
            Op::Bind { from, to, recursive, detached: false } => self.bind(from, to, *recursive)?,
            Op::Bind { from, to, recursive, detached: true } => {
                self.attach(self.clone_tree(from, *recursive)?, to, MoveMountFlags::empty())?;
            }
            Op::BindBeneath { from, to } => {
                self.attach(self.clone_tree(from, false)?, to, MoveMountFlags::MOVE_MOUNT_BENEATH)?;
            }
            Op::Move { from, to, beneath } => self.move_mount(from, to, *beneath)?,
            Op::Umount(at) => self.umount(at, UnmountFlags::empty())?,
            Op::Detach(at) => self.umount(at, UnmountFlags::DETACH)?,
            Op::Make { at, kind, recursive } => self.make(at, *kind, *recursive)?,
            Op::Hold(at) => {
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                return named("open(O_PATH)", rustix::fs::open(self.path(at), flags, Mode::empty())).map(Some);
            }
            Op::Release | Op::Copy | Op::Forget | Op::LosePrivileges => {}
        }
        Ok(None)
    }

    /// The directories are made before the file system is attached: afterwards its own copies may hide it.
    fn mount_new(&self, at: &Place) -> Call {
        let context = named("fsopen(tmpfs)", mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC))?;
        named("fsconfig(CREATE)", mount::fsconfig_create(&context))?;
        let tree = mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
        let tree = named("fsmount", tree)?;
        for dir in DIRS.iter().filter_map(|dir| dir.strip_prefix('/')) {
            named(format!("mkdirat({dir})"), rustix::fs::mkdirat(&tree, dir, Mode::RWXU))?;
        }
        self.attach(tree, at, MoveMountFlags::empty())
    }

    fn clone_tree(&self, from: &Place, recursive: bool) -> Call<OwnedFd> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
        named("open_tree", mount::open_tree(CWD, self.path(from), flags))
    }

    fn attach(&self, tree: impl AsFd, to: &Place, flags: MoveMountFlags) -> Call {
        let flags = flags | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        named("move_mount(tree)", mount::move_mount(tree, "", CWD, self.path(to), flags))
    }

    fn bind(&self, from: &Place, to: &Place, recursive: bool) -> Call {
        let (from, to) = (self.path(from), self.path(to));
        let done = if recursive { mount::mount_bind_recursive(from, to) } else { mount::mount_bind(from, to) };
        named("mount(MS_BIND)", done)
    }

    fn move_mount(&self, from: &Place, to: &Place, beneath: bool) -> Call {
        let flags = if beneath { MoveMountFlags::MOVE_MOUNT_BENEATH } else { MoveMountFlags::empty() };
        named("move_mount", mount::move_mount(CWD, self.path(from), CWD, self.path(to), flags))
    }

    fn umount(&self, at: &Place, flags: UnmountFlags) -> Call {
        named("umount2", mount::unmount(self.path(at), flags))
    }

    fn make(&self, at: &Place, kind: Kind, recursive: bool) -> Call {
        let mut flags = match kind {
            Kind::Shared => MountPropagationFlags::SHARED,
            Kind::Private => MountPropagationFlags::PRIVATE,
            Kind::Slave => MountPropagationFlags::DOWNSTREAM,
            Kind::Unbindable => MountPropagationFlags::UNBINDABLE,
        };
        flags.set(MountPropagationFlags::REC, recursive);
        named("mount(propagation)", mount::mount_change(self.path(at), flags))
    }
}

/// Whether it may umount or move the root of the world, or put something beneath it. In one thread the model knows and leaves it out; many
/// threads leave out all that could.
fn may_touch_the_world_itself(op: &Op) -> bool {
    match op {
        Op::New(at) | Op::Umount(at) | Op::Detach(at) | Op::Bind { to: at, .. } | Op::BindBeneath { to: at, .. } => {
            at.path().is_empty()
        }
        Op::Move { from, to, .. } => from.path().is_empty() || to.path().is_empty(),
        _ => false,
    }
}

impl Drop for Kernel<'_> {
    /// Takes everything away: what stands on the world's root, and the world.
    fn drop(&mut self) {
        self.held.clear();
        self.second = None;
        while mount::unmount(self.scratch.path("world"), UnmountFlags::DETACH).is_ok() {}
    }
}
