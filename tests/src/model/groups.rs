//! Peer groups and their masters: who receives from whom, and how that changes.

use super::{Group, Id, Kind, Model, Mount};
use std::collections::BTreeMap;

impl Model {
    /// The master of a group: of any of its members.
    pub(super) fn master_of(&self, group: Group) -> Option<Group> {
        self.members(group).next().and_then(|id| self.mounts[&id].master)
    }

    pub(super) fn members(&self, group: Group) -> impl Iterator<Item = Id> + '_ {
        self.mounts.iter().filter(move |(_, mount)| mount.group == Some(group)).map(|(id, _)| *id)
    }

    /// Groups from which this mount receives, the nearest first: its own, its master, the master's master.
    pub(super) fn sources(&self, mount: &Mount) -> Vec<Group> {
        let mut sources: Vec<Group> = mount.group.into_iter().collect();
        let mut next = mount.master;
        while let Some(group) = next {
            sources.push(group);
            next = self.master_of(group);
        }
        sources
    }

    /// Every other mount that hears of what happens on this one.
    pub(super) fn receivers(&self, from: Id) -> Vec<Id> {
        let Some(group) = self.mounts[&from].group else { return Vec::new() };
        let hears = |(id, mount): &(&Id, &Mount)| **id != from && self.sources(mount).contains(&group);
        self.mounts.iter().filter(hears).map(|(id, _)| *id).collect()
    }

    /// Changes the propagation of one mount (change_mnt_propagation()).
    pub(super) fn change(&mut self, id: Id, kind: Kind) {
        if kind == Kind::Shared {
            return self.share(id);
        }
        let masters = self.masters();
        let group = self.at(id).group.take();
        let peers_left = group.is_some_and(|group| self.members(group).next().is_some());
        let master = if peers_left { group } else { self.mounts[&id].master };
        let mount = self.at(id);
        mount.master = master.filter(|_| kind == Kind::Slave);
        // A slave stays unbindable if it was: only private and shared take that back.
        if kind != Kind::Slave {
            mount.unbindable = kind == Kind::Unbindable;
        }
        self.leave_empty_groups(&masters);
    }

    /// Makes a mount shared, in a group of its own unless it has one.
    pub(super) fn share(&mut self, id: Id) {
        let fresh = self.fresh();
        let mount = self.at(id);
        mount.unbindable = false;
        mount.group.get_or_insert(fresh);
    }

    /// The master of each group, while all of them have members.
    pub(super) fn masters(&self) -> BTreeMap<Group, Option<Group>> {
        self.mounts.values().filter_map(|mount| Some((mount.group?, mount.master))).collect()
    }

    /// Slaves of a group that has no members any more go over to its master as it was in `masters`.
    pub(super) fn leave_empty_groups(&mut self, masters: &BTreeMap<Group, Option<Group>>) {
        let alive = self.masters();
        for mount in self.mounts.values_mut() {
            while let Some(empty) = mount.master.filter(|group| !alive.contains_key(group)) {
                mount.master = masters.get(&empty).copied().flatten();
            }
        }
    }
}
