//! containerd's sequences of calls, one file per profile; what profiles share lies here.

pub mod call;
mod common;
mod detach;
mod overlay;
mod user_namespace;

use crate::metrics::Calls;
use crate::protocol::Profile;
use crate::topology::{Container, Layout};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// One thread's view of a storm.
pub struct Starter<'a> {
    /// The layers.
    pub layout: &'a Layout,
    /// Which sequence.
    pub profile: Profile,
    /// Latencies of this thread.
    pub calls: Calls,
}

/// The folders and the namespace of one pass.
pub(crate) struct Pass<'a> {
    container: &'a Container,
    /// containerd's temporary folder: lower folders are mounted in or on it.
    dir: PathBuf,
    user_ns: rustix::fd::OwnedFd,
}

/// Which of containerd's two mounts of the same image a pass makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// containerd itself, to read passwd and group: no upperdir, unmounted at once.
    Inspection,
    /// The shim's: stays mounted as long as the container lives.
    Rootfs,
}

impl Starter<'_> {
    /// One inspection pass; returns what containerd reads in it: /etc/passwd.
    ///
    /// # Errors
    /// The call that failed, with its errno.
    pub fn inspect(&mut self, container: &Container) -> Result<Vec<u8>> {
        let target = self.mkdtemp("inspect")?;
        self.mount(container, &target, Kind::Inspection)?;
        let passwd = self.calls.time("inspect_read", || read_users(&target))?;
        call::umount_all(&mut self.calls, &target)?;
        fs::remove_dir(&target).with_context(|| format!("rmdir {}", target.display()))?;
        Ok(passwd)
    }

    /// The rootfs pass; the container's root file system is mounted afterwards.
    ///
    /// # Errors
    /// The call that failed, with its errno.
    pub fn start(&mut self, container: &Container) -> Result<()> {
        self.mount(container, &container.rootfs, Kind::Rootfs)
    }

    fn mount(&mut self, container: &Container, target: &Path, kind: Kind) -> Result<()> {
        let user_ns = self.calls.time("user_namespace", || user_namespace::open(container.host_id))?;
        let pass = Pass { container, dir: self.mkdtemp("ovl-idmapped")?, user_ns };
        match self.profile {
            Profile::Detach => detach::mount(self, &pass, target, kind)?,
            Profile::Common => common::mount(self, &pass, target, kind)?,
        }
        fs::remove_dir(&pass.dir).with_context(|| format!("rmdir {}", pass.dir.display()))
    }

    fn mkdtemp(&self, prefix: &str) -> Result<PathBuf> {
        let template = self.layout.base.join(format!("tmp/{prefix}XXXXXX"));
        nix::unistd::mkdtemp(&template).with_context(|| format!("mkdtemp {}", template.display()))
    }
}

/// What containerd reads to find the user of a container.
fn read_users(root: &Path) -> Result<Vec<u8>> {
    let read = |name: &str| fs::read(root.join(name)).with_context(|| format!("reading {name} in {}", root.display()));
    read("etc/group")?;
    read("etc/passwd")
}
