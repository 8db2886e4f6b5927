//! Patches in `git format-patch` form, applied strictly: a hunk fits exactly where it says, or the patch is refused.

use crate::failure::{Exit, Failure};
use anyhow::Result;

/// One patch of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// File name without `.patch`.
    pub slug: String,
    /// The whole mail.
    pub text: String,
    /// What it changes, file by file.
    pub files: Vec<FileChange>,
}

/// The change of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileChange {
    /// Path before; `None` for a new file.
    pub old: Option<String>,
    /// Path after; `None` for a deleted file.
    pub new: Option<String>,
    /// In order.
    pub hunks: Vec<Hunk>,
}

/// One hunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hunk {
    /// First line it replaces, from 1 (0 when it replaces nothing).
    pub line: usize,
    /// Context and removed lines.
    pub before: Vec<String>,
    /// Context and added lines.
    pub after: Vec<String>,
}

impl FileChange {
    /// The path that a reader knows the file by.
    pub fn path(&self) -> &str {
        self.new.as_deref().or(self.old.as_deref()).unwrap_or_default()
    }
}

impl Patch {
    /// Parses a mail.
    ///
    /// # Errors
    /// It holds no diff, a rename, a binary change, or a hunk whose lines do not add up.
    pub fn parse(slug: &str, text: &str) -> Result<Patch> {
        let mut files = Vec::new();
        let mut lines = text.lines().enumerate().peekable();
        while let Some((number, line)) = lines.next() {
            let refuse = |why: &str| Err(malformed(slug, number, why));
            if line.starts_with("rename ") || line.starts_with("copy ") {
                return refuse("renames and copies are not supported: write the patch with --no-renames");
            }
            if line.starts_with("GIT binary patch") || line.starts_with("Binary files ") {
                return refuse("binary changes are not supported");
            }
            if let (Some(old), Some((_, next))) = (line.strip_prefix("--- "), lines.peek())
                && let Some(new) = next.strip_prefix("+++ ")
            {
                files.push(FileChange { old: path(old, "a/"), new: path(new, "b/"), hunks: Vec::new() });
                lines.next();
            } else if let Some(header) = line.strip_prefix("@@ -") {
                let Some(file) = files.last_mut() else { return refuse("a hunk before any file") };
                let Some((start, old, new)) = header_numbers(header) else {
                    return refuse("a hunk header that does not parse");
                };
                let mut hunk = Hunk { line: start, before: Vec::new(), after: Vec::new() };
                while hunk.before.len() < old || hunk.after.len() < new {
                    let Some((number, line)) = lines.next() else { return refuse("the hunk ends early") };
                    if !hunk.take(line) {
                        return Err(malformed(slug, number, "neither context, nor added, nor removed"));
                    }
                }
                file.hunks.push(hunk);
            }
        }
        if files.is_empty() {
            return Err(malformed(slug, 0, "it changes no file"));
        }
        Ok(Patch { slug: slug.to_owned(), text: text.to_owned(), files })
    }

    /// What is wrong with the form of the mail, in sentences: series-wide rules that need no tree.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (header, why) in
            [("Subject: ", "no Subject"), ("Signed-off-by: ", "no Signed-off-by"), ("From: ", "no author")]
        {
            if !self.text.lines().any(|line| line.starts_with(header)) {
                faults.push(format!("{}: {why}", self.slug));
            }
        }
        let trailing = |line: &str| line.starts_with('+') && line.len() > 1 && line.ends_with([' ', '\t']);
        for (number, line) in self.text.lines().enumerate().filter(|(_, line)| trailing(line)) {
            faults.push(format!("{}:{}: trailing white space: {line:?}", self.slug, number + 1));
        }
        faults
    }
}

impl Hunk {
    fn take(&mut self, line: &str) -> bool {
        match line.split_at_checked(1) {
            Some((" ", rest)) => {
                self.before.push(rest.to_owned());
                self.after.push(rest.to_owned());
            }
            Some(("-", rest)) => self.before.push(rest.to_owned()),
            Some(("+", rest)) => self.after.push(rest.to_owned()),
            // Some mailers strip the blank of an empty context line.
            None => {
                self.before.push(String::new());
                self.after.push(String::new());
            }
            Some(_) => return false,
        }
        true
    }
}

/// "12,7 +12,9 @@ ..." as (12, 7, 9); a missing count is 1.
fn header_numbers(header: &str) -> Option<(usize, usize, usize)> {
    let (old, rest) = header.split_once(" +")?;
    let (new, _) = rest.split_once(" @@")?;
    let numbers = |text: &str| -> Option<(usize, usize)> {
        let (start, count) = text.split_once(',').unwrap_or((text, "1"));
        Some((start.parse().ok()?, count.parse().ok()?))
    };
    let ((start, old), (_, new)) = (numbers(old)?, numbers(new)?);
    Some((start, old, new))
}

fn path(text: &str, prefix: &str) -> Option<String> {
    text.strip_prefix(prefix).map(|path| path.trim_end().to_owned())
}

fn malformed(slug: &str, number: usize, why: &str) -> anyhow::Error {
    Failure::error(Exit::PatchRejected, format!("{slug}.patch, line {}: {why}", number + 1))
}

/// The new text of a file; `text` is `None` for a new file, and so is the result for a deleted one.
///
/// # Errors
/// The first hunk that does not fit: patch, file, hunk, and the line that differs.
pub fn apply(slug: &str, change: &FileChange, text: Option<&str>) -> Result<Option<String>> {
    let rejected = |why: String| {
        Failure::error(
            Exit::PatchRejected,
            format!(
                "{slug}.patch does not apply to {}: {why}\nnext: `cargo xtask series edit DIR` to mend the queue",
                change.path()
            ),
        )
    };
    match (text, &change.old) {
        (None, Some(_)) => return Err(rejected("the file is not there".into())),
        (Some(_), None) => return Err(rejected("it would be a new file, and there is one".into())),
        _ => {}
    }
    let lines: Vec<&str> = text.unwrap_or_default().lines().collect();
    let mut out: Vec<&str> = Vec::new();
    let mut at = 0;
    for (index, hunk) in change.hunks.iter().enumerate() {
        let start = hunk.line.saturating_sub(usize::from(!hunk.before.is_empty()));
        if start < at || start > lines.len() {
            return Err(rejected(format!("hunk {} starts at line {}, out of place", index + 1, hunk.line)));
        }
        out.extend(&lines[at..start]);
        for (offset, expected) in hunk.before.iter().enumerate() {
            let found = lines.get(start + offset);
            if found != Some(&expected.as_str()) {
                let found = found.map_or("the end of the file".into(), |line| format!("{line:?}"));
                let line = start + offset + 1;
                return Err(rejected(format!("hunk {}, line {line}: expected {expected:?}, found {found}", index + 1)));
            }
        }
        out.extend(hunk.after.iter().map(String::as_str));
        at = start + hunk.before.len();
    }
    out.extend(&lines[at..]);
    if change.new.is_none() {
        let left = out.len();
        return if left == 0 {
            Ok(None)
        } else {
            Err(rejected(format!("{left} lines would be left of a deleted file")))
        };
    }
    Ok(Some(out.iter().map(|line| format!("{line}\n")).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;

    const MAIL: &str = "From 0 Mon Sep 17 00:00:00 2001\nFrom: A <a@b.example>\nSubject: [PATCH] x: y\n\nWhy.\n\n\
        Signed-off-by: A <a@b.example>\n---\n f | 3 ++-\n 1 file changed\n\ndiff --git a/f b/f\nindex 1..2 100644\n\
        --- a/f\n+++ b/f\n@@ -1,3 +1,4 @@ context\n one\n-two\n+2\n+2.5\n three\n@@ -5 +6 @@\n-five\n+5\n-- \n2.39.5\n";
    const TEXT: &str = "one\ntwo\nthree\nfour\nfive\n";

    fn patch() -> Patch {
        Patch::parse("x-y", MAIL).unwrap()
    }

    #[test]
    fn hunks_apply_where_they_say() {
        let new = apply("x-y", &patch().files[0], Some(TEXT)).unwrap();
        assert_eq!(new.as_deref(), Some("one\n2\n2.5\nthree\nfour\n5\n"));
    }

    #[test]
    fn a_moved_hunk_is_refused_and_named() {
        let error = apply("x-y", &patch().files[0], Some("zero\none\ntwo\nthree\nfour\nfive\n")).unwrap_err();
        assert_eq!(exit_code(&error), Exit::PatchRejected);
        let text = error.to_string();
        for part in ["x-y.patch", "to f", "hunk 1, line 1", r#"expected "one""#, r#"found "zero""#] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
    }

    #[test]
    fn changed_context_is_refused_there_is_no_fuzz() {
        let error = apply("x-y", &patch().files[0], Some("one\ntwo\n3\nfour\nfive\n")).unwrap_err();
        assert!(error.to_string().contains("hunk 1, line 3"), "{error}");
        let error = apply("x-y", &patch().files[0], Some("one\ntwo\nthree\nfour\n")).unwrap_err();
        assert!(error.to_string().contains("hunk 2") && error.to_string().contains("the end of the file"), "{error}");
    }

    #[test]
    fn files_come_and_go() {
        let new = Patch::parse("n", "--- /dev/null\n+++ b/n\n@@ -0,0 +1,2 @@\n+a\n+b\n").unwrap();
        assert_eq!(apply("n", &new.files[0], None).unwrap().as_deref(), Some("a\nb\n"));
        assert!(apply("n", &new.files[0], Some("a\n")).is_err());
        let gone = Patch::parse("g", "--- a/n\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-a\n-b\n").unwrap();
        assert_eq!(apply("g", &gone.files[0], Some("a\nb\n")).unwrap(), None);
        assert!(apply("g", &gone.files[0], None).is_err());
    }

    #[test]
    fn what_cannot_be_applied_strictly_is_refused_at_once() {
        for (text, part) in [
            ("no diff\n", "changes no file"),
            ("rename from a\nrename to b\n", "renames"),
            ("--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n one\n", "ends early"),
            ("--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\nxone\n", "neither context"),
            ("--- a/f\n+++ b/f\n@@ nonsense @@\n", "changes no file"),
        ] {
            match Patch::parse("p", text) {
                Err(error) => assert!(error.to_string().contains(part), "{error}"),
                Ok(patch) => assert!(patch.files[0].hunks.is_empty(), "{text}"),
            }
        }
    }

    #[test]
    fn form_is_checked() {
        assert!(patch().faults().is_empty(), "{:?}", patch().faults());
        let unsigned = Patch::parse("x", &MAIL.replace("Signed-off-by", "Acked-by")).unwrap();
        assert_eq!(unsigned.faults(), ["x: no Signed-off-by"]);
        let trailing = Patch::parse("x", &MAIL.replace("+2.5", "+2.5 ")).unwrap();
        assert!(trailing.faults()[0].contains("trailing white space"));
    }
}
