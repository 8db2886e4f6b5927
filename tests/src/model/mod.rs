//! A pure model of mount trees with propagation: what Documentation/filesystems/sharedsubtree.rst and propagate_umount.txt say, without a
//! kernel. Trials make the same operations in both and compare; where they differ, mainline is right and the model is mended.
//!
//! A world is the part of a namespace below one mount that stands on a private one. Groups are what the kernel shows as "shared:N" and
//! "master:N". Every file system has the same directories, [`DIRS`].

mod attach;
mod detach;
mod groups;
#[cfg(test)]
mod mntput;
mod ops;
#[cfg(test)]
mod sharedsubtree;
mod strategy;
mod view;

pub use ops::{Kind, Op, Place};
pub use strategy::{SEED_VARIABLE, ops, seed, seeded_runner};
pub use view::{Raw, View};

use std::collections::{BTreeMap, BTreeSet};

/// A mount of the model.
pub type Id = u64;

/// A peer group.
pub type Group = u64;

/// The directories of every file system, from its root.
pub const DIRS: [&str; 7] = ["", "/a", "/b", "/a/a", "/a/b", "/b/a", "/b/b"];

/// A directory of a file system.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dir {
    /// The file system.
    pub fs: u64,
    /// One of [`DIRS`].
    pub path: String,
}

impl Dir {
    /// Whether this is `other` or lies below it.
    pub fn is_within(&self, other: &Dir) -> bool {
        let rest = self.path.strip_prefix(&other.path);
        self.fs == other.fs && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// A mount: a directory of a file system, shown at a directory of its parent's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    root: Dir,
    /// Where it stands; nothing for the root of a world.
    on: Option<(Id, Dir)>,
    group: Option<Group>,
    master: Option<Group>,
    unbindable: bool,
    locked: bool,
}

/// All mounts of one world, or of two that are peers.
#[derive(Clone, Debug, Default)]
pub struct Model {
    mounts: BTreeMap<Id, Mount>,
    /// The root of each namespace's world.
    worlds: Vec<Id>,
    /// Mounts that somebody holds open.
    held: BTreeSet<Id>,
    last: u64,
}

impl Model {
    /// One world: a private mount of an own file system.
    pub fn new() -> Model {
        let mut model = Model::default();
        let fs = model.fresh();
        let world = model.add(Mount {
            root: Dir { fs, path: String::new() },
            on: None,
            group: None,
            master: None,
            unbindable: false,
            locked: false,
        });
        model.worlds.push(world);
        model
    }

    /// A number that no mount, group or file system has.
    fn fresh(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn add(&mut self, mount: Mount) -> Id {
        let id = self.fresh();
        self.mounts.insert(id, mount);
        id
    }

    fn at(&mut self, id: Id) -> &mut Mount {
        self.mounts.get_mut(&id).expect("a mount of the model")
    }

    /// What is mounted on a directory of this mount.
    fn child_on(&self, parent: Id, dir: &Dir) -> Option<Id> {
        let stands = |mount: &Mount| mount.on.as_ref().is_some_and(|on| on.0 == parent && on.1 == *dir);
        self.mounts.iter().find(|(_, mount)| stands(mount)).map(|(id, _)| *id)
    }

    fn children(&self, parent: Id) -> impl Iterator<Item = Id> + '_ {
        let stands = move |mount: &Mount| mount.on.as_ref().is_some_and(|on| on.0 == parent);
        self.mounts.iter().filter(move |(_, mount)| stands(mount)).map(|(id, _)| *id)
    }

    /// A mount and everything below it, parents first.
    fn tree(&self, root: Id) -> Vec<Id> {
        let mut tree = vec![root];
        let mut next = 0;
        while next < tree.len() {
            tree.extend(self.children(tree[next]));
            next += 1;
        }
        tree
    }

    fn is_ancestor(&self, above: Id, mut below: Id) -> bool {
        while below != above {
            let Some((parent, _)) = &self.mounts[&below].on else { return false };
            below = *parent;
        }
        true
    }

    /// What stands on the root of this mount, on the root of that, and so on.
    fn topmost(&self, mut id: Id) -> Id {
        while let Some(over) = self.child_on(id, &self.mounts[&id].root) {
            id = over;
        }
        id
    }

    /// Walks a path as the kernel does: into every mount on the way, and up the stack at its end.
    fn walk(&self, world: usize, place: &Place) -> Option<(Id, Dir)> {
        let root = self.worlds[world];
        let mut here = self.enter(root, self.mounts[&root].root.clone());
        for name in place.names() {
            let path = format!("{}/{name}", here.1.path);
            DIRS.contains(&path.as_str()).then_some(())?;
            here = self.enter(here.0, Dir { fs: here.1.fs, path });
        }
        Some(here)
    }

    fn enter(&self, mount: Id, dir: Dir) -> (Id, Dir) {
        let Some(child) = self.child_on(mount, &dir) else { return (mount, dir) };
        let top = self.topmost(child);
        (top, self.mounts[&top].root.clone())
    }

    /// How many mounts there are.
    pub fn count(&self) -> usize {
        self.mounts.len()
    }

    /// What must always hold, as sentences that do not: unit tests ask after each operation.
    pub fn flaws(&self) -> Vec<String> {
        let mut flaws = Vec::new();
        let mut places = BTreeSet::new();
        for (id, mount) in &self.mounts {
            match &mount.on {
                None if !self.worlds.contains(id) => flaws.push(format!("{id} stands nowhere")),
                Some((parent, _)) if !self.mounts.contains_key(parent) => flaws.push(format!("{id} has no parent")),
                Some((parent, dir)) if !dir.is_within(&self.mounts[parent].root) => {
                    flaws.push(format!("{id} stands outside its parent"));
                }
                Some(on) if !places.insert(on) => flaws.push(format!("{id} stands where another does")),
                _ => {}
            }
            flaws.extend(self.group_flaw(*id, mount));
        }
        flaws
    }

    fn group_flaw(&self, id: Id, mount: &Mount) -> Option<String> {
        let odd = |peer: &&Mount| mount.group.is_some() && peer.group == mount.group && peer.master != mount.master;
        if self.mounts.values().any(|peer| odd(&peer)) {
            return Some(format!("{id} has another master than its peers"));
        }
        let lost = mount.master.filter(|master| !self.mounts.values().any(|other| other.group == Some(*master)));
        lost.map(|master| format!("{id} has the empty group {master} as master"))
    }
}
