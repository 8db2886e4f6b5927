//! A QEMU that is new enough for the simulator: the host's own, else the cache's, else the newer Debian suite's, unpacked into the cache.
//! Nothing is installed, and no root is needed.

use crate::apt;
use crate::cache::Cache;
use crate::event::{Event, Events};
use crate::failure::{Exit, Failure, exit_code};
use crate::machine::qemu::Version;
use crate::process::Task;
use crate::setup::os_release;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The program.
const QEMU: &str = "qemu-system-x86_64";

/// The oldest QEMU with plugin interface 4: include/qemu/qemu-plugin.h says 4 since 9.2. The simulator would do with 3 (conditional
/// callbacks, 9.1), but its bindings are of 4.
const OLDEST: Version = Version::new(9, 2, 0);

/// Debian's packages of it: program, firmware, and what both need.
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-common", "qemu-system-data"];

/// A QEMU and how to start it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    path: PathBuf,
    /// Where it is unpacked, if it is not installed: its modules and firmware are there.
    unpacked: Option<PathBuf>,
    /// Its version.
    pub version: Version,
}

impl Program {
    /// Finds one, or fetches it.
    ///
    /// # Errors
    /// The host's is too old or missing, and none can be fetched: what was tried, and what to do.
    pub fn find(cache: &Cache, events: Events<'_>) -> Result<Program> {
        let hosts = match version_of(Command::new(QEMU)) {
            Ok(version) if version >= OLDEST => return Ok(Program { path: QEMU.into(), unpacked: None, version }),
            Ok(version) => format!("the host's QEMU is {version}"),
            Err(_) => "the host has no QEMU".to_owned(),
        };
        let dir = cache.dir().join("qemu");
        if let Ok(program) = Program::unpacked(&dir) {
            return Ok(program);
        }
        match fetch(cache, &dir, events).and_then(|()| Program::unpacked(&dir)) {
            Ok(program) => Ok(program),
            Err(error) if matches!(exit_code(&error), Exit::Interrupted | Exit::NoSpace) => Err(error),
            Err(error) => {
                let message = format!(
                    "the simulated machine needs QEMU {OLDEST} or newer (plugin interface 4); {hosts}, and none could be fetched: {error:#}\n\
                     next: install a newer QEMU (Debian: -t {}-backports), or use --machine tcg",
                    os_release::read().codename
                );
                Err(Failure::error(Exit::Unavailable, message))
            }
        }
    }

    fn unpacked(dir: &Path) -> Result<Program> {
        let mut program =
            Program { path: dir.join("usr/bin").join(QEMU), unpacked: Some(dir.to_owned()), version: OLDEST };
        program.version = version_of(program.command(None))?;
        anyhow::ensure!(program.version >= OLDEST, "{} is {}", program.path.display(), program.version);
        Ok(program)
    }

    /// The command that starts it, without arguments of the machine; `preload` is loaded into it, and into nothing else (env(1) sets
    /// the environment, because whatever else the command is wrapped in could not bear QEMU's plugin).
    pub fn command(&self, preload: Option<&Path>) -> Command {
        let mut command = Command::new("env");
        command.args(preload.map(|library| format!("LD_PRELOAD={}", library.display())));
        // Accelerators are modules on Debian, looked for where they would be installed unless told so (util/module.c).
        command.args(self.unpacked.as_ref().map(|dir| format!("QEMU_MODULE_DIR={}", modules(dir).display())));
        command.arg(&self.path);
        if let Some(dir) = &self.unpacked {
            command.arg("-L").arg(dir.join("usr/share/qemu")).arg("-L").arg(dir.join("usr/share/seabios"));
        }
        command
    }
}

/// The folder of an unpacked QEMU's modules: usr/lib/<architecture>/qemu.
fn modules(dir: &Path) -> PathBuf {
    let folders =
        fs::read_dir(dir.join("usr/lib")).into_iter().flatten().flatten().map(|entry| entry.path().join("qemu"));
    folders.into_iter().find(|path| path.is_dir()).unwrap_or_else(|| dir.join("usr/lib/qemu"))
}

fn version_of(mut command: Command) -> Result<Version> {
    command.arg("--version");
    let output = Task::new(command).limit(Duration::from_secs(20)).run()?;
    Version::parse(&output).with_context(|| format!("'{}' is no version of QEMU", output.lines().next().unwrap_or("")))
}

fn fetch(cache: &Cache, dir: &Path, events: Events<'_>) -> Result<()> {
    cache.need_space(400, "a newer QEMU")?;
    let suite = format!("{}-backports", os_release::read().codename);
    events.hear(&Event::Note(format!(
        "the simulated machine needs a newer QEMU: taking it from {suite}, into the cache"
    )));
    let scratch = tempfile::tempdir_in(cache.dir())?;
    let debs = apt::packages(&PACKAGES, &suite, cache, scratch.path(), events)?;
    let out = scratch.path().join("unpacked");
    debs.iter().try_for_each(|deb| apt::unpack(deb, &out))?;
    let _ = fs::remove_dir_all(dir);
    fs::rename(&out, dir).with_context(|| format!("cannot move {} into place", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unpacked_qemu_is_told_where_its_parts_are() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/lib/x86_64-linux-gnu/qemu")).unwrap();
        let program = Program { path: "q".into(), unpacked: Some(dir.path().to_owned()), version: OLDEST };
        let shown = crate::process::shown(&program.command(Some(Path::new("/t/s.so"))));
        assert!(shown.starts_with("env LD_PRELOAD=/t/s.so QEMU_MODULE_DIR="), "{shown}");
        assert!(shown.contains("usr/share/qemu -L") && shown.contains("usr/share/seabios"), "{shown}");
        assert!(modules(dir.path()).ends_with("x86_64-linux-gnu/qemu"));
    }

    #[test]
    fn an_empty_cache_has_none() {
        assert!(Program::unpacked(tempfile::tempdir().unwrap().path()).is_err());
    }
}
