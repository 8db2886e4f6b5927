//! The base tree: from the user, the cache, or the first origin that has it; checked, whatever its origin.

use super::apt;
use super::catalog::{Base, Catalog, Origin, Tree};
use crate::cache::Cache;
use crate::event::{Event, Events};
use crate::failure::{Exit, Failure};
use crate::process::{Task, check_interrupt};
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use xshell::{Shell, cmd};

/// An unpacked kernel takes 1.6 GiB, its tarball 0.2.
const UNPACKED_MIB: u64 = 2200;

/// Limit of unpacking; 15 s on a small host.
const UNPACK_LIMIT: Duration = Duration::from_secs(600);

/// The unpacked and checked base tree; `given` is what `--source` names.
///
/// # Errors
/// No origin has it, or what it gave is another tree.
pub fn base(catalog: &Catalog, cache: &Cache, given: Option<&Path>, events: Events<'_>) -> Result<PathBuf> {
    let base = &catalog.base;
    if let Some(given) = given {
        return given_source(base, cache, given, events);
    }
    let kept = cache.dir().join(format!("source/linux-{}", base.version));
    if kept.exists() {
        verify(base, &kept)?;
        return Ok(kept);
    }
    let mut reasons = Vec::new();
    for origin in &base.source {
        check_interrupt("fetching the kernel source")?;
        match fetch(base, cache, origin, &kept, events) {
            Ok(()) => return Ok(kept),
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => {
                events.hear(&Event::Note(format!(
                    "no source from {}: {}; trying the next",
                    shown(origin),
                    first_line(&error)
                )));
                reasons.push(format!("{}: {error:#}", shown(origin)));
            }
        }
    }
    let message = format!(
        "no origin has Linux {}:\n{}\nnext: give a tree or tarball with --source PATH",
        base.version,
        reasons.join("\n")
    );
    Err(Failure::error(Exit::Unavailable, message))
}

/// A full disk and Ctrl-C are not mended by another origin.
fn is_final(error: &anyhow::Error) -> bool {
    matches!(crate::failure::exit_code(error), Exit::NoSpace | Exit::Interrupted)
}

fn first_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().next().unwrap_or_default().to_owned()
}

fn shown(origin: &Origin) -> String {
    match origin {
        Origin::Tarball { url } => url.clone(),
        Origin::Debian { package, suite } => format!("Debian's package {package} ({suite})"),
    }
}

/// A tree is used where it lies; a tarball is unpacked into the cache.
fn given_source(base: &Base, cache: &Cache, given: &Path, events: Events<'_>) -> Result<PathBuf> {
    let given = given
        .canonicalize()
        .map_err(|error| Failure::error(Exit::Usage, format!("--source {}: {error}", given.display())))?;
    if given.is_dir() {
        verify(base, &given)?;
        return Ok(given);
    }
    let kept = cache.dir().join(format!("source/linux-{}", base.version));
    if kept.exists() {
        fs::remove_dir_all(&kept)?;
    }
    unpack(base, cache, &given, &kept, events)?;
    Ok(kept)
}

fn fetch(base: &Base, cache: &Cache, origin: &Origin, kept: &Path, events: Events<'_>) -> Result<()> {
    cache.need_space(UNPACKED_MIB, "fetching the kernel source")?;
    let scratch = tempfile::tempdir_in(cache.dir())?;
    let stage = format!("fetch {}", shown(origin));
    events.hear(&Event::StageStarted { stage: stage.clone() });
    let start = Instant::now();
    let tarball = match origin {
        Origin::Tarball { url } => download(url, scratch.path())?,
        Origin::Debian { package, suite } => tarball_of_package(package, suite, scratch.path())?,
    };
    events.hear(&Event::StageFinished { stage, result: String::new(), elapsed: start.elapsed() });
    unpack(base, cache, &tarball, kept, events)
}

/// Downloads with curl; a server that does not answer within seconds is not waited for.
fn download(url: &str, dir: &Path) -> Result<PathBuf> {
    let tarball = dir.join("linux.tar.xz");
    let shell = Shell::new()?;
    let patience = ["--connect-timeout", "5", "--speed-limit", "10000", "--speed-time", "20"];
    Task::new(cmd!(shell, "curl --fail --silent --show-error --location {patience...} --output {tarball} {url}"))
        .limit(Duration::from_secs(1800))
        .run()?;
    Ok(tarball)
}

/// The tarball within a linux-source package.
fn tarball_of_package(package: &str, suite: &str, dir: &Path) -> Result<PathBuf> {
    let deb = apt::download(package, suite, dir)?;
    let shell = Shell::new()?;
    Task::new(cmd!(shell, "dpkg-deb --extract {deb} {dir}/deb")).limit(UNPACK_LIMIT).run()?;
    let tarball = dir.join(format!("deb/usr/src/{package}.tar.xz"));
    tarball.exists().then_some(tarball).with_context(|| format!("{package} holds no usr/src/{package}.tar.xz"))
}

/// Unpacks beside the final place, checks, and moves: what is in the cache is whole.
fn unpack(base: &Base, cache: &Cache, tarball: &Path, kept: &Path, events: Events<'_>) -> Result<()> {
    cache.need_space(UNPACKED_MIB, "unpacking the kernel source")?;
    let stage = format!("unpack Linux {}", base.version);
    events.hear(&Event::StageStarted { stage: stage.clone() });
    let start = Instant::now();
    let parent = kept.parent().context("the source has a parent folder")?;
    fs::create_dir_all(parent)?;
    let scratch = tempfile::tempdir_in(parent)?;
    let (shell, into) = (Shell::new()?, scratch.path());
    Task::new(cmd!(shell, "tar --extract --file {tarball} --directory {into} --strip-components=1"))
        .limit(UNPACK_LIMIT)
        .run()?;
    verify(base, scratch.path())?;
    let unpacked = scratch.keep();
    fs::set_permissions(&unpacked, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::rename(&unpacked, kept).with_context(|| format!("cannot move the source to {}", kept.display()))?;
    events.hear(&Event::StageFinished { stage, result: String::new(), elapsed: start.elapsed() });
    Ok(())
}

/// Compares the version in the Makefile and the SHA-256 of each file that the series may touch.
///
/// # Errors
/// The first difference: another base.
pub fn verify(base: &Base, tree: &Path) -> Result<()> {
    let wrong = |why: String| {
        let message = format!(
            "{} is not Linux {}: {why}\nnext: give a pristine tree or tarball of that version with --source PATH",
            tree.display(),
            base.version
        );
        Failure::error(Exit::WrongBase, message)
    };
    let makefile =
        fs::read_to_string(tree.join("Makefile")).map_err(|error| wrong(format!("its Makefile: {error}")))?;
    let found = version(&makefile).ok_or_else(|| wrong("its Makefile names no version".into()))?;
    if found != base.version {
        return Err(wrong(format!("its Makefile says {found}")));
    }
    for (path, expected) in &base.files {
        let text = fs::read(tree.join(path)).map_err(|error| wrong(format!("{path}: {error}")))?;
        let found = hex(&Sha256::digest(&text));
        if &found != expected {
            return Err(wrong(format!("{path} has SHA-256 {found}, expected {expected}")));
        }
    }
    Ok(())
}

/// VERSION.PATCHLEVEL.SUBLEVEL of the top Makefile; a SUBLEVEL of 0 is left out, as in release names.
fn version(makefile: &str) -> Option<String> {
    let value = |name: &str| {
        let line = makefile.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='));
        line.map(|value| value.trim().to_owned())
    };
    let (major, minor, sub) = (value("VERSION")?, value("PATCHLEVEL")?, value("SUBLEVEL")?);
    let extra = value("EXTRAVERSION").unwrap_or_default();
    Some(if sub == "0" { format!("{major}.{minor}{extra}") } else { format!("{major}.{minor}.{sub}{extra}") })
}

/// The version of any tree.
///
/// # Errors
/// Its Makefile names none.
pub fn version_of(tree: &Path) -> Result<String> {
    let makefile =
        fs::read_to_string(tree.join("Makefile")).with_context(|| format!("no Makefile in {}", tree.display()))?;
    version(&makefile).with_context(|| format!("the Makefile of {} names no version", tree.display()))
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A commit of a repository, as a tree in the cache.
///
/// # Errors
/// git's.
pub fn of_git(url: &str, reference: &str, cache: &Cache, events: Events<'_>) -> Result<PathBuf> {
    let dir = cache.dir().join("git").join(&hex(&Sha256::digest(format!("{url}#{reference}")))[..16]);
    let stage = format!("fetch {url}#{reference}");
    events.hear(&Event::StageStarted { stage: stage.clone() });
    let start = Instant::now();
    fs::create_dir_all(&dir)?;
    let shell = Shell::new()?;
    let git = |arguments: &[&str]| {
        Task::new(cmd!(shell, "git -C {dir} {arguments...}"))
            .limit(Duration::from_secs(3600))
            .on_failure(Exit::Unavailable, "check the URL and the reference")
            .run()
    };
    if !dir.join(".git").exists() {
        cache.need_space(UNPACKED_MIB, "fetching a kernel repository")?;
        git(&["init", "--quiet"])?;
    }
    git(&["fetch", "--quiet", "--depth=1", url, reference])?;
    git(&["checkout", "--quiet", "--force", "--detach", "FETCH_HEAD"])?;
    events.hear(&Event::StageFinished { stage, result: String::new(), elapsed: start.elapsed() });
    Ok(dir)
}

/// What identifies the content of a tree: for the base its version and hashes, for a user's tree the state of each file.
///
/// # Errors
/// The tree cannot be read.
pub fn identity(tree: &Tree, base: &Base, dir: &Path) -> Result<String> {
    if *tree == Tree::Base {
        return Ok(format!("{} {:?}", base.version, base.files));
    }
    let shell = Shell::new()?;
    let find = cmd!(shell, "find {dir} -name .git -prune -o -type f -printf '%P %s %T@\n'");
    let mut files: Vec<String> =
        Task::new(find).limit(Duration::from_secs(120)).run()?.lines().map(str::to_owned).collect();
    files.sort();
    Ok(hex(&Sha256::digest(files.join("\n"))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;
    use std::collections::BTreeMap;

    const MAKEFILE: &str = "# SPDX\nVERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\nEXTRAVERSION =\nNAME = x\n";

    fn tree(makefile: &str, text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("Makefile"), makefile).unwrap();
        fs::write(dir.path().join("f"), text).unwrap();
        dir
    }

    fn base() -> Base {
        let files = BTreeMap::from([("f".to_owned(), hex(&Sha256::digest("text")))]);
        Base { version: "7.3.4".into(), source: Vec::new(), files }
    }

    #[test]
    fn the_right_tree_is_accepted() {
        verify(&base(), tree(MAKEFILE, "text").path()).unwrap();
    }

    #[test]
    fn another_version_or_a_changed_file_is_refused() {
        let older = MAKEFILE.replace("SUBLEVEL = 4", "SUBLEVEL = 3");
        for (makefile, text, part) in
            [(older.as_str(), "text", "says 7.3.3"), (MAKEFILE, "other", "f has SHA-256"), ("", "text", "no version")]
        {
            let error = verify(&base(), tree(makefile, text).path()).unwrap_err();
            assert_eq!(exit_code(&error), Exit::WrongBase);
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn release_names_leave_out_a_sublevel_of_zero() {
        assert_eq!(version(&MAKEFILE.replace("= 4", "= 0")).unwrap(), "7.3");
        assert_eq!(version(&MAKEFILE.replace("EXTRAVERSION =", "EXTRAVERSION = -rc2")).unwrap(), "7.3.4-rc2");
    }
}
