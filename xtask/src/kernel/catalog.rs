//! `kernels.toml`, and what a `--kernel` means.

use super::mutant::Mutants;
use super::patch::Patch;
use super::series;
use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The kernel that mutants stand on where no other is named.
const BASE: &str = "mainline";

/// `kernel-patches/`: the catalog, the queues and the mutants.
#[derive(Debug)]
pub struct Catalog {
    /// What all named kernels stand on.
    pub base: Base,
    definitions: BTreeMap<String, Definition>,
    dir: PathBuf,
}

/// The base version.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// As `make kernelversion` says it.
    pub version: String,
    /// Space that the unpacked tree takes, MiB.
    pub unpacked_mib: u64,
    /// Where it may come from, in order.
    #[serde(rename = "source")]
    pub sources: Vec<Source>,
    /// Hashes of all content of the trees that packagers ship as this version. What a kernel is called does not depend on which one it is
    /// built from any more than their lists of files do.
    #[serde(default)]
    pub trees: BTreeSet<String>,
    /// SHA-256 of each file that the series may touch, by path.
    pub files: BTreeMap<String, String>,
}

/// One place to get the base from.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// A tarball on a web server.
    Tarball {
        /// Its address.
        url: String,
    },
    /// A Debian package that holds a source tarball, from the host's own mirror.
    Debian {
        /// Its name.
        package: String,
        /// The suite that carries it; the host need not have it configured.
        suite: String,
    },
}

/// What a name means.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// One line for `kernel list`.
    pub about: String,
    /// Folder of the patches; none means the base as it is.
    pub series: Option<String>,
}

/// What a kernel is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// The base with these patches, in order.
    Base(Vec<Patch>),
    /// Somebody's tree, as it is.
    Tree(PathBuf),
    /// A revision of a repository.
    Git {
        /// Where from.
        url: String,
        /// Branch, tag or commit.
        reference: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    base: Base,
    kernel: BTreeMap<String, Definition>,
}

impl Catalog {
    /// Reads a checkout's catalog.
    ///
    /// # Errors
    /// `kernels.toml` cannot be read or is malformed.
    pub fn load(root: &Path) -> Result<Catalog> {
        Catalog::load_from(&root.join("kernel-patches"))
    }

    fn load_from(dir: &Path) -> Result<Catalog> {
        let path = dir.join("kernels.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let file: File = toml::from_str(&text).with_context(|| format!("{} is malformed", path.display()))?;
        Ok(Catalog { base: file.base, definitions: file.kernel, dir: dir.to_owned() })
    }

    /// The names of a kernel's prefixes, from none of its patches to all.
    ///
    /// # Errors
    /// There is no such kernel, or its patches cannot be read.
    pub fn prefixes(&self, name: &str) -> Result<Vec<String>> {
        Ok((0..=self.patches(name)?.len()).map(|count| format!("{name}@{count}")).collect())
    }

    /// The base, each kernel with its patches, and what else `--kernel` takes; for a person.
    ///
    /// # Errors
    /// A queue cannot be read.
    pub fn described(&self) -> Result<String> {
        let mut text = format!("base: Linux {}\n", self.base.version);
        for (name, definition) in &self.definitions {
            text += &format!("{name}: {}\n", definition.about);
            let patches = self.queue(definition)?;
            text.extend(patches.iter().enumerate().map(|(at, patch)| format!("  {}. {}\n", at + 1, patch.slug)));
        }
        Ok(text + &self.choices() + "\n")
    }

    /// Folders of the queues that the named kernels use.
    pub fn queues(&self) -> Vec<PathBuf> {
        self.definitions.values().filter_map(|kernel| kernel.series.as_ref()).map(|name| self.dir.join(name)).collect()
    }

    /// The mutants of a kernel of the catalog.
    ///
    /// # Errors
    /// There is no such kernel; lists those that are there.
    pub fn mutants(&self, kernel: &str) -> Result<Mutants> {
        Ok(Mutants::on(&self.dir.join("mutants"), self.definition(kernel)?.series.as_deref()))
    }

    /// Names of the kernels of the catalog.
    pub fn names(&self) -> Vec<&str> {
        self.definitions.keys().map(String::as_str).collect()
    }

    /// The patches of a kernel of the catalog.
    ///
    /// # Errors
    /// There is no such kernel, or a patch cannot be read.
    pub fn patches(&self, kernel: &str) -> Result<Vec<Patch>> {
        self.queue(self.definition(kernel)?)
    }

    fn definition(&self, kernel: &str) -> Result<&Definition> {
        let unknown = || usage(format!("kernels.toml has {}, and no `{kernel}`", self.names().join(", ")));
        self.definitions.get(kernel).ok_or_else(unknown)
    }

    /// What a `--kernel` means.
    ///
    /// # Errors
    /// Nothing that exists (lists what does), or a patch that cannot be read.
    pub fn resolve(&self, name: &str) -> Result<Recipe> {
        if let Some(definition) = self.definitions.get(name) {
            return self.queue(definition).map(Recipe::Base);
        }
        if let Some(mutant) = name.strip_prefix("mutant:") {
            return self.mutant(mutant);
        }
        if let Some(url) = name.strip_prefix("git:") {
            return git(url);
        }
        if let Some((name, count)) = name.split_once('@')
            && let Some(definition) = self.definitions.get(name)
        {
            return self.prefix(name, definition, count);
        }
        self.tree(name)
    }

    fn queue(&self, definition: &Definition) -> Result<Vec<Patch>> {
        definition.series.as_ref().map_or(Ok(Vec::new()), |series| series::read(&self.dir.join(series)))
    }

    fn prefix(&self, name: &str, definition: &Definition, count: &str) -> Result<Recipe> {
        let mut patches = self.queue(definition)?;
        match count.parse::<usize>() {
            Ok(count) if count <= patches.len() => {
                patches.truncate(count);
                Ok(Recipe::Base(patches))
            }
            _ => {
                Err(usage(format!("`{name}@{count}`: {name} has {} patches, so {name}@0 to {name}@{0}", patches.len())))
            }
        }
    }

    /// `NAME`, on the base, or `NAME@KERNEL`.
    fn mutant(&self, spelled: &str) -> Result<Recipe> {
        let (name, kernel) = spelled.split_once('@').unwrap_or((spelled, BASE));
        let mutants = self.mutants(kernel)?;
        if !mutants.names().iter().any(|known| known == name) {
            return Err(usage(format!("there is no mutant `{name}` on {kernel}\n{}", self.choices())));
        }
        let mut patches = self.patches(kernel)?;
        patches.push(mutants.read(name)?);
        Ok(Recipe::Base(patches))
    }

    fn tree(&self, name: &str) -> Result<Recipe> {
        let path = Path::new(name);
        if is_kernel_tree(path) {
            return Ok(Recipe::Tree(path.canonicalize()?));
        }
        let why = match path.is_dir() {
            true => format!("`{name}` is a folder, but no kernel tree (no Makefile and Kconfig in it)"),
            false => format!("there is no kernel `{name}`"),
        };
        Err(usage(format!("{why}\n{}", self.choices())))
    }

    /// Everything that `--kernel` takes, for a person.
    pub fn choices(&self) -> String {
        let folder = self.dir.join("mutants");
        let mutants = |series: Option<&str>, at: &str| -> String {
            let own = Mutants::on(&folder, series).own();
            own.iter().map(|name| format!("mutant:{name}{at}, ")).collect()
        };
        let with_series = self.definitions.iter().filter(|(_, kernel)| kernel.series.is_some());
        let own: String =
            with_series.map(|(name, kernel)| mutants(kernel.series.as_deref(), &format!("@{name}"))).collect();
        format!(
            "kernels: {}, patched@N (its first N patches), {}mutant:NAME@KERNEL (the same mistake on another kernel), {own}\
             the path of a kernel tree, git:URL#ref",
            self.names().join(", "),
            mutants(None, ""),
        )
    }
}

/// Whether a folder looks like the top of a kernel tree.
pub fn is_kernel_tree(path: &Path) -> bool {
    path.join("Makefile").is_file() && path.join("Kconfig").is_file()
}

fn git(url: &str) -> Result<Recipe> {
    match url.rsplit_once('#') {
        // A leading dash would be an option to git.
        Some((url, reference))
            if !url.is_empty() && !reference.is_empty() && !url.starts_with('-') && !reference.starts_with('-') =>
        {
            Ok(Recipe::Git { url: url.to_owned(), reference: reference.to_owned() })
        }
        _ => Err(usage(format!("`git:{url}`: expected git:URL#ref, where ref is a branch, a tag or a commit"))),
    }
}

fn usage(message: String) -> anyhow::Error {
    Failure::error(Exit::Usage, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;

    const TOML: &str = "[base]\nversion = '7.3.4'\nunpacked_mib = 1\n[[base.source]]\nkind = 'tarball'\nurl = 'u'\n\
        [[base.source]]\nkind = 'debian'\npackage = 'p'\nsuite = 's'\n[base.files]\n'fs/a.c' = 'abc'\n\
        [kernel.mainline]\nabout = 'x'\n[kernel.patched]\nabout = 'y'\nseries = 'v1'\n";

    /// A catalog with two patches and one mutant.
    fn fixture() -> (tempfile::TempDir, Catalog) {
        let dir = tempfile::tempdir().unwrap();
        let patch = "diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n+b\n";
        for folder in ["v1", "mutants", "mutants/on-v1", "tree"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        for file in [
            "v1/one.patch",
            "v1/two.patch",
            "mutants/broken.patch",
            "mutants/on-v1/late.patch",
            "tree/Makefile",
            "tree/Kconfig",
        ] {
            fs::write(dir.path().join(file), patch).unwrap();
        }
        fs::write(dir.path().join("kernels.toml"), TOML).unwrap();
        fs::write(dir.path().join("v1/series"), "one.patch\ntwo.patch\n").unwrap();
        let catalog = Catalog::load_from(dir.path()).unwrap();
        (dir, catalog)
    }

    fn slugs(catalog: &Catalog, name: &str) -> Vec<String> {
        match catalog.resolve(name).unwrap() {
            Recipe::Base(patches) => patches.into_iter().map(|patch| patch.slug).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_mean_their_patches() {
        let (_dir, catalog) = fixture();
        assert!(slugs(&catalog, "mainline").is_empty());
        assert_eq!(slugs(&catalog, "patched"), ["one", "two"]);
        assert_eq!(slugs(&catalog, "patched@1"), ["one"]);
        assert!(slugs(&catalog, "patched@0").is_empty());
        assert_eq!(slugs(&catalog, "mutant:broken"), ["broken"]);
        assert_eq!(slugs(&catalog, "mutant:broken@patched"), ["one", "two", "broken"]);
        assert_eq!(slugs(&catalog, "mutant:late@patched"), ["one", "two", "late"]);
    }

    #[test]
    fn paths_and_repositories_are_kernels_too() {
        let (dir, catalog) = fixture();
        let tree = dir.path().join("tree");
        assert_eq!(catalog.resolve(tree.to_str().unwrap()).unwrap(), Recipe::Tree(tree.canonicalize().unwrap()));
        let git = catalog.resolve("git:https://host/linux.git#v7.3").unwrap();
        assert_eq!(git, Recipe::Git { url: "https://host/linux.git".into(), reference: "v7.3".into() });
    }

    #[test]
    fn what_does_not_exist_is_a_usage_error_that_lists_what_does() {
        let (dir, catalog) = fixture();
        let here = dir.path().to_str().unwrap();
        for (name, part) in [
            ("ptached", "kernels: mainline, patched, patched@N (its first N patches), mutant:broken"),
            ("mutant:nope", "mutant:broken"),
            ("mutant:late", "mutant:late@patched"),
            ("mutant:broken@nope", "kernels.toml has mainline, patched, and no `nope`"),
            ("patched@3", "patched has 2 patches"),
            ("patched@x", "patched has 2 patches"),
            ("git:https://host/linux.git", "git:URL#ref"),
            ("git:--upload-pack=x#y", "git:URL#ref"),
            (here, "no kernel tree"),
        ] {
            let error = catalog.resolve(name).unwrap_err();
            assert_eq!(exit_code(&error), Exit::Usage, "{name}");
            assert!(error.to_string().contains(part), "{name}: {error}");
        }
    }

    #[test]
    fn the_checkouts_own_catalog_loads() {
        let catalog = Catalog::load(Path::new("..")).unwrap();
        assert!(catalog.base.files.contains_key("fs/namespace.c"));
        assert!(catalog.base.files.values().all(|hash| hash.len() == 64));
        assert!(catalog.definitions.contains_key("mainline") && catalog.definitions.contains_key("patched"));
        assert!(matches!(catalog.base.sources[0], Source::Tarball { .. }));
    }
}
