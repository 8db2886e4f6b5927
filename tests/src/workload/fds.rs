//! Profile `fds`, in no containerd yet: idmapped layers that are never attached, handed to the overlay as descriptors.

use super::calls::{IdmapAttr, clone_idmapped};
use super::kernel::Kernel;
use crate::metrics::{CallKind, CallLog};
use crate::sys::MOUNT_ATTR_IDMAP;
use anyhow::{Context, Result};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// What is set on each layer.
const ATTR: IdmapAttr = IdmapAttr { attr_set: MOUNT_ATTR_IDMAP, propagation: 0, recursive: false };

/// A detached, idmapped copy of each layer.
///
/// # Errors
/// The call that failed.
pub fn clone_layers(
    kernel: &dyn Kernel,
    layers: &[PathBuf],
    user_ns: &OwnedFd,
    log: &mut CallLog<'_>,
) -> Result<Vec<OwnedFd>> {
    layers.iter().map(|layer| clone_idmapped(kernel, layer, ATTR, user_ns, log)).collect()
}

/// Mounts an overlay on `layers` at `target`; the time of its calls is one `overlay_mount`.
///
/// # Errors
/// One of the calls failed.
pub fn mount_overlay(
    kernel: &dyn Kernel,
    upper: Option<&(PathBuf, PathBuf)>,
    layers: &[OwnedFd],
    target: &Path,
    log: &mut CallLog<'_>,
) -> Result<()> {
    log.time(CallKind::OverlayMount, || make(kernel, upper, layers, target))
        .with_context(|| format!("an overlay by descriptors at {}", target.display()))
}

fn make(
    kernel: &dyn Kernel,
    upper: Option<&(PathBuf, PathBuf)>,
    layers: &[OwnedFd],
    target: &Path,
) -> Result<(), Errno> {
    let fs = kernel.fsopen_overlay()?;
    if let Some((upper, work)) = upper {
        kernel.fsconfig_string(&fs, "workdir", &work.to_string_lossy())?;
        kernel.fsconfig_string(&fs, "upperdir", &upper.to_string_lossy())?;
    }
    kernel.fsconfig_string(&fs, "index", "off")?;
    for layer in layers {
        kernel.fsconfig_fd(&fs, "lowerdir+", layer)?;
    }
    kernel.fsconfig_create(&fs)?;
    let mount = kernel.fsmount(&fs)?;
    kernel.move_mount(&mount, target)?;
    kernel.close(mount);
    kernel.close(fs);
    Ok(())
}
