//! The file system below a storm, with the propagation that the storm asks for. Never itself an overlay.

use crate::protocol::{self, Propagation};
use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use std::fs;
use std::path::{Path, PathBuf};

/// The machine's spare disk, formatted by the host.
const DISK: &str = "/dev/vda";

/// A mounted file system.
pub struct Storage {
    path: PathBuf,
}

impl Storage {
    /// Mounts it on `base/storm`.
    ///
    /// # Errors
    /// ext4 is asked for and the machine has no disk with it, or the mount failed.
    pub fn prepare(base: &Path, storage: protocol::Storage, propagation: Propagation) -> Result<Storage> {
        let path = base.join("storm");
        fs::create_dir_all(&path)?;
        let (source, fs_type) = match storage {
            protocol::Storage::Tmpfs => ("storm", "tmpfs"),
            protocol::Storage::Ext4 if Path::new(DISK).exists() => (DISK, "ext4"),
            protocol::Storage::Ext4 => bail!("the storm asks for ext4, but this machine has no disk {DISK}"),
        };
        mount(source, &path, fs_type, MountFlags::empty(), None)
            .with_context(|| format!("mounting {fs_type} of {source} on {}", path.display()))?;
        let storage = Storage { path };
        let flags = match propagation {
            Propagation::Shared => MountPropagationFlags::SHARED,
            Propagation::Private => MountPropagationFlags::PRIVATE,
        };
        mount_change(&storage.path, flags)
            .with_context(|| format!("setting propagation of {}", storage.path.display()))?;
        Ok(storage)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts it. A plain umount2: if anything of the storm still lives, this says EBUSY.
    ///
    /// # Errors
    /// Something is left on it.
    pub fn remove(self) -> Result<()> {
        // What a storm wrote on a disk must not meet the next storm.
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name != "lost+found") {
                fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        unmount(&self.path, UnmountFlags::empty()).with_context(|| format!("umount2 {}", self.path.display()))
    }
}
