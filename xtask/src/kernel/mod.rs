//! From a name to a bootable kernel: where the source comes from, which patches go on it, how it is built.

mod apt;
mod build;
mod catalog;
mod kconfig;
mod patch;
mod queue;
mod series;
mod source;

use crate::cache::Cache;
use crate::event::{Event, Events};
use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use build::Order;
use catalog::{Catalog, Recipe, Tree};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

#[cfg(test)]
pub use series::strays;

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

impl Kernel {
    /// With the paths that a build folder gives it.
    fn located(self, build: &Path) -> Kernel {
        Kernel { bzimage: build.join("arch/x86/boot/bzImage"), vmlinux: build.join("vmlinux"), ..self }
    }
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
    /// Builds the kernel of this name with these kconfig fragments, or finds it built.
    ///
    /// # Errors
    /// See [`Order::fill`] and [`source::base`]; an unknown name or fragment is a usage error.
    pub fn prepare(&self, name: &str, fragments: &[&str], events: Events<'_>) -> Result<Kernel> {
        let catalog = Catalog::load(self.root)?;
        let recipe = catalog.recipe(name)?;
        self.build(&catalog, &recipe, fragments, events)
    }

    fn build(&self, catalog: &Catalog, recipe: &Recipe, fragments: &[&str], events: Events<'_>) -> Result<Kernel> {
        let config = kconfig::merged(self.root, fragments)?;
        let pristine = match &recipe.tree {
            Tree::Base => source::base(catalog, self.cache, self.source, events)?,
            Tree::Path(path) => path.clone(),
            Tree::Git { url, reference } => source::of_git(url, reference, self.cache, events)?,
        };
        let base = &catalog.base;
        Order { recipe, base, pristine: &pristine, fragments, config: &config, cache: self.cache }.fill(events)
    }

    /// Fetches and checks the source; returns where it lies.
    ///
    /// # Errors
    /// No origin has it.
    pub fn fetch(&self, events: Events<'_>) -> Result<PathBuf> {
        source::base(&Catalog::load(self.root)?, self.cache, self.source, events)
    }

    /// Checks names without building anything, so that a typing error costs no build.
    ///
    /// # Errors
    /// Usage.
    pub fn check_names(&self, names: &[&str], fragments: &[&str]) -> Result<()> {
        let catalog = Catalog::load(self.root)?;
        kconfig::merged(self.root, fragments)?;
        names.iter().try_for_each(|name| catalog.recipe(name).map(drop))
    }

    /// Checks every queue and mutant: form, files, strict application, checkpatch. Returns a summary.
    ///
    /// # Errors
    /// All faults of form, or the first patch that does not apply or does not please checkpatch.
    pub fn check(&self, events: Events<'_>) -> Result<String> {
        let catalog = Catalog::load(self.root)?;
        let pristine = source::base(&catalog, self.cache, self.source, events)?;
        let mut count = 0;
        for dir in catalog.series_dirs() {
            let patches = series::read(&dir)?;
            refuse_faults(series::strays(&dir)?)?;
            refuse_faults(patches.iter().flat_map(patch::Patch::faults).collect())?;
            self.try_on(&patches, &pristine)?;
            for patch in &patches {
                build::checkpatch(&pristine, &dir.join(format!("{}.patch", patch.slug)))?;
                count += 1;
            }
        }
        let mutants = catalog.mutants();
        for mutant in &mutants {
            self.try_on(&catalog.recipe(&format!("mutant:{mutant}"))?.patches, &pristine)?;
        }
        Ok(format!(
            "{count} patches and {} mutants apply to Linux {}; checkpatch --strict is content",
            mutants.len(),
            catalog.base.version
        ))
    }

    /// Applies patches to copies of the files they touch.
    fn try_on(&self, patches: &[patch::Patch], pristine: &Path) -> Result<()> {
        let scratch = tempfile::tempdir_in(self.cache.dir())?;
        for path in patches.iter().flat_map(|patch| &patch.files).map(patch::FileChange::path) {
            let copy = scratch.path().join(path);
            std::fs::create_dir_all(copy.parent().context("a file has a folder")?)?;
            if pristine.join(path).exists() {
                std::fs::copy(pristine.join(path), copy)?;
            }
        }
        series::apply_all(patches, scratch.path())
    }

    /// Builds every prefix of the series, from none to all.
    ///
    /// # Errors
    /// The first prefix that does not build.
    pub fn build_each(&self, fragments: &[&str], events: Events<'_>) -> Result<usize> {
        let catalog = Catalog::load(self.root)?;
        let whole = catalog.recipe("patched")?;
        for count in 0..=whole.patches.len() {
            let patches = whole.patches[..count].to_vec();
            let recipe = Recipe { name: format!("patched@{count}"), patches, ..whole.clone() };
            self.build(&catalog, &recipe, fragments, events).map_err(|error| build::prefix_failed(error, count))?;
        }
        Ok(whole.patches.len() + 1)
    }

    /// One line per name: what it is and whether it is built.
    ///
    /// # Errors
    /// kernels.toml is broken.
    pub fn list(&self) -> Result<String> {
        let catalog = Catalog::load(self.root)?;
        let fragments = ["base", "bench"];
        let config = kconfig::merged(self.root, &fragments)?;
        let mut text = String::new();
        let mutants =
            catalog.mutants().into_iter().map(|name| (format!("mutant:{name}"), "broken on purpose".to_owned()));
        let named = catalog.kernel.iter().map(|(name, entry)| (name.clone(), entry.about.clone()));
        for (name, about) in named.chain(mutants) {
            let recipe = catalog.recipe(&name)?;
            let pristine = self.cache.dir().join(format!("source/linux-{}", catalog.base.version));
            let order = Order {
                recipe: &recipe,
                base: &catalog.base,
                pristine: &pristine,
                fragments: &fragments,
                config: &config,
                cache: self.cache,
            };
            let built = if build::is_built(&order) { "built" } else { "not built" };
            text += &format!("{name:28} {:>2} patches  {built:9}  {about}\n", recipe.patches.len());
        }
        Ok(text)
    }

    /// Makes a git tree of the queue.
    ///
    /// # Errors
    /// See [`queue::edit`].
    pub fn edit(&self, dir: &Path, events: Events<'_>) -> Result<()> {
        let catalog = Catalog::load(self.root)?;
        let pristine = source::base(&catalog, self.cache, self.source, events)?;
        events.hear(&Event::Note("copying the base and committing it; this takes a minute".into()));
        queue::edit(&pristine, &queue_dir(&catalog)?, dir)
    }
}

/// Writes a git tree made by [`Workshop::edit`] back to the queue; returns the number of patches.
///
/// # Errors
/// See [`queue::save`].
pub fn save(root: &Path, dir: &Path) -> Result<usize> {
    queue::save(dir, &queue_dir(&Catalog::load(root)?)?)
}

fn queue_dir(catalog: &Catalog) -> Result<PathBuf> {
    catalog.series_dirs().into_iter().next().context("kernels.toml names no series")
}

fn refuse_faults(faults: Vec<String>) -> Result<()> {
    if faults.is_empty() { Ok(()) } else { Err(Failure::error(Exit::PatchRejected, faults.join("\n"))) }
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
