//! What containerd does when it starts again after a crash: it unmounts what the dead one has left mounted, and removes its temporary folders
//! (core/mount/temp_unix.go, CleanupTempMounts).

use crate::mountinfo::{self, MountLine};
use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long dead processes may hold what they used: the kernel ends them in the background.
const HELD_LIMIT: Duration = Duration::from_secs(10);

/// How often to look in that time.
const HELD_POLL: Duration = Duration::from_millis(10);

/// Sweeps over the mount table. One is enough unless somebody still mounts, which is an error.
const SWEEPS: u32 = 16;

/// Unmounts everything below the mount at `root` (not itself), and removes the empty folders in `temporary`. Returns how many mounts
/// there were.
///
/// # Errors
/// A mount cannot be unmounted, or something lies in a folder that should be empty.
pub fn recover(root: &Path, temporary: &Path) -> Result<usize> {
    let mut unmounted = 0;
    for _ in 0..SWEEPS {
        let left = mounts_below(root)?;
        if left.is_empty() {
            break;
        }
        for mount in left.iter().rev() {
            let target = root.join(&mount.point);
            unmount(&target, UnmountFlags::DETACH)
                .with_context(|| format!("umount2({}, MNT_DETACH)", target.display()))?;
            unmounted += 1;
        }
    }
    ensure!(mounts_below(root)?.is_empty(), "mounts below {} come back while they are unmounted", root.display());
    remove_empty_folders(temporary)?;
    Ok(unmounted)
}

/// umount2(0), again while the mount is busy.
///
/// # Errors
/// umount2(2) failed, or the mount stays busy.
pub fn unmount_when_let_go(root: &Path) -> Result<()> {
    let start = Instant::now();
    loop {
        match unmount(root, UnmountFlags::empty()) {
            Err(Errno::BUSY) if start.elapsed() < HELD_LIMIT => std::thread::sleep(HELD_POLL),
            other => return other.with_context(|| format!("umount2({}, 0)", root.display())),
        }
    }
}

fn mounts_below(root: &Path) -> Result<Vec<MountLine>> {
    Ok(mountinfo::of_this_process()?.into_iter().filter_map(|line| line.below(root)).collect())
}

/// rmdir(2) and nothing else: what a mount still showed here would be somebody's layer.
fn remove_empty_folders(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        remove_empty_folders(&path)?;
        fs::remove_dir(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_empty_folders_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("ovl-idmapped0-0/3")).unwrap();
        remove_empty_folders(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        fs::create_dir_all(dir.path().join("ovl-idmapped0-0/3")).unwrap();
        fs::write(dir.path().join("ovl-idmapped0-0/3/passwd"), "root").unwrap();
        assert!(remove_empty_folders(dir.path()).unwrap_err().to_string().contains("passwd"));
        assert!(dir.path().join("ovl-idmapped0-0/3/passwd").exists());
    }
}
