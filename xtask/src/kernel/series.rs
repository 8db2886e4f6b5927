//! The queue on disk: a `series` file that is the order, and one mail per patch.

use super::patch::Patch;
use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Slugs of a `series` file, in order; `#` starts a comment.
pub fn slugs(series: &str) -> Vec<String> {
    series.lines().filter_map(slug).collect()
}

/// The slug that a line of a `series` file names, if it names one.
pub fn slug(line: &str) -> Option<String> {
    let name = line.split('#').next().unwrap_or_default().trim();
    (!name.is_empty()).then(|| name.strip_suffix(".patch").unwrap_or(name).to_owned())
}

/// Reads a queue.
///
/// # Errors
/// No series file, or a patch of it that is not there or malformed.
pub fn read(dir: &Path) -> Result<Vec<Patch>> {
    let path = dir.join("series");
    let series = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    slugs(&series).iter().map(|slug| read_patch(dir, slug)).collect()
}

/// Reads one patch of a folder.
///
/// # Errors
/// It is not there, or malformed.
pub fn read_patch(dir: &Path, slug: &str) -> Result<Patch> {
    let path = dir.join(format!("{slug}.patch"));
    let unreadable = |error| Failure::error(Exit::PatchRejected, format!("cannot read {}: {error}", path.display()));
    Patch::parse(slug, &fs::read_to_string(&path).map_err(unreadable)?)
}

/// Slugs of the patch files in a folder, sorted. A folder that is not there holds none.
pub fn slugs_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let slugs: BTreeSet<String> = names.filter_map(|name| name.strip_suffix(".patch").map(str::to_owned)).collect();
    slugs.into_iter().collect()
}

/// What differs between the `series` file of a folder and the patches in it, in sentences.
pub fn strays(series: &str, there: &[String]) -> Vec<String> {
    let listed = slugs(series);
    let twice = |at: usize| listed[..at].contains(&listed[at]);
    let mut strays: Vec<String> = (0..listed.len())
        .filter(|&at| twice(at))
        .map(|at| format!("series lists {}.patch twice", listed[at]))
        .collect();
    let missing = listed.iter().filter(|slug| !there.contains(slug));
    strays.extend(missing.map(|slug| format!("series lists {slug}.patch, which is not there")));
    let unlisted = there.iter().filter(|slug| !listed.contains(slug));
    strays.extend(unlisted.map(|slug| format!("{slug}.patch is there, but series does not list it")));
    strays
}

/// The `series` file for another list of slugs. Comments stay with the patch below them; those of a patch that is gone
/// stay where they were, and so does the first paragraph.
pub fn rewritten(old: &str, slugs: &[String]) -> String {
    let (head, mut blocks, tail) = blocks(old);
    let left = carry_comments_of_the_gone(&mut blocks, slugs);
    let mut text = head;
    for wanted in slugs {
        match blocks.iter().find(|block| block.slug == *wanted) {
            Some(block) => text += &(block.comments.clone() + &block.line),
            None => text += &format!("{wanted}.patch\n"),
        }
    }
    text + &left + &tail
}

/// A patch's line of the series file, and what stands above it.
struct Block {
    comments: String,
    slug: String,
    line: String,
}

/// The file's first paragraph, its patches, and what follows the last one.
fn blocks(series: &str) -> (String, Vec<Block>, String) {
    let (mut head, mut blocks, mut comments) = (String::new(), Vec::new(), String::new());
    for line in series.lines() {
        let text = format!("{line}\n");
        match slug(line) {
            Some(slug) => blocks.push(Block { comments: std::mem::take(&mut comments), slug, line: text }),
            None => comments += &text,
        }
        if line.is_empty() && head.is_empty() && blocks.is_empty() {
            head = std::mem::take(&mut comments);
        }
    }
    (head, blocks, comments)
}

/// Hands the comments of a patch that is gone to the next one that is not; returns those after the last.
fn carry_comments_of_the_gone(blocks: &mut [Block], slugs: &[String]) -> String {
    let mut carried = String::new();
    for block in blocks {
        if slugs.contains(&block.slug) {
            block.comments = std::mem::take(&mut carried) + &block.comments;
        } else {
            carried += &block.comments;
        }
    }
    carried
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERIES: &str = "# The queue.\n\n# step one\na.patch\nb.patch # why\n\n# step two\nc.patch\n\n# the end\n";

    fn owned(slugs: &[&str]) -> Vec<String> {
        slugs.iter().map(|slug| (*slug).to_owned()).collect()
    }

    #[test]
    fn comments_and_blank_lines_are_no_slugs() {
        assert_eq!(slugs(SERIES), ["a", "b", "c"]);
    }

    #[test]
    fn strays_are_named() {
        let strays = strays("a.patch\nb.patch\na.patch\n", &owned(&["a", "c"]));
        assert_eq!(
            strays,
            [
                "series lists a.patch twice",
                "series lists b.patch, which is not there",
                "c.patch is there, but series does not list it"
            ]
        );
        assert!(super::strays(SERIES, &owned(&["a", "b", "c"])).is_empty());
    }

    #[test]
    fn the_same_list_gives_the_same_bytes() {
        assert_eq!(rewritten(SERIES, &owned(&["a", "b", "c"])), SERIES);
    }

    #[test]
    fn comments_move_with_their_patch_and_none_is_lost() {
        let moved = rewritten(SERIES, &owned(&["b", "new", "c", "a"]));
        assert_eq!(
            moved,
            "# The queue.\n\nb.patch # why\nnew.patch\n\n# step two\nc.patch\n# step one\na.patch\n\n# the end\n"
        );
        let gone = rewritten(SERIES, &owned(&["b"]));
        assert_eq!(gone, "# The queue.\n\n# step one\nb.patch # why\n\n# step two\n\n# the end\n");
    }
}
