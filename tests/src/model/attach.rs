//! Copies of trees, and attaching a tree with propagation (attach_recursive_mnt(), propagate_mnt()).

use super::{Dir, Group, Id, Model, Mount};
use std::collections::BTreeMap;

/// How a copy relates to its source (the CL_* flags of clone_mnt()).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copy {
    /// A peer of a shared mount, a slave beside a slave: bind.
    Alike,
    /// The same, and what is unbindable comes along: a new namespace.
    Whole,
    /// A slave of the source, and shared itself or not: propagation to a slave.
    Slave { shared: bool },
}

impl Model {
    /// Copies a mount alone (clone_mnt()).
    pub(super) fn copy_one(&mut self, source: Id, root: Dir, how: Copy) -> Id {
        let old = self.mounts[&source].clone();
        let (group, master) = match how {
            Copy::Alike | Copy::Whole => (old.group, old.master),
            Copy::Slave { shared } => (shared.then(|| self.fresh()), old.group.or(old.master)),
        };
        self.add(Mount { root, on: None, group, master, locked: false, ..old })
    }

    /// Copies a mount from this directory on, with everything below it (copy_tree()). What is unbindable stays behind.
    pub(super) fn copy_tree(&mut self, source: Id, root: &Dir, how: Copy) -> Id {
        let copy = self.copy_one(source, root.clone(), how);
        for child in self.children(source).collect::<Vec<_>>() {
            self.copy_below(child, root, copy, how);
        }
        copy
    }

    fn copy_below(&mut self, child: Id, root: &Dir, parent_copy: Id, how: Copy) {
        let old = self.mounts[&child].clone();
        let Some((_, dir)) = old.on.filter(|(_, dir)| dir.is_within(root)) else { return };
        if old.unbindable && how != Copy::Whole {
            return;
        }
        let copy = self.copy_tree(child, &old.root, how);
        self.at(copy).on = Some((parent_copy, dir));
        self.at(copy).locked = old.locked;
    }

    /// Attaches a tree and its copies to everyone who hears of it. `source` stands nowhere, or is moved.
    pub(super) fn attach(&mut self, source: Id, parent: Id, dir: &Dir) {
        let mut placed = vec![(source, parent)];
        if self.mounts[&parent].group.is_some() {
            let receivers = self.receivers_that_see(parent, dir, source);
            self.tree(source).into_iter().for_each(|id| self.share(id));
            placed.extend(self.copies(source, parent, receivers));
        }
        self.at(source).on = None;
        for (child, parent) in placed {
            self.put(child, parent, dir, child == source);
        }
    }

    /// As they are before the tree is made shared: a slave in a tree that is moved below its own master gets a copy that is none of its peers.
    /// A tree that stands nowhere yet receives nothing; one that is moved does.
    fn receivers_that_see(&self, parent: Id, dir: &Dir, source: Id) -> Vec<(Id, Mount)> {
        let new = if self.mounts[&source].on.is_none() { self.tree(source) } else { Vec::new() };
        let sees = |id: &Id| dir.is_within(&self.mounts[id].root) && !new.contains(id);
        self.receivers(parent).into_iter().filter(sees).map(|id| (id, self.mounts[&id].clone())).collect()
    }

    /// One copy for each receiver, group by group: peers get peers, slaves get slaves of the copy for the nearest group above them
    /// that got one.
    fn copies(&mut self, source: Id, parent: Id, mut receivers: Vec<(Id, Mount)>) -> Vec<(Id, Id)> {
        let origin = self.mounts[&parent].group;
        let mut first: BTreeMap<Group, Id> = origin.into_iter().map(|group| (group, source)).collect();
        receivers.sort_by_key(|(_, mount)| self.sources(mount).len() - usize::from(mount.group.is_some()));
        let mut copies = Vec::new();
        for (receiver, mount) in receivers {
            let peer = mount.group.and_then(|group| first.get(&group)).copied();
            let above = self.sources(&mount).into_iter().find_map(|group| first.get(&group).copied());
            let how = if peer.is_some() { Copy::Alike } else { Copy::Slave { shared: mount.group.is_some() } };
            let from = peer.or(above).unwrap_or(source);
            let root = self.mounts[&from].root.clone();
            let copy = self.copy_tree(from, &root, how);
            if let Some(group) = mount.group {
                first.entry(group).or_insert(copy);
            }
            copies.push((copy, receiver));
        }
        copies
    }

    /// Puts a tree at its place, beneath what stands there already. That hands its lock down, and keeps it if the tree is a mere copy.
    fn put(&mut self, child: Id, parent: Id, dir: &Dir, is_source: bool) {
        let covered = self.child_on(parent, dir);
        self.at(child).on = Some((parent, dir.clone()));
        let Some(covered) = covered else { return };
        let top = self.topmost(child);
        let top_root = self.mounts[&top].root.clone();
        if self.mounts[&covered].locked {
            self.at(child).locked = true;
            self.at(covered).locked = !is_source;
        }
        self.at(covered).on = Some((top, top_root));
    }
}
