//! What a storm happens on: image layers as containerd's overlayfs snapshotter lays them out, with known owner and content.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Container ids map to host ids from here on, a range of [`ID_COUNT`] per container, as `/etc/subuid` does it.
pub const FIRST_HOST_ID: u32 = 100_000;

/// Ids of one container's range.
pub const ID_COUNT: u32 = 65_536;

/// Ranges that are handed out in turn: the last one ends below 2^31.
const RANGES: u32 = 1000;

/// The files of a storm, below one mount.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The mount that everything below happens under.
    pub base: PathBuf,
    /// Number of image layers.
    pub layers: u32,
    /// Goes into the content of each file, so that no run finds the files of another.
    pub seed: u64,
}

/// A file that must be visible through an overlay, and what must be in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Path below the root of the overlay.
    pub path: String,
    /// Whole content.
    pub content: String,
}

impl Layout {
    /// Writes the layers. All files belong to id 0 on disk.
    ///
    /// # Errors
    /// No space, or no such mount.
    pub fn prepare(base: &Path, layers: u32, seed: u64) -> Result<Layout> {
        let layout = Layout { base: base.to_owned(), layers, seed };
        for dir in ["snapshots", "tmp", "rootfs"] {
            fs::create_dir_all(base.join(dir))
                .with_context(|| format!("cannot make {dir} below {}", base.display()))?;
        }
        (0..layers).try_for_each(|layer| layout.write_layer(layer))?;
        Ok(layout)
    }

    fn write_layer(&self, layer: u32) -> Result<()> {
        let fs_dir = self.layer_dir(layer);
        fs::create_dir_all(fs_dir.join("etc"))?;
        fs::write(fs_dir.join(format!("layer-{layer}")), self.content(&format!("layer-{layer}"), layer))?;
        // Each layer has its own version of these; the first lowerdir is the uppermost and must win.
        for name in ["etc/passwd", "etc/group", "overridden"] {
            fs::write(fs_dir.join(name), self.content(name, layer))?;
        }
        Ok(())
    }

    fn content(&self, name: &str, layer: u32) -> String {
        format!("root:x:0:0:{name} of layer {layer}, seed {}:/root:/bin/sh\n", self.seed)
    }

    /// The folder that holds all layers and upper folders: profile `common` idmaps it once.
    pub fn snapshots(&self) -> PathBuf {
        self.base.join("snapshots")
    }

    /// Where layer `layer` lies.
    pub fn layer_dir(&self, layer: u32) -> PathBuf {
        self.base.join(format!("snapshots/{layer}/fs"))
    }

    /// Everything that an overlay of all layers must show.
    pub fn expected(&self) -> Vec<Expected> {
        let of_layers = (0..self.layers).map(|layer| (format!("layer-{layer}"), layer));
        let of_uppermost = ["etc/passwd", "etc/group", "overridden"].map(|name| (name.to_owned(), 0));
        of_layers
            .chain(of_uppermost)
            .map(|(path, layer)| Expected { content: self.content(&path, layer), path })
            .collect()
    }
}

/// One container: its number, its folders, its ids.
#[derive(Clone, Debug)]
pub struct Container {
    /// Number within the storm.
    pub number: u32,
    /// Snapshot folder; `fs` below it is the upperdir, `work` the workdir.
    pub snapshot: PathBuf,
    /// Where the root file system is mounted.
    pub rootfs: PathBuf,
    /// Host id of the container's root.
    pub host_id: u32,
}

impl Container {
    /// Makes the container's folders, which a snapshotter would have made before the storm.
    ///
    /// # Errors
    /// No space.
    pub fn prepare(layout: &Layout, number: u32) -> Result<Container> {
        let container = Container {
            number,
            snapshot: layout.snapshots().join(format!("active-{number}")),
            rootfs: layout.base.join(format!("rootfs/{number}")),
            host_id: FIRST_HOST_ID + (number % RANGES) * ID_COUNT,
        };
        for dir in [container.upper(), container.work(), container.rootfs.clone()] {
            fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        Ok(container)
    }

    /// upperdir.
    pub fn upper(&self) -> PathBuf {
        self.snapshot.join("fs")
    }

    /// workdir.
    pub fn work(&self) -> PathBuf {
        self.snapshot.join("work")
    }

    /// Removes the container's folders.
    ///
    /// # Errors
    /// Something is still mounted there.
    pub fn remove(&self) -> Result<()> {
        for dir in [&self.snapshot, &self.rootfs] {
            fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_hold_what_is_expected_and_the_first_wins() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::prepare(dir.path(), 3, 7).unwrap();
        for layer in 0..3 {
            assert!(layout.layer_dir(layer).join(format!("layer-{layer}")).exists());
        }
        let expected = layout.expected();
        assert_eq!(expected.len(), 6);
        let overridden = expected.iter().find(|file| file.path == "overridden").unwrap();
        assert_eq!(overridden.content, fs::read_to_string(layout.layer_dir(0).join("overridden")).unwrap());
        assert_ne!(overridden.content, fs::read_to_string(layout.layer_dir(1).join("overridden")).unwrap());
    }

    #[test]
    fn containers_have_their_own_folders_and_ids() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::prepare(dir.path(), 1, 7).unwrap();
        let (one, two) = (Container::prepare(&layout, 0).unwrap(), Container::prepare(&layout, 1).unwrap());
        assert_eq!((one.host_id, two.host_id), (100_000, 165_536));
        assert_ne!(one.rootfs, two.rootfs);
        one.remove().unwrap();
        assert!(!one.rootfs.exists() && two.rootfs.exists());
    }
}
