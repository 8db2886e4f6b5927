//! The kernel's own selftests for mounts, built from the tested tree into static programs that a guest without libraries can run.

use super::build::{UNWANTED_ENV, compiler};
use super::digest;
use super::tree::Tree;
use crate::cache::{Cache, or_no_space};
use crate::event::Events;
use crate::failure::Exit;
use crate::process::Task;
use crate::stage::Stage;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Folders below tools/testing/selftests: those that call what a mount patch touches.
const FOLDERS: [&str; 15] = [
    "mount_setattr",
    "move_mount_set_group",
    "mount",
    "filesystems/statmount",
    "filesystems/mount-notify",
    "filesystems/mount_cycle",
    "filesystems/move_mount",
    "filesystems/umount_propagation",
    "filesystems/open_tree_ns",
    "filesystems/fsmount_ns",
    "filesystems/empty_mntns",
    "filesystems/mntns_unbindable",
    "filesystems/nsfs",
    "filesystems/openat2",
    "filesystems/overlayfs",
];

/// Programs that are not run, and why.
const LEFT_OUT: [(&str, &str); 1] = [(
    "filesystems/openat2/rename_attack_test",
    "800,000 rounds take minutes under emulation; races::* walk beside renames and mounts within a trial's limit",
)];

/// The kernel's headers for user space, longest.
const HEADERS_LIMIT: Duration = Duration::from_secs(600);

/// One folder's programs, longest.
const FOLDER_LIMIT: Duration = Duration::from_secs(600);

/// Space for headers and programs, MiB.
const NEEDED_MIB: u64 = 100;

/// Part of each key. Change it when this file builds other programs from the same source and compiler.
const RECIPE: &str = "selftests 2";

/// Our stand-in for libcap: file below tests/selftests, text.
const LIBCAP: [(&str, &str); 2] = [
    ("sys/capability.h", include_str!("../../../tests/selftests/sys/capability.h")),
    ("libcap.c", include_str!("../../../tests/selftests/libcap.c")),
];

/// Built selftests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selftests {
    /// Folder of folders of programs. Belongs to one host and is not written down.
    #[serde(skip)]
    pub programs: PathBuf,
    /// Folders that gave no programs, or not all of them, and single programs that are left out; and why.
    pub not_there: BTreeMap<String, String>,
}

/// The selftests of a tree: from the cache, or built now.
///
/// # Errors
/// No space, or the headers cannot be made. A folder that does not build is no error but stands in the result.
pub fn build(tree: &Tree, cache: &Cache, events: Events<'_>) -> Result<Selftests> {
    let compiler = compiler()?;
    let texts = LIBCAP.iter().map(|(_, text)| *text);
    let key = digest::key([RECIPE, tree.uapi_key.as_str(), compiler.as_str()].into_iter().chain(texts));
    let dir = cache.dir().join("selftests").join(key);
    if let Some(stored) = stored(&dir) {
        return Ok(stored);
    }
    cache.need_space(NEEDED_MIB, "building selftests")?;
    let mut stage = Stage::start(events, "build the kernel's selftests");
    tree.make()?;
    let built = Job { source: &tree.dir, dir: &dir }.run(&mut stage).map_err(or_no_space)?;
    stage.finish(format!("of {} folders; not there: {}", FOLDERS.len(), built.not_there.len()));
    Ok(built)
}

fn record(dir: &Path) -> PathBuf {
    dir.join("selftests.json")
}

fn programs(dir: &Path) -> PathBuf {
    dir.join("programs")
}

fn stored(dir: &Path) -> Option<Selftests> {
    let stored: Selftests = serde_json::from_str(&fs::read_to_string(record(dir)).ok()?).ok()?;
    Some(Selftests { programs: programs(dir), ..stored })
}

struct Job<'a> {
    source: &'a Path,
    dir: &'a Path,
}

impl Job<'_> {
    fn run(&self, stage: &mut Stage<'_>) -> Result<Selftests> {
        let _ = fs::remove_dir_all(programs(self.dir));
        self.libcap()?;
        let mut headers = self.make(self.source);
        headers.arg(format!("O={}", self.headers().display())).arg("headers");
        Task::new(headers).limit(HEADERS_LIMIT).on_failure(Exit::Unavailable, HINT).run()?;
        let mut not_there: BTreeMap<String, String> = LEFT_OUT.map(|(name, why)| (name.into(), why.into())).into();
        for (done, folder) in FOLDERS.iter().enumerate() {
            stage.progress("folders", || (done as u64, Some(FOLDERS.len() as u64)));
            if let Err(why) = self.folder(folder) {
                crate::process::check_interrupt("building selftests")?;
                not_there.insert((*folder).to_owned(), why);
            }
        }
        for (name, _) in LEFT_OUT {
            let _ = fs::remove_file(programs(self.dir).join(name.trim_start_matches("filesystems/")));
        }
        let built = Selftests { programs: programs(self.dir), not_there };
        crate::results::write_atomically(&record(self.dir), &serde_json::to_string_pretty(&built)?)?;
        Ok(built)
    }

    fn headers(&self) -> PathBuf {
        self.dir.join("headers")
    }

    /// Writes our libcap and builds it.
    fn libcap(&self) -> Result<()> {
        for (name, text) in LIBCAP {
            let path = self.dir.join("libcap").join(name);
            fs::create_dir_all(path.parent().context("it lies in a folder")?)?;
            fs::write(path, text)?;
        }
        let dir = self.dir.join("libcap");
        let mut gcc = Command::new("gcc");
        gcc.current_dir(&dir).args(["-O2", "-I.", "-c", "libcap.c", "-o", "libcap.o"]);
        let mut ar = Command::new("ar");
        ar.current_dir(&dir).args(["rcs", "libcap.a", "libcap.o"]);
        for command in [gcc, ar] {
            Task::new(command).on_failure(Exit::Unavailable, HINT).run()?;
        }
        Ok(())
    }

    /// Builds all programs of a folder, with its own Makefile; the error is the end of make's log.
    fn folder(&self, folder: &str) -> Result<(), String> {
        let source = self.source.join("tools/testing/selftests").join(folder);
        if !source.join("Makefile").is_file() {
            return Err("this tree has no such selftest".into());
        }
        let name = Path::new(folder).file_name().unwrap_or_default();
        let out = programs(self.dir).join(name);
        fs::create_dir_all(&out).map_err(|error| error.to_string())?;
        let mut make = self.make(&source);
        make.arg("--keep-going").arg(format!("OUTPUT={}", out.display()));
        make.arg(format!("KHDR_INCLUDES=-isystem {}", self.headers().join("usr/include").display()));
        make.arg(format!("USERCFLAGS={}", self.cflags())).arg("all");
        let result = Task::new(make).limit(FOLDER_LIMIT).on_failure(Exit::Unavailable, HINT).run();
        keep_programs(&out).map_err(|error| format!("{error:#}"))?;
        result.map(drop).map_err(|error| format!("{error:#}"))
    }

    /// What is added to a folder's own flags. All of it is in the compiler's flags, because some rules know no other.
    fn cflags(&self) -> String {
        let libcap = self.dir.join("libcap");
        let (libcap, headers) = (libcap.display(), self.headers().join("usr/include"));
        // The tree's own headers for those that do not ask for them; nothing dynamic, so no sanitizer; no symbols: the initramfs holds it all.
        format!("-isystem {} -I{libcap} -L{libcap} -static -s -g0 -w -fno-sanitize=all", headers.display())
    }

    fn make(&self, dir: &Path) -> Command {
        let mut make = Command::new("make");
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        make.arg("-C").arg(dir).arg(format!("-j{cpus}")).env("LC_ALL", "C");
        for name in UNWANTED_ENV {
            make.env_remove(name);
        }
        make
    }
}

const HINT: &str =
    "if a program or a header is missing, run `cargo xtask setup`; `--no-selftests` leaves selftests out";

/// Removes what is no program: object files that a Makefile left beside it.
fn keep_programs(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if fs::read(&path).is_ok_and(|bytes| !is_program(&bytes)) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// ELF's magic, and ET_EXEC or ET_DYN as its type (elf(5)).
fn is_program(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF") && matches!(bytes.get(16..18), Some([2 | 3, 0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let elf = |kind: u8| [b"\x7fELF".as_slice(), &[0; 12], &[kind, 0], &[0; 8]].concat();
        fs::write(dir.path().join("statmount_test"), elf(2)).unwrap();
        fs::write(dir.path().join("utils.o"), elf(1)).unwrap();
        fs::write(dir.path().join("make.d"), "text").unwrap();
        keep_programs(dir.path()).unwrap();
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["statmount_test"]);
    }

    #[test]
    fn selftests_exist_when_their_record_does() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(stored(dir.path()), None);
        let not_there = BTreeMap::from([("mount".to_owned(), "no such selftest".to_owned())]);
        let built = Selftests { programs: programs(dir.path()), not_there };
        fs::write(record(dir.path()), serde_json::to_string(&built).unwrap()).unwrap();
        assert_eq!(stored(dir.path()), Some(built));
    }

    #[test]
    fn last_parts_of_folders_are_unique() {
        let mut names: Vec<_> = FOLDERS.iter().map(|folder| Path::new(folder).file_name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FOLDERS.len());
    }

    #[test]
    fn what_is_left_out_would_be_there() {
        for (name, _) in LEFT_OUT {
            assert!(FOLDERS.contains(&name.rsplit_once('/').unwrap().0), "{name}");
        }
    }

    #[test]
    fn our_libcap_builds() {
        let dir = tempfile::tempdir().unwrap();
        Job { source: dir.path(), dir: dir.path() }.libcap().unwrap();
        assert!(dir.path().join("libcap/libcap.a").is_file());
    }
}
