//! The queue on disk: a `series` file that is the order, and one mail per patch.

use super::patch::{Patch, apply};
use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Slugs of a `series` file, in order; `#` starts a comment.
pub fn slugs(series: &str) -> Vec<String> {
    let lines = series.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(|line| line.trim_end_matches(".patch").to_owned()).collect()
}

/// Reads a queue.
///
/// # Errors
/// A patch that is listed and not there, or malformed.
pub fn read(dir: &Path) -> Result<Vec<Patch>> {
    let path = dir.join("series");
    let series = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    slugs(&series).iter().map(|slug| read_patch(dir, slug)).collect()
}

/// Reads one patch of a folder.
///
/// # Errors
/// It is not there, or malformed.
pub fn read_patch(dir: &Path, slug: &str) -> Result<Patch> {
    let path = dir.join(format!("{slug}.patch"));
    match fs::read_to_string(&path) {
        Ok(text) => Patch::parse(slug, &text),
        Err(error) => Err(Failure::error(Exit::PatchRejected, format!("cannot read {}: {error}", path.display()))),
    }
}

/// What differs between the series file and its folder, in sentences.
///
/// # Errors
/// The folder cannot be read.
pub fn strays(dir: &Path) -> Result<Vec<String>> {
    let listed: BTreeSet<String> = slugs(&fs::read_to_string(dir.join("series"))?).into_iter().collect();
    let names = fs::read_dir(dir)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let there: BTreeSet<String> = names.filter_map(|name| name.strip_suffix(".patch").map(str::to_owned)).collect();
    let missing = listed.difference(&there).map(|slug| format!("{slug}.patch is listed in series, but not there"));
    let unlisted = there.difference(&listed).map(|slug| format!("{slug}.patch is there, but not listed in series"));
    Ok(missing.chain(unlisted).collect())
}

/// Applies patches to a tree. Files are replaced, never written in place: they may be hard links.
///
/// # Errors
/// The first patch that does not fit; the tree is then half patched and must be thrown away.
pub fn apply_all(patches: &[Patch], tree: &Path) -> Result<()> {
    patches.iter().try_for_each(|patch| apply_one(patch, tree))
}

fn apply_one(patch: &Patch, tree: &Path) -> Result<()> {
    for change in &patch.files {
        let path = tree.join(change.path());
        let old = change.old.as_ref().and_then(|_| fs::read_to_string(&path).ok());
        let old = if change.old.is_none() && path.exists() { fs::read_to_string(&path).ok() } else { old };
        match apply(&patch.slug, change, old.as_deref())? {
            Some(new) => replace(&path, &new)?,
            None => fs::remove_file(&path)?,
        }
    }
    Ok(())
}

fn replace(path: &Path, text: &str) -> Result<()> {
    let dir = path.parent().context("a file of a patch has a folder")?;
    fs::create_dir_all(dir)?;
    let mode = fs::metadata(path).map(|metadata| metadata.permissions());
    let file = tempfile::NamedTempFile::new_in(dir)?;
    fs::write(file.path(), text)?;
    if let Ok(mode) = mode {
        fs::set_permissions(file.path(), mode)?;
    } else {
        fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    }
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_blank_lines_are_no_slugs() {
        assert_eq!(slugs("# step one\na.patch\n\nb.patch # why\n"), ["a", "b"]);
    }

    #[test]
    fn strays_are_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("series"), "a.patch\nb.patch\n").unwrap();
        for name in ["a.patch", "c.patch"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let strays = strays(dir.path()).unwrap();
        assert_eq!(strays.len(), 2);
        assert!(strays[0].starts_with("b.patch is listed") && strays[1].starts_with("c.patch is there"), "{strays:?}");
    }

    #[test]
    fn a_hard_link_elsewhere_keeps_its_text() {
        let dir = tempfile::tempdir().unwrap();
        let (base, tree) = (dir.path().join("base"), dir.path().join("tree"));
        fs::create_dir(&tree).unwrap();
        fs::write(&base, "old\n").unwrap();
        fs::hard_link(&base, tree.join("f")).unwrap();
        let patch = Patch::parse("p", "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-old\n+new\n").unwrap();
        apply_all(&[patch], &tree).unwrap();
        assert_eq!(fs::read_to_string(tree.join("f")).unwrap(), "new\n");
        assert_eq!(fs::read_to_string(base).unwrap(), "old\n");
    }
}
