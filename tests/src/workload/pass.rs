//! One pass: an overlay on idmapped layers, mounted as containerd does, in the profile's way.

use super::kernel::Kernel;
use super::overlay::{Overlay, mount_overlay};
use super::{common, detach, fds, rdonly, recursive};
use crate::metrics::CallLog;
use crate::protocol::Profile;
use crate::user_ns::IdMap;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// What one pass mounts, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    /// Whose sequence of calls.
    pub profile: Profile,
    /// The container's ids.
    pub map: IdMap,
    /// Whether the child that holds the user namespace inherits copies of our descriptors.
    pub descriptors_inherited: bool,
    /// The temporary folder for idmapped layers; made and removed by the pass.
    pub temporary: PathBuf,
    /// The layers on disk, topmost first.
    pub layers: Vec<PathBuf>,
    /// Writable layer and its work folder.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Where the overlay goes.
    pub target: PathBuf,
    /// Whether a full ledger gets each mount. Not sent to a shim unless it is so: an order is read under the clock.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recorded: bool,
}

impl Pass {
    /// The user namespace, the idmapped layers, the overlay on them, and the layers' mounts away again: the overlay has its own
    /// private copies of them.
    ///
    /// # Errors
    /// The call that failed.
    pub fn run(&self, kernel: &dyn Kernel, log: &mut CallLog<'_>) -> Result<()> {
        let user_ns = kernel.user_ns(self.map, self.descriptors_inherited)?;
        self.run_in(kernel, &user_ns, log)?;
        kernel.close(user_ns);
        Ok(())
    }

    /// As [`Pass::run`], with a user namespace that is there already.
    ///
    /// # Errors
    /// The call that failed.
    pub fn run_in(&self, kernel: &dyn Kernel, user_ns: &OwnedFd, log: &mut CallLog<'_>) -> Result<()> {
        match self.profile {
            Profile::Detach => self.by_layer(kernel, detach::ATTR, user_ns, log)?,
            Profile::Rdonly => self.by_layer(kernel, rdonly::ATTR, user_ns, log)?,
            Profile::Common => self.by_parent(kernel, common::ATTR, user_ns, log)?,
            Profile::Recursive => self.by_parent(kernel, recursive::ATTR, user_ns, log)?,
            Profile::Fds => {
                let layers = fds::clone_layers(kernel, &self.layers, user_ns, log)?;
                fds::mount_overlay(kernel, self.upper.as_ref(), &layers, &self.target, log)?;
                layers.into_iter().for_each(|layer| kernel.close(layer));
            }
            Profile::Paths => bail!("the profile paths starts no containers"),
        }
        Ok(())
    }

    fn by_layer(
        &self,
        kernel: &dyn Kernel,
        attr: super::calls::IdmapAttr,
        user_ns: &OwnedFd,
        log: &mut CallLog<'_>,
    ) -> Result<()> {
        make_folder(kernel, &self.temporary)?;
        let lower_dirs = detach::attach(kernel, &self.temporary, &self.layers, attr, user_ns, log)?;
        let overlay = Overlay { upper: self.upper.clone(), lower_dirs };
        mount_overlay(kernel, &overlay, &self.target, log)?;
        let all_gone = match self.profile {
            Profile::Rdonly => rdonly::release(kernel, &overlay.lower_dirs, log)?,
            _ => detach::release(kernel, &overlay.lower_dirs, log).map(|()| true)?,
        };
        // What leaked keeps its folder.
        if all_gone { remove_folder(kernel, &self.temporary) } else { Ok(()) }
    }

    fn by_parent(
        &self,
        kernel: &dyn Kernel,
        attr: super::calls::IdmapAttr,
        user_ns: &OwnedFd,
        log: &mut CallLog<'_>,
    ) -> Result<()> {
        make_folder(kernel, &self.temporary)?;
        let lower_dirs = common::attach(kernel, &self.temporary, &self.layers, attr, user_ns, log)?;
        let overlay = Overlay { upper: self.upper.clone(), lower_dirs };
        mount_overlay(kernel, &overlay, &self.target, log)?;
        match self.profile {
            Profile::Recursive => recursive::release(kernel, &self.temporary, log)?,
            _ => common::release(kernel, &self.temporary, log)?,
        }
        remove_folder(kernel, &self.temporary)
    }
}

/// mkdir(2) as mkdtemp(3) makes a folder. It must not be there yet: no pass may find what another left behind.
///
/// # Errors
/// mkdir(2) failed.
pub fn make_folder(kernel: &dyn Kernel, path: &Path) -> Result<()> {
    kernel.mkdir(path).with_context(|| format!("cannot make {}", path.display()))
}

/// rmdir(2): fails if anything is mounted on the folder or lies in it.
///
/// # Errors
/// rmdir(2) failed.
pub fn remove_folder(kernel: &dyn Kernel, path: &Path) -> Result<()> {
    kernel.rmdir(path).with_context(|| format!("cannot remove {}", path.display()))
}
