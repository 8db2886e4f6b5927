//! Profile `detach`, containerd 2.0.0 - 2.0.6: every lower folder is idmapped by itself and detached lazily.

use super::overlay::mount_overlay;
use super::{Kind, Pass, Starter, call};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Mounts the container's layers on `target`; nothing stays mounted in the pass's folder.
pub(super) fn mount(starter: &mut Starter<'_>, pass: &Pass<'_>, target: &Path, kind: Kind) -> Result<()> {
    let mut lower = Vec::new();
    for (index, source) in sources(starter, pass, kind).iter().enumerate() {
        let dir = pass.dir.join(index.to_string());
        mkdir(&dir)?;
        call::idmap_bind(&mut starter.calls, source, &dir, &pass.user_ns, 0)?;
        lower.push(dir);
    }
    mount_overlay(starter, pass, &lower, target, kind)?;
    lower.iter().try_for_each(|dir| release(starter, dir))
}

/// What is idmapped: the layers; an inspection has the upperdir as one more lower folder, the uppermost.
fn sources(starter: &Starter<'_>, pass: &Pass<'_>, kind: Kind) -> Vec<PathBuf> {
    let upper = (kind == Kind::Inspection).then(|| pass.container.upper());
    let layers = (0..starter.layout.layers).map(|layer| starter.layout.layer_dir(layer));
    upper.into_iter().chain(layers).collect()
}

fn mkdir(dir: &Path) -> Result<()> {
    let result = rustix::fs::mkdir(dir, rustix::fs::Mode::RWXU);
    result.with_context(|| format!("mkdir {}", dir.display()))
}

fn release(starter: &mut Starter<'_>, dir: &Path) -> Result<()> {
    call::umount_detach(&mut starter.calls, dir)?;
    fs::remove_dir(dir).with_context(|| format!("rmdir {}", dir.display()))
}
