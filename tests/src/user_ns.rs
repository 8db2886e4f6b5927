//! A container's user namespace: its map of ids, and the descriptor by which mount_setattr(2) takes it.

use crate::sys::UserNsChild;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::os::fd::OwnedFd;

/// Ids of one container: what kubelet gives a pod (KEP-127).
pub const IDS_PER_CONTAINER: u32 = 65_536;

/// First id of the first container: below lie the host's own users.
const FIRST_HOST_ID: u32 = 100_000;

/// Containers after which ranges are used again: more would not fit into 32-bit ids.
const RANGES: u32 = 65_000;

/// Which ids of the host stand for a container's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    first: u32,
}

impl IdMap {
    /// The map of this container: no two of [`RANGES`] neighbours share an id.
    pub fn of_container(container: u32) -> IdMap {
        IdMap { first: FIRST_HOST_ID + container % RANGES * IDS_PER_CONTAINER }
    }

    /// The owner that a mount with this map must show for a file that is owned by `id` on disk; `None` if it maps no such id.
    pub fn shown(self, id: u32) -> Option<u32> {
        (id < IDS_PER_CONTAINER).then(|| self.first + id)
    }

    /// As uid_map and gid_map take it (user_namespaces(7)).
    fn line(self) -> String {
        format!("0 {} {IDS_PER_CONTAINER}\n", self.first)
    }
}

/// A user namespace with this map: containerd's way, by a child that is killed as soon as the namespace is open. Whether the child
/// inherits copies of our descriptors is `descriptors_inherited`.
///
/// # Errors
/// clone(2) refuses, /proc is not mounted, or we are not root.
pub fn open(map: IdMap, descriptors_inherited: bool) -> Result<OwnedFd> {
    let child = if descriptors_inherited { UserNsChild::spawn() } else { UserNsChild::spawn_without_copies() };
    let child = child.context("cannot clone a child with CLONE_NEWUSER")?;
    for name in ["uid_map", "gid_map"] {
        let path = format!("/proc/{}/{name}", child.pid);
        fs::write(&path, map.line()).with_context(|| format!("cannot write {path}"))?;
    }
    let path = format!("/proc/{}/ns/user", child.pid);
    Ok(File::open(&path).with_context(|| format!("cannot open {path}"))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_on_disk_is_shown_as_the_first_id() {
        assert_eq!(IdMap::of_container(0).shown(0), Some(100_000));
        assert_eq!(IdMap::of_container(1).shown(7), Some(165_543));
        assert_eq!(IdMap::of_container(0).shown(IDS_PER_CONTAINER), None);
        assert_eq!(IdMap::of_container(0).line(), "0 100000 65536\n");
    }

    #[test]
    fn ranges_do_not_overlap_or_overflow() {
        let first = |container| IdMap::of_container(container).first;
        assert!((1..RANGES).all(|container| first(container) - first(container - 1) == IDS_PER_CONTAINER));
        assert!(first(RANGES - 1).checked_add(IDS_PER_CONTAINER).is_some());
    }
}
