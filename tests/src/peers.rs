//! Peer namespaces: other containers, and services with a mount namespace of their own, on the host that the storm happens on. Each has a
//! copy of all mounts, and hears of the storm if the storm's mount is shared.

use crate::namespace_view::View;
use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::path::Path;

/// One more mount namespace. It has no process in it: this value alone keeps it, and its mounts go with it.
#[derive(Debug)]
pub struct Peer {
    namespace: File,
    view: View,
}

impl Peer {
    /// A copy of the caller's namespace, in which the mount at `path` is; made by a thread that lives only for this.
    ///
    /// # Errors
    /// As unshare(2).
    pub fn unshare(path: &Path) -> Result<Peer> {
        std::thread::scope(|scope| scope.spawn(|| Peer::of_this_thread(path)).join())
            .map_err(|_| anyhow!("a thread panicked that makes a mount namespace"))?
    }

    fn of_this_thread(path: &Path) -> Result<Peer> {
        // CLONE_NEWNS gives this thread a working directory of its own as well: the others are not moved.
        unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
        let namespace = File::open("/proc/thread-self/ns/mnt").context("cannot open /proc/thread-self/ns/mnt")?;
        Ok(Peer { namespace, view: View::of_mount_at(path)? })
    }

    /// Its file in nsfs.
    pub fn file(&self) -> &File {
        &self.namespace
    }

    /// Its mounts.
    pub fn view(&self) -> View {
        self.view
    }
}
