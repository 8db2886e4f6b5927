//! `/bin/sh` of a lab machine: the two commands that the kernel's selftest of mount_setattr(2) gives to system(3), and no others.

use anyhow::{Context, Result, bail};
use mount_storms::loop_disk;
use rustix::mount::{MountFlags, mount};
use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;

/// Exit status of a shell that cannot find a command (POSIX).
const NOT_FOUND: u8 = 127;

/// Runs one command line.
pub fn run(command: &str) -> ExitCode {
    let words: Vec<&str> = command.split_whitespace().collect();
    let result = match words[..] {
        ["mkfs.ext4", "-q", image] => make_ext4(image),
        ["mount", "-o", "loop", "-t", "ext4", image, at] => mount_image(image, at),
        _ => {
            eprintln!("sh: {command}: not a command of this machine");
            return ExitCode::from(NOT_FOUND);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sh: {command}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the empty ext4 that trials use to the beginning of a file that may be larger.
fn make_ext4(image: &str) -> Result<()> {
    let mut file = OpenOptions::new().write(true).open(image).with_context(|| format!("cannot open {image}"))?;
    file.write_all(loop_disk::EXT4).with_context(|| format!("cannot write {image}"))
}

/// The device goes with the mount.
fn mount_image(image: &str, at: &str) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(image).with_context(|| format!("cannot open {image}"))?;
    let (path, _device) = loop_disk::configured(&file)?;
    if let Err(error) = mount(&path, at, "ext4", MountFlags::empty(), None) {
        bail!("cannot mount {path} at {at}: {error}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_its_size_and_gets_a_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ext4.img");
        let size = loop_disk::EXT4.len() as u64 + 4096;
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        assert_eq!(run(&format!("mkfs.ext4 -q {}", path.display())), ExitCode::SUCCESS);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((bytes.len() as u64, &bytes[..loop_disk::EXT4.len()]), (size, loop_disk::EXT4));
    }

    #[test]
    fn any_other_command_is_not_found() {
        assert_eq!(run("rm -rf /"), ExitCode::from(NOT_FOUND));
        assert_eq!(run("mkfs.ext4 -q /nowhere/x.img"), ExitCode::FAILURE);
    }
}
