//! Fresh disks for one boot: one for each file system that its storms want.

use crate::failure::Exit;
use crate::process::Task;
use anyhow::{Context, Result};
use mount_storms::disk::{OnDisk, on_disk};
use mount_storms::protocol::{Job, Storage, Work};
use std::collections::BTreeSet;
use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Size of a disk, in bytes: 2 GiB, sparse. The layers hold a few small files each, so even 96 containers of 50 layers leave it nearly empty.
/// mkfs.xfs(8) refuses less than 300 MiB.
const SIZE: u64 = 2 << 30;

/// An image file that is deleted when it is dropped.
pub struct Disk {
    /// Where it lies.
    pub path: PathBuf,
    /// By what the guest knows it: the name of its file system.
    pub serial: &'static str,
}

impl Disk {
    /// The disks that `job` needs, made in `dir`: one for each file system on a disk that its storms want.
    ///
    /// # Errors
    /// A mkfs is missing or fails, or the host's disk is full.
    pub fn for_job(job: &Job, dir: &Path) -> Result<Vec<Disk>> {
        wanted(job).into_iter().filter_map(on_disk).map(|kind| Disk::make(kind, dir)).collect()
    }

    fn make(kind: OnDisk, dir: &Path) -> Result<Disk> {
        let disk = Disk { path: dir.join(format!("layers.{}", kind.fs_type)), serial: kind.fs_type };
        let file = File::create(&disk.path).with_context(|| format!("cannot create {}", disk.path.display()))?;
        file.set_len(SIZE)?;
        Task::new(mkfs(kind, &disk.path))
            .limit(Duration::from_secs(60))
            .on_failure(Exit::Unavailable, format!("install {}, and see that the disk is not full", kind.package))
            .run()?;
        Ok(disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Nothing hangs on it: the folder's owner removes what is left.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What the job's storms happen on, each once.
fn wanted(job: &Job) -> BTreeSet<Storage> {
    match &job.work {
        Work::Storm(storm) => storm.points.iter().map(|point| point.storage).collect(),
        _ => BTreeSet::new(),
    }
}

fn mkfs(kind: OnDisk, image: &Path) -> Command {
    let mut command = Command::new(kind.mkfs);
    command.args(kind.args).arg(image);
    // Debian's users do not have the sbin folders on their PATH.
    let path = env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use mount_storms::protocol::{Manner, Profile, Propagation, READER_PERIOD_US, StormJob, StormPoint};

    fn job(storages: &[Storage]) -> Job {
        let point = |storage: &Storage| StormPoint {
            profile: Profile::Detach,
            storage: *storage,
            propagation: Propagation::Shared,
            cpus: 2,
            threads: 1,
            containers: 1,
            layers: 1,
            inspection_passes: 1,
        };
        let storm = StormJob {
            points: storages.iter().map(point).collect(),
            iterations: 1,
            warmup_iterations: 0,
            manner: Manner::CONTAINERD,
            readers: Vec::new(),
            reader_period_us: READER_PERIOD_US,
            surroundings: Default::default(),
        };
        Job { protocol: 1, seed: 1, work: Work::Storm(storm) }
    }

    #[test]
    fn each_file_system_is_wanted_once() {
        let all = job(&[Storage::Xfs, Storage::Tmpfs, Storage::Ext4, Storage::Xfs]);
        let kinds =
            |job: &Job| wanted(job).into_iter().filter_map(on_disk).map(|kind| kind.fs_type).collect::<Vec<_>>();
        assert_eq!(kinds(&all), ["ext4", "xfs"]);
        assert!(kinds(&job(&[Storage::Tmpfs])).is_empty());
        assert!(kinds(&Job { work: Work::Hello, ..all }).is_empty());
    }

    #[test]
    fn a_disk_is_made_by_the_mkfs_of_its_file_system_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let made = Disk::for_job(&job(&[Storage::Ext4]), dir.path()).unwrap();
        let path = made[0].path.clone();
        assert_eq!((made.len(), made[0].serial, path.exists()), (1, "ext4", true));
        drop(made);
        assert!(!path.exists());
    }

    #[test]
    fn initialisation_is_not_left_to_the_guest() {
        let command = mkfs(on_disk(Storage::Ext4).unwrap(), Path::new("/b/x"));
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        assert!(words.iter().any(|word| word.starts_with("lazy_itable_init=0,lazy_journal_init=0")), "{words:?}");
        assert_eq!(words.last().unwrap(), "/b/x");
    }
}
