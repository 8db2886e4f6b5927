//! Profile `detach`, containerd 2.0.0 - 2.0.6: one idmap per layer, taken down lazily.

use super::calls::{attach_idmapped, detach};
use super::pass::{make_folder, remove_folder};
use crate::metrics::{CallKind, CallLog};
use crate::sys::MOUNT_ATTR_IDMAP;
use anyhow::Result;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Shows each of `layers` at `temporary`/<its number>; returns these paths.
///
/// # Errors
/// The call that failed.
pub fn attach(temporary: &Path, layers: &[PathBuf], user_ns: &OwnedFd, log: &mut CallLog<'_>) -> Result<Vec<PathBuf>> {
    let mut lower_dirs = Vec::with_capacity(layers.len());
    for (number, layer) in layers.iter().enumerate() {
        let target = temporary.join(number.to_string());
        make_folder(&target)?;
        attach_idmapped(layer, &target, MOUNT_ATTR_IDMAP, user_ns, log)?;
        lower_dirs.push(target);
    }
    Ok(lower_dirs)
}

/// Takes down what [`attach`] has returned.
///
/// # Errors
/// The call that failed.
pub fn release(lower_dirs: &[PathBuf], log: &mut CallLog<'_>) -> Result<()> {
    for lower_dir in lower_dirs {
        detach(lower_dir, CallKind::Umount, log)?;
        remove_folder(lower_dir)?;
    }
    Ok(())
}
