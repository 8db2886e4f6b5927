//! Source trees to build from, and the build folders that go with them.

use super::apply::{Overlay, apply_all};
use super::base::BaseTree;
use super::digest;
use super::patch::Patch;
use crate::cache::{Cache, or_no_space};
use crate::process::Task;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use xshell::{Shell, cmd};

/// Longest time for copying a tree or a build folder.
const COPY_LIMIT: Duration = Duration::from_secs(900);

/// A tree, and where its builds go.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The source.
    pub dir: PathBuf,
    /// Hash of the source: two trees of one key are the same.
    pub key: String,
    /// "7.3.4".
    pub version: String,
    /// Slugs of the patches on it, in order.
    pub series: Vec<String>,
    /// Folder that holds its build folders. Right inside the tree where possible: then the compiler sees relative paths
    /// only, and a copied build folder is as good as a new one.
    builds: PathBuf,
    patched: Option<Patched>,
}

/// A tree made of the base.
#[derive(Clone, Debug)]
struct Patched {
    base: PathBuf,
    /// The unpatched tree, whose objects a patched build starts from.
    mainline: PathBuf,
    overlay: Overlay,
}

impl Tree {
    /// The base with patches on it. Nothing is written before [`Tree::make`].
    ///
    /// # Errors
    /// A patch does not apply.
    pub fn of_base(base: &BaseTree, patches: &[Patch], cache: &Cache) -> Result<Tree> {
        let overlay = apply_all(patches, &|path| fs::read_to_string(base.dir.join(path)).ok())?;
        let key = key_of(base, &overlay);
        let trees = cache.dir().join("trees");
        let mainline = trees.join(key_of(base, &Overlay::new()));
        let dir = trees.join(&key);
        Ok(Tree {
            builds: dir.clone(),
            dir,
            key,
            version: base.version.clone(),
            series: patches.iter().map(|patch| patch.slug.clone()).collect(),
            patched: Some(Patched { base: base.dir.clone(), mainline, overlay }),
        })
    }

    /// A tree that is not made of the base: nothing is written to it, and its builds go elsewhere.
    pub fn foreign(dir: &Path, key: String, version: String, cache: &Cache) -> Tree {
        let builds = cache.dir().join("builds").join(digest::key([&*dir.to_string_lossy()]));
        Tree { dir: dir.to_owned(), key, version, series: Vec::new(), builds, patched: None }
    }

    /// Writes the tree, if it is made of the base and not there yet: hard links to the base, and new files where patches
    /// change something.
    ///
    /// # Errors
    /// No space, or the disk refuses.
    pub fn make(&self) -> Result<()> {
        let Some(patched) = self.patched.as_ref().filter(|_| !self.dir.exists()) else { return Ok(()) };
        let trees = self.dir.parent().context("a tree lies in a folder")?;
        fs::create_dir_all(trees)?;
        let unfinished = tempfile::Builder::new().prefix("unfinished-").tempdir_in(trees)?;
        let (base, tree) = (&patched.base, unfinished.path().join("linux"));
        let sh = Shell::new()?;
        let copy = cmd!(sh, "cp -a --link {base} {tree}");
        Task::new(copy).limit(COPY_LIMIT).run().map_err(or_no_space)?;
        patched.overlay.iter().try_for_each(|(path, text)| replace(&tree.join(path), text.as_deref()))?;
        fs::rename(tree, &self.dir).context("cannot put the tree in its place")
    }

    /// The build folder for a kconfig. A patched tree's first one starts as a copy of the unpatched tree's, so that make
    /// compiles no more than what the patches reach. Says whether it did.
    ///
    /// # Errors
    /// No space, or the disk refuses.
    pub fn build_dir(&self, kconfig: &str) -> Result<(PathBuf, bool)> {
        let name = format!("build-{kconfig}");
        let dir = self.builds.join(&name);
        if dir.exists() {
            return Ok((dir, false));
        }
        if let Some(patched) = self.patched.as_ref().filter(|patched| is_finished(&patched.mainline.join(&name))) {
            self.copy_build(&patched.mainline.join(&name), &dir, &patched.overlay)?;
            return Ok((dir, true));
        }
        fs::create_dir_all(&dir)?;
        Ok((dir, false))
    }

    fn copy_build(&self, from: &Path, to: &Path, overlay: &Overlay) -> Result<()> {
        let unfinished = self.dir.join("unfinished-build");
        let _ = fs::remove_dir_all(&unfinished);
        let sh = Shell::new()?;
        let copy = cmd!(sh, "cp -a --reflink=auto {from} {unfinished}");
        Task::new(copy).limit(COPY_LIMIT).run().map_err(or_no_space)?;
        // The copied objects may be younger than the patched files (mainline was built after this tree was written). make
        // looks at nothing but times, so the patched files must be the youngest.
        for path in overlay.keys().map(|path| self.dir.join(path)).filter(|path| path.exists()) {
            fs::File::options().append(true).open(path)?.set_modified(std::time::SystemTime::now())?;
        }
        fs::rename(unfinished, to).context("cannot put the build folder in its place")
    }

    /// Removes a build folder that nobody will use again: only the unpatched tree's objects are a start for others, and a
    /// tree outside of the cache will change and be built again.
    pub fn drop_build(&self, dir: &Path) {
        if self.patched.as_ref().is_some_and(|patched| patched.mainline != self.dir) {
            // What cannot be removed costs space and nothing else.
            let _ = fs::remove_dir_all(dir);
        }
    }
}

fn is_finished(build: &Path) -> bool {
    build.join(super::build::BZIMAGE).exists()
}

fn key_of(base: &BaseTree, overlay: &Overlay) -> String {
    let files = overlay.iter().flat_map(|(path, text)| [path.as_str(), text.as_deref().unwrap_or("gone")]);
    digest::key([base.digest.as_str()].into_iter().chain(files))
}

/// Puts a new file in the place of one that may be a hard link, or removes it.
fn replace(path: &Path, text: Option<&str>) -> Result<()> {
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

    const CHANGE: &str = "diff --git a/fs/a.c b/fs/a.c\n--- a/fs/a.c\n+++ b/fs/a.c\n@@ -1 +1 @@\n-abc\n+xyz\n";
    const CREATE: &str = "diff --git a/fs/n/b.c b/fs/n/b.c\n--- /dev/null\n+++ b/fs/n/b.c\n@@ -0,0 +1 @@\n+new\n";

    fn lab() -> (tempfile::TempDir, Cache, BaseTree) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::lock_at(&dir.path().join("cache")).unwrap();
        let base = install(&fixture(), &cache, "test", fill).unwrap();
        (dir, cache, base)
    }

    fn patched(base: &BaseTree, cache: &Cache) -> Tree {
        let patches = [Patch::parse("change", CHANGE).unwrap(), Patch::parse("create", CREATE).unwrap()];
        Tree::of_base(base, &patches, cache).unwrap()
    }

    #[test]
    fn patches_reach_the_tree_and_not_the_base() {
        let (_dir, cache, base) = lab();
        let tree = patched(&base, &cache);
        tree.make().unwrap();
        let read = |dir: &Path, name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
        assert_eq!((read(&tree.dir, "fs/a.c"), read(&tree.dir, "fs/n/b.c")), ("xyz\n".into(), "new\n".into()));
        assert_eq!((read(&base.dir, "fs/a.c"), read(&base.dir, "fs/n/b.c")), ("abc".into(), String::new()));
        assert_eq!(tree.series, ["change", "create"]);
    }

    #[test]
    fn a_key_is_made_of_what_is_built_and_not_of_names() {
        let (_dir, cache, base) = lab();
        let key =
            |slug: &str, text: &str| Tree::of_base(&base, &[Patch::parse(slug, text).unwrap()], &cache).unwrap().key;
        assert_eq!(key("a", CHANGE), key("b", CHANGE));
        assert_ne!(key("a", CHANGE), key("a", &CHANGE.replace("xyz", "xyy")));
    }

    #[test]
    fn a_patched_build_starts_from_mainlines_objects_which_are_older_than_its_patched_files() {
        let (_dir, cache, base) = lab();
        let (mainline, patched) = (Tree::of_base(&base, &[], &cache).unwrap(), patched(&base, &cache));
        patched.make().unwrap();
        mainline.make().unwrap();
        let (build, copied) = mainline.build_dir("x").unwrap();
        assert!(!copied);
        let image = build.join(super::super::build::BZIMAGE);
        fs::create_dir_all(image.parent().unwrap()).unwrap();
        fs::write(&image, "objects").unwrap();
        let (build, copied) = patched.build_dir("x").unwrap();
        assert!(copied && build.starts_with(&patched.dir));
        let modified = |path: PathBuf| fs::metadata(path).unwrap().modified().unwrap();
        assert!(modified(patched.dir.join("fs/a.c")) > modified(build.join(super::super::build::BZIMAGE)));
        patched.drop_build(&build);
        assert!(!build.exists());
    }
}
