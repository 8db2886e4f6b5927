//! The guest's whole user space: an initramfs with `lab-guest` as init, and the job beside it.

use anyhow::{Context, Result};
use cpio::newc::{Builder, trailer};
use mount_storms::protocol::{JOB_PATH, Job, Work};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// File types of `st_mode` (inode(7)).
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFLNK: u32 = 0o120_000;

/// Device number of /dev/console (Documentation/admin-guide/devices.txt).
const CONSOLE: (u32, u32) = (5, 1);

/// Empty folders that the guest mounts on; selftests mount on /mnt.
const FOLDERS: [&str; 6] = ["dev", "proc", "sys", "tmp", "run", "mnt"];

/// Writes the initramfs of one boot: the same archive for every boot of a guest, then a small one with the job (the kernel
/// unpacks archives that follow each other, Documentation/driver-api/early-userspace/buffer-format.rst).
pub fn write(path: &Path, guest: &Path, job: &Job) -> Result<()> {
    let init = fs::read(guest).with_context(|| format!("cannot read the guest binary {}", guest.display()))?;
    let mut bytes = base_archive(&init)?;
    if let Work::Suite(suite) = &job.work
        && let Some(selftests) = &suite.selftests
    {
        bytes.extend(folder_archive(&selftests.folder)?);
    }
    bytes.extend(job_archive(job)?);
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// `/init`, `/dev/console` (the kernel opens it for init before anything is mounted), and empty folders. Not compressed: reading a few
/// MiB is faster than unpacking them under emulation.
fn base_archive(init: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in FOLDERS {
        archive.add(Builder::new(folder).mode(S_IFDIR | 0o755), &[])?;
    }
    let console = Builder::new("dev/console").mode(S_IFCHR | 0o600).rdev_major(CONSOLE.0).rdev_minor(CONSOLE.1);
    archive.add(console, &[])?;
    archive.add(Builder::new("init").mode(S_IFREG | 0o755), init)?;
    archive.finish()
}

/// A folder with all that is in it, at the same path in the guest as on the host, and programs executable by everybody.
fn folder_archive(folder: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    let mut above: Vec<&Path> = folder.ancestors().skip(1).filter(|path| path.parent().is_some()).collect();
    above.reverse();
    for path in above {
        archive.add(entry(path, S_IFDIR), &[])?;
    }
    // For system(3): the guest is the shell of its selftests.
    archive.add(entry(Path::new("/bin"), S_IFDIR), &[])?;
    archive.add(entry(Path::new("/bin/sh"), S_IFLNK), b"/init")?;
    add_below(&mut archive, folder)?;
    archive.finish()
}

fn add_below(archive: &mut Archive, path: &Path) -> Result<()> {
    let readable = || format!("cannot read {}", path.display());
    if !path.is_dir() {
        return archive.add(entry(path, S_IFREG), &fs::read(path).with_context(readable)?);
    }
    archive.add(entry(path, S_IFDIR), &[])?;
    let mut below: Vec<PathBuf> =
        fs::read_dir(path).with_context(readable)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    below.sort();
    below.iter().try_for_each(|path| add_below(archive, path))
}

fn entry(path: &Path, file_type: u32) -> Builder {
    Builder::new(path.to_string_lossy().trim_start_matches('/')).mode(file_type | 0o755)
}

fn job_archive(job: &Job) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    let name = JOB_PATH.trim_start_matches('/');
    archive.add(Builder::new(name).mode(S_IFREG | 0o644), &serde_json::to_vec(job)?)?;
    archive.finish()
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Each entry gets its own inode number: equal ones would be taken for hard links.
    fn add(&mut self, entry: Builder, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).context("a file of 4 GiB or more does not fit into a newc archive")?;
        let mut writer = entry.ino(self.entries).write(&mut self.bytes, size);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(trailer(self.bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::NewcReader;
    use mount_storms::protocol::{PROTOCOL, Work};
    use std::io::Read;

    /// Name, mode, device and content.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// The entries of the first archive in `bytes`, and the bytes after it.
    fn entries(mut bytes: &[u8]) -> (Vec<Entry>, &[u8]) {
        let mut found = Vec::new();
        loop {
            let mut reader = NewcReader::new(bytes).unwrap();
            let entry = reader.entry();
            if entry.is_trailer() {
                return (found, reader.finish().unwrap());
            }
            let (name, mode) = (entry.name().to_owned(), entry.mode());
            let device = (entry.rdev_major(), entry.rdev_minor());
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            found.push((name, mode, device, content));
            bytes = reader.finish().unwrap();
        }
    }

    #[test]
    fn both_archives_can_be_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let (guest, out) = (dir.path().join("guest"), dir.path().join("initrd"));
        fs::write(&guest, b"\x7fELF!").unwrap();
        let job = Job { protocol: PROTOCOL, seed: 7, work: Work::Hello };
        write(&out, &guest, &job).unwrap();

        let bytes = fs::read(&out).unwrap();
        let (base, after) = entries(&bytes);
        assert_eq!(base.len(), FOLDERS.len() + 2);
        assert!(base.contains(&("dev/console".into(), S_IFCHR | 0o600, (5, 1), vec![])));
        assert!(base.contains(&("init".into(), S_IFREG | 0o755, (0, 0), b"\x7fELF!".to_vec())));
        let (second, end) = entries(after);
        assert_eq!(second[0].0, "job.json");
        assert_eq!(serde_json::from_slice::<Job>(&second[0].3).unwrap(), job);
        assert!(end.is_empty());
    }

    #[test]
    fn a_folder_of_programs_keeps_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("programs");
        fs::create_dir_all(folder.join("nsfs")).unwrap();
        fs::write(folder.join("nsfs/owner"), "ELF").unwrap();
        let bytes = folder_archive(&folder).unwrap();
        let (found, _) = entries(&bytes);
        let program = folder.join("nsfs/owner").display().to_string();
        let last = found.last().unwrap();
        assert_eq!((format!("/{}", last.0), last.1, last.3.as_slice()), (program, S_IFREG | 0o755, &b"ELF"[..]));
        let expected = folder.ancestors().filter(|path| path.parent().is_some()).count() + 4;
        assert_eq!(found.len(), expected, "{found:?}");
    }

    #[test]
    fn a_folder_comes_before_what_lies_in_it() {
        let bytes = base_archive(b"").unwrap();
        let names: Vec<String> = entries(&bytes).0.into_iter().map(|entry| entry.0).collect();
        let place = |name: &str| names.iter().position(|other| other == name).unwrap();
        assert!(place("dev") < place("dev/console"));
    }
}
