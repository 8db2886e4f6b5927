//! Packages of another Debian suite, through the host's own mirror, without touching the host's apt: own lists, cache
//! and sources; only the mirror's address, its keys and a proxy are the host's.

use crate::cache::Cache;
use crate::event::Events;
use crate::failure::{Exit, Failure, exit_code};
use crate::process::Task;
use crate::setup::os_release;
use crate::stage::Stage;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use xshell::{Shell, cmd};

/// Longest time for the lists, and for the package.
const UPDATE_LIMIT: Duration = Duration::from_secs(180);
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(1800);

/// Where a mirror is, and what apt must know to trust it. Fields as in sources.list(5), deb822 style.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mirror {
    uri: String,
    /// Signed-By and Trusted, with their continuation lines.
    trust: String,
}

/// Downloads packages of `suite` into the empty folder `dir`; returns the files.
///
/// # Errors
/// The host is not Debian, has no Debian mirror configured, or the mirror does not have a package.
pub fn packages(names: &[&str], suite: &str, cache: &Cache, dir: &Path, events: Events<'_>) -> Result<Vec<PathBuf>> {
    let host = os_release::read();
    if host.id != "debian" {
        return Err(skip(&format!("this host is {}: its mirrors do not carry Debian's packages", host.name)));
    }
    let mirrors = mirrors(&host_sources(Path::new("/etc/apt")), &host.codename);
    let mut failure = skip("no Debian mirror is configured in /etc/apt");
    for mirror in mirrors {
        match download(names, suite, &mirror, &cache.dir().join("apt"), dir, events) {
            Ok(debs) => return Ok(debs),
            Err(error) if matches!(exit_code(&error), Exit::Interrupted | Exit::NoSpace) => return Err(error),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn skip(why: &str) -> anyhow::Error {
    Failure::error(Exit::Unavailable, why)
}

fn download(
    names: &[&str],
    suite: &str,
    mirror: &Mirror,
    apt: &Path,
    dir: &Path,
    events: Events<'_>,
) -> Result<Vec<PathBuf>> {
    let config = configure(apt, mirror, suite)?;
    let sh = Shell::new()?;
    let uri = &mirror.uri;
    let hint = format!("check that {uri} carries {suite}");
    let mut stage = Stage::start(events, format!("download {}", names.join(", ")));
    let update = cmd!(sh, "apt-get --config-file {config} update");
    Task::new(update).limit(UPDATE_LIMIT).on_failure(Exit::Unavailable, hint.clone()).run()?;
    let print = cmd!(sh, "apt-get --config-file {config} download --print-uris {names...}");
    let total = promised_size(&Task::new(print).limit(UPDATE_LIMIT).on_failure(Exit::Unavailable, hint).run()?);
    sh.change_dir(dir);
    let get = cmd!(sh, "apt-get --config-file {config} download {names...}");
    Task::new(get).limit(DOWNLOAD_LIMIT).run_watched(|_| stage.progress("bytes", || (bytes_in(dir), total)))?;
    stage.finish(format!("{} MB from {uri}", bytes_in(dir) / 1_000_000));
    files(dir, ".deb")
}

/// Writes apt's private configuration and returns its path.
fn configure(apt: &Path, mirror: &Mirror, suite: &str) -> Result<PathBuf> {
    for folder in ["lists/partial", "cache/archives/partial", "sources"] {
        fs::create_dir_all(apt.join(folder))?;
    }
    fs::write(apt.join("status"), "")?;
    fs::write(apt.join("sources/lab.sources"), source_entry(mirror, suite))?;
    let path = apt.join("apt.conf");
    fs::write(&path, configuration(apt))?;
    Ok(path)
}

fn source_entry(mirror: &Mirror, suite: &str) -> String {
    format!("Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n{}", mirror.uri, mirror.trust)
}

/// Read after the host's configuration, so that the host's proxy holds and everything below replaces the host's.
fn configuration(apt: &Path) -> String {
    let apt = apt.display();
    format!(
        "Dir::State::Lists \"{apt}/lists\";\n\
         Dir::State::Status \"{apt}/status\";\n\
         Dir::Cache \"{apt}/cache\";\n\
         Dir::Etc::SourceList \"/dev/null\";\n\
         Dir::Etc::SourceParts \"{apt}/sources\";\n\
         // apt's own user cannot reach a cache in a home folder.\n\
         APT::Sandbox::User \"root\";\n\
         // Hooks are the host's (container images remove downloaded packages in them).\n\
         #clear APT::Update::Pre-Invoke;\n\
         #clear APT::Update::Post-Invoke;\n\
         #clear APT::Update::Post-Invoke-Success;\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"1\";\n\
         Acquire::http::Timeout \"15\";\n\
         Acquire::https::Timeout \"15\";\n"
    )
}

/// The sizes in the lines of `--print-uris`, summed: "'URI' FILE SIZE HASH".
fn promised_size(output: &str) -> Option<u64> {
    let lines = output.lines().filter(|line| line.starts_with('\''));
    let sizes = lines.map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    sizes.sum::<Option<u64>>().filter(|sum| *sum > 0)
}

fn bytes_in(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(|entry| entry.is_file()).map(|entry| entry.len()).sum()
}

/// Unpacks a package's files below `out`, and removes the package.
///
/// # Errors
/// It is no package, or the disk is full.
pub fn unpack(deb: &Path, out: &Path) -> Result<()> {
    let sh = Shell::new()?;
    Task::new(cmd!(sh, "dpkg-deb --extract {deb} {out}")).limit(Duration::from_secs(300)).run()?;
    Ok(fs::remove_file(deb)?)
}

/// The files of a folder whose name ends so, sorted; at least one.
///
/// # Errors
/// There is none.
pub fn files(dir: &Path, end: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?.flatten();
    let paths = entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().ends_with(end));
    let mut paths: Vec<PathBuf> = paths.collect();
    paths.sort();
    anyhow::ensure!(!paths.is_empty(), "no *{end} in {}", dir.display());
    Ok(paths)
}

/// The host's sources, as (is it deb822 style, text).
fn host_sources(etc: &Path) -> Vec<(bool, String)> {
    let parts = fs::read_dir(etc.join("sources.list.d")).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = std::iter::once(etc.join("sources.list")).chain(parts).collect();
    paths.sort();
    let style = |path: &PathBuf| match path.extension()?.to_str()? {
        "sources" => Some(true),
        "list" => Some(false),
        _ => None,
    };
    paths.iter().filter_map(|path| Some((style(path)?, fs::read_to_string(path).ok()?))).collect()
}

/// Mirrors that carry the host's own release: those, and no third party's archive, carry the other suites too.
fn mirrors(sources: &[(bool, String)], codename: &str) -> Vec<Mirror> {
    let mut mirrors: Vec<Mirror> = Vec::new();
    for (is_deb822, text) in sources {
        let found = if *is_deb822 { from_deb822(text, codename) } else { from_lines(text, codename) };
        mirrors.extend(found);
    }
    let mut seen = std::collections::BTreeSet::new();
    mirrors.retain(|mirror| seen.insert(mirror.uri.clone()));
    // A third party may name its suites like Debian's; the archive itself usually ends in "debian".
    mirrors.sort_by_key(|mirror| !mirror.uri.trim_end_matches('/').ends_with("debian"));
    mirrors
}

fn from_deb822(text: &str, codename: &str) -> Vec<Mirror> {
    let plain: String = text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    plain.split("\n\n").filter_map(|stanza| stanza_mirror(stanza, codename)).collect()
}

fn stanza_mirror(stanza: &str, codename: &str) -> Option<Mirror> {
    let words =
        |name: &str| field(stanza, name).map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let has = |name: &str, word: &str| words(name).is_some_and(|words| words.iter().any(|found| found == word));
    let enabled = !has("Enabled", "no");
    if !(enabled && has("Types", "deb") && has("Suites", codename) && has("Components", "main")) {
        return None;
    }
    let trust = ["Signed-By", "Trusted"].iter().filter_map(|name| Some(format!("{name}:{}\n", field(stanza, name)?)));
    Some(Mirror { uri: words("URIs")?.first()?.clone(), trust: trust.collect() })
}

/// A field's value with its continuation lines, as it stands.
fn field(stanza: &str, name: &str) -> Option<String> {
    let mut lines = stanza.lines().skip_while(|line| !is_field(line, name));
    let mut value = lines.next()?.split_once(':')?.1.to_owned();
    for line in lines.take_while(|line| line.starts_with([' ', '\t'])) {
        value += &format!("\n{line}");
    }
    Some(value)
}

fn is_field(line: &str, name: &str) -> bool {
    line.split_once(':').is_some_and(|(found, _)| found.eq_ignore_ascii_case(name))
}

fn from_lines(text: &str, codename: &str) -> Vec<Mirror> {
    text.lines().filter_map(|line| line_mirror(line.split('#').next()?, codename)).collect()
}

/// "deb [signed-by=FILE] URI SUITE COMPONENT..."
fn line_mirror(line: &str, codename: &str) -> Option<Mirror> {
    let rest = line.trim().strip_prefix("deb ")?.trim();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let fits = suite == codename && words.any(|component| component == "main");
    fits.then(|| Mirror { uri: uri.to_owned(), trust: options.split_whitespace().filter_map(option).collect() })
}

fn option(option: &str) -> Option<String> {
    match option.split_once('=')? {
        ("signed-by", value) => Some(format!("Signed-By: {}\n", value.replace(',', " "))),
        ("trusted", value) => Some(format!("Trusted: {value}\n")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb deb-src\n# a comment\nURIs: http://deb.example/debian\nSuites: trixie trixie-updates\n\
        Components: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n AAAA\n\n\
        Types: deb\nURIs: http://deb.example/debian-security\nSuites: trixie-security\nComponents: main\n";

    fn found(is_deb822: bool, text: &str, codename: &str) -> Vec<Mirror> {
        mirrors(&[(is_deb822, text.to_owned())], codename)
    }

    #[test]
    fn deb822_sources_yield_the_mirror_with_its_keys() {
        let mirrors = found(true, DEB822, "trixie");
        assert_eq!(mirrors.len(), 1);
        assert_eq!(mirrors[0].uri, "http://deb.example/debian");
        assert_eq!(mirrors[0].trust, "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n AAAA\n");
        let entry = source_entry(&mirrors[0], "trixie-backports");
        assert!(entry.contains("Suites: trixie-backports\nComponents: main\nSigned-By:\n"), "{entry}");
    }

    #[test]
    fn one_line_sources_do_too() {
        let text = "# deb http://old bookworm main\ndeb [arch=amd64 signed-by=/k1.gpg,/k2.gpg] http://m/debian bookworm main contrib\n\
                    deb-src http://s/debian bookworm main\ndeb http://sec/debian-security bookworm-security main\n";
        let mirror = Mirror { uri: "http://m/debian".into(), trust: "Signed-By: /k1.gpg /k2.gpg\n".into() };
        assert_eq!(found(false, text, "bookworm"), [mirror]);
    }

    #[test]
    fn third_parties_and_disabled_entries_come_last_or_not_at_all() {
        let disabled = format!("Enabled: no\n{DEB822}");
        assert!(found(true, &disabled, "trixie").is_empty());
        let text = "deb https://tools.example/apt bookworm main\ndeb http://m/debian/ bookworm main\n\
                    deb https://docker.example/linux/debian bookworm stable\n";
        let uris: Vec<String> = found(false, text, "bookworm").into_iter().map(|mirror| mirror.uri).collect();
        assert_eq!(uris, ["http://m/debian/", "https://tools.example/apt"]);
    }

    #[test]
    fn the_hosts_folders_are_not_named_in_the_private_configuration() {
        let text = configuration(Path::new("/c/apt"));
        assert!(!text.contains("/var/") && !text.contains("/etc/"), "{text}");
        for part in ["Lists \"/c/apt/lists\"", "Cache \"/c/apt/cache\"", "#clear APT::Update::Post-Invoke;"] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
    }

    #[test]
    fn the_size_is_read_from_the_printed_uri() {
        let output = "'http://m/linux-source_7%7ebpo.deb' linux-source_7~bpo.deb 166780612 SHA256:70\n";
        assert_eq!(promised_size(output), Some(166_780_612));
        assert_eq!(promised_size(&output.repeat(2)), Some(2 * 166_780_612));
        assert_eq!(promised_size("W: something\n"), None);
    }
}
