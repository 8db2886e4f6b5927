//! One pass: an overlay on idmapped layers, mounted as containerd does, in the profile's way.

use super::overlay::{Overlay, mount_overlay};
use super::{common, detach};
use crate::metrics::CallLog;
use crate::protocol::Profile;
use crate::user_ns::{self, IdMap};
use anyhow::{Context, Result};
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// What one pass mounts, and where.
#[derive(Clone, Debug)]
pub struct Pass<'a> {
    /// Whose sequence of calls.
    pub profile: Profile,
    /// The container's ids.
    pub map: IdMap,
    /// Whether the child that holds the user namespace inherits copies of our descriptors.
    pub descriptors_inherited: bool,
    /// The temporary folder for idmapped layers; made and removed by the pass.
    pub temporary: PathBuf,
    /// The layers on disk, topmost first.
    pub layers: &'a [PathBuf],
    /// Writable layer and its work folder.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Where the overlay goes.
    pub target: &'a Path,
}

impl Pass<'_> {
    /// The user namespace, the idmapped layers, the overlay on them, and the layers' mounts away again: the overlay has its own
    /// private copies of them.
    ///
    /// # Errors
    /// The call that failed.
    pub fn run(&self, log: &mut CallLog<'_>) -> Result<()> {
        let user_ns = user_ns::open(self.map, self.descriptors_inherited)?;
        make_folder(&self.temporary)?;
        let lower_dirs = match self.profile {
            Profile::Detach => detach::attach(&self.temporary, self.layers, &user_ns, log)?,
            Profile::Common => common::attach(&self.temporary, self.layers, &user_ns, log)?,
        };
        let overlay = Overlay { upper: self.upper.clone(), lower_dirs };
        mount_overlay(&overlay, self.target, log)?;
        match self.profile {
            Profile::Detach => detach::release(&overlay.lower_dirs, log)?,
            Profile::Common => common::release(&self.temporary, log)?,
        }
        // The user namespace is closed last, by leaving.
        remove_folder(&self.temporary)
    }
}

/// mkdir(2) as mkdtemp(3) makes a folder. It must not be there yet: no pass may find what another left behind.
///
/// # Errors
/// mkdir(2) failed.
pub fn make_folder(path: &Path) -> Result<()> {
    DirBuilder::new().mode(0o700).create(path).with_context(|| format!("cannot make {}", path.display()))
}

/// rmdir(2): fails if anything is mounted on the folder or lies in it.
///
/// # Errors
/// rmdir(2) failed.
pub fn remove_folder(path: &Path) -> Result<()> {
    fs::remove_dir(path).with_context(|| format!("cannot remove {}", path.display()))
}
