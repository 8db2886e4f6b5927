//! A mount namespace as listmount(2) and statmount(2) show it: by unique mount ids, which the kernel never uses again (Linux 6.8).

use crate::sys::{
    LSMT_ROOT, STATMOUNT_FS_TYPE, STATMOUNT_MNT_BASIC, STATMOUNT_MNT_NS_ID, STATMOUNT_MNT_POINT, STATMOUNT_MNT_ROOT,
    listmount_in, statmount, statmount_in,
};
use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// STATX_MNT_ID_UNIQUE (include/uapi/linux/stat.h).
const STATX_MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Ids that one listmount(2) may return.
const LISTED: usize = 1024;

/// A namespace to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Its id; 0 is the caller's namespace.
    ns_id: u64,
}

/// A mount as its namespace shows it, but for its id: what copies of it in other namespaces have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shown {
    /// Where, relative to the namespace's root.
    pub mount_point: String,
    /// Which folder of the file system.
    pub root: String,
    /// Type of the file system.
    pub fs_type: String,
}

impl View {
    /// The caller's own namespace.
    pub const OWN: View = View { ns_id: 0 };

    /// The namespace that the mount at `path` is in, as the calling thread sees it.
    ///
    /// # Errors
    /// Linux before 6.11, or no such path.
    pub fn of_mount_at(path: &Path) -> Result<View> {
        let id = unique_id_at(path)?;
        let ns_id = statmount(id, STATMOUNT_MNT_NS_ID).context("statmount(STATMOUNT_MNT_NS_ID)")?.mnt_ns_id;
        ensure!(ns_id != 0, "the kernel does not say which namespace the mount at {} is in", path.display());
        Ok(View { ns_id })
    }

    /// Unique ids of all mounts below the root.
    ///
    /// # Errors
    /// listmount(2) failed.
    pub fn ids(self) -> Result<BTreeSet<u64>> {
        let (mut all, mut page) = (BTreeSet::new(), vec![0; LISTED]);
        loop {
            let last = all.last().copied().unwrap_or(0);
            let count = listmount_in(self.ns_id, LSMT_ROOT, last, &mut page).context("listmount(LSMT_ROOT)")?;
            all.extend(&page[..count]);
            if count < page.len() {
                return Ok(all);
            }
        }
    }

    /// Id of the mount that this one stands on; nothing if it is gone.
    ///
    /// # Errors
    /// statmount(2) failed with anything but ENOENT, or tells of another mount.
    pub fn parent(self, id: u64) -> Result<Option<u64>> {
        let seen = present(statmount_in(self.ns_id, id, STATMOUNT_MNT_BASIC))?;
        if let Some(seen) = &seen {
            ensure!(seen.mnt_id == id, "statmount of mount {id} tells of mount {}", seen.mnt_id);
        }
        Ok(seen.map(|seen| seen.mnt_parent_id))
    }

    /// What a mount looks like; nothing if it is gone.
    ///
    /// # Errors
    /// statmount(2) failed with anything but ENOENT.
    pub fn shown(self, id: u64) -> Result<Option<Shown>> {
        let mask = STATMOUNT_MNT_POINT | STATMOUNT_MNT_ROOT | STATMOUNT_FS_TYPE;
        Ok(present(statmount_in(self.ns_id, id, mask))?.map(|seen| Shown {
            mount_point: seen.string(seen.mnt_point).to_owned(),
            root: seen.string(seen.mnt_root).to_owned(),
            fs_type: seen.string(seen.fs_type).to_owned(),
        }))
    }
}

fn present<T>(seen: io::Result<T>) -> Result<Option<T>> {
    match seen {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        other => other.map(Some).context("statmount"),
    }
}

/// Unique id of the topmost mount at a path: one statx(2).
///
/// # Errors
/// No such path.
pub fn unique_id_at(path: &Path) -> Result<u64> {
    let seen = statx(CWD, path, AtFlags::NO_AUTOMOUNT, STATX_MNT_ID_UNIQUE);
    Ok(seen.with_context(|| format!("statx({}, STATX_MNT_ID_UNIQUE)", path.display()))?.stx_mnt_id)
}

/// Unique id of the mount that a descriptor is on: one statx(2).
///
/// # Errors
/// Never seen.
pub fn unique_id_of(tree: impl AsFd) -> Result<u64> {
    let seen = statx(tree, "", AtFlags::EMPTY_PATH, STATX_MNT_ID_UNIQUE);
    Ok(seen.context("statx(STATX_MNT_ID_UNIQUE)")?.stx_mnt_id)
}

/// Whether this kernel has all that a view needs: Linux 6.11 (STATMOUNT_MNT_NS_ID, listmount of other namespaces).
pub fn known() -> bool {
    crate::requirement::is_linux(6, 11)
}

/// What one who looks at a namespace again and again has seen, to tell an id that comes back.
#[derive(Clone, Debug, Default)]
pub struct History {
    alive: BTreeSet<u64>,
    gone: BTreeSet<u64>,
}

impl History {
    /// Takes in one look.
    ///
    /// # Errors
    /// The ids that were gone and are there again.
    pub fn observe(&mut self, ids: &BTreeSet<u64>) -> Result<(), String> {
        self.gone.extend(self.alive.difference(ids));
        self.alive.clone_from(ids);
        let back: Vec<&u64> = self.gone.intersection(ids).collect();
        if back.is_empty() { Ok(()) } else { Err(format!("mount ids {back:?} were gone and are listed again")) }
    }
}

/// Looks once at all of a namespace: each id that is listed can be asked about or is gone meanwhile, and so can the mount it stands on.
///
/// # Errors
/// What is wrong, in a sentence.
pub fn check_once(view: View, history: &mut History) -> Result<(), String> {
    let said = |error: anyhow::Error| format!("the mount table under change: {error:#}");
    let ids = view.ids().map_err(said)?;
    history.observe(&ids)?;
    for id in ids {
        check_parent(view, id).map_err(said)?;
    }
    Ok(())
}

fn check_parent(view: View, id: u64) -> Result<()> {
    let Some(parent) = view.parent(id)? else { return Ok(()) };
    if view.parent(parent)?.is_some() {
        return Ok(());
    }
    // The parent went after we asked for it; then its child, which was on it, went first or has another parent now.
    ensure!(view.parent(id)? != Some(parent), "mount {id} stands on mount {parent}, which does not exist");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    #[test]
    fn an_id_may_come_and_go_but_not_come_back() {
        let mut history = History::default();
        history.observe(&ids(&[1, 2])).unwrap();
        history.observe(&ids(&[1])).unwrap();
        history.observe(&ids(&[1, 3])).unwrap();
        let back = history.observe(&ids(&[1, 2, 3])).unwrap_err();
        assert_eq!(back, "mount ids [2] were gone and are listed again");
    }
}
