//! `kernel-patches/kernels.toml`, and what the names after `--kernel` mean.

use super::patch::Patch;
use super::series;
use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// What every kernel of the file is made of.
    pub base: Base,
    /// The names.
    pub kernel: BTreeMap<String, Entry>,
    /// `kernel-patches/`.
    #[serde(skip)]
    pub dir: PathBuf,
}

/// The base version.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// "7.3.4".
    pub version: String,
    /// Where it may come from, in order.
    pub source: Vec<Origin>,
    /// SHA-256 by path.
    pub files: BTreeMap<String, String>,
}

/// One place to get the base from.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Origin {
    /// A tarball by URL.
    Tarball {
        /// Where.
        url: String,
    },
    /// A Debian source package.
    Debian {
        /// Name of the package.
        package: String,
        /// Suite that has it.
        suite: String,
    },
}

/// One name.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// One line for a person.
    pub about: String,
    /// Folder of the queue, if any.
    pub series: Option<String>,
}

/// A kernel to be made: a source and what goes on it.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// As the user wrote it.
    pub name: String,
    /// What it starts from.
    pub tree: Tree,
    /// In order.
    pub patches: Vec<Patch>,
}

/// What a kernel starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree {
    /// The catalog's base.
    Base,
    /// A tree of the user's.
    Path(PathBuf),
    /// A commit of a repository.
    Git {
        /// As `git clone` takes it.
        url: String,
        /// Branch, tag or commit.
        reference: String,
    },
}

impl Catalog {
    /// Reads the file.
    ///
    /// # Errors
    /// It is not there or malformed.
    pub fn load(root: &Path) -> Result<Catalog> {
        let dir = root.join("kernel-patches");
        let path = dir.join("kernels.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let catalog: Catalog = toml::from_str(&text).with_context(|| format!("{} is malformed", path.display()))?;
        Ok(Catalog { dir, ..catalog })
    }

    /// What a word after `--kernel` means.
    ///
    /// # Errors
    /// Usage, listing what there is; or the queue is broken.
    pub fn recipe(&self, name: &str) -> Result<Recipe> {
        let recipe = |tree, patches| Ok(Recipe { name: name.to_owned(), tree, patches });
        if let Some(git) = name.strip_prefix("git:") {
            let (url, reference) = git.rsplit_once('#').unwrap_or((git, "HEAD"));
            return recipe(Tree::Git { url: url.into(), reference: reference.into() }, Vec::new());
        }
        if let Some(mutant) = name.strip_prefix("mutant:") {
            return recipe(Tree::Base, vec![self.mutant(mutant)?]);
        }
        if name.contains('/') {
            return recipe(Tree::Path(self.tree_of_user(name)?), Vec::new());
        }
        let (known, count) = match name.split_once('@') {
            Some((known, count)) => (known, Some(count)),
            None => (name, None),
        };
        let entry = self.kernel.get(known).ok_or_else(|| self.unknown(name))?;
        let mut patches = self.patches(entry)?;
        if let Some(count) = count {
            let most = patches.len();
            let count = count.parse().ok().filter(|count| *count <= most);
            let count = count.ok_or_else(|| {
                Failure::error(Exit::Usage, format!("'{name}': {known} has {most} patches, @0 to @{most}"))
            })?;
            patches.truncate(count);
        }
        recipe(Tree::Base, patches)
    }

    fn patches(&self, entry: &Entry) -> Result<Vec<Patch>> {
        entry.series.as_ref().map_or(Ok(Vec::new()), |series| series::read(&self.dir.join(series)))
    }

    /// Folders of all queues of the file.
    pub fn series_dirs(&self) -> Vec<PathBuf> {
        self.kernel.values().filter_map(|entry| entry.series.as_ref()).map(|series| self.dir.join(series)).collect()
    }

    /// Names of the mutants.
    pub fn mutants(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.join("mutants")).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.filter_map(|name| name.strip_suffix(".patch").map(str::to_owned)).collect();
        names.sort();
        names
    }

    fn mutant(&self, name: &str) -> Result<Patch> {
        if !self.mutants().iter().any(|known| known == name) {
            let known = self.mutants().join(", ");
            return Err(Failure::error(Exit::Usage, format!("no mutant is called '{name}'; there are: {known}")));
        }
        series::read_patch(&self.dir.join("mutants"), name)
    }

    fn tree_of_user(&self, name: &str) -> Result<PathBuf> {
        let path = Path::new(name).canonicalize();
        let found = path.ok().filter(|path| path.join("Kconfig").exists() && path.join("Makefile").exists());
        found.ok_or_else(|| {
            Failure::error(Exit::Usage, format!("{name} is no kernel tree: it has no Makefile and Kconfig"))
        })
    }

    fn unknown(&self, name: &str) -> anyhow::Error {
        let known = self.kernel.keys().cloned().collect::<Vec<_>>().join(", ");
        let message = format!(
            "no kernel is called '{name}'; there are: {known}, NAME@N for its first N patches, mutant:NAME, \
             a path with a '/' to a kernel tree, git:URL#ref"
        );
        Failure::error(Exit::Usage, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;

    fn catalog() -> Catalog {
        Catalog::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap()
    }

    #[test]
    fn names_and_prefixes() {
        let catalog = catalog();
        assert_eq!(catalog.recipe("mainline").unwrap().patches.len(), 0);
        let all = catalog.recipe("patched").unwrap().patches;
        assert!(all.len() >= 2);
        assert_eq!(catalog.recipe("patched@1").unwrap().patches, all[..1]);
        assert_eq!(catalog.recipe("mutant:idmap-dropped").unwrap().patches.len(), 1);
    }

    #[test]
    fn unknown_names_list_what_there_is() {
        for (name, part) in [
            ("nope", "mainline, patched"),
            ("patched@99", "has"),
            ("patched@x", "has"),
            ("mutant:nope", "idmap-dropped"),
            ("/nowhere/linux", "no kernel tree"),
        ] {
            let error = catalog().recipe(name).unwrap_err();
            assert_eq!(exit_code(&error), Exit::Usage, "{name}");
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn git_has_a_reference() {
        let tree = |name| catalog().recipe(name).unwrap().tree;
        let git = |url: &str, reference: &str| Tree::Git { url: url.into(), reference: reference.into() };
        assert_eq!(tree("git:https://x.example/l.git#v7.3"), git("https://x.example/l.git", "v7.3"));
        assert_eq!(tree("git:/srv/linux"), git("/srv/linux", "HEAD"));
    }
}
