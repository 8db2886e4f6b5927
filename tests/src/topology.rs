//! The layers of an image: files with known owners and content, made from the seed.

use crate::layout::Layout;
use crate::user_ns::IDS_PER_CONTAINER;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;

/// The user database that containerd's inspection pass reads.
pub const PASSWD: &str = "etc/passwd";
/// The group database that it reads too.
pub const GROUP: &str = "etc/group";

/// One file of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerFile {
    /// The layer it lies in, from 0 at the bottom.
    pub layer: u32,
    /// Path in the layer.
    pub path: String,
    /// All its bytes.
    pub content: String,
    /// Owner on disk.
    pub uid: u32,
    /// Group on disk.
    pub gid: u32,
}

/// The files of an image. Each layer has a file of its own, `f<layer>`, and its version of `shared`; the bottom one has the user
/// databases. Owners are spread over all ids that a container's map covers.
pub fn layer_files(seed: u64, layers: u32) -> Vec<LayerFile> {
    let mut random = SplitMix64(seed);
    let mut files = vec![
        owned_by_root(PASSWD, "root:x:0:0:root:/root:/bin/sh\nstorm:x:1000:1000::/:/bin/sh\n"),
        owned_by_root(GROUP, "root:x:0:\nstorm:x:1000:\n"),
    ];
    for layer in 0..layers {
        files.push(random_file(&mut random, layer, format!("f{layer}")));
        files.push(random_file(&mut random, layer, "shared".into()));
    }
    files
}

/// What an overlay of all layers must show: of each path the topmost layer's file.
pub fn merged_view(files: &[LayerFile]) -> Vec<LayerFile> {
    let mut topmost: BTreeMap<&str, &LayerFile> = BTreeMap::new();
    for file in files {
        let shown = topmost.entry(&file.path).or_insert(file);
        if file.layer > shown.layer {
            *shown = file;
        }
    }
    topmost.into_values().cloned().collect()
}

/// Writes the files into their layers.
///
/// # Errors
/// A full file system, or one that takes no owners.
pub fn write_layers(layout: &Layout, files: &[LayerFile]) -> Result<()> {
    for file in files {
        let path = layout.layer(file.layer).join(&file.path);
        write_file(&path, file).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn write_file(path: &Path, file: &LayerFile) -> Result<()> {
    fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
    fs::write(path, &file.content)?;
    Ok(chown(path, Some(file.uid), Some(file.gid))?)
}

fn owned_by_root(path: &str, content: &str) -> LayerFile {
    LayerFile { layer: 0, path: path.into(), content: content.into(), uid: 0, gid: 0 }
}

fn random_file(random: &mut SplitMix64, layer: u32, path: String) -> LayerFile {
    let mut id = || (random.next() % u64::from(IDS_PER_CONTAINER)) as u32;
    let (uid, gid) = (id(), id());
    let content = format!("{path} of layer {layer}: {:016x}\n", random.next());
    LayerFile { layer, path, content, uid, gid }
}

/// Steele, Lea and Flood's generator (OOPSLA 2014): one line of state, and the same files from the same seed for ever.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_the_published_one() {
        // First outputs for the seed 1234567, as given with the reference implementation (prng.di.unimi.it).
        let mut random = SplitMix64(1_234_567);
        assert_eq!([random.next(), random.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn the_seed_decides_content_and_owners() {
        assert_eq!(layer_files(1, 3), layer_files(1, 3));
        assert_ne!(layer_files(1, 3), layer_files(2, 3));
        assert!(layer_files(1, 50).iter().all(|file| file.uid < IDS_PER_CONTAINER && file.gid < IDS_PER_CONTAINER));
    }

    #[test]
    fn the_topmost_version_of_a_file_is_shown() {
        let files = layer_files(1, 3);
        let view = merged_view(&files);
        let paths: Vec<&str> = view.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["etc/group", "etc/passwd", "f0", "f1", "f2", "shared"]);
        assert_eq!(view[5].layer, 2);
        let reversed: Vec<_> = files.into_iter().rev().collect();
        assert_eq!(merged_view(&reversed), view);
    }
}
