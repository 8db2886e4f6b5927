//! What the host lacks, why it is needed, and the one command that installs it. Nothing is installed without a yes.

use crate::event::{Event, Events};
use crate::failure::{Exit, Failure};
use crate::flags::SetupFlags;
use crate::process::Task;
use anyhow::Result;
use std::fs;
use std::io::{IsTerminal, Write, stderr, stdin};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// One thing that mountlab uses.
struct Need {
    /// How to see that it is there.
    probe: Probe,
    /// What for.
    why: &'static str,
    /// Packages on Debian and Ubuntu, Fedora, Arch.
    packages: [&'static str; 3],
}

/// How to see that something is there.
enum Probe {
    /// A program on PATH.
    Program(&'static str),
    /// One of these files.
    File(&'static [&'static str]),
}

use Probe::{File, Program};

/// Everything that the two commands of the README use.
const NEEDS: &[Need] = &[
    Need { probe: Program("gcc"), why: "compiles the kernels", packages: ["gcc", "gcc", "gcc"] },
    Need { probe: Program("ld"), why: "links the kernels", packages: ["binutils", "binutils", "binutils"] },
    Need { probe: Program("make"), why: "builds the kernels", packages: ["make", "make", "make"] },
    Need { probe: Program("flex"), why: "kconfig's lexer", packages: ["flex", "flex", "flex"] },
    Need { probe: Program("bison"), why: "kconfig's parser", packages: ["bison", "bison", "bison"] },
    Need { probe: Program("bc"), why: "the kernel's time constants", packages: ["bc", "bc", "bc"] },
    Need { probe: Program("perl"), why: "checkpatch.pl", packages: ["perl", "perl", "perl"] },
    Need { probe: Program("git"), why: "`series edit` and `save`", packages: ["git", "git", "git"] },
    Need { probe: Program("tar"), why: "unpacks the kernel source", packages: ["tar", "tar", "tar"] },
    Need { probe: Program("xz"), why: "unpacks the kernel source", packages: ["xz-utils", "xz", "xz"] },
    Need {
        probe: File(&["/usr/include/libelf.h", "/usr/include/x86_64-linux-gnu/libelf.h"]),
        why: "objtool, which the kernel build runs",
        packages: ["libelf-dev", "elfutils-libelf-devel", "libelf"],
    },
    Need {
        probe: File(&["/usr/lib/x86_64-linux-gnu/libc.a", "/usr/lib64/libc.a", "/usr/lib/libc.a"]),
        why: "lab-guest is linked statically",
        packages: ["libc6-dev", "glibc-static", "glibc"],
    },
    Need {
        probe: Program("qemu-system-x86_64"),
        why: "boots the kernels",
        packages: ["qemu-system-x86", "qemu-system-x86-core", "qemu-system-x86"],
    },
    Need {
        probe: File(&["/usr/sbin/mke2fs", "/sbin/mke2fs", "/usr/bin/mke2fs"]),
        why: "makes the guests' ext4 disks",
        packages: ["e2fsprogs", "e2fsprogs", "e2fsprogs"],
    },
    Need {
        probe: Program("setpriv"),
        why: "ends children with their parent",
        packages: ["util-linux", "util-linux", "util-linux"],
    },
];

/// A family of distributions, by how packages are installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Debian,
    Fedora,
    Arch,
    Other,
}

/// Makes sure that everything is there; asks, or is told by `--yes`, before it installs.
///
/// # Errors
/// Something is missing and may not or cannot be installed: unavailable, with the command to run.
pub fn ensure(flags: &SetupFlags, events: Events<'_>) -> Result<()> {
    let missing = missing(&is_there);
    if missing.is_empty() {
        return Ok(());
    }
    let family = family(&fs::read_to_string("/etc/os-release").unwrap_or_default());
    let commands = commands(family, &missing, nix::unistd::geteuid().is_root());
    let told = told(&missing, &commands);
    if commands.is_empty() || !(flags.yes || confirmed(&told)?) {
        let next = "run the command above, or this one with --yes";
        return Err(Failure::error(Exit::Unavailable, format!("{told}\nnext: {next}")));
    }
    events.hear(&Event::Note(told));
    for words in commands {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env("DEBIAN_FRONTEND", "noninteractive");
        Task::new(command).limit(Duration::from_secs(1800)).on_failure(Exit::Unavailable, "install by hand").run()?;
    }
    still_missing()
}

fn still_missing() -> Result<()> {
    let missing = missing(&is_there);
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::error(Exit::Unavailable, format!("installed, but still {}", told(&missing, &[]))))
}

fn is_there(probe: &Probe) -> bool {
    match probe {
        Program(name) => on_path(name),
        File(paths) => paths.iter().any(|path| Path::new(path).exists()),
    }
}

fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

fn missing(there: &dyn Fn(&Probe) -> bool) -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| !there(&need.probe)).collect()
}

/// ID and ID_LIKE of os-release(5).
fn family(os_release: &str) -> Family {
    let value = |key: &str| os_release.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().to_owned();
    let ids = format!("{} {}", value("ID="), value("ID_LIKE=")).replace('"', "");
    let is = |name: &str| ids.split_whitespace().any(|id| id == name);
    match () {
        () if is("debian") || is("ubuntu") => Family::Debian,
        () if is("fedora") || is("rhel") => Family::Fedora,
        () if is("arch") => Family::Arch,
        () => Family::Other,
    }
}

/// What installs the missing packages; empty where nobody knows how.
fn commands(family: Family, missing: &[&Need], root: bool) -> Vec<Vec<String>> {
    let index = match family {
        Family::Debian => 0,
        Family::Fedora => 1,
        Family::Arch => 2,
        Family::Other => return Vec::new(),
    };
    let mut packages: Vec<&str> = missing.iter().map(|need| need.packages[index]).collect();
    packages.sort_unstable();
    packages.dedup();
    let lines: &[&[&str]] = match family {
        Family::Debian => &[&["apt-get", "update"], &["apt-get", "install", "--yes", "--no-install-recommends"]],
        Family::Fedora => &[&["dnf", "install", "--assumeyes"]],
        Family::Arch | Family::Other => &[&["pacman", "--sync", "--needed", "--noconfirm"]],
    };
    let last = lines.len() - 1;
    let sudo = (!root).then_some("sudo");
    let full = |(number, line): (usize, &&[&str])| {
        let packages = if number == last { &packages[..] } else { &[] };
        sudo.iter().chain(*line).chain(packages).map(|word| (*word).to_owned()).collect()
    };
    lines.iter().enumerate().map(full).collect()
}

fn told(missing: &[&Need], commands: &[Vec<String>]) -> String {
    let mut text = "this host lacks:\n".to_owned();
    for need in missing {
        let what = match &need.probe {
            Program(name) => (*name).to_owned(),
            File(paths) => paths[0].to_owned(),
        };
        text += &format!("  {what}: {} (package {} on Debian)\n", need.why, need.packages[0]);
    }
    let lines: Vec<String> = commands.iter().map(|words| words.join(" ")).collect();
    if lines.is_empty() { text } else { format!("{text}it is installed with:\n  {}", lines.join(" && ")) }
}

/// Asks on a terminal; without one the answer is no.
fn confirmed(question: &str) -> Result<bool> {
    if !(stdin().is_terminal() && stderr().is_terminal()) {
        return Ok(false);
    }
    eprint!("{question}\ninstall now? [y/N] ");
    stderr().flush()?;
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lacking(names: &'static [&'static str]) -> Vec<&'static Need> {
        missing(&move |probe| !matches!(probe, Program(name) if names.contains(name)))
    }

    #[test]
    fn a_complete_host_lacks_nothing() {
        assert!(missing(&|_| true).is_empty());
        assert_eq!(missing(&|_| false).len(), NEEDS.len());
    }

    #[test]
    fn what_is_missing_is_told_with_reason_and_command() {
        let missing = lacking(&["flex", "qemu-system-x86_64"]);
        let commands = commands(Family::Debian, &missing, false);
        let text = told(&missing, &commands);
        assert!(
            text.contains("flex: kconfig's lexer") && text.contains("qemu-system-x86_64: boots the kernels"),
            "{text}"
        );
        assert!(text.contains("sudo apt-get install --yes --no-install-recommends flex qemu-system-x86"), "{text}");
    }

    #[test]
    fn each_family_has_its_names() {
        let missing = lacking(&["xz"]);
        let last = |family| commands(family, &missing, true).pop().unwrap_or_default().join(" ");
        assert!(last(Family::Debian).ends_with("xz-utils"));
        assert_eq!(last(Family::Fedora), "dnf install --assumeyes xz");
        assert!(last(Family::Arch).starts_with("pacman") && last(Family::Other).is_empty());
    }

    #[test]
    fn families_are_recognized() {
        assert_eq!(family("NAME=x\nID=ubuntu\nID_LIKE=debian\n"), Family::Debian);
        assert_eq!(family("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"), Family::Fedora);
        assert_eq!(family("ID=arch\n"), Family::Arch);
        assert_eq!(family("ID=nixos\n"), Family::Other);
    }
}
