//! Profile `common`, containerd 2.0.7+, 2.1.5+ and 2.2: the layers' common parent is idmapped once, read-only.

use super::overlay::mount_overlay;
use super::{Kind, Pass, Starter, call};
use crate::sys::MOUNT_ATTR_RDONLY;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Mounts the container's layers on `target`; nothing stays mounted on the pass's folder.
pub(super) fn mount(starter: &mut Starter<'_>, pass: &Pass<'_>, target: &Path, kind: Kind) -> Result<()> {
    let parent = starter.layout.snapshots();
    call::idmap_bind(&mut starter.calls, &parent, &pass.dir, &pass.user_ns, MOUNT_ATTR_RDONLY)?;
    let lower = lower(starter, pass, kind)?;
    mount_overlay(starter, pass, &lower, target, kind)?;
    let result = call::umount_retrying(&mut starter.calls, "umount", &pass.dir);
    result.with_context(|| format!("umount2 {}", pass.dir.display()))
}

/// The lower folders, seen through the one idmapped mount: `T/<id>/fs`.
fn lower(starter: &Starter<'_>, pass: &Pass<'_>, kind: Kind) -> Result<Vec<PathBuf>> {
    let parent = starter.layout.snapshots();
    let through = |path: PathBuf| -> Result<PathBuf> { Ok(pass.dir.join(path.strip_prefix(&parent)?)) };
    let upper = (kind == Kind::Inspection).then(|| pass.container.upper());
    let layers = (0..starter.layout.layers).map(|layer| starter.layout.layer_dir(layer));
    upper.into_iter().chain(layers).map(through).collect()
}
