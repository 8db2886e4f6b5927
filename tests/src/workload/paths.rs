//! Profile `paths`: no containers, but what everybody else does all day: stat(2), open(2) and close(2) by paths that cross mounts. What a change of the
//! mount code costs those who mount nothing. A unit is a round of [`CALLS`] calls of each kind.

use super::Workload;
use super::container_start::ContainerStart;
use crate::check::{LAYER_CONTENT, Verdicts, check_files};
use crate::layout::Layout;
use crate::metrics::{Beat, CallKind, CallLog};
use crate::protocol::{Manner, Profile, StormPoint};
use crate::topology::{LayerFile, PASSWD, layer_files, merged_view};
use crate::user_ns::IdMap;
use anyhow::{Context, Result};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Calls of each kind in a round. Timed together: two readings of the clock for each call would be a good part of what is measured.
const CALLS: u32 = 200;

/// The folder in a tree that the same tree is mounted on, twice: `d/d` is three mounts deep.
const NESTED: &str = "d";

/// What the plain file reads.
const CONTENT: &str = "three mounts deep\n";

/// A tree three mounts deep on the storm's own file system, and one on a container's root, an overlay on idmapped layers.
pub struct Paths {
    container: ContainerStart,
    plain: PathBuf,
    rootfs: PathBuf,
    view: Vec<LayerFile>,
    /// What is mounted, in the order it was.
    mounted: Mutex<Vec<PathBuf>>,
}

impl Paths {
    /// The trees of `point` in the mount at `root`.
    pub fn new(point: &StormPoint, seed: u64, root: &Path) -> Paths {
        let one = StormPoint { profile: Profile::Detach, containers: 1, inspection_passes: 0, ..point.clone() };
        let manner = Manner { shims: false, ..Manner::MOUNTS_ALONE };
        Paths {
            container: ContainerStart::new(&one, seed, manner, false, root),
            plain: root.join("plain"),
            rootfs: Layout::new(root, point.layers).rootfs(0),
            view: merged_view(&layer_files(seed, point.layers)),
            mounted: Mutex::new(Vec::new()),
        }
    }

    /// Mounts the tree at `root` on its own folder, and again on that folder of the copy. Private: peers would copy each other for ever.
    fn nest(&self, root: &Path) -> Result<()> {
        mount_change(root, MountPropagationFlags::PRIVATE)?;
        fs::create_dir_all(root.join(NESTED))?;
        let mut at = root.to_owned();
        for _ in 0..2 {
            at = at.join(NESTED);
            self.bind(root, &at)?;
        }
        Ok(())
    }

    fn bind(&self, from: &Path, to: &Path) -> Result<()> {
        mount_bind(from, to).with_context(|| format!("mount({}, {}, MS_BIND)", from.display(), to.display()))?;
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner).push(to.to_owned());
        Ok(mount_change(to, MountPropagationFlags::PRIVATE)?)
    }

    fn deep(root: &Path) -> PathBuf {
        root.join(NESTED).join(NESTED)
    }
}

/// Makes a call [`CALLS`] times and logs how long one took.
fn repeat(kind: CallKind, log: &mut CallLog<'_>, path: &Path, call: impl Fn(&Path) -> Result<()>) -> Result<()> {
    let start = Instant::now();
    for _ in 0..CALLS {
        call(path).with_context(|| format!("{}: {}", kind.name(), path.display()))?;
    }
    log.add_mean(kind, start.elapsed(), CALLS);
    Ok(())
}

fn stat(path: &Path) -> Result<()> {
    Ok(fs::metadata(path).map(drop)?)
}

fn open(path: &Path) -> Result<()> {
    Ok(File::open(path).map(drop)?)
}

impl Workload for Paths {
    fn prepare(&self) -> Result<()> {
        fs::create_dir_all(&self.plain)?;
        fs::write(self.plain.join("file"), CONTENT)?;
        self.bind(&self.plain, &self.plain)?;
        self.nest(&self.plain)?;
        self.container.prepare()?;
        let beat = Beat::default();
        self.container.iterate(0, &mut CallLog::new(&beat), &mut Verdicts::default())?;
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner).push(self.rootfs.clone());
        self.nest(&self.rootfs)
    }

    fn iterate(&self, _: u32, log: &mut CallLog<'_>, _: &mut Verdicts) -> Result<()> {
        let plain = Paths::deep(&self.plain).join("file");
        let overlay = Paths::deep(&self.rootfs).join(PASSWD);
        // Out of all three mounts and into them again.
        let up = Paths::deep(&self.plain).join("../../../plain").join(NESTED).join(NESTED).join("file");
        repeat(CallKind::StatPlain, log, &plain, stat)?;
        repeat(CallKind::OpenPlain, log, &plain, open)?;
        repeat(CallKind::StatOverlay, log, &overlay, stat)?;
        repeat(CallKind::OpenOverlay, log, &overlay, open)?;
        repeat(CallKind::StatUp, log, &up, stat)
    }

    fn check(&self, unit: u32, verdicts: &mut Verdicts) {
        let who = format!("round {unit}");
        check_files(verdicts, &who, &Paths::deep(&self.rootfs), &self.view, IdMap::of_container(0));
        let path = Paths::deep(&self.plain).join("file");
        let verdict = match fs::read_to_string(&path) {
            Ok(content) if content == CONTENT => Ok(()),
            other => Err(format!("{who}: {} must read {CONTENT:?}, but gives {other:?}", path.display())),
        };
        verdicts.add(LAYER_CONTENT, verdict);
    }

    fn cleanup(&self, _: u32, _: &mut CallLog<'_>) -> Result<()> {
        Ok(())
    }

    fn roots(&self) -> usize {
        0
    }
}

impl Drop for Paths {
    fn drop(&mut self) {
        // One that stays keeps the storm's file system busy, which its unmount will tell.
        let mounted = self.mounted.get_mut().unwrap_or_else(PoisonError::into_inner);
        for path in mounted.drain(..).rev() {
            let _ = unmount(&path, UnmountFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_logs_the_mean_of_its_calls() {
        let beat = Beat::default();
        let mut log = CallLog::new(&beat);
        let slow = |_: &Path| {
            std::thread::sleep(std::time::Duration::from_micros(100));
            Ok(())
        };
        repeat(CallKind::StatPlain, &mut log, Path::new("/"), slow).unwrap();
        let seen = &crate::metrics::latencies(&[log]).unwrap()["stat_plain"];
        assert!(seen.count == 1 && seen.p50_ns >= 100_000 && seen.p50_ns < 100_000 * u64::from(CALLS), "{seen:?}");
        assert_eq!(beat.count(), 1);
    }

    #[test]
    fn a_call_that_fails_is_named() {
        let beat = Beat::default();
        let error = repeat(CallKind::OpenPlain, &mut CallLog::new(&beat), Path::new("/not/there"), open).unwrap_err();
        assert_eq!(format!("{error}"), "open_plain: /not/there");
    }
}
