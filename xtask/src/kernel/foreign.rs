//! Trees that are not made of the base: somebody's own, and revisions of repositories.

use super::base::{self, list};
use super::catalog::is_kernel_tree;
use super::digest;
use super::source::{is_source, state};
use super::tree::Tree;
use crate::cache::Cache;
use crate::event::{Event, Events};
use crate::failure::{Exit, Failure};
use crate::process::{Task, check_interrupt};
use crate::stage::Stage;
use anyhow::Result;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use xshell::{Shell, cmd};

/// Longest time for fetching one revision: about 250 MB.
const FETCH_LIMIT: Duration = Duration::from_secs(3600);

/// Somebody's tree, as it is now.
///
/// # Errors
/// It is no kernel tree, or cannot be read.
pub fn of_path(path: &Path, cache: &Cache) -> Result<Tree> {
    tree(path, &identity(path)?, cache)
}

/// A revision of a repository, fetched into the cache.
///
/// # Errors
/// It cannot be fetched, and was not fetched before.
pub fn of_git(url: &str, reference: &str, cache: &Cache, events: Events<'_>) -> Result<Tree> {
    let dir = cache.dir().join("git").join(digest::key([url]));
    fetch(url, reference, &dir, events)?;
    tree(&dir, &git(&dir, &["rev-parse", "HEAD"])?, cache)
}

fn tree(dir: &Path, identity: &str, cache: &Cache) -> Result<Tree> {
    let makefile = fs::read_to_string(dir.join("Makefile")).unwrap_or_default();
    let no_tree = || Failure::error(Exit::Usage, format!("{} is no kernel tree", dir.display()));
    let version = base::version(&makefile).filter(|_| is_kernel_tree(dir)).ok_or_else(no_tree)?;
    Ok(Tree::foreign(dir, digest::key([identity]), version, cache))
}

/// What a tree is right now: commit and changes if it is a repository, else names, sizes and times of its files.
fn identity(path: &Path) -> Result<String> {
    let is_repository = path.join(".git").exists();
    if !is_repository {
        return list(path, &is_source, &state);
    }
    let untracked = git(path, &["ls-files", "--others", "--exclude-standard"])?;
    let states =
        untracked.lines().map(|name| fs::metadata(path.join(name)).map(|file| state(&file)).unwrap_or_default());
    Ok([git(path, &["rev-parse", "HEAD"])?, git(path, &["diff", "HEAD", "--binary"])?, untracked.clone()]
        .into_iter()
        .chain(states)
        .collect())
}

fn git(dir: &Path, args: &[&str]) -> Result<String> {
    // The tree may belong to another user (a bind mount, a shared host): it is only read here.
    let sh = Shell::new()?;
    let git = cmd!(sh, "git -c safe.directory=* -C {dir} {args...}");
    Task::new(git).run()
}

/// Fetches a revision and checks it out. One that was fetched before serves when the server cannot be reached.
fn fetch(url: &str, reference: &str, dir: &Path, events: Events<'_>) -> Result<()> {
    if !dir.exists() {
        fs::create_dir_all(dir)?;
        git(dir, &["init", "--quiet"])?;
    }
    let kept = format!("refs/lab/{}", digest::key([reference]));
    let stage = Stage::start(&mut *events, format!("fetch {url}#{reference}"));
    let sh = Shell::new()?;
    let mut command: Command = cmd!(sh, "git -C {dir} fetch --depth 1 --no-tags --force -- {url} {reference}").into();
    command.env("GIT_TERMINAL_PROMPT", "0");
    match Task::new(command).limit(FETCH_LIMIT).run() {
        Ok(_) => {
            git(dir, &["update-ref", &kept, "FETCH_HEAD"])?;
            stage.finish("");
        }
        Err(error) => {
            drop(stage);
            check_interrupt("the fetch")?;
            git(dir, &["rev-parse", "--verify", "--quiet", &kept]).map_err(|_| error)?;
            events.hear(&Event::Warning(format!(
                "{url} cannot be reached: using what was fetched of {reference} before"
            )));
        }
    }
    git(dir, &["checkout", "--quiet", "--detach", "--force", &kept]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Listener;
    use crate::kernel::base::tests::fill;

    struct Deaf;

    impl Listener for Deaf {
        fn hear(&mut self, _: &Event) {}
    }

    fn lab() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::lock_at(&dir.path().join("cache")).unwrap();
        (dir, cache)
    }

    #[test]
    fn somebodys_tree_has_a_new_key_after_each_change() {
        let (dir, cache) = lab();
        let path = dir.path().join("tree");
        fill(&path).unwrap();
        let key = || of_path(&path, &cache).unwrap().key;
        let first = key();
        assert_eq!(key(), first);
        fs::write(path.join("fs/a.c"), "abcd").unwrap();
        let second = key();
        assert_ne!(second, first);
        fs::create_dir(path.join("build-mine")).unwrap();
        fs::write(path.join("build-mine/a.o"), "").unwrap();
        assert_eq!(key(), second);
    }

    #[test]
    fn a_repository_has_a_new_key_after_a_change_that_is_not_committed() {
        let (dir, cache) = lab();
        let path = dir.path().join("tree");
        fill(&path).unwrap();
        let identity = ["-c", "user.name=t", "-c", "user.email=t@t.example"];
        for args in [&["init", "--quiet"][..], &["add", "."], &["commit", "--quiet", "-m", "base"]] {
            git(&path, &[&identity[..], args].concat()).unwrap();
        }
        let key = || of_path(&path, &cache).unwrap().key;
        let first = key();
        fs::write(path.join("fs/a.c"), "abd").unwrap();
        let second = key();
        assert_ne!(second, first);
        fs::write(path.join("fs/untracked.c"), "").unwrap();
        assert_ne!(key(), second);
        let url = format!("file://{}", path.display());
        let fetched = of_git(&url, "HEAD", &cache, &mut Deaf).unwrap();
        assert_eq!(fs::read_to_string(fetched.dir.join("fs/a.c")).unwrap(), "abc");
        fs::remove_dir_all(&path).unwrap();
        assert_eq!(of_git(&url, "HEAD", &cache, &mut Deaf).unwrap().key, fetched.key);
        assert!(of_git(&url, "v9", &cache, &mut Deaf).is_err());
    }
}
