//! `series edit` and `series save`: the queue as commits of a git tree, and back without a byte of difference.

use super::base::{BaseTree, names};
use super::patch::Patch;
use super::series;
use super::source::is_source;
use crate::cache::or_no_space;
use crate::event::Events;
use crate::failure::{Exit, Failure};
use crate::process::Task;
use crate::stage::Stage;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use xshell::{Shell, cmd};

/// Longest git command: adding 90,000 files on a slow disk.
const LIMIT: Duration = Duration::from_secs(1800);

/// Marks the commit below the queue.
const BASE_TAG: &str = "lab-base";

/// `git format-patch` as the queue is written: nothing of the day, the place or the version of git in it.
const FORMAT: [&str; 13] = [
    "format-patch",
    "--quiet",
    "--no-numbered",
    "--zero-commit",
    "--no-signature",
    "--no-base",
    "--no-cover-letter",
    "--no-thread",
    "--no-renames",
    "--abbrev=12",
    "--unified=3",
    "--diff-algorithm=myers",
    "--indent-heuristic",
];

/// What `save` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Patches in the queue now.
    pub patches: usize,
    /// Of them, new or with other bytes than before.
    pub changed: usize,
    /// Patches that are gone.
    pub removed: usize,
}

impl std::fmt::Display for Saved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} patches, {} of them changed; {} removed", self.patches, self.changed, self.removed)
    }
}

/// Makes a git tree in `dir`: the base as one commit, each patch of `queue` as one on top.
///
/// # Errors
/// `dir` is in use, or a patch is refused by git.
pub fn edit(dir: &Path, base: &BaseTree, queue: &Path, events: Events<'_>) -> Result<usize> {
    let patches = series::read(queue)?;
    if dir.exists() && !names(dir)?.is_empty() {
        let message = format!("{} is not empty\nnext: give a folder that does not exist yet", dir.display());
        return Err(Failure::error(Exit::Usage, message));
    }
    fs::create_dir_all(dir)?;
    let stage = Stage::start(&mut *events, format!("copy Linux {} and commit it", base.version));
    commit_base(dir, base).map_err(or_no_space)?;
    stage.finish("");
    let stage = Stage::start(events, "commit the patches");
    patches.iter().try_for_each(|patch| commit_patch(dir, queue, patch))?;
    stage.finish(format!("{} patches", patches.len()));
    Ok(patches.len())
}

fn commit_base(dir: &Path, base: &BaseTree) -> Result<()> {
    let entries: Vec<_> = names(&base.dir)?.into_iter().filter(|name| is_source(name)).collect();
    let paths = entries.iter().map(|name| base.dir.join(name));
    // Copies, no links: an editor may write in place, and the cache must stay as it is.
    let sh = Shell::new()?;
    let copy = cmd!(sh, "cp -a --reflink=auto --target-directory {dir} -- {paths...}");
    Task::new(copy).limit(LIMIT).run()?;
    git(dir, &["init", "--quiet"])?;
    // The base's own .gitignore must not hide files of the base; a weak compression is three times as fast.
    git(dir, &["-c", "core.compression=1", "add", "--all", "--force"])?;
    git(dir, &["commit", "--quiet", "--allow-empty", "--message", &format!("Linux {}", base.version)])?;
    git(dir, &["tag", BASE_TAG]).map(drop)
}

fn commit_patch(dir: &Path, queue: &Path, patch: &Patch) -> Result<()> {
    let file = queue.join(format!("{}.patch", patch.slug)).canonicalize()?;
    let file = file.to_string_lossy();
    git(dir, &["am", "--quiet", "--committer-date-is-author-date", "--no-3way", "--keep-cr", &file]).map(drop)
}

/// Writes the commits on top of the base back to `queue`.
///
/// # Errors
/// `dir` was not made by `edit`, or holds what would be lost: uncommitted changes, merges, two patches of one name.
pub fn save(dir: &Path, queue: &Path) -> Result<Saved> {
    refuse_what_would_be_lost(dir)?;
    let out = tempfile::tempdir()?;
    let folder = format!("--output-directory={}", out.path().display());
    git(dir, &[&FORMAT[..], &[&folder, &format!("{BASE_TAG}..HEAD")]].concat())?;
    let patches = exported(out.path())?;
    let old = fs::read_to_string(queue.join("series")).with_context(|| format!("no series in {}", queue.display()))?;
    write(queue, &old, &patches)
}

fn refuse_what_would_be_lost(dir: &Path) -> Result<()> {
    let refuse = |why: &str| Err(Failure::error(Exit::Usage, format!("{}: {why}", dir.display())));
    let base = git(dir, &["rev-parse", "--verify", "--quiet", BASE_TAG]);
    if !dir.join(".git").exists() || base.is_err() {
        return refuse("`cargo xtask series edit` did not make this folder");
    }
    if dir.join(".git/rebase-merge").exists() || dir.join(".git/rebase-apply").exists() {
        return refuse("a rebase is under way: finish it first");
    }
    if !git(dir, &["status", "--porcelain", "--untracked-files=no"])?.is_empty() {
        return refuse("there are changes that are not committed: commit or drop them first");
    }
    if !git(dir, &["rev-list", "--merges", &format!("{BASE_TAG}..HEAD")])?.is_empty() {
        return refuse("a merge is no patch: rebase it first");
    }
    Ok(())
}

/// The exported patches in order, with the number taken off their names.
fn exported(out: &Path) -> Result<Vec<Patch>> {
    let mut seen = BTreeSet::new();
    let mut patches = Vec::new();
    for name in names(out)? {
        let slug = slug_of(&name).with_context(|| format!("git named a patch {name}"))?;
        if !seen.insert(slug.to_owned()) {
            let message = format!("two patches would be named {slug}.patch: give one another subject");
            return Err(Failure::error(Exit::Usage, message));
        }
        patches.push(Patch::parse(slug, &fs::read_to_string(out.join(&name))?)?);
    }
    Ok(patches)
}

/// "0001-fs-namespace-x.patch" as "fs-namespace-x".
fn slug_of(name: &str) -> Option<&str> {
    let (number, slug) = name.strip_suffix(".patch")?.split_once('-')?;
    (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(slug)
}

/// Writes new files first and removes old ones last: whatever interrupts it, no patch is lost.
fn write(queue: &Path, old_series: &str, patches: &[Patch]) -> Result<Saved> {
    let mut changed = 0;
    for patch in patches {
        let path = queue.join(format!("{}.patch", patch.slug));
        if fs::read_to_string(&path).ok().as_ref() != Some(&patch.text) {
            fs::write(&path, &patch.text)?;
            changed += 1;
        }
    }
    let slugs: Vec<String> = patches.iter().map(|patch| patch.slug.clone()).collect();
    fs::write(queue.join("series"), series::rewritten(old_series, &slugs))?;
    let gone: Vec<String> = series::slugs_in(queue).into_iter().filter(|slug| !slugs.contains(slug)).collect();
    gone.iter().try_for_each(|slug| fs::remove_file(queue.join(format!("{slug}.patch"))))?;
    Ok(Saved { patches: patches.len(), changed, removed: gone.len() })
}

/// git, deaf to the user's own settings: they could change how a patch is written. The committer is the lab; it is not
/// part of a patch.
fn git(dir: &Path, args: &[&str]) -> Result<String> {
    let mut git = Command::new("git");
    git.arg("-C").arg(dir).args(args);
    git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").env("LC_ALL", "C");
    for role in ["AUTHOR", "COMMITTER"] {
        git.env(format!("GIT_{role}_NAME"), "mountlab").env(format!("GIT_{role}_EMAIL"), "mountlab@localhost");
    }
    Task::new(git).limit(LIMIT).run()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Listener};
    use crate::failure::exit_code;
    use std::path::PathBuf;

    struct Deaf;

    impl Listener for Deaf {
        fn hear(&mut self, _: &Event) {}
    }

    const SERIES: &str = "# The queue.\n\n# step one\nadd-a-line-before-the-others-and-say-at-length-why-i.patch\n\n# two\nsecond.patch\n";
    const FIRST: &str = "Subject: [PATCH] add a line before the others, and say at length why it\n must be there\n";

    /// A patch as git writes it, but for the hash of blobs, which `canonical` fills in.
    fn mail(subject: &str, diff: &str) -> String {
        format!(
            "From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001\n\
             From: =?UTF-8?q?J=C3=B6rg=20A?= <a@b.example>\nDate: Mon, 23 Nov 2026 08:00:00 +0100\n{subject}\n\
             Why.\n\nSigned-off-by: Jörg A <a@b.example>\n---\n{diff}"
        )
    }

    struct Lab {
        dir: tempfile::TempDir,
        base: BaseTree,
        queue: PathBuf,
    }

    impl Lab {
        fn tree(&self) -> PathBuf {
            self.dir.path().join("edit")
        }

        fn edit(&self) -> usize {
            edit(&self.tree(), &self.base, &self.queue, &mut Deaf).unwrap()
        }

        fn files(&self) -> Vec<(String, String)> {
            let read = |name: String| (name.clone(), fs::read_to_string(self.queue.join(name)).unwrap());
            names(&self.queue).unwrap().into_iter().map(read).collect()
        }

        fn commit(&self, path: &str, text: &str, subject: &str) {
            fs::write(self.tree().join(path), text).unwrap();
            git(&self.tree(), &["add", "--all"]).unwrap();
            git(&self.tree(), &["commit", "--quiet", "--message", subject]).unwrap();
        }
    }

    /// A base of two files, one of them ignored by its own .gitignore, and a queue of two patches in canonical form.
    fn lab() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let (tree, queue) = (dir.path().join("base"), dir.path().join("v1"));
        fs::create_dir_all(&tree).unwrap();
        fs::create_dir_all(&queue).unwrap();
        fs::write(tree.join("f.c"), "one\ntwo\nthree\n").unwrap();
        fs::write(tree.join(".gitignore"), "*.x\n").unwrap();
        fs::write(tree.join("ignored.x"), "x\n").unwrap();
        let first =
            mail(FIRST, "diff --git a/f.c b/f.c\n--- a/f.c\n+++ b/f.c\n@@ -1,3 +1,4 @@\n+zero\n one\n two\n three\n");
        let second = mail(
            "Subject: [PATCH] second\n",
            "diff --git a/f.c b/f.c\n--- a/f.c\n+++ b/f.c\n@@ -2,3 +2,2 @@ zero\n one\n-two\n three\n",
        );
        fs::write(queue.join("series"), SERIES).unwrap();
        for (slug, text) in series::slugs(SERIES).iter().zip([first, second]) {
            fs::write(queue.join(format!("{slug}.patch")), text).unwrap();
        }
        let base = BaseTree { dir: tree, version: "7.3.4".into(), origin: "test".into(), digest: String::new() };
        Lab { dir, base, queue }
    }

    /// [`lab`], with the queue as `save` writes it.
    fn canonical() -> Lab {
        let lab = lab();
        lab.edit();
        assert_eq!(save(&lab.tree(), &lab.queue).unwrap(), Saved { patches: 2, changed: 2, removed: 0 });
        fs::remove_dir_all(lab.tree()).unwrap();
        lab
    }

    #[test]
    fn the_round_trip_changes_no_byte() {
        let lab = canonical();
        let before = lab.files();
        assert!(before[0].1.contains("index ") && before[0].1.contains("Jörg"), "{}", before[0].1);
        assert_eq!(lab.edit(), 2);
        assert!(git(&lab.tree(), &["ls-files"]).unwrap().contains("ignored.x"));
        assert_eq!(save(&lab.tree(), &lab.queue).unwrap(), Saved { patches: 2, changed: 0, removed: 0 });
        assert_eq!(lab.files(), before);
    }

    #[test]
    fn commits_are_added_and_dropped() {
        let lab = canonical();
        lab.edit();
        git(&lab.tree(), &["reset", "--quiet", "--hard", "HEAD~1"]).unwrap();
        lab.commit("g.c", "new\n", "fs: a third thing");
        assert_eq!(save(&lab.tree(), &lab.queue).unwrap(), Saved { patches: 2, changed: 1, removed: 1 });
        let series = fs::read_to_string(lab.queue.join("series")).unwrap();
        assert_eq!(series, SERIES.replace("\n# two\nsecond.patch\n", "fs-a-third-thing.patch\n\n# two\n"));
        assert!(!lab.queue.join("second.patch").exists());
    }

    #[test]
    fn nothing_is_saved_when_something_would_be_lost() {
        let lab = canonical();
        let before = lab.files();
        let refused = |part: &str| {
            let error = save(&lab.tree(), &lab.queue).unwrap_err();
            assert_eq!(exit_code(&error), Exit::Usage, "{error}");
            assert!(error.to_string().contains(part), "{error}");
        };
        refused("did not make this folder");
        lab.edit();
        fs::write(lab.tree().join("f.c"), "changed\n").unwrap();
        refused("not committed");
        lab.commit("f.c", "again\n", "second");
        refused("two patches would be named second.patch");
        assert_eq!(lab.files(), before);
    }

    #[test]
    fn a_folder_in_use_is_left_alone() {
        let lab = lab();
        let error = edit(lab.dir.path(), &lab.base, &lab.queue, &mut Deaf).unwrap_err();
        assert_eq!(exit_code(&error), Exit::Usage);
    }

    #[test]
    fn numbers_are_taken_off() {
        assert_eq!(slug_of("0001-fs-x-2-y.patch"), Some("fs-x-2-y"));
        assert_eq!(slug_of("0001-.patch"), Some(""));
        assert_eq!(slug_of("series"), None);
    }
}
