//! Applies a patch strictly: a hunk fits exactly where it says, or the patch is refused. No fuzz, and no offset but where
//! [`Patch::may_move`] allows one: then its lines must stand at one place of the file and at no other.

use super::patch::{FileChange, Hunk, Patch};
use crate::failure::{Exit, Failure};
use anyhow::Result;
use std::collections::BTreeMap;

/// The files that patches change, by path: the new text, or `None` for a file that is gone.
pub type Overlay = BTreeMap<String, Option<String>>;

/// Applies `patches` in order to what `read` finds of the base; returns every file that was touched.
///
/// # Errors
/// The first hunk that does not fit: patch, file, hunk, and the line that differs.
pub fn apply_all(patches: &[Patch], read: &dyn Fn(&str) -> Option<String>) -> Result<Overlay> {
    let mut overlay = Overlay::new();
    for patch in patches {
        for change in &patch.files {
            let path = change.path();
            let old = overlay.get(path).cloned().unwrap_or_else(|| read(path));
            let new = apply(change, old.as_deref(), patch.may_move).map_err(|why| rejected(&patch.slug, path, &why))?;
            overlay.insert(path.to_owned(), new);
        }
    }
    Ok(overlay)
}

fn rejected(slug: &str, path: &str, why: &str) -> anyhow::Error {
    let message = format!(
        "{slug}.patch does not apply to {path}: {why}\n\
         next: `cargo xtask series edit DIR` makes a git tree to mend the queue in"
    );
    Failure::error(Exit::PatchRejected, message)
}

/// The new text of a file, or why not.
fn apply(change: &FileChange, text: Option<&str>, may_move: bool) -> Result<Option<String>, String> {
    match (text, &change.old) {
        (None, Some(_)) => return Err("there is no such file".into()),
        (Some(_), None) => return Err("it would be a new file, and there is one".into()),
        _ => {}
    }
    let old: Vec<&str> = text.unwrap_or_default().split_terminator('\n').collect();
    let mut new: Vec<&str> = Vec::new();
    let mut done = 0;
    for (index, hunk) in change.hunks.iter().enumerate() {
        let place = if may_move { only_place } else { place };
        let start = place(hunk, &old, done).map_err(|why| format!("hunk {}{why}", index + 1))?;
        new.extend(&old[done..start]);
        new.extend(hunk.after.iter().map(String::as_str));
        done = start + hunk.before.len();
    }
    new.extend(&old[done..]);
    match (&change.new, new.len()) {
        (Some(_), _) => Ok(Some(new.iter().map(|line| format!("{line}\n")).collect())),
        (None, 0) => Ok(None),
        (None, left) => Err(format!("it deletes the file, but {left} lines would be left")),
    }
}

/// Index of the first line that the hunk replaces, if all its old lines stand there.
fn place(hunk: &Hunk, old: &[&str], done: usize) -> Result<usize, String> {
    // A hunk without old lines names the line that it stands after.
    let start = if hunk.before.is_empty() { hunk.line } else { hunk.line.saturating_sub(1) };
    if start < done || start > old.len() {
        return Err(format!(" starts at line {}, out of place in {} lines", hunk.line, old.len()));
    }
    for (offset, expected) in hunk.before.iter().enumerate() {
        let found = old.get(start + offset);
        if found != Some(&expected.as_str()) {
            let found = found.map_or("the end of the file".into(), |line| format!("{line:?}"));
            return Err(format!(", line {}: expected {expected:?}, found {found}", start + offset + 1));
        }
    }
    Ok(start)
}

/// Index of the first line that the hunk replaces, if all its old lines stand there and nowhere else below what is done.
fn only_place(hunk: &Hunk, old: &[&str], done: usize) -> Result<usize, String> {
    let wanted = hunk.before.len();
    if wanted == 0 {
        return Err(" has no old lines to look for".into());
    }
    let is_there =
        |start: &usize| hunk.before.iter().map(String::as_str).eq(old[*start..start + wanted].iter().copied());
    let places: Vec<usize> = (done..(old.len() + 1).saturating_sub(wanted)).filter(is_there).collect();
    match places[..] {
        [one] => Ok(one),
        [] => Err(format!(", line {}: its lines stand nowhere below line {done}", hunk.line)),
        [first, second, ..] => {
            Err(format!(", line {}: its lines stand at {} and at {}", hunk.line, first + 1, second + 1))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;

    const TEXT: &str = "one\ntwo\nthree\nfour\nfive\n";
    const CHANGE: &str = "--- a/f\n+++ b/f\n@@ -1,3 +1,4 @@\n one\n-two\n+2\n+2.5\n three\n@@ -5 +6 @@\n-five\n+5\n";

    fn run(diff: &str, text: Option<&str>) -> Result<Option<String>> {
        let patch = Patch::parse("x-y", &format!("diff --git a/f b/f\n{diff}")).unwrap();
        let overlay = apply_all(&[patch], &|_| text.map(str::to_owned))?;
        Ok(overlay["f"].clone())
    }

    #[test]
    fn hunks_apply_where_they_say() {
        assert_eq!(run(CHANGE, Some(TEXT)).unwrap().unwrap(), "one\n2\n2.5\nthree\nfour\n5\n");
    }

    #[test]
    fn a_moved_hunk_is_refused_and_everything_named() {
        let error = run(CHANGE, Some("zero\none\ntwo\nthree\nfour\nfive\n")).unwrap_err();
        assert_eq!(exit_code(&error), Exit::PatchRejected);
        for part in ["x-y.patch", "to f", "hunk 1, line 1", r#"expected "one""#, r#"found "zero""#] {
            assert!(error.to_string().contains(part), "{part} is missing in: {error}");
        }
    }

    /// The same, where hunks may move.
    fn moved(diff: &str, text: &str) -> Result<Option<String>> {
        let patch = Patch::parse("x-y", &format!("diff --git a/f b/f\n{diff}")).unwrap();
        let overlay = apply_all(&[Patch { may_move: true, ..patch }], &|_| Some(text.to_owned()))?;
        Ok(overlay["f"].clone())
    }

    #[test]
    fn a_hunk_that_may_move_goes_to_the_only_place_that_fits() {
        let text = "zero\none\ntwo\nthree\n4\nfive\n";
        assert_eq!(moved(CHANGE, text).unwrap().unwrap(), "zero\none\n2\n2.5\nthree\n4\n5\n");
        let why = |text: &str| moved(CHANGE, text).unwrap_err().to_string();
        assert!(why("one\ntwo\n3\nfive\n").contains("hunk 1, line 1: its lines stand nowhere below line 0"));
        assert!(why("one\ntwo\nthree\nfive\nfive\n").contains("hunk 2, line 5: its lines stand at 4 and at 5"));
        assert!(why("five\none\ntwo\nthree\n").contains("hunk 2, line 5: its lines stand nowhere below line 4"));
        assert!(why("").contains("nowhere"));
        let error = moved("--- a/f\n+++ b/f\n@@ -2,0 +3 @@\n+2.5\n", text).unwrap_err();
        assert!(error.to_string().contains("no old lines to look for"), "{error}");
    }

    #[test]
    fn changed_context_is_refused() {
        let text = |text| run(CHANGE, Some(text)).unwrap_err().to_string();
        assert!(text("one\ntwo\n3\nfour\nfive\n").contains("hunk 1, line 3"));
        assert!(text("one\ntwo\nthree \nfour\nfive\n").contains("hunk 1, line 3"));
        let early = text("one\ntwo\nthree\nfour\n");
        assert!(early.contains("hunk 2, line 5") && early.contains("the end of the file"), "{early}");
    }

    #[test]
    fn overlapping_hunks_are_refused() {
        let error = run("--- a/f\n+++ b/f\n@@ -2 +2 @@\n-two\n+2\n@@ -1 +1 @@\n-one\n+1\n", Some(TEXT)).unwrap_err();
        assert!(error.to_string().contains("hunk 2 starts at line 1, out of place"), "{error}");
    }

    #[test]
    fn a_hunk_without_old_lines_stands_after_its_line() {
        let new = run("--- a/f\n+++ b/f\n@@ -2,0 +3 @@\n+2.5\n", Some(TEXT)).unwrap().unwrap();
        assert_eq!(new, "one\ntwo\n2.5\nthree\nfour\nfive\n");
    }

    #[test]
    fn files_come_and_go() {
        let create = "new file mode 100644\n--- /dev/null\n+++ b/f\n@@ -0,0 +1,2 @@\n+a\n+b\n";
        assert_eq!(run(create, None).unwrap().as_deref(), Some("a\nb\n"));
        assert!(run(create, Some("a\n")).unwrap_err().to_string().contains("there is one"));
        let delete = "deleted file mode 100644\n--- a/f\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-a\n-b\n";
        assert_eq!(run(delete, Some("a\nb\n")).unwrap(), None);
        assert!(run(delete, None).unwrap_err().to_string().contains("no such file"));
        assert!(run(delete, Some("a\nb\nc\n")).unwrap_err().to_string().contains("1 lines would be left"));
    }

    #[test]
    fn a_patch_sees_what_the_one_before_it_did() {
        let patch = |slug: &str, from: &str, to: &str| {
            let text = format!("diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1 +1 @@\n-{from}\n+{to}\n");
            Patch::parse(slug, &text).unwrap()
        };
        let read = |_: &str| Some("a\n".to_owned());
        let queue = [patch("first", "a", "b"), patch("second", "b", "c")];
        assert_eq!(apply_all(&queue, &read).unwrap()["f"].as_deref(), Some("c\n"));
        let error = apply_all(&[queue[1].clone(), queue[0].clone()], &read).unwrap_err();
        assert!(error.to_string().starts_with("second.patch does not apply"), "{error}");
    }
}
