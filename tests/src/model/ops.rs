//! The operations, and which of them the kernel refuses.

use super::attach::Copy;
use super::{Dir, Id, Model, Mount};
use nix::errno::Errno;
use std::fmt;

/// A path below the root of a world, of the names "a" and "b".
#[derive(Clone, PartialEq, Eq)]
pub struct Place(pub Vec<char>);

impl Place {
    pub(super) fn names(&self) -> impl Iterator<Item = char> + '_ {
        self.0.iter().copied()
    }

    /// The path, relative to the world's root; empty for the root itself.
    pub fn path(&self) -> String {
        self.names().map(String::from).collect::<Vec<_>>().join("/")
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.path())
    }
}

/// A type of propagation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as sharedsubtree.rst names them")]
pub enum Kind {
    Shared,
    Private,
    Slave,
    Unbindable,
}

/// What a trial and the model do alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Mounts a new file system.
    New(Place),
    /// mount(MS_BIND), or open_tree(OPEN_TREE_CLONE) and move_mount() when `detached`.
    #[expect(missing_docs, reason = "they say it themselves")]
    Bind { from: Place, to: Place, recursive: bool, detached: bool },
    /// open_tree(OPEN_TREE_CLONE) and move_mount(MOVE_MOUNT_BENEATH).
    #[expect(missing_docs, reason = "they say it themselves")]
    BindBeneath { from: Place, to: Place },
    /// move_mount() of an attached mount, with MOVE_MOUNT_BENEATH or not.
    #[expect(missing_docs, reason = "they say it themselves")]
    Move { from: Place, to: Place, beneath: bool },
    /// umount().
    Umount(Place),
    /// umount2(MNT_DETACH).
    Detach(Place),
    /// mount(MS_SHARED) and its like, with MS_REC or not.
    #[expect(missing_docs, reason = "they say it themselves")]
    Make { at: Place, kind: Kind, recursive: bool },
    /// Opens what is there and keeps it open.
    Hold(Place),
    /// Closes everything that is held.
    Release,
    /// unshare(CLONE_NEWNS): a second namespace beside the first, unless there is one.
    Copy,
    /// The second namespace dies.
    Forget,
    /// unshare(CLONE_NEWUSER | CLONE_NEWNS): everything is locked, and what it was copied from is gone.
    LosePrivileges,
}

/// What an operation came to. Nothing when it would leave the model's world, and so must not be tried.
pub type Outcome = Option<Result<(), Errno>>;

/// Refuses with an errno unless something holds.
fn ensure(holds: bool, errno: Errno) -> Result<(), Errno> {
    if holds { Ok(()) } else { Err(errno) }
}

impl Model {
    /// Does an operation in one of the namespaces; in the first where there is no such one.
    pub fn apply(&mut self, namespace: usize, op: &Op) -> Outcome {
        let world = namespace.min(self.worlds.len() - 1);
        if self.leaves_world(world, op) {
            return None;
        }
        let before = self.clone();
        let done = self.tried(world, op);
        if done.is_err() {
            // What was refused on the way, like a copy that could not be attached, is gone again.
            *self = before;
        }
        Some(done)
    }

    fn tried(&mut self, world: usize, op: &Op) -> Result<(), Errno> {
        match op {
            Op::New(at) => self.mount_new(world, at),
            Op::Bind { from, to, recursive, detached } => self.bind(world, from, to, *recursive, *detached),
            Op::BindBeneath { from, to } => self.bind_beneath(world, from, to),
            Op::Move { from, to, beneath } => self.move_mount(world, from, to, *beneath),
            Op::Umount(at) => self.umount(world, at, false),
            Op::Detach(at) => self.umount(world, at, true),
            Op::Make { at, kind, recursive } => self.make(world, at, *kind, *recursive),
            Op::Hold(at) => self.hold(world, at),
            Op::Release | Op::Copy | Op::Forget | Op::LosePrivileges => {
                self.change_world(op);
                Ok(())
            }
        }
    }

    /// What is never refused.
    fn change_world(&mut self, op: &Op) {
        match op {
            Op::Release => self.held.clear(),
            Op::Copy => self.copy_world(),
            Op::Forget => self.forget_world(),
            Op::LosePrivileges => self.lose_privileges(),
            other => unreachable!("{other:?} is about a mount"),
        }
    }

    /// The world's root mount belongs to the trial, and so does what it stands on.
    fn leaves_world(&self, world: usize, op: &Op) -> bool {
        let is_root = |place: &Place| self.walk(world, place).is_some_and(|here| here.0 == self.worlds[world]);
        let is_root = |place: &Place| is_root(place) && self.mounted(world, place).is_ok();
        match op {
            Op::Umount(at) | Op::Detach(at) => is_root(at),
            Op::Move { from, to, beneath } => is_root(from) || *beneath && is_root(to),
            Op::BindBeneath { to, .. } => is_root(to),
            Op::Copy => self.worlds.len() > 1,
            Op::Forget => self.worlds.len() < 2,
            Op::LosePrivileges => self.worlds.len() > 1 || self.mounts[&self.worlds[0]].locked,
            _ => false,
        }
    }

    fn resolve(&self, world: usize, place: &Place) -> Result<(Id, Dir), Errno> {
        self.walk(world, place).ok_or(Errno::ENOENT)
    }

    /// The mount whose root is at this path.
    fn mounted(&self, world: usize, place: &Place) -> Result<Id, Errno> {
        let (id, dir) = self.resolve(world, place)?;
        ensure(dir == self.mounts[&id].root, Errno::EINVAL)?;
        Ok(id)
    }

    fn mount_new(&mut self, world: usize, at: &Place) -> Result<(), Errno> {
        let (parent, dir) = self.resolve(world, at)?;
        let root = Dir { fs: self.fresh(), path: String::new() };
        let new = Mount { root, on: None, group: None, master: None, unbindable: false, locked: false };
        let new = self.add(new);
        self.attach(new, parent, &dir);
        Ok(())
    }

    /// A copy as bind and open_tree() make it, that stands nowhere yet.
    fn cloned(&mut self, from: (Id, Dir), recursive: bool) -> Result<Id, Errno> {
        let (source, dir) = from;
        ensure(!self.mounts[&source].unbindable, Errno::EINVAL)?;
        let below = |id: &Id| self.mounts[id].on.as_ref().is_some_and(|(_, at)| at.is_within(&dir));
        let locked = |id: &Id| self.mounts[id].locked;
        if recursive {
            let whole: Vec<Id> = self.children(source).filter(below).flat_map(|child| self.tree(child)).collect();
            let stays = |id: &Id| self.mounts[id].unbindable && locked(id) && !self.is_left_out(*id, source);
            ensure(!whole.iter().any(stays), Errno::EPERM)?;
            return Ok(self.copy_tree(source, &dir, Copy::Alike));
        }
        ensure(!self.children(source).filter(below).any(|id| locked(&id)), Errno::EINVAL)?;
        Ok(self.copy_one(source, dir, Copy::Alike))
    }

    /// Whether an unbindable mount between `id` and `top` keeps it out of a copy anyway.
    fn is_left_out(&self, id: Id, top: Id) -> bool {
        let mut above = self.mounts[&id].on.as_ref().map(|on| on.0);
        while let Some(parent) = above.filter(|parent| *parent != top) {
            if self.mounts[&parent].unbindable {
                return true;
            }
            above = self.mounts[&parent].on.as_ref().map(|on| on.0);
        }
        false
    }

    /// mount() looks at both paths before either mount; open_tree() has its copy before the other path is looked at.
    fn bind(&mut self, world: usize, from: &Place, to: &Place, recursive: bool, detached: bool) -> Result<(), Errno> {
        let from = self.resolve(world, from)?;
        ensure(detached || self.walk(world, to).is_some(), Errno::ENOENT)?;
        let source = self.cloned(from, recursive)?;
        let (parent, dir) = self.resolve(world, to)?;
        self.attach(source, parent, &dir);
        Ok(())
    }

    fn bind_beneath(&mut self, world: usize, from: &Place, to: &Place) -> Result<(), Errno> {
        let from = self.resolve(world, from)?;
        let source = self.cloned(from, false)?;
        self.attach_beneath(world, source, to, false)
    }

    /// move_mount(MOVE_MOUNT_BENEATH): refused where what goes beneath would at once be covered by its own copy.
    fn attach_beneath(&mut self, world: usize, source: Id, to: &Place, moving: bool) -> Result<(), Errno> {
        let top = self.mounted(world, to)?;
        let (parent, dir) = self.mounts[&top].on.clone().ok_or(Errno::EINVAL)?;
        ensure(self.child_on(source, &self.mounts[&source].root).is_none(), Errno::EINVAL)?;
        ensure(!self.is_ancestor(top, source), Errno::EINVAL)?;
        ensure(!self.would_overmount(parent, top, &dir), Errno::EINVAL)?;
        ensure(!moving || !self.would_overmount(parent, source, &dir), Errno::EINVAL)?;
        self.may_attach(source, parent)?;
        self.attach(source, parent, &dir);
        Ok(())
    }

    fn would_overmount(&self, from: Id, to: Id, dir: &Dir) -> bool {
        let hears = self.mounts[&from].group.is_some_and(|group| self.sources(&self.mounts[&to]).contains(&group));
        hears && self.mounts[&to].root == *dir
    }

    fn may_attach(&self, source: Id, parent: Id) -> Result<(), Errno> {
        let unbindable = self.tree(source).iter().any(|id| self.mounts[id].unbindable);
        ensure(!(unbindable && self.mounts[&parent].group.is_some()), Errno::EINVAL)?;
        ensure(!self.is_ancestor(source, parent), Errno::ELOOP)
    }

    fn move_mount(&mut self, world: usize, from: &Place, to: &Place, beneath: bool) -> Result<(), Errno> {
        let from = self.resolve(world, from)?;
        let to_here = self.resolve(world, to)?;
        let source = from.0;
        ensure(from.1 == self.mounts[&source].root, Errno::EINVAL)?;
        let stands_on = self.mounts[&source].on.clone().ok_or(Errno::EINVAL)?.0;
        ensure(!self.mounts[&source].locked, Errno::EINVAL)?;
        ensure(self.mounts[&stands_on].group.is_none(), Errno::EINVAL)?;
        if beneath {
            return self.attach_beneath(world, source, to, true);
        }
        self.may_attach(source, to_here.0)?;
        self.attach(source, to_here.0, &to_here.1);
        Ok(())
    }

    fn umount(&mut self, world: usize, at: &Place, lazily: bool) -> Result<(), Errno> {
        let victim = self.mounted(world, at)?;
        ensure(!self.mounts[&victim].locked, Errno::EINVAL)?;
        ensure(lazily || !self.is_busy(victim), Errno::EBUSY)?;
        self.umount_tree(victim);
        Ok(())
    }

    fn make(&mut self, world: usize, at: &Place, kind: Kind, recursive: bool) -> Result<(), Errno> {
        let id = self.mounted(world, at)?;
        let all = if recursive { self.tree(id) } else { vec![id] };
        all.into_iter().for_each(|id| self.change(id, kind));
        Ok(())
    }

    fn hold(&mut self, world: usize, at: &Place) -> Result<(), Errno> {
        let (id, _) = self.resolve(world, at)?;
        self.held.insert(id);
        Ok(())
    }

    fn copy_world(&mut self) {
        let world = self.worlds[0];
        let root = self.mounts[&world].root.clone();
        let copy = self.copy_tree(world, &root, Copy::Whole);
        self.worlds.push(copy);
    }

    fn forget_world(&mut self) {
        let Some(world) = self.worlds.pop() else { return };
        let going = self.tree(world).into_iter().collect();
        self.remove(&going);
    }

    /// The copies are slaves of what they were copied from, which dies with its namespace: so they are private.
    fn lose_privileges(&mut self) {
        self.held.clear();
        for mount in self.mounts.values_mut() {
            (mount.group, mount.master, mount.locked) = (None, None, true);
        }
    }
}
