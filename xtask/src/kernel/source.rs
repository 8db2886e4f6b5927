//! Where the base comes from: what the user gives, the cache, then each source of the catalog until one works.

use super::base::{self, BaseTree, cached, install, list, names};
use super::catalog::{Base, Source};
use super::{digest, download};
use crate::apt;
use crate::cache::{Cache, or_no_space};
use crate::event::{Event, Events};
use crate::failure::{Exit, Failure, exit_code};
use crate::process::Task;
use crate::stage::Stage;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};
use xshell::{Shell, cmd};

/// Longest time for unpacking or copying a tree: seconds on a disk, minutes on a bad network file system.
const UNPACK_LIMIT: Duration = Duration::from_secs(1800);

/// The pristine base: from `given` if there is one, else from the cache, else from the first source that works.
///
/// # Errors
/// `given` is not the base, or no source works: then every source's reason.
pub fn open(base: &Base, cache: &Cache, given: Option<&Path>, events: Events<'_>) -> Result<BaseTree> {
    base::sweep(cache);
    if let Some(path) = given {
        return from_path(base, cache, path, events);
    }
    let mut reasons = Vec::new();
    match cached(base, cache) {
        Ok(Some(tree)) => return Ok(tree),
        Ok(None) => reasons.push("the cache: nothing there yet".to_owned()),
        Err(error) => fall_through("the cache", error, &mut reasons, events)?,
    }
    cache.need_space(base.unpacked_mib + base::PACKED_MIB, "getting the kernel source")?;
    for source in &base.sources {
        match obtain(base, cache, source, events).map_err(or_no_space) {
            Ok(tree) => return Ok(tree),
            Err(error) => fall_through(&source.to_string(), error, &mut reasons, events)?,
        }
    }
    let reasons = reasons.join("\n  ");
    let message = format!(
        "no source of Linux {} works:\n  {reasons}\n\
         next: get linux-{0}.tar.xz in any way and give it with --source PATH",
        base.version
    );
    Err(Failure::error(Exit::Unavailable, message))
}

/// Tells why a source failed and goes on, unless no other source could help.
fn fall_through(source: &str, error: anyhow::Error, reasons: &mut Vec<String>, events: Events<'_>) -> Result<()> {
    if matches!(exit_code(&error), Exit::Interrupted | Exit::NoSpace) {
        return Err(error);
    }
    let reason = format!("{source}: {error:#}");
    events.hear(&Event::Note(format!("kernel source, {reason}; trying the next one")));
    reasons.push(reason);
    Ok(())
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Tarball { url } => write!(f, "{url}"),
            Source::Debian { package, suite } => write!(f, "Debian package {package} of {suite}"),
        }
    }
}

fn obtain(base: &Base, cache: &Cache, source: &Source, events: Events<'_>) -> Result<BaseTree> {
    let scratch = base::scratch(cache)?;
    let tarball = match source {
        Source::Tarball { url } => download::tarball(url, scratch.path(), events)?,
        Source::Debian { package, suite } => packaged(package, suite, cache, scratch.path(), events)?,
    };
    install_tarball(base, cache, &source.to_string(), &tarball, events)
}

/// The tarball (usr/src/linux-source-*.tar.xz) in a package.
fn packaged(package: &str, suite: &str, cache: &Cache, dir: &Path, events: Events<'_>) -> Result<PathBuf> {
    let out = dir.join("package");
    for deb in apt::packages(&[package], suite, cache, dir, events)? {
        apt::unpack(&deb, &out)?;
    }
    apt::files(&out.join("usr/src"), ".tar.xz")?.pop().context("files() finds one or fails")
}

/// The base from a tree or a tarball of the user's.
fn from_path(base: &Base, cache: &Cache, path: &Path, events: Events<'_>) -> Result<BaseTree> {
    let missing = |error| Failure::error(Exit::Usage, format!("--source {}: {error}", path.display()));
    let path = path.canonicalize().map_err(missing)?;
    let is_tree = path.is_dir();
    let origin = if is_tree { origin_of_tree(base, &path)? } else { origin_of_tarball(&path)? };
    match cached(base, cache) {
        Ok(Some(tree)) if tree.origin == origin => Ok(tree),
        _ if is_tree => install_tree(base, cache, &origin, &path, events),
        _ => install_tarball(base, cache, &origin, &path, events),
    }
}

fn origin_of_tree(base: &Base, path: &Path) -> Result<String> {
    base::verify(base, path)?;
    let files = list(path, &is_source, &state)?;
    Ok(format!("tree {} ({})", path.display(), digest::key([files.as_str()])))
}

fn origin_of_tarball(path: &Path) -> Result<String> {
    Ok(format!("tarball {} ({})", path.display(), state(&fs::metadata(path)?)))
}

/// Size and time of change of a file: what a build looks at to see whether it is another one.
pub fn state(metadata: &fs::Metadata) -> String {
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    format!("{} {}", metadata.len(), modified.unwrap_or_default().as_nanos())
}

/// Whether a top-level entry of a tree is source: neither a repository nor somebody's build folder.
pub fn is_source(name: &str) -> bool {
    name != ".git" && !name.starts_with("build")
}

fn install_tarball(base: &Base, cache: &Cache, origin: &str, tarball: &Path, events: Events<'_>) -> Result<BaseTree> {
    let stage = Stage::start(events, format!("unpack {}", tarball.file_name().unwrap_or_default().to_string_lossy()));
    let sh = Shell::new()?;
    let tree = install(base, cache, origin, |tree| {
        let tar = cmd!(sh, "tar --extract --file {tarball} --directory {tree} --strip-components 1 --no-same-owner");
        let hint = "check the tarball: it must be a whole .tar.xz or .tar.gz";
        Task::new(tar).limit(UNPACK_LIMIT).on_failure(Exit::Unavailable, hint).run().map(drop)
    })?;
    stage.finish(format!("Linux {}", tree.version));
    Ok(tree)
}

fn install_tree(base: &Base, cache: &Cache, origin: &str, path: &Path, events: Events<'_>) -> Result<BaseTree> {
    let stage = Stage::start(events, format!("copy {}", path.display()));
    let tree = install(base, cache, origin, |tree| copy(path, tree))?;
    stage.finish(format!("Linux {}", tree.version));
    Ok(tree)
}

/// Copies a tree's source, and cleans the copy if somebody has built in the tree itself: `make O=` refuses such a tree.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let sh = Shell::new()?;
    let entries: Vec<_> = names(from)?.into_iter().filter(|name| is_source(name)).map(|name| from.join(name)).collect();
    let copy = cmd!(sh, "cp -a --no-preserve=ownership --reflink=auto --target-directory {to} -- {entries...}");
    Task::new(copy).limit(UNPACK_LIMIT).run()?;
    if to.join(".config").exists() || to.join("include/config").exists() {
        Task::new(cmd!(sh, "make -C {to} mrproper")).limit(UNPACK_LIMIT).run()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Listener;
    use crate::kernel::base::tests::{fill, fixture};

    #[derive(Default)]
    struct Notes(Vec<String>);

    impl Listener for Notes {
        fn hear(&mut self, event: &Event) {
            if let Event::Note(text) = event {
                self.0.push(text.clone());
            }
        }
    }

    struct Lab {
        _dir: tempfile::TempDir,
        tree: std::path::PathBuf,
        cache: Cache,
        notes: Notes,
    }

    fn lab() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("given");
        fill(&tree).unwrap();
        let cache = Cache::lock_at(&dir.path().join("cache")).unwrap();
        Lab { _dir: dir, tree, cache, notes: Notes::default() }
    }

    #[test]
    fn a_given_tree_is_copied_without_repository_and_builds() {
        let mut lab = lab();
        for folder in [".git", "build-x"] {
            fs::create_dir(lab.tree.join(folder)).unwrap();
        }
        let base = open(&fixture(), &lab.cache, Some(&lab.tree), &mut lab.notes).unwrap();
        assert_eq!(names(&base.dir).unwrap(), ["Kconfig", "Makefile", "fs"]);
        // From now on the cache has it.
        assert_eq!(open(&fixture(), &lab.cache, None, &mut lab.notes).unwrap().digest, base.digest);
    }

    #[test]
    fn a_given_tarball_is_unpacked() {
        let mut lab = lab();
        let tarball = lab.tree.with_extension("tar.gz");
        let (dir, sh) = (lab.tree.parent().unwrap(), Shell::new().unwrap());
        Task::new(cmd!(sh, "tar -C {dir} -czf {tarball} given")).run().unwrap();
        let base = open(&fixture(), &lab.cache, Some(&tarball), &mut lab.notes).unwrap();
        assert!(base.dir.join("fs/a.c").exists() && base.origin.starts_with("tarball "));
    }

    #[test]
    fn a_given_tree_that_is_wrong_is_not_replaced_by_another_source() {
        let mut lab = lab();
        fs::write(lab.tree.join("fs/a.c"), "changed").unwrap();
        let error = open(&fixture(), &lab.cache, Some(&lab.tree), &mut lab.notes).unwrap_err();
        assert_eq!(exit_code(&error), Exit::WrongBase);
        let error = open(&fixture(), &lab.cache, Some(Path::new("/nowhere")), &mut lab.notes).unwrap_err();
        assert_eq!(exit_code(&error), Exit::Usage);
    }

    #[test]
    fn each_failing_source_says_so_and_falls_to_the_next() {
        let mut lab = lab();
        let mut base = fixture();
        let url = |path: &Path| format!("file://{}", path.display());
        base.sources = vec![
            Source::Tarball { url: url(&lab.tree.join("not-there.tar.gz")) },
            Source::Tarball { url: url(&lab.tree.join("neither.tar.gz")) },
        ];
        let error = open(&base, &lab.cache, None, &mut lab.notes).unwrap_err();
        assert_eq!(exit_code(&error), Exit::Unavailable);
        assert_eq!(lab.notes.0.len(), 2, "{:?}", lab.notes.0);
        for part in ["the cache: nothing there yet", "not-there.tar.gz", "neither.tar.gz", "--source PATH"] {
            assert!(error.to_string().contains(part), "{part} is missing in: {error}");
        }
    }
}
