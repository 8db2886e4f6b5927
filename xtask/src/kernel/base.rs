//! The pristine base in the cache: put there whole or not at all, and checked whatever its origin.

use super::catalog::Base;
use super::digest;
use crate::cache::{Cache, or_no_space};
use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// What the packed source takes besides the tree, MiB: a package, the tarball in it, and some air.
pub const PACKED_MIB: u64 = 500;

/// Start of the names of folders that are not finished yet.
const UNFINISHED: &str = "unfinished-";

/// The pristine tree that all named kernels stand on.
#[derive(Clone, Debug)]
pub struct BaseTree {
    /// The tree. Its files may be hard links of other trees: they are replaced, never written to.
    pub dir: PathBuf,
    /// "7.3.4".
    pub version: String,
    /// Where it came from, for a person.
    pub origin: String,
    /// Hash of the tree: two trees of one digest build the same kernel.
    pub digest: String,
}

/// What is written beside the tree.
#[derive(Serialize, Deserialize)]
struct Stamp {
    origin: String,
    digest: String,
}

/// The base that is in the cache, if one is; checked.
///
/// # Errors
/// Something is there, but it is not the base.
pub fn cached(base: &Base, cache: &Cache) -> Result<Option<BaseTree>> {
    let slot = slot(base, cache);
    let Ok(text) = fs::read_to_string(slot.join("origin.json")) else { return Ok(None) };
    let stamp: Stamp = serde_json::from_str(&text).with_context(|| format!("{} is damaged", slot.display()))?;
    let dir = slot.join("linux");
    verify(base, &dir)?;
    Ok(Some(BaseTree { dir, version: base.version.clone(), origin: stamp.origin, digest: stamp.digest }))
}

/// Puts a base into the cache, in place of the one that may be there. `fill` writes the tree into the folder it is given.
///
/// # Errors
/// No space, `fill` fails, or the tree is not the base. The cache then holds what it held before.
pub fn install(base: &Base, cache: &Cache, origin: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<BaseTree> {
    cache.need_space(base.unpacked_mib + PACKED_MIB, "unpacking the kernel source")?;
    let unfinished = scratch(cache)?;
    let tree = unfinished.path().join("linux");
    fs::create_dir(&tree)?;
    fill(&tree).map_err(or_no_space)?;
    verify(base, &tree)?;
    let (digest, unknown) = tree_digest(base, &tree)?;
    // Whoever trusts that origin puts the hash into kernels.toml.
    let remark = unknown.map(|content| format!(" (its content {content} is not among base.trees of kernels.toml)"));
    let stamp = Stamp { origin: format!("{origin}{}", remark.unwrap_or_default()), digest };
    fs::write(unfinished.path().join("origin.json"), serde_json::to_string_pretty(&stamp)?)?;
    let slot = slot(base, cache);
    if slot.exists() {
        fs::remove_dir_all(&slot)?;
    }
    fs::rename(unfinished.keep(), &slot)?;
    cached(base, cache)?.context("the base vanished from the cache")
}

/// An empty folder in the cache, removed when it is dropped, or swept by the next command.
pub fn scratch(cache: &Cache) -> Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(cache.dir()).context("cannot make a folder in the cache")
}

fn slot(base: &Base, cache: &Cache) -> PathBuf {
    cache.dir().join(format!("base-{}", base.version))
}

/// Removes what a killed run left behind. The caller holds the cache's lock, so nobody is writing there.
pub fn sweep(cache: &Cache) {
    for entry in fs::read_dir(cache.dir()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            // What cannot be removed costs space and nothing else.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Checks that a tree is the base: its version, and each file that the series may touch.
///
/// # Errors
/// It is not; names the file and both sides.
pub fn verify(base: &Base, tree: &Path) -> Result<()> {
    let makefile = tree.join("Makefile");
    let text = fs::read_to_string(&makefile).map_err(|error| wrong(tree, &format!("no Makefile ({error})")))?;
    let version = version(&text);
    if version.as_deref() != Some(&base.version) {
        let found = version.unwrap_or_else(|| "no version at all".into());
        return Err(wrong(tree, &format!("its Makefile says {found}, expected {}", base.version)));
    }
    for (path, expected) in &base.files {
        let found = digest::of_file(&tree.join(path)).map_err(|error| wrong(tree, &format!("{error:#}")))?;
        if found != *expected {
            return Err(wrong(tree, &format!("{path} differs: SHA-256 {found}, expected {expected}")));
        }
    }
    Ok(())
}

fn wrong(tree: &Path, why: &str) -> anyhow::Error {
    let message = format!(
        "{} is not the base of the series: {why}\n\
         next: give an unmodified tree of the version in kernel-patches/kernels.toml with --source",
        tree.display()
    );
    Failure::error(Exit::WrongBase, message)
}

/// "7.3.4" from the head of a kernel's Makefile, as `make kernelversion` prints it.
pub fn version(makefile: &str) -> Option<String> {
    let value = |name: &str| {
        let assigned = |line: &str| Some(line.strip_prefix(name)?.trim_start().strip_prefix('=')?.trim().to_owned());
        makefile.lines().find_map(assigned)
    };
    let (version, patchlevel, sublevel) = (value("VERSION")?, value("PATCHLEVEL")?, value("SUBLEVEL")?);
    Some(format!("{version}.{patchlevel}.{sublevel}{}", value("EXTRAVERSION").unwrap_or_default()))
}

/// Hash of the list of files with their sizes, and of the checked files' content; of a tree that is none of the known ones, of all of its
/// content as well, which is told then. Packagers add and change files, and somebody may have changed one before giving the tree with
/// `--source`.
fn tree_digest(base: &Base, tree: &Path) -> Result<(String, Option<String>)> {
    let files = list(tree, &|_| true, &|metadata| metadata.len().to_string())?;
    let content = content_digest(tree, &files)?;
    let unknown = (!base.trees.contains(&content)).then_some(content);
    let mut parts = vec![files];
    parts.extend(base.files.values().cloned());
    parts.extend(unknown.clone());
    Ok((digest::of_parts(parts.iter().map(String::as_str)), unknown))
}

/// Hash of all files' content, and of where links lead. `files` is the tree's list.
fn content_digest(tree: &Path, files: &str) -> Result<String> {
    let one = |line: &str| -> Result<String> {
        let name = line.rsplit_once(' ').map_or(line, |(name, _)| name);
        let path = tree.join(name);
        let content = match fs::read_link(&path) {
            Ok(target) => target.display().to_string(),
            Err(_) => digest::of_file(&path)?,
        };
        Ok(format!("{name} {content}"))
    };
    let all = files.lines().map(one).collect::<Result<Vec<_>>>()?;
    Ok(digest::of_parts(all.iter().map(String::as_str)))
}

/// One line per file below `dir`, sorted: its path, and what `say` says of it. `wanted` decides about top-level entries.
///
/// # Errors
/// A folder cannot be read.
pub fn list(dir: &Path, wanted: &dyn Fn(&str) -> bool, say: &dyn Fn(&fs::Metadata) -> String) -> Result<String> {
    let mut lines = Vec::new();
    for name in names(dir)?.into_iter().filter(|name| wanted(name)) {
        walk(dir, Path::new(&name), say, &mut lines)?;
    }
    Ok(lines.concat())
}

fn walk(dir: &Path, path: &Path, say: &dyn Fn(&fs::Metadata) -> String, lines: &mut Vec<String>) -> Result<()> {
    let metadata = fs::symlink_metadata(dir.join(path))?;
    if metadata.is_dir() {
        return names(&dir.join(path))?.iter().try_for_each(|name| walk(dir, &path.join(name), say, lines));
    }
    lines.push(format!("{} {}\n", path.display(), say(&metadata)));
    Ok(())
}

/// Names in a folder, sorted.
pub fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::failure::exit_code;

    const MAKEFILE: &str = "# SPDX\nVERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\nEXTRAVERSION =\nNAME = x\n";

    /// A base of one file, `fs/a.c`, that holds "abc".
    pub fn fixture() -> Base {
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let files = [("fs/a.c".to_owned(), hash.to_owned())].into();
        Base { version: "7.3.4".into(), unpacked_mib: 1, sources: Vec::new(), trees: Default::default(), files }
    }

    /// Writes the tree of [`fixture`].
    pub fn fill(tree: &Path) -> Result<()> {
        fs::create_dir_all(tree.join("fs"))?;
        fs::write(tree.join("Makefile"), MAKEFILE)?;
        fs::write(tree.join("Kconfig"), "")?;
        Ok(fs::write(tree.join("fs/a.c"), "abc")?)
    }

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::lock_at(dir.path()).unwrap();
        (dir, cache)
    }

    #[test]
    fn versions_are_read_as_make_says_them() {
        assert_eq!(version(MAKEFILE).unwrap(), "7.3.4");
        assert_eq!(version(&MAKEFILE.replace("EXTRAVERSION =", "EXTRAVERSION = -rc1")).unwrap(), "7.3.4-rc1");
        assert_eq!(version("all:\n"), None);
    }

    #[test]
    fn another_version_or_a_changed_file_is_the_wrong_base() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path()).unwrap();
        verify(&fixture(), dir.path()).unwrap();
        fs::write(dir.path().join("fs/a.c"), "abd").unwrap();
        let error = verify(&fixture(), dir.path()).unwrap_err();
        assert_eq!(exit_code(&error), Exit::WrongBase);
        assert!(error.to_string().contains("fs/a.c differs"), "{error}");
        fs::write(dir.path().join("Makefile"), MAKEFILE.replace("= 4", "= 5")).unwrap();
        let error = verify(&fixture(), dir.path()).unwrap_err();
        assert!(error.to_string().contains("says 7.3.5, expected 7.3.4"), "{error}");
    }

    #[test]
    fn a_base_is_installed_whole_or_not_at_all() {
        let (dir, cache) = cache();
        assert!(cached(&fixture(), &cache).unwrap().is_none());
        let error = install(&fixture(), &cache, "x", |tree| Ok(fs::write(tree.join("Makefile"), "")?)).unwrap_err();
        assert_eq!(exit_code(&error), Exit::WrongBase);
        assert_eq!(names(dir.path()).unwrap(), ["lock"]);
        let tree = install(&fixture(), &cache, "a test", fill).unwrap();
        assert!(tree.origin.starts_with("a test (its content "), "{}", tree.origin);
        assert_eq!(names(dir.path()).unwrap().len(), 2);
        assert_eq!(cached(&fixture(), &cache).unwrap().unwrap().digest, tree.digest);
    }

    #[test]
    fn remains_of_a_killed_run_are_swept() {
        let (dir, cache) = cache();
        std::mem::forget(scratch(&cache).unwrap());
        assert_eq!(names(dir.path()).unwrap().len(), 2);
        sweep(&cache);
        assert_eq!(names(dir.path()).unwrap(), ["lock"]);
    }

    #[test]
    fn the_digest_sees_a_change_that_keeps_the_size() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path()).unwrap();
        std::os::unix::fs::symlink("a.c", dir.path().join("fs/b.c")).unwrap();
        let changed = dir.path().join("fs/other.c");
        fs::write(&changed, "x = 1;").unwrap();
        let before = tree_digest(&fixture(), dir.path()).unwrap();
        let known = Base { trees: before.1.clone().into_iter().collect(), ..fixture() };
        let of_known = tree_digest(&known, dir.path()).unwrap();
        assert!(of_known.1.is_none() && of_known.0 != before.0);
        fs::write(&changed, "x = 2;").unwrap();
        let changed = tree_digest(&known, dir.path()).unwrap();
        assert!(changed.1.is_some() && changed.0 != of_known.0 && changed.0 != before.0);
    }

    #[test]
    fn the_digest_sees_a_file_more() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path()).unwrap();
        let before = tree_digest(&fixture(), dir.path()).unwrap();
        fs::write(dir.path().join("fs/new.c"), "").unwrap();
        assert_ne!(tree_digest(&fixture(), dir.path()).unwrap(), before);
    }
}
