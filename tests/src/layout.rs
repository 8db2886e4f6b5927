//! Where everything of a storm lies, below the mount that the storm happens on: containerd's folders.

use std::path::{Path, PathBuf};

/// The paths of one storm.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
    layers: u32,
}

impl Layout {
    /// A storm with this many layers below `root`.
    pub fn new(root: &Path, layers: u32) -> Layout {
        Layout { root: root.to_owned(), layers }
    }

    /// The folders that all others lie in.
    pub fn top_folders(&self) -> [PathBuf; 3] {
        [self.snapshots(), self.tmpmounts(), self.root.join("tasks")]
    }

    /// The common parent of all layers.
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// Layer `layer`, from 0 at the bottom: the overlay snapshotter counts its ids from 1.
    pub fn layer(&self, layer: u32) -> PathBuf {
        self.snapshots().join((layer + 1).to_string()).join("fs")
    }

    /// The layers as lowerdir= names them: topmost first.
    pub fn lower_dirs(&self) -> Vec<PathBuf> {
        (0..self.layers).rev().map(|layer| self.layer(layer)).collect()
    }

    /// The container's own snapshot: its upperdir.
    pub fn upper(&self, container: u32) -> PathBuf {
        self.snapshot_of(container).join("fs")
    }

    /// The overlay's work folder beside it.
    pub fn work(&self, container: u32) -> PathBuf {
        self.snapshot_of(container).join("work")
    }

    /// Where the container's root is mounted.
    pub fn rootfs(&self, container: u32) -> PathBuf {
        self.root.join("tasks").join(container.to_string()).join("rootfs")
    }

    /// The temporary folder of a pass for idmapped layers: containerd's T. No two passes share one.
    pub fn idmapped(&self, container: u32, pass: u32) -> PathBuf {
        self.tmpmounts().join(format!("ovl-idmapped{container}-{pass}"))
    }

    /// Where an inspection pass mounts its overlay.
    pub fn inspection(&self, container: u32, pass: u32) -> PathBuf {
        self.tmpmounts().join(format!("containerd-mount{container}-{pass}"))
    }

    /// Where all temporary folders lie.
    pub fn tmpmounts(&self) -> PathBuf {
        self.root.join("tmpmounts")
    }

    fn snapshot_of(&self, container: u32) -> PathBuf {
        self.snapshots().join((self.layers + 1 + container).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_topmost_layer_comes_first() {
        let dirs = Layout::new(Path::new("/s"), 2).lower_dirs();
        assert_eq!(dirs, [Path::new("/s/snapshots/2/fs"), Path::new("/s/snapshots/1/fs")]);
    }

    #[test]
    fn no_two_things_share_a_path() {
        let layout = Layout::new(Path::new("/s"), 3);
        let mut paths = layout.lower_dirs();
        for container in 0..3 {
            paths.extend([layout.upper(container), layout.work(container), layout.rootfs(container)]);
            paths
                .extend((0..3).flat_map(|pass| [layout.idmapped(container, pass), layout.inspection(container, pass)]));
        }
        assert_eq!(paths.iter().collect::<BTreeSet<_>>().len(), paths.len());
    }
}
