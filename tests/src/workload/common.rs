//! Profile `common`, containerd 2.0.7+, 2.1.5+ and 2.2: one idmap, of the layers' common parent, and a plain umount.

use super::calls::{IdmapAttr, attach_idmapped, unmount_when_free};
use super::kernel::Kernel;
use super::overlay::common_folder;
use crate::metrics::{CallKind, CallLog};
use crate::sys::{MOUNT_ATTR_IDMAP, MOUNT_ATTR_RDONLY};
use anyhow::{Context, Result};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// What is set on the layers' common parent.
pub const ATTR: IdmapAttr =
    IdmapAttr { attr_set: MOUNT_ATTR_IDMAP | MOUNT_ATTR_RDONLY, propagation: 0, recursive: false };

/// Shows the folder that all `layers` lie in at `temporary`; returns where the layers are below it.
///
/// # Errors
/// The call that failed, or layers that have nothing in common.
pub fn attach(
    kernel: &dyn Kernel,
    temporary: &Path,
    layers: &[PathBuf],
    attr: IdmapAttr,
    user_ns: &OwnedFd,
    log: &mut CallLog<'_>,
) -> Result<Vec<PathBuf>> {
    let parent = common_folder(layers).context("the layers have no folder in common")?;
    attach_idmapped(kernel, &parent, temporary, attr, user_ns, log)?;
    layers.iter().map(|layer| Ok(temporary.join(layer.strip_prefix(&parent)?))).collect()
}

/// Takes down what [`attach`] has put at `temporary`.
///
/// # Errors
/// The call that failed.
pub fn release(kernel: &dyn Kernel, temporary: &Path, log: &mut CallLog<'_>) -> Result<()> {
    unmount_when_free(kernel, temporary, CallKind::Umount, log)
}
