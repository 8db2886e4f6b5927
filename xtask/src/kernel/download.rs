//! A file from a web server, by curl or wget: fails fast where there is no way out, shows how far it is where there is.

use crate::event::Events;
use crate::failure::{Exit, Failure};
use crate::process::Task;
use crate::stage::Stage;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long a server may take to answer: many networks have no way to it, and then the next source is tried.
const CONNECT_S: &str = "5";

/// A transfer that stays below 10 kB/s for this long is given up.
const STALL_S: &str = "30";

/// The whole transfer: 150 MB at 100 kB/s.
const LIMIT: Duration = Duration::from_secs(1800);

/// Downloads a tarball into a folder and returns its path.
///
/// # Errors
/// Neither curl nor wget is there, or it fails; its last words.
pub fn tarball(url: &str, dir: &Path, events: Events<'_>) -> Result<PathBuf> {
    let name = url.rsplit('/').next().filter(|name| !name.is_empty()).context("an address ends in a file name")?;
    let (file, headers) = (dir.join(name), dir.join("headers"));
    let command = match (is_program("curl"), is_program("wget")) {
        (true, _) => curl(url, &file, &headers),
        (false, true) => wget(url, &file),
        (false, false) => return Err(Failure::error(Exit::Unavailable, "neither curl nor wget is installed")),
    };
    let mut stage = Stage::start(events, format!("download {name}"));
    let far = || (size(&file), content_length(&fs::read_to_string(&headers).unwrap_or_default()));
    Task::new(command).limit(LIMIT).run_watched(|_| stage.progress("bytes", far))?;
    stage.finish(format!("{} MB", size(&file) / 1_000_000));
    Ok(file)
}

fn curl(url: &str, file: &Path, headers: &Path) -> Command {
    let mut curl = Command::new("curl");
    // A 404 is an error and no file; messages without the meter.
    curl.args(["--fail", "--location", "--silent", "--show-error"]);
    curl.args(["--connect-timeout", CONNECT_S, "--speed-limit", "10000", "--speed-time", STALL_S]);
    curl.arg("--dump-header").arg(headers).arg("--output").arg(file).args(["--", url]);
    curl
}

fn wget(url: &str, file: &Path) -> Command {
    let mut wget = Command::new("wget");
    wget.args(["--no-verbose", "--tries=1", "--dns-timeout", CONNECT_S, "--connect-timeout", CONNECT_S]);
    wget.args(["--read-timeout", STALL_S]).arg("--output-document").arg(file).args(["--", url]);
    wget
}

/// Whether a program is in the search path.
pub fn is_program(name: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
}

fn size(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |metadata| metadata.len())
}

/// Size that the last of the answers promises: redirections answer too.
fn content_length(headers: &str) -> Option<u64> {
    let value = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    };
    headers.lines().filter_map(value).next_back().filter(|length| *length > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answer_counts() {
        let headers = "HTTP/2 302\r\nContent-Length: 12\r\n\r\nHTTP/2 200\r\ncontent-length: 151234567\r\n\r\n";
        assert_eq!(content_length(headers), Some(151_234_567));
        assert_eq!(content_length("HTTP/2 302\r\ncontent-length: 0\r\n"), None);
        assert_eq!(content_length(""), None);
    }

    #[test]
    fn both_programs_give_up_soon() {
        let words = |command: Command| crate::process::shown(&command);
        let (file, headers) = (Path::new("/c/f"), Path::new("/c/h"));
        assert!(words(curl("https://h/f", file, headers)).contains("--connect-timeout 5"));
        assert!(words(wget("https://h/f", file)).contains("--tries=1 --dns-timeout 5 --connect-timeout 5"));
    }
}
