//! What the host lacks: said with its reason, and installed after a yes.

mod needs;
pub mod os_release;

use crate::event::{Event, Events};
use crate::failure::{Exit, Failure};
use crate::flags::{SetupFlags, StorageFlag};
use crate::process::{Task, check_interrupt};
use anyhow::Result;
use needs::{Missing, NEEDS, Need, RealHost, XFS_NEEDS, missing};
use os_release::Family;
use std::io::IsTerminal;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Longest installation: 100 MB of packages over a slow line.
const INSTALL_LIMIT: Duration = Duration::from_secs(1800);

/// How long a question waits for its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(600);

/// Makes sure that the host has everything, installing packages after a yes (or `--yes`).
///
/// # Errors
/// Something is missing and was not installed: says what, why, and the one command that installs it.
pub fn ensure(flags: &SetupFlags, events: Events<'_>) -> Result<()> {
    ensure_all(NEEDS, flags, events)
}

/// Makes sure as well that the host can make disks for storms on these.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_for(storages: &[StorageFlag], flags: &SetupFlags, events: Events<'_>) -> Result<()> {
    ensure_all(NEEDS, flags, events)?;
    if storages.contains(&StorageFlag::Xfs) { ensure_all(XFS_NEEDS, flags, events) } else { Ok(()) }
}

fn ensure_all(needs: &'static [Need], flags: &SetupFlags, events: Events<'_>) -> Result<()> {
    let missing_now = missing(needs, &RealHost);
    if missing_now.is_empty() {
        let names = match needs {
            [only] => format!("{} as well", only.name()),
            _ => format!("all {} things that mountlab needs", needs.len()),
        };
        events.hear(&Event::Note(format!("set-up: this host has {names}")));
        return Ok(());
    }
    let host = os_release::read();
    let plan = Plan { family: host.family(), is_root: nix::unistd::geteuid().is_root(), missing: missing_now };
    events.hear(&Event::Note(plan.to_string()));
    // Elsewhere than on Debian and Ubuntu the package names are known, but nobody has tried the installation.
    if plan.family != Family::Debian || !(flags.yes || asked()?) {
        return Err(Failure::error(Exit::Unavailable, plan.refusal()));
    }
    plan.install(events)?;
    match missing(needs, &RealHost) {
        left if left.is_empty() => Ok(()),
        left => Err(Failure::error(Exit::Unavailable, Plan { missing: left, ..plan }.still_missing())),
    }
}

/// What to install and how.
struct Plan {
    family: Family,
    is_root: bool,
    missing: Vec<Missing>,
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "set-up: this host lacks")?;
        self.missing.iter().try_for_each(|missing| writeln!(f, "  {}", missing.told(self.family)))?;
        write!(f, "this installs it: {}", self.command())
    }
}

impl Plan {
    /// Packages, each once, in the order of the needs.
    fn packages(&self) -> Vec<&'static str> {
        let mut packages = Vec::new();
        for package in self.missing.iter().map(|missing| missing.need.package(self.family)) {
            if !packages.contains(&package) {
                packages.push(package);
            }
        }
        packages
    }

    /// The one command, as a person types it.
    fn command(&self) -> String {
        let sudo = if self.is_root { "" } else { "sudo " };
        let packages = self.packages().join(" ");
        match self.family {
            Family::Debian => {
                format!("{sudo}apt-get update && {sudo}apt-get install --no-install-recommends -y {packages}")
            }
            Family::Fedora => format!("{sudo}dnf install -y {packages}"),
            Family::Arch => format!("{sudo}pacman -S --needed {packages}"),
            Family::Unknown => format!("install, by their Debian names: {packages}"),
        }
    }

    fn refusal(&self) -> String {
        let again = if self.family == Family::Debian { ", or say --yes" } else { "" };
        format!("not set up: the packages listed above are missing\nnext: {}{again}", self.command())
    }

    fn still_missing(&self) -> String {
        let lines: Vec<String> =
            self.missing.iter().map(|missing| format!("  {}", missing.told(self.family))).collect();
        format!(
            "the packages were installed, and still this host lacks\n{}\nnext: install a newer version by hand",
            lines.join("\n")
        )
    }

    fn install(&self, events: Events<'_>) -> Result<()> {
        if !self.is_root {
            become_able_to_sudo()?;
        }
        let packages = self.packages();
        events.hear(&Event::Note(format!("set-up: installing {}", packages.join(" "))));
        self.apt(&["update"])?;
        self.apt(&[&["install", "--no-install-recommends", "-y"][..], &packages].concat())
    }

    fn apt(&self, args: &[&str]) -> Result<()> {
        let mut words = vec!["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"];
        if !self.is_root {
            words.splice(0..0, ["sudo", "-n"]);
        }
        words.extend(args);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        let hint = format!("run it by hand: {}", self.command());
        Task::new(command).limit(INSTALL_LIMIT).on_failure(Exit::Unavailable, hint).run().map(drop)
    }
}

/// Lets sudo ask for its password. Only a foreground process can read it from the terminal, so this one is no `Task`; it has
/// sudo's own limit of five minutes.
fn become_able_to_sudo() -> Result<()> {
    let able = Command::new("sudo").arg("--validate").status().is_ok_and(|status| status.success());
    if able {
        return Ok(());
    }
    Err(Failure::error(
        Exit::NotRoot,
        "installing packages needs root, and sudo does not give it\nnext: run the command as root",
    ))
}

/// Asks on the terminal; elsewhere nobody can answer, which is a no.
fn asked() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    eprint!("Install these packages now? Type yes: ");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = std::io::stdin().read_line(&mut line);
        sender.send(line)
    });
    let start = Instant::now();
    while start.elapsed() < ANSWER_LIMIT {
        check_interrupt("the set-up")?;
        if let Ok(line) = receiver.recv_timeout(crate::process::POLL) {
            return Ok(is_yes(&line));
        }
    }
    Ok(false)
}

fn is_yes(line: &str) -> bool {
    ["y", "yes"].contains(&line.trim().to_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(family: Family, is_root: bool) -> Plan {
        let missing = NEEDS.iter().map(|need| Missing { need, how: "not found".into() }).collect();
        Plan { family, is_root, missing }
    }

    #[test]
    fn one_command_per_family() {
        let command = plan(Family::Debian, false).command();
        assert!(
            command.starts_with("sudo apt-get update && sudo apt-get install --no-install-recommends -y gcc "),
            "{command}"
        );
        assert!(plan(Family::Debian, true).command().starts_with("apt-get update && apt-get install"));
        assert!(plan(Family::Fedora, false).command().starts_with("sudo dnf install -y gcc "));
        assert!(plan(Family::Arch, true).command().starts_with("pacman -S --needed gcc "));
    }

    #[test]
    fn a_package_is_named_once() {
        let packages = plan(Family::Arch, true).packages();
        let unique: std::collections::BTreeSet<_> = packages.iter().collect();
        assert_eq!(unique.len(), packages.len(), "{packages:?}");
    }

    #[test]
    fn the_text_says_what_why_and_how() {
        let text = plan(Family::Debian, true).to_string();
        assert!(text.contains("bison (kconfig's parser): not found; package bison"), "{text}");
        assert!(text.ends_with(&plan(Family::Debian, true).command()));
        assert!(plan(Family::Debian, true).refusal().contains("--yes"));
        assert!(!plan(Family::Fedora, true).refusal().contains("--yes"));
    }

    #[test]
    fn only_a_yes_is_a_yes() {
        assert!(is_yes("yes\n") && is_yes(" Y \n"));
        assert!(!is_yes("\n") && !is_yes("no\n") && !is_yes(""));
    }
}
