//! Patches in `git format-patch` form, read strictly: what could not be applied exactly is refused here already.

use crate::failure::{Exit, Failure};
use anyhow::Result;
use std::iter::{Enumerate, Peekable};
use std::str::Split;

/// One patch of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// File name without `.patch`.
    pub slug: String,
    /// The whole mail.
    pub text: String,
    /// What it changes, file by file.
    pub files: Vec<FileChange>,
    /// Whether a hunk may stand at another line than it says, where its lines stand at one place only. A patch of a queue may not.
    pub may_move: bool,
}

/// The change of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileChange {
    /// Path before; `None` for a new file.
    pub old: Option<String>,
    /// Path after; `None` for a deleted file.
    pub new: Option<String>,
    /// In order.
    pub hunks: Vec<Hunk>,
}

/// One hunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hunk {
    /// First line it replaces, from 1; when it replaces nothing, the line it stands after (0: the beginning).
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

/// Lines of an extended diff header that say what a strict text patch cannot do.
const REFUSED: [(&str, &str); 7] = [
    ("rename ", "renames are not supported: write the patch with --no-renames"),
    ("copy ", "copies are not supported: write the patch with --no-renames"),
    ("old mode ", "changes of a file's mode are not supported"),
    ("new file mode 100755", "new executable files are not supported"),
    ("new file mode 120000", "symbolic links are not supported"),
    ("GIT binary patch", "binary changes are not supported"),
    ("Binary files ", "binary changes are not supported"),
];

impl Patch {
    /// Reads a mail.
    ///
    /// # Errors
    /// It changes no file, or holds a rename, a binary change, or a hunk whose lines do not add up; names the line.
    pub fn parse(slug: &str, text: &str) -> Result<Patch> {
        let mut reader = Reader { lines: text.split('\n').enumerate().peekable(), files: Vec::new() };
        reader.skip_message();
        while let Some((number, line)) = reader.lines.next() {
            reader.take(line).map_err(|why| malformed(slug, number, &why))?;
        }
        if reader.files.is_empty() {
            return Err(malformed(slug, 0, "it changes no file"));
        }
        Ok(Patch { slug: slug.to_owned(), text: text.to_owned(), files: reader.files, may_move: false })
    }

    /// The mail without its message.
    pub fn diff(&self) -> &str {
        self.text.find("\ndiff --git").map_or("", |at| &self.text[at..])
    }

    /// What is wrong with the form of the mail, in sentences. Needs no tree.
    pub fn faults(&self) -> Vec<String> {
        let has = |header: &str| self.text.lines().any(|line| line.starts_with(header));
        let headers = [("Subject: ", "no Subject"), ("From: ", "no author"), ("Signed-off-by: ", "no Signed-off-by")];
        let absent = headers.iter().filter(|(header, _)| !has(header));
        let mut faults: Vec<String> = absent.map(|(_, why)| format!("{}.patch: {why}", self.slug)).collect();
        for (number, line) in self.text.lines().enumerate().filter(|(_, line)| has_trailing_space(line)) {
            faults.push(format!("{}.patch, line {}: trailing white space in {line:?}", self.slug, number + 1));
        }
        faults
    }
}

/// White space at the end of an added line, or of a line of the message. An empty context line is one blank, rightly.
fn has_trailing_space(line: &str) -> bool {
    let content = line.strip_prefix('+').unwrap_or(line);
    content.ends_with([' ', '\t']) && !line.starts_with([' ', '-'])
}

struct Reader<'a> {
    lines: Peekable<Enumerate<Split<'a, char>>>,
    files: Vec<FileChange>,
}

impl Reader<'_> {
    /// A commit message may say "rename" or "@@": only what follows the first diff header is read.
    fn skip_message(&mut self) {
        while self.lines.next_if(|(_, line)| !line.starts_with("diff --git ")).is_some() {}
    }

    fn take(&mut self, line: &str) -> Result<(), String> {
        if let Some((_, why)) = REFUSED.iter().find(|(start, _)| line.starts_with(start)) {
            return Err((*why).to_owned());
        }
        if let Some(old) = line.strip_prefix("--- ") {
            return self.take_file(old);
        }
        if line.starts_with("@@") {
            return self.take_hunk(line);
        }
        // "\ No newline at end of file": the applier ends every line, so it would change the file behind one's back.
        if line.starts_with('\\') {
            return Err("files without a newline at their end are not supported".into());
        }
        Ok(())
    }

    fn take_file(&mut self, old: &str) -> Result<(), String> {
        let next = self.lines.next_if(|(_, line)| line.starts_with("+++ "));
        let new = next.and_then(|(_, line)| line.strip_prefix("+++ ")).ok_or("`---` without `+++`")?;
        let (old, new) = (path(old, "a/")?, path(new, "b/")?);
        if old.is_some() && new.is_some() && old != new {
            return Err("renames are not supported: write the patch with --no-renames".into());
        }
        self.files.push(FileChange { old, new, hunks: Vec::new() });
        Ok(())
    }

    fn take_hunk(&mut self, header: &str) -> Result<(), String> {
        let (line, old, new) = numbers(header).ok_or_else(|| format!("cannot read the hunk header {header:?}"))?;
        let mut hunk = Hunk { line, ..Hunk::default() };
        while hunk.before.len() < old || hunk.after.len() < new {
            let (_, line) = self.lines.next().ok_or("the hunk ends early")?;
            hunk.take(line)?;
        }
        if (hunk.before.len(), hunk.after.len()) != (old, new) {
            return Err(format!("the lines of the hunk {header:?} do not add up"));
        }
        self.files.last_mut().ok_or("a hunk before any file")?.hunks.push(hunk);
        Ok(())
    }
}

impl Hunk {
    fn take(&mut self, line: &str) -> Result<(), String> {
        match line.split_at_checked(1) {
            Some((" ", rest)) => {
                self.before.push(rest.to_owned());
                self.after.push(rest.to_owned());
            }
            Some(("-", rest)) => self.before.push(rest.to_owned()),
            Some(("+", rest)) => self.after.push(rest.to_owned()),
            _ => return Err(format!("the hunk ends early, at {line:?}")),
        }
        Ok(())
    }
}

/// "@@ -12,7 +12,9 @@ ..." as (12, 7, 9); a missing count is 1.
fn numbers(header: &str) -> Option<(usize, usize, usize)> {
    let (old, rest) = header.strip_prefix("@@ -")?.split_once(" +")?;
    let (new, _) = rest.split_once(" @@")?;
    let range = |text: &str| -> Option<(usize, usize)> {
        let (start, count) = text.split_once(',').unwrap_or((text, "1"));
        Some((start.parse().ok()?, count.parse().ok()?))
    };
    let ((start, old), (_, new)) = (range(old)?, range(new)?);
    Some((start, old, new))
}

/// The path after `a/` or `b/`; `None` for /dev/null. A path that leads out of the tree is refused.
fn path(text: &str, prefix: &str) -> Result<Option<String>, String> {
    if text == "/dev/null" {
        return Ok(None);
    }
    match text.strip_prefix(prefix) {
        Some(path) if !path.is_empty() && !path.split('/').any(|part| part == "..") => Ok(Some(path.to_owned())),
        _ => Err(format!("{text:?} is no path below {prefix}")),
    }
}

fn malformed(slug: &str, number: usize, why: &str) -> anyhow::Error {
    Failure::error(Exit::PatchRejected, format!("{slug}.patch, line {}: {why}", number + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;

    const MAIL: &str = "From 0 Mon Sep 17 00:00:00 2001\nFrom: A <a@b.example>\nSubject: [PATCH] x: y\n\n\
        rename nothing, but\n@@ is a word here.\n\nSigned-off-by: A <a@b.example>\n---\n f | 3 ++-\n\n\
        diff --git a/f b/f\nindex 1..2 100644\n--- a/f\n+++ b/f\n\
        @@ -1,3 +1,4 @@ context\n one\n-two\n+2\n+2.5\n three\n@@ -5 +6 @@\n-five\n+5\n-- \n2.39.5\n";

    fn diff(rest: &str) -> Result<Patch> {
        Patch::parse("p", &format!("diff --git a/f b/f\n{rest}"))
    }

    #[test]
    fn a_mail_is_read_past_its_message_and_signature() {
        let patch = Patch::parse("x-y", MAIL).unwrap();
        assert_eq!(patch.files.len(), 1);
        let file = &patch.files[0];
        assert_eq!((file.path(), file.hunks.len()), ("f", 2));
        assert_eq!((file.hunks[0].line, file.hunks[0].before.len(), file.hunks[0].after.len()), (1, 3, 4));
        assert_eq!((file.hunks[1].line, &file.hunks[1].after[0][..]), (5, "5"));
    }

    #[test]
    fn what_cannot_be_applied_strictly_is_refused_and_its_line_named() {
        for (text, why) in [
            ("", "changes no file"),
            ("rename from a\nrename to b\n", "line 2: renames"),
            ("old mode 100644\nnew mode 100755\n", "mode"),
            ("Binary files a/f and b/f differ\n", "binary"),
            ("--- a/f\n+++ b/g\n", "renames"),
            ("--- a/../f\n+++ b/../f\n", "no path below a/"),
            ("--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n one\n", "ends early"),
            ("--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\nxone\n", "ends early, at \"xone\""),
            ("--- a/f\n+++ b/f\n@@ -1,1 +1,2 @@\n one\n two\n", "do not add up"),
            ("--- a/f\n+++ b/f\n@@ nonsense @@\n", "hunk header"),
            ("--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n+b\n\\ No newline at end of file\n", "without a newline"),
        ] {
            let error = diff(text).expect_err(text);
            assert_eq!(exit_code(&error), Exit::PatchRejected);
            assert!(error.to_string().contains(why), "{why} is missing in: {error}");
        }
    }

    #[test]
    fn form_is_checked() {
        let faults = |text: &str| Patch::parse("x", text).unwrap().faults();
        assert!(faults(MAIL).is_empty(), "{:?}", faults(MAIL));
        assert_eq!(faults(&MAIL.replace("Signed-off-by", "Acked-by")), ["x.patch: no Signed-off-by"]);
        assert!(faults(&MAIL.replace("+2.5", "+2.5 "))[0].contains("trailing white space in \"+2.5 \""));
        assert!(faults(&MAIL.replace("word here.", "word here.\t"))[0].contains("trailing white space"));
    }
}
