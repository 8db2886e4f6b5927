//! A Debian package through the host's own mirror, with an apt configuration of our own: the system's apt is not touched.

use crate::failure::Exit;
use crate::process::Task;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Debian's keyring (package debian-archive-keyring, on every Debian).
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Downloads `package` of `suite` into `dir`; returns the .deb.
///
/// # Errors
/// The host is no Debian, its mirror cannot be reached or does not carry the suite.
pub fn download(package: &str, suite: &str, dir: &Path) -> Result<PathBuf> {
    let mirror = mirror(&host_sources()).context("the host's apt sources name no Debian mirror")?;
    for folder in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(dir.join(folder))?;
    }
    fs::write(dir.join("status"), "")?;
    fs::write(dir.join("sources.list"), format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))?;
    fs::write(dir.join("apt.conf"), configuration(dir))?;
    apt(dir, &["update"], Duration::from_secs(120))?;
    apt(dir, &["download", package], Duration::from_secs(900))?;
    let deb = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    let found = fs::read_dir(dir)?.flatten().map(|entry| entry.path()).find(deb);
    found.with_context(|| format!("apt-get download {package} left no package"))
}

fn apt(dir: &Path, arguments: &[&str], limit: Duration) -> Result<String> {
    let mut command = Command::new("apt-get");
    command.current_dir(dir).env("APT_CONFIG", dir.join("apt.conf")).arg("--quiet").args(arguments);
    Task::new(command).limit(limit).on_failure(Exit::Unavailable, "give the source with --source PATH").run()
}

/// An apt.conf(5) that keeps everything in `dir`, and gives up on a silent mirror soon.
fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "Dir::State::Lists \"{dir}/lists\";\nDir::State::Status \"{dir}/status\";\nDir::Cache \"{dir}/cache\";\n\
         Dir::Etc::SourceList \"{dir}/sources.list\";\nDir::Etc::SourceParts \"/dev/null\";\n\
         APT::Sandbox::User \"root\";\nAcquire::Retries \"1\";\nAcquire::http::Timeout \"10\";\nAcquire::https::Timeout \"10\";\n"
    )
}

/// The host's apt sources, one-line and deb822 files alike, as one text.
fn host_sources() -> String {
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let files = parts.chain([PathBuf::from("/etc/apt/sources.list")]);
    files.filter_map(|path| fs::read_to_string(path).ok()).collect::<Vec<_>>().join("\n")
}

/// The first URI of a Debian archive: its path ends in "/debian" on every mirror (sources.list(5)).
fn mirror(sources: &str) -> Result<String> {
    let active = sources.lines().map(|line| line.split('#').next().unwrap_or_default());
    let mut words = active.flat_map(str::split_whitespace);
    match words.find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian")) {
        Some(uri) => Ok(uri.to_owned()),
        None => bail!("no URI ending in /debian"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_of_both_formats() {
        let deb822 = "Types: deb\n# http://snapshot.example/archive/debian/2025\nURIs: http://deb.example/debian\nSuites: bookworm\n";
        assert_eq!(mirror(deb822).unwrap(), "http://deb.example/debian");
        let one_line = "deb http://security.example/debian-security stable-security main\ndeb [arch=amd64] https://ftp.example/debian/ trixie main\n";
        assert_eq!(mirror(one_line).unwrap(), "https://ftp.example/debian/");
        assert!(mirror("deb http://archive.example/ubuntu noble main\n").is_err());
    }

    #[test]
    fn nothing_of_the_system_is_written() {
        let text = configuration(Path::new("/c/apt"));
        for line in [
            "Dir::State::Lists \"/c/apt/lists\";",
            "Dir::Cache \"/c/apt/cache\";",
            "Dir::Etc::SourceParts \"/dev/null\";",
        ] {
            assert!(text.contains(line), "{line}");
        }
    }
}
