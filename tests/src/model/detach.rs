//! Umount with propagation (umount_tree(), propagate_umount()).

use super::{Dir, Id, Model};
use std::collections::BTreeSet;

impl Model {
    /// Umounts a tree, and the copies of its mounts with everyone who hears of it.
    pub(super) fn umount_tree(&mut self, victim: Id) {
        let (parent, dir) = self.place_of(victim);
        for copy in self.copies_on(parent, &dir) {
            self.at(copy).locked = false;
        }
        let going = self.going(victim);
        self.reparent_survivors(&going);
        self.remove(&going);
    }

    fn place_of(&self, id: Id) -> (Id, Dir) {
        self.mounts[&id].on.clone().expect("a mount that can be umounted stands somewhere")
    }

    /// What stands on this directory of every mount that hears of this one.
    fn copies_on(&self, parent: Id, dir: &Dir) -> Vec<Id> {
        self.receivers(parent).into_iter().filter_map(|receiver| self.child_on(receiver, dir)).collect()
    }

    /// Whether a synchronous umount would take away a mount that somebody holds.
    pub(super) fn is_busy(&self, victim: Id) -> bool {
        if self.children(victim).next().is_some() || self.held.contains(&victim) {
            return true;
        }
        let (parent, dir) = self.place_of(victim);
        let mut unlocked = self.clone();
        for copy in self.copies_on(parent, &dir) {
            unlocked.at(copy).locked = false;
        }
        unlocked.going(victim).iter().any(|id| self.held.contains(id))
    }

    /// The tree, and the largest set of copies that moves no mount to another place and shows nothing that a locked mount hides.
    fn going(&self, victim: Id) -> BTreeSet<Id> {
        let tree = self.tree(victim);
        let mut going: BTreeSet<Id> = tree.iter().copied().collect();
        for id in &tree {
            let (parent, dir) = self.place_of(*id);
            going.extend(self.copies_on(parent, &dir));
        }
        self.shrink(&mut going, &tree, |model, going, id| model.is_shifting(going, id));
        self.shrink(&mut going, &tree, |model, going, id| {
            model.mounts[&id].locked && !going.contains(&model.place_of(id).0)
        });
        going
    }

    /// Takes out one by one what is `unfit`, but never what is umounted by name.
    fn shrink(&self, going: &mut BTreeSet<Id>, tree: &[Id], unfit: impl Fn(&Model, &BTreeSet<Id>, Id) -> bool) {
        while let Some(id) = going.iter().copied().find(|id| !tree.contains(id) && unfit(self, going, *id)) {
            going.remove(&id);
        }
    }

    /// Whether something that stays is mounted inside, other than on a stack on the very root.
    fn is_shifting(&self, going: &BTreeSet<Id>, id: Id) -> bool {
        let root = &self.mounts[&id].root;
        let mut inside = self.children(id).filter(|child| self.place_of(*child).1 != *root);
        inside.any(|child| self.tree(child).iter().any(|below| !going.contains(below)))
    }

    /// What stays on top of a stack that goes slides down to where the stack stood.
    fn reparent_survivors(&mut self, going: &BTreeSet<Id>) {
        let survivors: Vec<Id> = self.mounts.keys().copied().filter(|id| !going.contains(id)).collect();
        for id in survivors {
            let Some(mut place) = self.mounts[&id].on.clone() else { continue };
            while going.contains(&place.0) {
                place = self.place_of(place.0);
            }
            self.at(id).on = Some(place);
        }
    }

    /// Removes mounts, and hands their slaves on.
    pub(super) fn remove(&mut self, going: &BTreeSet<Id>) {
        let masters = self.masters();
        self.mounts.retain(|id, _| !going.contains(id));
        self.held.retain(|id| !going.contains(id));
        self.leave_empty_groups(&masters);
    }
}
