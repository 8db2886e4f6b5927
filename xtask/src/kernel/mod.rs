//! From a name to a bootable kernel: where the source comes from, which patches go on it, how it is built.

mod apply;
mod apt;
mod base;
mod build;
mod catalog;
mod check;
mod digest;
mod download;
mod kconfig;
mod patch;
mod queue;
mod series;
mod source;
mod stage;
mod tree;

use crate::cache::Cache;
use crate::event::Events;
use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use base::BaseTree;
use catalog::{Catalog, Recipe};
use kconfig::Kconfig;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use tree::Tree;

pub use check::Checked;
pub use queue::Saved;

/// A built kernel: all that a machine needs to boot it, and all that a result needs to name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// What the user called it: `mainline`, `patched`, `patched@1`, a path.
    pub name: String,
    /// Hash of source, series, kconfig and compiler; two kernels of one key are the same kernel.
    pub key: String,
    /// What `uname -r` says in it: the host compares it with the guest's hello.
    pub release: String,
    /// Base version: "7.3.4".
    pub base: String,
    /// Slugs of the applied patches, in order.
    pub series: Vec<String>,
    /// Names of the kconfig fragments: ["base", "bench"].
    pub kconfig: Vec<String>,
    /// First line of `gcc --version`.
    pub compiler: String,
    /// Compressed image.
    pub bzimage: PathBuf,
    /// Image with symbols.
    pub vmlinux: PathBuf,
    /// The patched source tree it was built from.
    pub source_tree: PathBuf,
}

/// The kernel that a `--kernel` means, with these kconfig fragments: from the cache, or built now.
///
/// # Errors
/// The name means nothing, the source cannot be had or is the wrong one, a patch does not apply, an option vanished, the
/// disk is full, or the build fails: each with its own exit code.
pub fn prepare(
    name: &str,
    kconfig: &[&str],
    cache: &Cache,
    source: Option<&Path>,
    events: Events<'_>,
) -> Result<Kernel> {
    let catalog = Catalog::load()?;
    let kconfig = Kconfig::load(kconfig)?;
    let tree = match catalog.resolve(name)? {
        Recipe::Base(patches) => Tree::of_base(&source::open(&catalog.base, cache, source, events)?, &patches, cache)?,
        Recipe::Tree(path) => Tree::of_path(&path, cache)?,
        Recipe::Git { url, reference } => Tree::of_git(&url, &reference, cache, events)?,
    };
    build::build(name, &tree, &kconfig, cache, events)
}

/// Checks that a `--kernel` and kconfig fragments mean something, before anything long is begun.
///
/// # Errors
/// They do not; lists what does.
pub fn check_names(name: &str, kconfig: &[&str]) -> Result<()> {
    Kconfig::load(kconfig)?;
    Catalog::load()?.resolve(name).map(drop)
}

/// The running kernel, as the `host` machine uses it.
///
/// # Errors
/// /proc is not mounted.
pub fn running() -> Result<Kernel> {
    let version = fs::read_to_string("/proc/version").context("cannot tell the running kernel")?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let key = digest::key([version.as_str()]);
    Ok(Kernel { base: release.clone(), release, key, ..unbuilt("running") })
}

/// A kernel that exists in name only, for the mock machine.
pub fn unbuilt(name: &str) -> Kernel {
    Kernel {
        name: name.to_owned(),
        key: digest::key([name]),
        release: name.to_owned(),
        base: String::new(),
        series: Vec::new(),
        kconfig: Vec::new(),
        compiler: String::new(),
        bzimage: PathBuf::new(),
        vmlinux: PathBuf::new(),
        source_tree: PathBuf::new(),
    }
}

/// `kernel list`: what there is, and what is built. Reads the cache without its lock.
///
/// # Errors
/// The catalog or a series cannot be read.
pub fn list(cache: &Path) -> Result<String> {
    let catalog = Catalog::load()?;
    let mut text = format!("base: Linux {}\n", catalog.base.version);
    for (name, definition) in catalog.definitions() {
        text += &format!("{name}: {}\n", definition.about);
        if let Recipe::Base(patches) = catalog.resolve(name)? {
            text.extend(patches.iter().enumerate().map(|(at, patch)| format!("  {}. {}\n", at + 1, patch.slug)));
        }
    }
    text += &format!("{}\n", catalog.choices());
    let keys = base::names(&cache.join("kernels")).unwrap_or_default();
    let built = keys.iter().filter_map(|key| build::stored(&cache.join("kernels").join(key)));
    text.extend(built.map(|kernel| format!("built: {}\n", described(&kernel))));
    Ok(text)
}

fn described(kernel: &Kernel) -> String {
    let patches = if kernel.series.is_empty() { "no patches".into() } else { kernel.series.join(", ") };
    format!("{} ({}; {patches}) {}", kernel.release, kernel.kconfig.join(" + "), kernel.bzimage.display())
}

/// `kernel fetch`: makes sure that the base is in the cache; returns a sentence about it.
///
/// # Errors
/// As [`prepare`].
pub fn fetch(cache: &Cache, source: Option<&Path>, events: Events<'_>) -> Result<String> {
    let base = base(cache, source, events)?;
    Ok(format!("Linux {} from {} in {}", base.version, base.origin, base.dir.display()))
}

/// `kernel check`: form, strict application, checkpatch; without building anything.
///
/// # Errors
/// What is wrong with the patches, or the source cannot be had.
pub fn check(cache: &Cache, source: Option<&Path>, events: Events<'_>) -> Result<Checked> {
    let catalog = Catalog::load()?;
    let base = source::open(&catalog.base, cache, source, events)?;
    check::check(&catalog, &base, events)
}

/// `kernel check --each`: builds the base and every prefix of the series `patched`, in order.
///
/// # Errors
/// The first prefix that does not build.
pub fn build_each(kconfig: &[&str], cache: &Cache, source: Option<&Path>, events: Events<'_>) -> Result<Vec<Kernel>> {
    let Recipe::Base(patches) = Catalog::load()?.resolve("patched")? else { return Ok(Vec::new()) };
    (0..=patches.len()).map(|count| prepare(&format!("patched@{count}"), kconfig, cache, source, events)).collect()
}

/// `series edit`: a git tree in `dir` with the queue of `patched` as commits; returns how many.
///
/// # Errors
/// `dir` is in use, the source cannot be had, or a patch does not apply.
pub fn edit(dir: &Path, cache: &Cache, source: Option<&Path>, events: Events<'_>) -> Result<usize> {
    let base = base(cache, source, events)?;
    queue::edit(dir, &base, &queue_of_patched()?, events)
}

/// `series save`: the commits of such a tree back as the queue of `patched`.
///
/// # Errors
/// `dir` was not made by `series edit`, or something would be lost.
pub fn save(dir: &Path) -> Result<Saved> {
    queue::save(dir, &queue_of_patched()?)
}

fn base(cache: &Cache, source: Option<&Path>, events: Events<'_>) -> Result<BaseTree> {
    source::open(&Catalog::load()?.base, cache, source, events)
}

fn queue_of_patched() -> Result<PathBuf> {
    let missing = || Failure::new(Exit::Usage, "kernels.toml defines no kernel with a series");
    Catalog::load()?.queues().into_iter().next().ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;

    #[test]
    fn names_are_checked_before_anything_is_built() {
        check_names("patched@1", &["base", "bench"]).unwrap();
        assert_eq!(exit_code(&check_names("nope", &["base"]).unwrap_err()), Exit::Usage);
        assert_eq!(exit_code(&check_names("mainline", &["nope"]).unwrap_err()), Exit::Usage);
    }

    #[test]
    fn the_list_names_kernels_patches_and_choices() {
        let cache = tempfile::tempdir().unwrap();
        let list = list(cache.path()).unwrap();
        for part in ["base: Linux 7.", "mainline: ", "patched: ", "  1. fs-namespace-", "git:URL#ref"] {
            assert!(list.contains(part), "{part} is missing in: {list}");
        }
        assert!(!list.contains("built:"));
    }

    #[test]
    fn the_running_kernel_says_its_release() {
        assert_eq!(running().unwrap().release, nix::sys::utsname::uname().unwrap().release().to_string_lossy());
    }
}
