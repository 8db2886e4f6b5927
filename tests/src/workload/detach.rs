//! Profile `detach`, containerd 2.0.0 - 2.0.6: one idmap per layer, taken down lazily.

use super::calls::{IdmapAttr, attach_idmapped, detach};
use super::kernel::Kernel;
use super::pass::{make_folder, remove_folder};
use crate::metrics::{CallKind, CallLog};
use crate::sys::MOUNT_ATTR_IDMAP;
use anyhow::Result;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// What is set on each layer.
pub const ATTR: IdmapAttr = IdmapAttr { attr_set: MOUNT_ATTR_IDMAP, propagation: 0, recursive: false };

/// Shows each of `layers` at `temporary`/<its number>; returns these paths.
///
/// # Errors
/// The call that failed.
pub fn attach(
    kernel: &dyn Kernel,
    temporary: &Path,
    layers: &[PathBuf],
    attr: IdmapAttr,
    user_ns: &OwnedFd,
    log: &mut CallLog<'_>,
) -> Result<Vec<PathBuf>> {
    let mut lower_dirs = Vec::with_capacity(layers.len());
    for (number, layer) in layers.iter().enumerate() {
        let target = temporary.join(number.to_string());
        make_folder(kernel, &target)?;
        attach_idmapped(kernel, layer, &target, attr, user_ns, log)?;
        lower_dirs.push(target);
    }
    Ok(lower_dirs)
}

/// Takes down what [`attach`] has returned.
///
/// # Errors
/// The call that failed.
pub fn release(kernel: &dyn Kernel, lower_dirs: &[PathBuf], log: &mut CallLog<'_>) -> Result<()> {
    for lower_dir in lower_dirs {
        detach(kernel, lower_dir, CallKind::Umount, log)?;
        remove_folder(kernel, lower_dir)?;
    }
    Ok(())
}
