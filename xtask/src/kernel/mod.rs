//! From a name to a bootable kernel: where the source comes from, which patches go on it, how it is built.

mod apply;
mod base;
mod build;
mod catalog;
mod check;
mod digest;
mod download;
mod foreign;
mod kconfig;
mod mutant;
mod patch;
mod queue;
mod reach;
mod selftests;
mod series;
mod source;
mod tree;

pub use mutant::GONE_IN;
pub use patch::Patch;
pub use reach::Reach;
pub use selftests::Selftests;

use crate::cache::Cache;
use crate::event::{Event, Events};
use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use base::BaseTree;
use catalog::{Catalog, Recipe};
use kconfig::Kconfig;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tree::Tree;

/// Fragments that a series must build with and that no guest boots: other rules for locks, no other CPU, nobody to notify.
const BUILD_ONLY: [&str; 3] = ["rt", "up", "nofsnotify"];

/// Fragments of lanes whose checks change how the kernel is compiled. The faults lane's are KASAN's and lockdep's.
const LANES: [&str; 3] = ["lockdep", "kasan", "kcsan"];

/// What `kernel check` builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Build {
    /// Every prefix of the series, not only the whole of it.
    pub each: bool,
    /// The configurations that are only built; with `each`, those of the lanes too.
    pub configs: bool,
}

impl Build {
    /// The fragments to build with, each on top of `base`.
    fn fragments(self) -> Vec<&'static str> {
        match (self.each, self.configs) {
            (false, false) => Vec::new(),
            (true, false) => vec!["bench"],
            (false, true) => BUILD_ONLY.to_vec(),
            (true, true) => [&["bench"], &LANES[..], &BUILD_ONLY].concat(),
        }
    }
}

/// A built kernel: all that a machine needs to boot it, and all that a result needs to name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// First lines of `gcc --version` and `ld --version`.
    pub compiler: String,
    /// Compressed image. Paths belong to one host and are not written down.
    #[serde(skip)]
    pub bzimage: PathBuf,
    /// Image with symbols.
    #[serde(skip)]
    pub vmlinux: PathBuf,
}

/// What kernels are made with: the checkout, the cache, and what `--source` names.
#[derive(Clone, Copy)]
pub struct Workshop<'a> {
    /// The checkout.
    pub root: &'a Path,
    /// The cache.
    pub cache: &'a Cache,
    /// `--source`.
    pub source: Option<&'a Path>,
}

impl Workshop<'_> {
    /// The kernel of this name with these kconfig fragments: from the cache, or built now.
    ///
    /// # Errors
    /// The name means nothing, the source cannot be had or is the wrong one, a patch does not apply, an option vanished, the
    /// disk is full, or the build fails: each with its own exit code.
    pub fn prepare(&self, name: &str, fragments: &[&str], events: Events<'_>) -> Result<Kernel> {
        let kconfig = Kconfig::load(self.root, fragments)?;
        let tree = self.tree(name, events)?;
        build::build(name, &tree, &kconfig, self.cache, events)
    }

    /// The key of the kernel that [`Workshop::prepare`] gives; builds nothing.
    ///
    /// # Errors
    /// As [`Workshop::prepare`], but for the build.
    pub fn key(&self, name: &str, fragments: &[&str], events: Events<'_>) -> Result<String> {
        build::key(&self.tree(name, events)?, &Kconfig::load(self.root, fragments)?)
    }

    /// The selftests of the tree of this name: from the cache, or built now.
    ///
    /// # Errors
    /// As [`Workshop::prepare`], but for kconfig; a selftest that does not build is no error.
    pub fn selftests(&self, name: &str, events: Events<'_>) -> Result<Selftests> {
        let tree = self.tree(name, events)?;
        selftests::build(&tree, self.cache, events)
    }

    /// What the patches of the kernel of this name can have to do with; nothing if that is everything, or is not known.
    ///
    /// # Errors
    /// As [`Workshop::prepare`], but for kconfig and the build.
    pub fn reach(&self, name: &str, events: Events<'_>) -> Result<Option<Reach>> {
        self.tree(name, events).map(|tree| tree.reach())
    }

    fn tree(&self, name: &str, events: Events<'_>) -> Result<Tree> {
        match Catalog::load(self.root)?.resolve(name)? {
            Recipe::Base(patches) => Tree::of_base(&self.base(events)?, &patches, self.cache),
            Recipe::Tree(path) => foreign::of_path(&path, self.cache),
            Recipe::Git { url, reference } => foreign::of_git(&url, &reference, self.cache, events),
        }
    }

    /// Checks names without building anything, so that a typing error costs no build.
    ///
    /// # Errors
    /// A name or a fragment that means nothing; lists what does.
    pub fn check_names(&self, names: &[&str], fragments: &[&str]) -> Result<()> {
        Kconfig::load(self.root, fragments)?;
        let catalog = Catalog::load(self.root)?;
        names.iter().try_for_each(|name| catalog.resolve(name).map(drop))
    }

    /// Makes sure that the base is in the cache; returns where it lies.
    ///
    /// # Errors
    /// No source has it, or the one given is the wrong one.
    pub fn fetch(&self, events: Events<'_>) -> Result<PathBuf> {
        let base = self.base(events)?;
        events.hear(&Event::Note(format!("Linux {} from: {}", base.version, base.origin)));
        Ok(base.dir)
    }

    /// Checks every queue and mutant: form, strict application, checkpatch; builds nothing. Returns a summary.
    ///
    /// # Errors
    /// What is wrong with the patches, or the source cannot be had.
    pub fn check(&self, events: Events<'_>) -> Result<String> {
        let base = self.base(events)?;
        check::check(&Catalog::load(self.root)?, &base, events).map(|checked| checked.to_string())
    }

    /// Builds what [`Build`] says, one configuration after the other; returns what was built, for people.
    ///
    /// # Errors
    /// The first kernel that does not build, by its prefix and fragment.
    pub fn build_all(&self, what: Build, events: Events<'_>) -> Result<String> {
        let names = if what.each { self.prefixes("patched")? } else { vec!["patched".to_owned()] };
        let fragments = what.fragments();
        for fragment in &fragments {
            for name in &names {
                self.prepare(name, &["base", fragment], events).with_context(|| format!("{name} as {fragment}"))?;
            }
        }
        let kernels = if what.each { format!("{} prefixes of `patched`", names.len()) } else { names.concat() };
        Ok(format!("{kernels}, built as: {}", fragments.join(", ")))
    }

    /// The names of a kernel's prefixes, from none of its patches to all.
    ///
    /// # Errors
    /// As [`Catalog::prefixes`].
    pub fn prefixes(&self, name: &str) -> Result<Vec<String>> {
        Catalog::load(self.root)?.prefixes(name)
    }

    /// Every mutant of a kernel of the catalog, and the name of the kernel's series.
    ///
    /// # Errors
    /// There is no such kernel, or a patch cannot be read.
    pub fn mutants(&self, kernel: &str) -> Result<(Vec<Patch>, Option<String>)> {
        let mutants = Catalog::load(self.root)?.mutants(kernel)?;
        let patches = mutants.names().iter().map(|name| mutants.read(name)).collect::<Result<_>>()?;
        Ok((patches, mutants.series().map(str::to_owned)))
    }

    /// The diffs of a kernel's series, without what their messages say; empty for the base.
    ///
    /// # Errors
    /// There is no such kernel, or a patch cannot be read.
    pub fn series_diff(&self, kernel: &str) -> Result<String> {
        Ok(Catalog::load(self.root)?.patches(kernel)?.iter().map(Patch::diff).collect())
    }

    /// What there is, and what is built.
    ///
    /// # Errors
    /// The catalog or a series cannot be read.
    pub fn list(&self) -> Result<String> {
        let catalog = Catalog::load(self.root)?;
        let mut text = catalog.described()?;
        let kernels = self.cache.dir().join("kernels");
        let keys = base::names(&kernels).unwrap_or_default();
        let built = keys.iter().filter_map(|key| build::stored(&kernels.join(key)));
        text.extend(built.map(|kernel| described(&kernel)));
        Ok(text)
    }

    /// Makes a git tree in `dir` with the queue of `patched` as commits.
    ///
    /// # Errors
    /// `dir` is in use, the source cannot be had, or a patch does not apply.
    pub fn edit(&self, dir: &Path, events: Events<'_>) -> Result<()> {
        let base = self.base(events)?;
        queue::edit(dir, &base, &queue_of_patched(self.root)?, events).map(drop)
    }

    fn base(&self, events: Events<'_>) -> Result<BaseTree> {
        source::open(&Catalog::load(self.root)?.base, self.cache, self.source, events)
    }
}

fn described(kernel: &Kernel) -> String {
    let patches = if kernel.series.is_empty() { "no patches".into() } else { kernel.series.join(", ") };
    let kconfig = kernel.kconfig.join(" + ");
    format!("built: {} ({kconfig}; {patches}) {}\n", kernel.release, kernel.bzimage.display())
}

/// Writes the commits of a tree that [`Workshop::edit`] made back as the queue of `patched`; returns how many.
///
/// # Errors
/// See [`queue::save`].
pub fn save(root: &Path, dir: &Path) -> Result<usize> {
    queue::save(dir, &queue_of_patched(root)?).map(|saved| saved.patches)
}

fn queue_of_patched(root: &Path) -> Result<PathBuf> {
    let missing = || Failure::error(Exit::Usage, "kernels.toml defines no kernel with a series");
    Catalog::load(root)?.queues().into_iter().next().ok_or_else(missing)
}

/// A short hash of a text.
pub fn digest_of(text: &str) -> String {
    digest::key([text])
}

/// The kernel that runs now, for the `host` machine.
pub fn running() -> Kernel {
    let release =
        nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    Kernel { name: "running".into(), key: release.clone(), base: release.clone(), release, ..Kernel::default() }
}

/// A kernel that is only a name, for the `mock` machine.
pub fn unbuilt(name: &str) -> Kernel {
    Kernel { name: name.into(), key: "mock".into(), release: "mock".into(), ..Kernel::default() }
}

/// What differs between the `series` file of a folder and the patches in it.
///
/// # Errors
/// There is no series file.
#[cfg(test)]
pub fn strays(dir: &Path) -> Result<Vec<String>> {
    Ok(series::strays(&std::fs::read_to_string(dir.join("series"))?, &series::slugs_in(dir)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;

    fn with_workshop(act: impl FnOnce(Workshop<'_>)) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::lock_at(dir.path()).unwrap();
        act(Workshop { root: Path::new(".."), cache: &cache, source: None });
    }

    #[test]
    fn names_are_checked_before_anything_is_built() {
        with_workshop(|workshop| {
            workshop.check_names(&["mainline", "patched@1"], &["base", "bench"]).unwrap();
            let exit =
                |names: &[&str], fragments: &[&str]| exit_code(&workshop.check_names(names, fragments).unwrap_err());
            assert_eq!(exit(&["mainline", "nope"], &["base"]), Exit::Usage);
            assert_eq!(exit(&["mainline"], &["nope"]), Exit::Usage);
        });
    }

    #[test]
    fn fragments_that_are_only_built_exist() {
        let every = Build { each: true, configs: true }.fragments();
        assert_eq!(every.len(), 1 + LANES.len() + BUILD_ONLY.len());
        for fragment in every {
            Kconfig::load(Path::new(".."), &[fragment]).unwrap();
        }
        assert_eq!(Build { each: true, configs: false }.fragments(), ["bench"]);
        assert_eq!(Build { each: false, configs: true }.fragments(), BUILD_ONLY);
    }

    #[test]
    fn the_list_names_kernels_patches_choices_and_what_is_built() {
        with_workshop(|workshop| {
            let list = workshop.list().unwrap();
            for part in ["base: Linux 7.", "mainline: ", "patched: ", "  1. fs-namespace-", "git:URL#ref"] {
                assert!(list.contains(part), "{part} is missing in: {list}");
            }
            assert!(!list.contains("built:"));
            let dir = workshop.cache.dir().join("kernels/k");
            std::fs::create_dir_all(&dir).unwrap();
            let kernel = Kernel { release: "7.3.4-lab-k".into(), ..Kernel::default() };
            std::fs::write(dir.join("kernel.json"), serde_json::to_string(&kernel).unwrap()).unwrap();
            ["bzImage", "vmlinux"].iter().for_each(|name| std::fs::write(dir.join(name), "").unwrap());
            assert!(workshop.list().unwrap().contains("built: 7.3.4-lab-k (; no patches)"));
        });
    }
}
