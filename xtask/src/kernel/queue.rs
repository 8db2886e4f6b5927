//! The queue as a git tree (`series edit`), and back (`series save`), without a byte of difference.

use super::series;
use crate::failure::{Exit, Failure};
use crate::process::Task;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;
use xshell::{Shell, cmd};

/// Tag of the commit that the queue stands on.
const BASE_TAG: &str = "mountlab-base";

/// Makes a git tree: the base as one commit, each patch as another.
///
/// # Errors
/// The folder exists, or git refuses a patch.
pub fn edit(pristine: &Path, queue: &Path, dir: &Path) -> Result<()> {
    if dir.exists() {
        return Err(Failure::error(Exit::Usage, format!("{} is there already", dir.display())));
    }
    // A real copy: an editor may write in place, and the base in the cache must stay what it is.
    let shell = Shell::new()?;
    Task::new(cmd!(shell, "cp --archive --reflink=auto {pristine} {dir}"))
        .limit(Duration::from_secs(900))
        .on_failure(Exit::NoSpace, "free some space")
        .run()?;
    git(dir, &["init", "--quiet"])?;
    for (key, value) in
        [("user.name", "mountlab"), ("user.email", "mountlab@localhost"), ("gc.auto", "0"), ("core.autocrlf", "false")]
    {
        git(dir, &["config", key, value])?;
    }
    git(dir, &["add", "--all", "--force"])?;
    git(dir, &["commit", "--quiet", "--no-verify", "--message", "The base of the queue"])?;
    git(dir, &["tag", BASE_TAG])?;
    for slug in series::slugs(&fs::read_to_string(queue.join("series"))?) {
        let patch = queue.join(format!("{slug}.patch")).canonicalize()?;
        git(dir, &["am", "--quiet", "--keep-cr", &patch.to_string_lossy()])?;
    }
    Ok(())
}

/// Writes the commits since the base back as patches; comments of the series file stay with the patch they stand before.
///
/// # Errors
/// The folder is no such tree, or it has changes that are not committed.
pub fn save(dir: &Path, queue: &Path) -> Result<usize> {
    let dirty = git(dir, &["status", "--porcelain", "--untracked-files=no"])?;
    ensure!(
        dirty.is_empty(),
        Failure::error(Exit::Usage, format!("{} has changes that are not committed:\n{dirty}", dir.display()))
    );
    let scratch = tempfile::tempdir()?;
    let out = scratch.path().to_string_lossy().into_owned();
    // Nothing of this run may show in the mails: no commit ids, no git version, no numbers.
    let range = format!("{BASE_TAG}..HEAD");
    let options = ["--zero-commit", "--no-signature", "--no-numbered", "--abbrev=12", "--no-renames", "--quiet"];
    git(dir, &[&["format-patch"], &options[..], &["--output-directory", &out, &range]].concat())?;
    let mut names: Vec<String> =
        fs::read_dir(scratch.path())?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let slugs: Vec<String> = names.iter().map(|name| slug_of(name)).collect();
    for old in series::slugs(&fs::read_to_string(queue.join("series"))?) {
        let _ = fs::remove_file(queue.join(format!("{old}.patch")));
    }
    for (name, slug) in names.iter().zip(&slugs) {
        fs::copy(scratch.path().join(name), queue.join(format!("{slug}.patch")))?;
    }
    let series = fs::read_to_string(queue.join("series"))?;
    fs::write(queue.join("series"), rewritten(&series, &slugs))?;
    Ok(slugs.len())
}

/// The name that format-patch makes of a subject, without its number: "0001-fs-x.patch" is "fs-x".
fn slug_of(name: &str) -> String {
    name.split_once('-').map_or(name, |(_, rest)| rest).trim_end_matches(".patch").to_owned()
}

/// A series file with other slugs: what stands before a patch that is still there stays before it.
fn rewritten(series: &str, slugs: &[String]) -> String {
    let mut before: BTreeMap<String, String> = BTreeMap::new();
    let mut pending = String::new();
    for line in series.lines() {
        pending += line;
        pending.push('\n');
        if let [slug] = &series::slugs(line)[..] {
            before.insert(slug.clone(), std::mem::take(&mut pending));
        }
    }
    let block = |slug: &String| before.get(slug).cloned().unwrap_or_else(|| format!("{slug}.patch\n"));
    slugs.iter().map(block).chain([pending]).collect()
}

fn git(dir: &Path, arguments: &[&str]) -> Result<String> {
    let shell = Shell::new()?;
    let git = cmd!(shell, "git -C {dir} {arguments...}");
    // The user's own settings (signing, hooks, a diff algorithm) must not show in the mails.
    let git = git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    let hint = format!("look at {} with git status", dir.display());
    Task::new(git)
        .limit(Duration::from_secs(900))
        .on_failure(Exit::PatchRejected, hint)
        .run()
        .context("the queue's git tree")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A base with one file, and a queue of two mails made by git itself.
    fn fixture() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let (base, queue) = (dir.path().join("base"), dir.path().join("queue"));
        fs::create_dir(&base).unwrap();
        fs::create_dir(&queue).unwrap();
        fs::write(base.join("f"), "one\ntwo\nthree\n").unwrap();
        let mail = |subject: &str, from: &str, to: &str, index: &str| {
            format!(
                "From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001\nFrom: A B <a@b.example>\n\
                 Date: Mon, 23 Nov 2026 08:00:00 +0100\nSubject: [PATCH] {subject}\n\nWhy it is so.\n\n\
                 Signed-off-by: A B <a@b.example>\n---\n f | 2 +-\n 1 file changed, 1 insertion(+), 1 deletion(-)\n\n\
                 diff --git a/f b/f\nindex {index} 100644\n--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n{from}{to}"
            )
        };
        fs::write(
            queue.join("fs-one.patch"),
            mail("fs: one", "-one\n+1\n two\n", " three\n", "4cb29ea38f70..c42d3fdc2f55"),
        )
        .unwrap();
        fs::write(
            queue.join("fs-three.patch"),
            mail("fs: three", " 1\n two\n", "-three\n+3\n", "c42d3fdc2f55..1d6cdf9b0d47"),
        )
        .unwrap();
        fs::write(queue.join("series"), "# head\n\n# step one\nfs-one.patch\n# step two\nfs-three.patch\n# tail\n")
            .unwrap();
        dir
    }

    fn read_all(queue: &Path) -> BTreeMap<String, String> {
        let entries = fs::read_dir(queue).unwrap().flatten();
        entries
            .map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read_to_string(entry.path()).unwrap()))
            .collect()
    }

    #[test]
    fn edit_and_save_round_trip() {
        let dir = fixture();
        let at = |name: &str| dir.path().join(name);
        edit(&at("base"), &at("queue"), &at("tree")).unwrap();
        assert_eq!(fs::read_to_string(at("tree/f")).unwrap(), "1\ntwo\n3\n");
        // git writes the index lines itself: save once to have its own, then nothing may change any more.
        save(&at("tree"), &at("queue")).unwrap();
        let first = read_all(&at("queue"));
        assert_eq!(first["series"], "# head\n\n# step one\nfs-one.patch\n# step two\nfs-three.patch\n# tail\n");
        edit(&at("base"), &at("queue"), &at("again")).unwrap();
        assert_eq!(save(&at("again"), &at("queue")).unwrap(), 2);
        assert_eq!(read_all(&at("queue")), first);
    }

    #[test]
    fn uncommitted_changes_are_refused() {
        let dir = fixture();
        let at = |name: &str| dir.path().join(name);
        edit(&at("base"), &at("queue"), &at("tree")).unwrap();
        fs::write(at("tree/f"), "dirty\n").unwrap();
        assert!(save(&at("tree"), &at("queue")).unwrap_err().to_string().contains("not committed"));
    }

    #[test]
    fn comments_stay_with_their_patch() {
        let series = "# head\na.patch\n# of b\nb.patch\n# tail\n";
        let slugs = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(rewritten(series, &slugs(&["a", "b"])), series);
        assert_eq!(
            rewritten(series, &slugs(&["a", "new", "b"])),
            "# head\na.patch\nnew.patch\n# of b\nb.patch\n# tail\n"
        );
        assert_eq!(rewritten(series, &slugs(&["b"])), "# of b\nb.patch\n# tail\n");
    }
}
