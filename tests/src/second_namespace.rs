//! A second mount namespace beside the trial's own, visited by setns(2), so that one process can look from both sides.

use crate::call::named;
use anyhow::Result;
use nix::sched::CloneFlags;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// A copy of the trial's mount namespace.
#[derive(Debug)]
pub struct SecondNamespace {
    first: File,
    second: File,
}

impl SecondNamespace {
    /// Copies this process' mount namespace and stays in the original. Shared mounts are peers of their copies.
    ///
    /// # Errors
    /// As unshare(2) and setns(2).
    pub fn copy() -> Result<SecondNamespace> {
        let first = File::open("/proc/self/ns/mnt")?;
        named("unshare(CLONE_NEWNS)", nix::sched::unshare(CloneFlags::CLONE_NEWNS))?;
        let second = File::open("/proc/self/ns/mnt")?;
        let both = SecondNamespace { first, second };
        both.enter(&both.first)?;
        Ok(both)
    }

    /// Does something in the second namespace, and comes back.
    ///
    /// # Errors
    /// Those of `work`, and as setns(2).
    pub fn inside<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.enter(&self.second)?;
        let result = work();
        self.enter(&self.first)?;
        result
    }

    /// Moves this thread into the second namespace for good; the other threads stay where they are.
    ///
    /// # Errors
    /// As unshare(2) and setns(2).
    pub fn stay(&self) -> Result<()> {
        named("unshare(CLONE_FS)", nix::sched::unshare(CloneFlags::CLONE_FS))?;
        self.enter(&self.second)
    }

    /// The file that stands for the second namespace, as a path.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.second.as_raw_fd()).into()
    }

    fn enter(&self, namespace: &File) -> Result<()> {
        Ok(named("setns(CLONE_NEWNS)", nix::sched::setns(namespace, CloneFlags::CLONE_NEWNS))?)
    }
}
