//! `kernel check`: what can be said of the queues without building them.

use super::apply::apply_all;
use super::base::BaseTree;
use super::catalog::Catalog;
use super::patch::Patch;
use super::series;
use crate::event::Events;
use crate::failure::{Exit, Failure};
use crate::process::{Task, check_interrupt};
use crate::stage::Stage;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use xshell::{Shell, cmd};

/// What was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Patches of the queues.
    pub patches: usize,
    /// Mutants, counted on each kernel that they stand on.
    pub mutants: usize,
}

impl std::fmt::Display for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} patches in form, clean and applying; {} mutants in form and applying", self.patches, self.mutants)
    }
}

/// Checks every queue of the catalog, and the mutants.
///
/// # Errors
/// All faults of form together, the first patch that does not apply, or checkpatch's words.
pub fn check(catalog: &Catalog, base: &BaseTree, events: Events<'_>) -> Result<Checked> {
    let mut checked = Checked::default();
    for queue in catalog.queues() {
        let patches = in_form(&queue)?;
        applies(&patches, base)?;
        checkpatch(&queue, &patches, base, events)?;
        checked.patches += patches.len();
    }
    for kernel in catalog.names() {
        let mutants = catalog.mutants(kernel)?;
        let queue = catalog.patches(kernel)?;
        for name in mutants.names() {
            let patch = mutants.read(&name)?;
            let faults = mutant_faults(&patch);
            if !faults.is_empty() {
                return Err(Failure::error(Exit::Regression, format!("mutants:\n  {}", faults.join("\n  "))));
            }
            if !mutants.is_gone(&patch) {
                applies(&[queue.clone(), vec![patch]].concat(), base)
                    .with_context(|| format!("a mutant of {kernel}"))?;
                checked.mutants += 1;
            }
        }
    }
    Ok(checked)
}

/// Reads a queue and checks its form; needs no kernel source.
///
/// # Errors
/// All faults together.
pub fn in_form(queue: &Path) -> Result<Vec<Patch>> {
    let text = fs::read_to_string(queue.join("series")).with_context(|| format!("no series in {}", queue.display()))?;
    let mut faults = series::strays(&text, &series::slugs_in(queue));
    if faults.is_empty() {
        let patches = series::read(queue)?;
        faults.extend(patches.iter().flat_map(Patch::faults));
        if faults.is_empty() {
            return Ok(patches);
        }
    }
    Err(Failure::error(Exit::Regression, format!("{}:\n  {}", queue.display(), faults.join("\n  "))))
}

/// What is wrong with the form of a mutant. Its code is meant to be wrong, so checkpatch does not look at it.
fn mutant_faults(patch: &Patch) -> Vec<String> {
    let message: Vec<&str> = patch.text.lines().take_while(|line| *line != "---").collect();
    let said = ["Breaks: ", "A plausible mistake "];
    let unsaid = said.iter().filter(|said| !message.iter().any(|line| line.starts_with(**said)));
    patch.faults().into_iter().chain(unsaid.map(|said| format!("{}.patch: no line `{said}...`", patch.slug))).collect()
}

fn applies(patches: &[Patch], base: &BaseTree) -> Result<()> {
    apply_all(patches, &|path| fs::read_to_string(base.dir.join(path)).ok()).map(drop)
}

/// Runs the base's own checkpatch over each patch.
fn checkpatch(queue: &Path, patches: &[Patch], base: &BaseTree, events: Events<'_>) -> Result<()> {
    let (sh, root) = (Shell::new()?, &base.dir);
    let script = root.join("scripts/checkpatch.pl");
    let mut stage = Stage::start(events, "checkpatch --strict");
    for (done, patch) in patches.iter().enumerate() {
        check_interrupt("kernel check")?;
        stage.progress("patches", || (done as u64, Some(patches.len() as u64)));
        let file = queue.join(format!("{}.patch", patch.slug));
        let run = cmd!(sh, "perl {script} --strict --root={root} --color=never {file}");
        Task::new(run).on_failure(Exit::Regression, "mend the patch: `cargo xtask series edit DIR`").run()?;
    }
    stage.finish(format!("{} patches clean", patches.len()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;

    const PATCH: &str = "From: A <a@b.example>\nSubject: [PATCH] x\n\nSigned-off-by: A <a@b.example>\n---\n\
        diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n+b\n";

    fn queue(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
        dir
    }

    #[test]
    fn a_queue_in_form_is_read_in_order() {
        let dir = queue(&[("series", "b.patch\na.patch\n"), ("a.patch", PATCH), ("b.patch", PATCH)]);
        let slugs: Vec<String> = in_form(dir.path()).unwrap().into_iter().map(|patch| patch.slug).collect();
        assert_eq!(slugs, ["b", "a"]);
    }

    #[test]
    fn all_faults_come_at_once() {
        let unsigned = PATCH.replace("Signed-off-by", "Acked-by");
        let files = [("series", "a.patch\nb.patch\n"), ("a.patch", &*unsigned), ("b.patch", &*unsigned)];
        let error = in_form(queue(&files).path()).unwrap_err();
        assert_eq!(exit_code(&error), Exit::Regression);
        assert!(error.to_string().contains("a.patch: no Signed-off-by"), "{error}");
        assert!(error.to_string().contains("b.patch: no Signed-off-by"), "{error}");
        let error = in_form(queue(&[("series", "a.patch\n")]).path()).unwrap_err();
        assert!(error.to_string().contains("series lists a.patch, which is not there"), "{error}");
    }

    #[test]
    fn a_mutant_says_what_it_breaks_and_why_somebody_might() {
        let faults = mutant_faults(&Patch::parse("m", PATCH).unwrap());
        assert_eq!(faults, ["m.patch: no line `Breaks: ...`", "m.patch: no line `A plausible mistake ...`"]);
        let told = PATCH.replace("\n\nSigned", "\n\nBreaks: x\nA plausible mistake when y.\nSigned");
        assert!(mutant_faults(&Patch::parse("m", &told).unwrap()).is_empty());
    }

    #[test]
    fn the_checkouts_own_queues_are_in_form() {
        for queue in Catalog::load(Path::new("..")).unwrap().queues() {
            assert!(!in_form(&queue).unwrap().is_empty());
        }
    }
}
