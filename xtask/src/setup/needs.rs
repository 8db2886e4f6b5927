//! What mountlab needs of a host, why, and which package has it.

use super::os_release::Family;
use std::path::Path;
use std::process::Command;

/// One need.
#[derive(Debug, PartialEq, Eq)]
pub struct Need {
    name: &'static str,
    why: &'static str,
    probe: Probe,
    /// Package on Debian and Ubuntu, on Fedora, on Arch.
    packages: [&'static str; 3],
}

/// How to see whether a need is met.
#[derive(Debug, PartialEq, Eq)]
enum Probe {
    /// A program in the search path; its name is the need's.
    Program,
    /// One of these files is there: distributions put them in different places.
    AnyFile(&'static [&'static str]),
    /// The command succeeds.
    Succeeds(&'static [&'static str]),
    /// The program's `--version` says at least this (major, minor).
    AtLeast(u32, u32),
}

/// A need that is not met.
#[derive(Debug, PartialEq, Eq)]
pub struct Missing {
    /// Which.
    pub need: &'static Need,
    /// "not found", "6.2 is too old, 7.2 is needed".
    pub how: String,
}

const fn program(name: &'static str, why: &'static str, packages: [&'static str; 3]) -> Need {
    Need { name, why, probe: Probe::Program, packages }
}

/// All of them. A kernel without modules, trusted keys or debug information needs neither kmod, nor openssl, nor pahole.
pub const NEEDS: &[Need] = &[
    program("gcc", "the kernel's compiler", ["gcc"; 3]),
    program("ld", "the kernel's linker", ["binutils"; 3]),
    program("make", "the kernel's build system", ["make"; 3]),
    program("flex", "kconfig's scanner", ["flex"; 3]),
    program("bison", "kconfig's parser", ["bison"; 3]),
    program("bc", "the kernel's time constants", ["bc"; 3]),
    program("awk", "the kernel's tables of instructions", ["mawk", "gawk", "gawk"]),
    Need {
        name: "libelf headers",
        why: "objtool, which checks and patches the kernel's objects",
        probe: Probe::AnyFile(&["/usr/include/libelf.h", "/usr/include/libelf/libelf.h"]),
        packages: ["libelf-dev", "elfutils-libelf-devel", "libelf"],
    },
    Need {
        name: "libc headers",
        why: "programs that the kernel's build runs",
        probe: Probe::AnyFile(&["/usr/include/stdio.h"]),
        packages: ["libc6-dev", "glibc-devel", "glibc"],
    },
    Need {
        name: "static libc",
        why: "lab-guest, which runs where there is no library",
        probe: Probe::AnyFile(&["/usr/lib/x86_64-linux-gnu/libc.a", "/usr/lib64/libc.a", "/usr/lib/libc.a"]),
        packages: ["libc6-dev", "glibc-static", "glibc"],
    },
    Need {
        name: "perl",
        why: "checkpatch, which checks the patches' style",
        // Debian's essential part of perl lacks this module.
        probe: Probe::Succeeds(&["perl", "-MTerm::ANSIColor", "-e", "1"]),
        packages: ["perl"; 3],
    },
    program("xz", "unpacking the kernel source", ["xz-utils", "xz", "xz"]),
    program("tar", "unpacking the kernel source", ["tar"; 3]),
    program("git", "kernels from repositories, and `series edit`", ["git"; 3]),
    program("curl", "downloading the kernel source", ["curl"; 3]),
    Need {
        name: "certificates",
        why: "knowing the kernel's server by its certificate",
        probe: Probe::AnyFile(&[
            "/etc/ssl/certs/ca-certificates.crt",
            "/etc/pki/tls/certs/ca-bundle.crt",
            "/etc/ssl/cert.pem",
        ]),
        packages: ["ca-certificates"; 3],
    },
    Need {
        name: "qemu-system-x86_64",
        why: "the guests",
        // 7.2 is Debian 12's, the oldest that mountlab is tried with.
        probe: Probe::AtLeast(7, 2),
        packages: ["qemu-system-x86", "qemu-system-x86-core", "qemu-system-x86"],
    },
    program("mke2fs", "disks for storms on ext4", ["e2fsprogs"; 3]),
    program("setpriv", "ending a child with its parent", ["util-linux"; 3]),
];

/// What storms on XFS need besides.
pub const XFS_NEEDS: &[Need] = &[program("mkfs.xfs", "disks for storms on XFS", ["xfsprogs"; 3])];

impl Need {
    /// What it is.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The package that has it. An unknown distribution gets Debian's names.
    pub fn package(&self, family: Family) -> &'static str {
        match family {
            Family::Debian | Family::Unknown => self.packages[0],
            Family::Fedora => self.packages[1],
            Family::Arch => self.packages[2],
        }
    }
}

impl Missing {
    /// What, why, how, and the package.
    pub fn told(&self, family: Family) -> String {
        format!("{} ({}): {}; package {}", self.need.name, self.need.why, self.how, self.need.package(family))
    }
}

/// A host that can be asked.
pub trait Host {
    /// Whether a program is in the search path.
    fn has_program(&self, name: &str) -> bool;
    /// Whether a file is there.
    fn has_file(&self, path: &str) -> bool;
    /// What a command says, if it succeeds.
    fn output(&self, command: &[&str]) -> Option<String>;
}

/// The needs that a host does not meet.
pub fn missing(needs: &'static [Need], host: &dyn Host) -> Vec<Missing> {
    needs.iter().filter_map(|need| Some(Missing { need, how: lack(need, host)? })).collect()
}

fn lack(need: &Need, host: &dyn Host) -> Option<String> {
    let unless = |met: bool| (!met).then(|| "not found".to_owned());
    match need.probe {
        Probe::Program => unless(host.has_program(need.name)),
        Probe::AnyFile(paths) => unless(paths.iter().any(|path| host.has_file(path))),
        Probe::Succeeds(command) => unless(host.output(command).is_some()),
        Probe::AtLeast(major, minor) => match host.output(&[need.name, "--version"]).as_deref().map(version) {
            None => unless(false),
            Some(Some(found)) if found >= (major, minor) => None,
            Some(Some((is_major, is_minor))) => {
                Some(format!("{is_major}.{is_minor} is too old, {major}.{minor} is needed"))
            }
            Some(None) => Some(format!("its version is unknown, {major}.{minor} is needed")),
        },
    }
}

/// The first "7.2" of a text.
fn version(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok());
    text.split_whitespace().find_map(|word| {
        let (major, minor) = word.split_once('.')?;
        Some((major.parse().ok()?, number(minor)?))
    })
}

/// This host.
pub struct RealHost;

impl Host for RealHost {
    fn has_program(&self, name: &str) -> bool {
        // An ordinary user's path may lack the folders that root's programs are in (mke2fs on Debian).
        let path = std::env::var_os("PATH").unwrap_or_default();
        let sbin = ["/usr/sbin", "/sbin"].map(Into::into);
        std::env::split_paths(&path).chain(sbin).any(|dir| dir.join(name).is_file())
    }

    fn has_file(&self, path: &str) -> bool {
        Path::new(path).exists()
    }

    fn output(&self, command: &[&str]) -> Option<String> {
        // Not a `Task`: that needs setpriv, which is itself a need. These commands end at once.
        let output = Command::new(command[0]).args(&command[1..]).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that has everything but what is named, and a QEMU of some version.
    struct FakeHost {
        lacks: &'static [&'static str],
        qemu: &'static str,
    }

    impl Host for FakeHost {
        fn has_program(&self, name: &str) -> bool {
            !self.lacks.contains(&name)
        }

        fn has_file(&self, path: &str) -> bool {
            !self.lacks.contains(&path)
        }

        fn output(&self, command: &[&str]) -> Option<String> {
            let there = !self.lacks.contains(&command[0]);
            there.then(|| format!("QEMU emulator version {}\nCopyright 2003-2022", self.qemu))
        }
    }

    fn names(lacks: &'static [&'static str], qemu: &'static str) -> Vec<(&'static str, String)> {
        let missing = missing(NEEDS, &FakeHost { lacks, qemu });
        missing.into_iter().map(|missing| (missing.need.name, missing.how)).collect()
    }

    #[test]
    fn a_host_with_everything_lacks_nothing() {
        assert_eq!(names(&[], "7.2.17 (Debian 1:7.2+dfsg-7+deb12u15)"), []);
    }

    #[test]
    fn what_is_missing_is_named() {
        let lacks = names(&["bison", "perl", "qemu-system-x86_64"], "7.2");
        let expected = ["bison", "perl", "qemu-system-x86_64"].map(|name| (name, "not found".to_owned()));
        assert_eq!(lacks, expected);
    }

    #[test]
    fn one_of_several_places_will_do() {
        assert_eq!(names(&["/usr/lib/x86_64-linux-gnu/libc.a", "/usr/lib64/libc.a"], "9.0"), []);
        let nowhere = names(&["/usr/lib/x86_64-linux-gnu/libc.a", "/usr/lib64/libc.a", "/usr/lib/libc.a"], "9.0");
        assert_eq!(nowhere[0].0, "static libc");
    }

    #[test]
    fn an_old_qemu_is_as_good_as_none() {
        assert_eq!(names(&[], "6.2.0")[0].1, "6.2 is too old, 7.2 is needed");
        assert_eq!(names(&[], "10.0.3"), []);
        assert_eq!(names(&[], "unknown")[0].1, "its version is unknown, 7.2 is needed");
    }
}
