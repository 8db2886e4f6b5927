//! A fresh ext4 disk for one boot.

use crate::failure::Exit;
use crate::process::Task;
use anyhow::{Context, Result};
use mount_storms::protocol::{Job, Storage, Work};
use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Size of the disk, in bytes: 2 GiB, sparse. The layers hold a few small files each, so even 96 containers of 50 layers leave it nearly empty.
const SIZE: u64 = 2 << 30;

/// An image file that is deleted when it is dropped.
pub struct Disk {
    /// Where it lies.
    pub path: PathBuf,
}

impl Disk {
    /// The disk that `job` needs, made in `dir`; `None` if none of its storms wants ext4.
    ///
    /// # Errors
    /// mke2fs is missing or fails, or the host's disk is full.
    pub fn for_job(job: &Job, dir: &Path) -> Result<Option<Disk>> {
        if !wants_ext4(job) {
            return Ok(None);
        }
        let disk = Disk { path: dir.join("layers.img") };
        let file = File::create(&disk.path).with_context(|| format!("cannot create {}", disk.path.display()))?;
        file.set_len(SIZE)?;
        Task::new(mke2fs(&disk.path))
            .limit(Duration::from_secs(60))
            .on_failure(Exit::Unavailable, "install e2fsprogs, and see that the disk is not full")
            .run()?;
        Ok(Some(disk))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Nothing hangs on it: the folder's owner removes what is left.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn wants_ext4(job: &Job) -> bool {
    matches!(&job.work, Work::Storm(storm) if storm.points.iter().any(|point| point.storage == Storage::Ext4))
}

fn mke2fs(image: &Path) -> Command {
    let mut command = Command::new("mke2fs");
    // Nothing is left for a kernel thread to initialise later, in the middle of a measurement.
    command.args(["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(image);
    // Debian's users do not have the sbin folders on their PATH.
    let path = env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use mount_storms::protocol::{Manner, Profile, Propagation, StormJob, StormPoint};

    fn job(storage: Storage) -> Job {
        let (profile, propagation) = (Profile::Detach, Propagation::Shared);
        let point = StormPoint {
            profile,
            storage,
            propagation,
            cpus: 2,
            threads: 1,
            containers: 1,
            layers: 1,
            inspection_passes: 1,
        };
        let storm = StormJob {
            points: vec![point],
            iterations: 1,
            warmup_iterations: 0,
            manner: Manner::CONTAINERD,
            readers: Vec::new(),
            surroundings: Default::default(),
        };
        Job { protocol: 1, seed: 1, work: Work::Storm(storm) }
    }

    #[test]
    fn only_an_ext4_storm_wants_a_disk() {
        assert!(wants_ext4(&job(Storage::Ext4)));
        assert!(!wants_ext4(&job(Storage::Tmpfs)));
        assert!(!wants_ext4(&Job { work: Work::Hello, ..job(Storage::Ext4) }));
    }

    #[test]
    fn initialisation_is_not_left_to_the_guest() {
        let words: Vec<_> = mke2fs(Path::new("/b/x")).get_args().map(|word| word.to_owned()).collect();
        assert!(words.contains(&"lazy_itable_init=0,lazy_journal_init=0".into()));
        assert_eq!(words.last().unwrap(), "/b/x");
    }
}
