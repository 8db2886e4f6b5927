//! Source trees to build from.
//!
//! All kernels of one base are built in one tree, the workbench, one after the other: a kernel's patched files replace those of
//! the kernel before it, and make rebuilds what they reach. (Copies of a build folder in trees of their own would be built anew:
//! kbuild compares commands, paths and all, rebuilds objtool because its path changed, and with it everything.)

use super::apply::{Overlay, apply_all};
use super::base::BaseTree;
use super::digest;
use super::patch::Patch;
use super::reach::Reach;
use crate::cache::{Cache, or_no_space};
use crate::process::Task;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use xshell::{Shell, cmd};

/// Longest time for making the workbench.
const COPY_LIMIT: Duration = Duration::from_secs(900);

/// A tree, and where its builds go.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The source.
    pub dir: PathBuf,
    /// Hash of the source: kernels of one key and kconfig are the same. Documentation is no part of it.
    pub key: String,
    /// Hash of what selftests are built from: trees that differ in nothing but the kernel proper share it.
    pub uapi_key: String,
    /// "7.3.4".
    pub version: String,
    /// Slugs of the patches on it, in order.
    pub series: Vec<String>,
    /// Folder that holds its build folders.
    builds: PathBuf,
    patched: Option<Patched>,
}

/// What makes a tree of the workbench.
#[derive(Clone, Debug)]
struct Patched {
    base: PathBuf,
    overlay: Overlay,
}

impl Tree {
    /// The base with patches on it. Nothing is written before [`Tree::make`].
    ///
    /// # Errors
    /// A patch does not apply.
    pub fn of_base(base: &BaseTree, patches: &[Patch], cache: &Cache) -> Result<Tree> {
        let overlay = apply_all(patches, &|path| fs::read_to_string(base.dir.join(path)).ok())?;
        let key = |wanted: fn(&str) -> bool| {
            let files = overlay.iter().filter(|(path, _)| wanted(path));
            let parts = files.flat_map(|(path, text)| [path.as_str(), text.as_deref().unwrap_or("gone")]);
            digest::key([base.digest.as_str()].into_iter().chain(parts))
        };
        let dir = cache.dir().join("workbench").join(digest::key([base.digest.as_str()]));
        Ok(Tree {
            key: key(|path| !is_prose(path)),
            uapi_key: key(is_uapi),
            version: base.version.clone(),
            series: patches.iter().map(|patch| patch.slug.clone()).collect(),
            builds: dir.clone(),
            dir,
            patched: Some(Patched { base: base.dir.clone(), overlay }),
        })
    }

    /// A tree that is not made of the base: nothing is written to it, and its builds go elsewhere.
    pub fn foreign(dir: &Path, key: String, version: String, cache: &Cache) -> Tree {
        let builds = cache.dir().join("builds").join(digest::key([&*dir.to_string_lossy()]));
        Tree { dir: dir.to_owned(), uapi_key: key.clone(), key, version, series: Vec::new(), builds, patched: None }
    }

    /// Puts the tree on the workbench, in place of the one that is there. A tree that is not made of the base is left alone.
    ///
    /// # Errors
    /// No space, or the disk refuses.
    pub fn make(&self) -> Result<()> {
        let Some(patched) = &self.patched else { return Ok(()) };
        if !self.dir.exists() {
            link(&patched.base, &self.dir)?;
        }
        // What was replaced is written down before it is, so that nothing is forgotten if this is interrupted.
        let record = self.dir.with_extension("replaced");
        let before = fs::read_to_string(&record).unwrap_or_default();
        let paths: BTreeSet<&str> = before.lines().chain(patched.overlay.keys().map(String::as_str)).collect();
        fs::write(&record, paths.iter().map(|path| format!("{path}\n")).collect::<String>())?;
        paths.into_iter().try_for_each(|path| patched.put(&self.dir, path)).map_err(or_no_space)
    }

    /// What the patches of this tree can have to do with; nothing if that is everything, or is not known.
    pub fn reach(&self) -> Option<Reach> {
        self.patched.as_ref().and_then(|patched| Reach::of(&patched.base, &patched.overlay))
    }

    /// Files that its patches change.
    pub fn changed(&self) -> impl Iterator<Item = &str> {
        self.patched.iter().flat_map(|patched| patched.overlay.keys().map(String::as_str))
    }

    /// The build folder for a kconfig, and whether it holds objects of a kernel that was finished.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn build_dir(&self, kconfig: &str) -> Result<(PathBuf, bool)> {
        let dir = self.builds.join(format!("build-{kconfig}"));
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let is_warm = dir.join(super::build::BZIMAGE).exists();
        Ok((dir, is_warm))
    }
}

impl Patched {
    /// Gives a file of the workbench the text that it must have. One that has it keeps its time, so that make leaves its object
    /// alone; any other becomes a new file: the old one may be a hard link to the base, and has an older time than its object.
    fn put(&self, dir: &Path, path: &str) -> Result<()> {
        let is = fs::read(dir.join(path)).ok();
        let must_be = match self.overlay.get(path) {
            Some(text) => text.clone().map(String::into_bytes),
            None => fs::read(self.base.join(path)).ok(),
        };
        if is == must_be { Ok(()) } else { replace(&dir.join(path), must_be.as_deref()) }
    }
}

/// Whether user space is built from a file: headers for it, selftests, and what makes them.
fn is_uapi(path: &str) -> bool {
    path.contains("include/uapi/") || ["tools/", "scripts/", "usr/"].iter().any(|folder| path.starts_with(folder))
}

/// What no build reads; the Kconfig there one does.
fn is_prose(path: &str) -> bool {
    path.starts_with("Documentation/") && (path.ends_with(".rst") || path.ends_with(".txt"))
}

/// A copy of a tree by hard links, whole or not at all.
fn link(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().context("a tree lies in a folder")?;
    fs::create_dir_all(parent)?;
    let unfinished = tempfile::Builder::new().prefix("unfinished-").tempdir_in(parent)?;
    let (sh, copy) = (Shell::new()?, unfinished.path().join("linux"));
    Task::new(cmd!(sh, "cp -a --link {from} {copy}")).limit(COPY_LIMIT).run().map_err(or_no_space)?;
    fs::rename(copy, to).context("cannot put the workbench in its place")
}

fn replace(path: &Path, text: Option<&[u8]>) -> Result<()> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    let Some(text) = text else { return Ok(()) };
    fs::create_dir_all(path.parent().context("a file of a patch has a folder")?)?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::base::install;
    use crate::kernel::base::tests::{fill, fixture};
    use std::os::unix::fs::MetadataExt;
    use std::time::SystemTime;

    const CHANGE: &str = "diff --git a/fs/a.c b/fs/a.c\n--- a/fs/a.c\n+++ b/fs/a.c\n@@ -1 +1 @@\n-abc\n+xyz\n";
    const CREATE: &str = "diff --git a/fs/n/b.c b/fs/n/b.c\n--- /dev/null\n+++ b/fs/n/b.c\n@@ -0,0 +1 @@\n+new\n";

    fn lab() -> (tempfile::TempDir, Cache, BaseTree) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::lock_at(&dir.path().join("cache")).unwrap();
        let base = install(&fixture(), &cache, "test", fill).unwrap();
        (dir, cache, base)
    }

    fn made(base: &BaseTree, cache: &Cache, patches: &[(&str, &str)]) -> Tree {
        let patches: Vec<Patch> = patches.iter().map(|(slug, text)| Patch::parse(slug, text).unwrap()).collect();
        let tree = Tree::of_base(base, &patches, cache).unwrap();
        tree.make().unwrap();
        tree
    }

    fn read(dir: &Path, name: &str) -> Option<String> {
        fs::read_to_string(dir.join(name)).ok()
    }

    #[test]
    fn patches_reach_the_workbench_and_not_the_base() {
        let (_dir, cache, base) = lab();
        let tree = made(&base, &cache, &[("change", CHANGE), ("create", CREATE)]);
        assert_eq!(read(&tree.dir, "fs/a.c").unwrap(), "xyz\n");
        assert_eq!(read(&tree.dir, "fs/n/b.c").unwrap(), "new\n");
        assert_eq!((read(&base.dir, "fs/a.c").unwrap(), read(&base.dir, "fs/n/b.c")), ("abc".into(), None));
        assert_eq!(tree.series, ["change", "create"]);
    }

    #[test]
    fn the_next_kernel_takes_back_what_the_one_before_it_changed() {
        let (_dir, cache, base) = lab();
        let both = made(&base, &cache, &[("change", CHANGE), ("create", CREATE)]);
        let mainline = made(&base, &cache, &[]);
        assert_eq!(mainline.dir, both.dir);
        assert_eq!((read(&mainline.dir, "fs/a.c").unwrap(), read(&mainline.dir, "fs/n/b.c")), ("abc".into(), None));
        let second = made(&base, &cache, &[("create", CREATE)]);
        assert_eq!(read(&second.dir, "fs/a.c").unwrap(), "abc");
        assert_eq!(read(&second.dir, "fs/n/b.c").unwrap(), "new\n");
    }

    #[test]
    fn make_sees_a_changed_file_as_new_and_another_as_old() {
        let (_dir, cache, base) = lab();
        let tree = made(&base, &cache, &[]);
        let state =
            |name: &str| fs::metadata(tree.dir.join(name)).map(|file| (file.ino(), file.modified().unwrap())).unwrap();
        let (makefile, source) = (state("Makefile"), state("fs/a.c"));
        std::thread::sleep(Duration::from_millis(20));
        let object = SystemTime::now();
        std::thread::sleep(Duration::from_millis(20));
        made(&base, &cache, &[("change", CHANGE)]);
        assert!(state("fs/a.c").1 > object && object > source.1);
        assert_eq!(state("Makefile"), makefile);
        // The same once more: nothing to rebuild.
        let patched = state("fs/a.c");
        made(&base, &cache, &[("change", CHANGE)]);
        assert_eq!(state("fs/a.c"), patched);
        // Back to the base: the object is the patched one's, so the base's file must be new as well.
        made(&base, &cache, &[]);
        assert!(state("fs/a.c").1 > patched.1);
    }

    #[test]
    fn a_key_is_made_of_what_is_built_and_not_of_names() {
        let (_dir, cache, base) = lab();
        let key = |slug: &str, text: &str| made(&base, &cache, &[(slug, text)]).key;
        assert_eq!(key("a", CHANGE), key("b", CHANGE));
        assert_ne!(key("a", CHANGE), key("a", &CHANGE.replace("xyz", "xyy")));
    }

    #[test]
    fn documentation_makes_no_other_kernel() {
        let (_dir, cache, base) = lab();
        let new = |path: &str| {
            let text = CHANGE.replace("fs/a.c", path).replace("-1 +1", "-0,0 +1").replace("-abc\n", "");
            text.replace(&format!("--- a/{path}"), "--- /dev/null")
        };
        let key = |path: &str| made(&base, &cache, &[("change", CHANGE), ("new", &new(path))]).key;
        let alone = made(&base, &cache, &[("change", CHANGE)]).key;
        assert_eq!((key("Documentation/a.rst"), key("Documentation/a.txt")), (alone.clone(), alone.clone()));
        assert!(key("Documentation/Kconfig") != alone && key("fs/a.rst") != alone);
    }

    #[test]
    fn a_patch_of_the_kernel_proper_needs_no_other_selftests() {
        let (_dir, cache, base) = lab();
        let uapi = CHANGE.replace("fs/a.c", "include/uapi/linux/a.h").replace("-1 +1", "-0,0 +1").replace("-abc\n", "");
        let uapi = uapi.replace("--- a/include/uapi/linux/a.h", "--- /dev/null");
        let mainline = made(&base, &cache, &[]);
        assert_eq!(made(&base, &cache, &[("change", CHANGE)]).uapi_key, mainline.uapi_key);
        assert_ne!(made(&base, &cache, &[("uapi", &uapi)]).uapi_key, mainline.uapi_key);
    }

    #[test]
    fn a_build_folder_is_warm_once_it_holds_an_image() {
        let (_dir, cache, base) = lab();
        let tree = made(&base, &cache, &[]);
        let (build, is_warm) = tree.build_dir("bench").unwrap();
        assert!(!is_warm && build.parent() == Some(&tree.dir));
        let image = build.join(super::super::build::BZIMAGE);
        fs::create_dir_all(image.parent().unwrap()).unwrap();
        fs::write(image, "").unwrap();
        assert!(tree.build_dir("bench").unwrap().1);
    }
}
