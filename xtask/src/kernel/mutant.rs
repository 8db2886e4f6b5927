//! Mutants: patches that break a kernel on purpose, and on what they stand.
//!
//! `mutants/NAME.patch` is a mistake in the base. The same mistake in a kernel that has a series is that patch moved to where its
//! lines are now, or, where the series changed these lines, a version of its own, `mutants/on-SERIES/NAME.patch`. There are
//! also the mistakes that only the series can make.

use super::patch::Patch;
use super::series;
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What begins the line of a mutant's message that says in which series its mistake cannot be made, and why.
pub const GONE_IN: &str = "Gone-in: ";

/// The mutants of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutants {
    /// `kernel-patches/mutants`.
    dir: PathBuf,
    /// Name of the series that the kernel has; none is the base.
    series: Option<String>,
}

impl Mutants {
    /// Those of `dir` that stand on the base, or on it with a series.
    pub fn on(dir: &Path, series: Option<&str>) -> Mutants {
        Mutants { dir: dir.to_owned(), series: series.map(str::to_owned) }
    }

    /// Their names, sorted: with a series those of the base as well.
    pub fn names(&self) -> Vec<String> {
        let all = self.folders().into_iter().flat_map(|folder| series::slugs_in(&folder));
        all.collect::<BTreeSet<String>>().into_iter().collect()
    }

    /// Those that are made for this kernel and for no other.
    pub fn own(&self) -> Vec<String> {
        self.own_folder().map_or_else(|| self.names(), |own| series::slugs_in(&own))
    }

    /// The patch that makes a mutant, which is one of [`Mutants::names`].
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, name: &str) -> Result<Patch> {
        let is_in = |folder: &PathBuf| series::slugs_in(folder).iter().any(|slug| slug == name);
        let folder = self.folders().into_iter().find(is_in).unwrap_or_else(|| self.dir.clone());
        // The queue changes more often than the mistakes that can be made in it.
        Ok(Patch { may_move: self.series.is_some(), ..series::read_patch(&folder, name)? })
    }

    /// Whether a mutant says (`Gone-in: SERIES`) that the series left no code to make its mistake in.
    pub fn is_gone(&self, patch: &Patch) -> bool {
        let key = self.series.as_ref().map(|series| format!("{GONE_IN}{series}: "));
        let mut message = patch.text.lines().take_while(|line| *line != "---");
        key.is_some_and(|key| message.any(|line| line.starts_with(&key)))
    }

    /// Name of the series that the kernel has.
    pub fn series(&self) -> Option<&str> {
        self.series.as_deref()
    }

    /// Where a name is looked for, in order.
    fn folders(&self) -> Vec<PathBuf> {
        self.own_folder().into_iter().chain([self.dir.clone()]).collect()
    }

    fn own_folder(&self) -> Option<PathBuf> {
        self.series.as_ref().map(|series| self.dir.join(format!("on-{series}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn diff(to: &str) -> String {
        format!("diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n+{to}\n")
    }

    #[test]
    fn a_series_has_the_mutants_of_the_base_and_its_own() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("on-v1")).unwrap();
        for (file, to) in [("both", "x"), ("base", "x"), ("on-v1/both", "y"), ("on-v1/own", "y")] {
            fs::write(dir.path().join(format!("{file}.patch")), diff(to)).unwrap();
        }
        let (base, series) = (Mutants::on(dir.path(), None), Mutants::on(dir.path(), Some("v1")));
        assert_eq!(base.names(), ["base", "both"]);
        assert_eq!(
            (series.names(), series.own()),
            (vec!["base".into(), "both".into(), "own".into()], vec!["both".into(), "own".into()])
        );
        let read = |mutants: &Mutants, name: &str| mutants.read(name).unwrap();
        assert_eq!((read(&base, "both").text, read(&base, "both").may_move), (diff("x"), false));
        assert_eq!((read(&series, "both").text, read(&series, "both").may_move), (diff("y"), true));
        assert_eq!(read(&series, "base").text, diff("x"));
        assert!(base.read("own").is_err());
        let told = |series: &str| Patch::parse("m", &format!("Gone-in: {series}: why\n---\n{}", diff("x"))).unwrap();
        assert!(series.is_gone(&told("v1")) && !series.is_gone(&told("v2")) && !base.is_gone(&told("v1")));
    }
}
