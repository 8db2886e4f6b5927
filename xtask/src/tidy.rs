//! The promises of this repository, as tests. Each check is a function over text, with a test that shows it can fail.
#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};

/// The longest ARCHITECTURE.md that a newcomer reads to the end.
const LONGEST_ARCHITECTURE: usize = 200;

/// The only places for `unsafe`.
const UNSAFE_HOMES: [&str; 2] = ["tests/src/sys.rs", "simulator/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Files of the repository as (path, text): what git tracks, so that build output is never looked at.
fn tracked() -> Vec<(String, String)> {
    let output = std::process::Command::new("git").arg("-C").arg(root()).args(["ls-files", "-z"]).output().unwrap();
    let names = String::from_utf8(output.stdout).unwrap();
    let files = names.split('\0').filter(|name| !name.is_empty());
    files.filter_map(|name| Some((name.to_owned(), fs::read_to_string(root().join(name)).ok()?))).collect()
}

/// Lines that open an unsafe block, function or impl. The word is put together here so that this file does not hold it.
fn unsafe_lines(text: &str) -> Vec<usize> {
    let word = concat!("un", "safe");
    let opens =
        |line: &str| [" {", " fn", " impl", " extern"].iter().any(|next| line.contains(&format!("{word}{next}")));
    text.lines().enumerate().filter(|(_, line)| opens(line)).map(|(number, _)| number + 1).collect()
}

/// Words that the document does not mention.
fn unmentioned(document: &str, words: &[String]) -> Vec<String> {
    words.iter().filter(|word| !document.contains(word.as_str())).cloned().collect()
}

/// Paths of somebody's own machine, and package registries.
fn private_words(text: &str) -> Vec<String> {
    let words = [
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("deb.deb", "ian.org"),
        concat!("crates", ".io/"),
        concat!("py", "pi.org"),
    ];
    words.iter().filter(|word| text.contains(**word)).map(|word| (*word).to_owned()).collect()
}

#[test]
fn unsafe_code_stays_at_home() {
    for (path, text) in tracked().iter().filter(|(path, _)| path.ends_with(".rs")) {
        if !UNSAFE_HOMES.iter().any(|home| path.starts_with(home)) {
            assert_eq!(unsafe_lines(text), [0_usize; 0], "{path}");
        }
    }
    assert_eq!(unsafe_lines(&format!("fn f() {{\n    {} {{ g() }}\n}}", concat!("un", "safe"))), [2]);
}

#[test]
fn series_and_files_agree() {
    for entry in fs::read_dir(root().join("kernel-patches")).unwrap().flatten() {
        if entry.path().join("series").exists() {
            assert_eq!(crate::kernel::strays(&entry.path()).unwrap(), Vec::<String>::new());
        }
    }
}

#[test]
fn the_documents_mention_each_command() {
    let paths = crate::flags::command_paths();
    assert!(paths.len() >= 10, "{paths:?}");
    let documents = read("README.md") + &read("ARCHITECTURE.md") + &read("CONTRIBUTING.md");
    assert_eq!(unmentioned(&documents, &paths), Vec::<String>::new());
    assert_eq!(unmentioned("a b", &["b".into(), "c".into()]), ["c"]);
}

#[test]
fn architecture_names_each_file() {
    let architecture = read("ARCHITECTURE.md");
    assert!(architecture.lines().count() <= LONGEST_ARCHITECTURE, "ARCHITECTURE.md is too long");
    let sources = tracked().into_iter().map(|(path, _)| path);
    let homes = ["xtask/src/", "tests/src/", "simulator/src/"];
    let sources: Vec<String> =
        sources.filter(|path| path.ends_with(".rs") && homes.iter().any(|home| path.starts_with(home))).collect();
    let file_name = |path: &String| path.rsplit('/').next().unwrap_or(path).to_owned();
    let names: Vec<String> =
        sources.iter().map(file_name).filter(|name| name != "mod.rs" && name != "lib.rs").collect();
    assert_eq!(unmentioned(&architecture, &names), Vec::<String>::new());
}

#[test]
fn nothing_private_is_in_the_tree() {
    for (path, text) in tracked().iter().filter(|(path, _)| !path.ends_with("Cargo.lock")) {
        assert_eq!(private_words(text), Vec::<String>::new(), "{path}");
    }
    assert_eq!(private_words(concat!("see /ho", "me/me/x")).len(), 1);
}

#[test]
fn ci_runs_the_command_of_the_readme() {
    let ci = read(".ci/run");
    let last = ci.lines().last().unwrap().trim_start_matches("exec ");
    assert!(last.starts_with("cargo xtask test") && read("README.md").contains(last), "{last}");
}
