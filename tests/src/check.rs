//! The oracles: what a storm's mounts must show. Judging is pure; [`check_files`] does the reading.

use crate::mount_tree::{self, Mount};
use crate::protocol::Oracle;
use crate::topology::LayerFile;
use crate::user_ns::IdMap;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Sentences that a result carries at most.
const SENTENCES: usize = 20;

/// Files are owned by whom the container's map says.
pub const IDMAPPED_OWNERSHIP: &str = "idmapped_ownership";
/// Files read as they were written.
pub const LAYER_CONTENT: &str = "layer_content";
/// A mount that is in use is not unmounted.
pub const BUSY_REFUSED: &str = "busy_refused";
/// The mount table is as it was before the storm.
pub const MOUNT_TABLE: &str = "mount_table";

/// Checks that umount2(2) refuses the mount at `root` with EBUSY as long as `file`, which lies in it, is open.
pub fn check_busy(verdicts: &mut Verdicts, who: &str, root: &Path, file: &Path) {
    let verdict = match File::open(file) {
        Ok(_open) => judge_busy(who, unmount(root, UnmountFlags::empty())),
        Err(error) => Err(format!("{who}: {} cannot be opened: {error}", file.display())),
    };
    verdicts.add(BUSY_REFUSED, verdict);
}

fn judge_busy(who: &str, answer: Result<(), Errno>) -> Result<(), String> {
    match answer {
        Err(Errno::BUSY) => Ok(()),
        Ok(()) => Err(format!("{who}: umount2(rootfs, 0) succeeded under an open file")),
        Err(error) => Err(format!("{who}: umount2(rootfs, 0) under an open file failed with {error}, not with EBUSY")),
    }
}

/// A file as a mount shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenFile {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// All its bytes.
    pub content: Vec<u8>,
}

/// What was checked so far, and what did not hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    checks: BTreeMap<&'static str, u64>,
    failures: Vec<String>,
}

impl Verdicts {
    /// Counts one check, and keeps the sentence if it did not hold.
    pub fn add(&mut self, oracle: &'static str, verdict: Result<(), String>) {
        *self.checks.entry(oracle).or_default() += 1;
        self.failures.extend(verdict.err());
    }

    /// Adds what another thread checked.
    pub fn merge(&mut self, other: Verdicts) {
        other.checks.into_iter().for_each(|(oracle, count)| *self.checks.entry(oracle).or_default() += count);
        self.failures.extend(other.failures);
    }

    /// As the host gets it: at most [`SENTENCES`] sentences, the last of which counts those left out.
    pub fn into_oracle(self) -> Oracle {
        let checks = self.checks.into_iter().map(|(oracle, count)| (oracle.to_owned(), count)).collect();
        let mut failures = self.failures;
        if failures.len() > SENTENCES {
            let left_out = failures.len() - (SENTENCES - 1);
            failures.truncate(SENTENCES - 1);
            failures.push(format!("and {left_out} more failed checks"));
        }
        Oracle { checks, failures }
    }
}

/// Checks each of `files` below the mount at `root`, whose owners `map` maps. `who` begins each sentence.
pub fn check_files(verdicts: &mut Verdicts, who: &str, root: &Path, files: &[LayerFile], map: IdMap) {
    for file in files {
        let seen = read_file(&root.join(&file.path));
        verdicts.add(IDMAPPED_OWNERSHIP, judge_ownership(who, file, map, seen.as_ref()));
        verdicts.add(LAYER_CONTENT, judge_content(who, file, seen.as_ref()));
    }
}

/// Checks that no mount was left behind, lost, or changed.
pub fn check_mount_table(verdicts: &mut Verdicts, before: &[Mount], after: &[Mount]) {
    let differences = mount_tree::difference(before, after);
    if differences.is_empty() {
        verdicts.add(MOUNT_TABLE, Ok(()));
    }
    for difference in differences {
        verdicts.add(MOUNT_TABLE, Err(format!("after the storm {difference}")));
    }
}

fn read_file(path: &Path) -> io::Result<SeenFile> {
    let mut file = File::open(path)?;
    let owner = file.metadata()?;
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(SeenFile { uid: owner.uid(), gid: owner.gid(), content })
}

fn judge_ownership(who: &str, file: &LayerFile, map: IdMap, seen: Result<&SeenFile, &io::Error>) -> Result<(), String> {
    let seen = readable(who, file, seen)?;
    let (uid, gid) = (map.shown(file.uid), map.shown(file.gid));
    if (uid, gid) == (Some(seen.uid), Some(seen.gid)) {
        return Ok(());
    }
    Err(format!(
        "{who}: {} of layer {} is owned by {}:{} on disk and must be shown as {}, but is shown as {}:{}",
        file.path,
        file.layer,
        file.uid,
        file.gid,
        expected(uid, gid),
        seen.uid,
        seen.gid
    ))
}

fn judge_content(who: &str, file: &LayerFile, seen: Result<&SeenFile, &io::Error>) -> Result<(), String> {
    let seen = readable(who, file, seen)?;
    if seen.content == file.content.as_bytes() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&seen.content);
    Err(format!("{who}: {} must read {:?} of layer {}, but reads {text:?}", file.path, file.content, file.layer))
}

fn readable<'a>(who: &str, file: &LayerFile, seen: Result<&'a SeenFile, &io::Error>) -> Result<&'a SeenFile, String> {
    seen.map_err(|error| format!("{who}: {} of layer {} cannot be read: {error}", file.path, file.layer))
}

fn expected(uid: Option<u32>, gid: Option<u32>) -> String {
    match (uid, gid) {
        (Some(uid), Some(gid)) => format!("{uid}:{gid}"),
        _ => "an id outside the map".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn file() -> LayerFile {
        LayerFile { layer: 2, path: "f2".into(), content: "two\n".into(), uid: 3, gid: 4 }
    }

    fn seen(uid: u32, gid: u32, content: &str) -> SeenFile {
        SeenFile { uid, gid, content: content.into() }
    }

    fn map() -> IdMap {
        IdMap::of_container(1)
    }

    #[test]
    fn a_mapped_owner_and_the_written_content_pass() {
        let right = seen(165_539, 165_540, "two\n");
        assert_eq!(judge_ownership("c", &file(), map(), Ok(&right)), Ok(()));
        assert_eq!(judge_content("c", &file(), Ok(&right)), Ok(()));
    }

    #[test]
    fn an_owner_that_is_not_mapped_fails() {
        let wrong = judge_ownership("container 1", &file(), map(), Ok(&seen(3, 4, "two\n"))).unwrap_err();
        let sentence = "container 1: f2 of layer 2 is owned by 3:4 on disk and must be shown as 165539:165540, but is shown as 3:4";
        assert_eq!(wrong, sentence);
        assert!(judge_ownership("c", &file(), map(), Ok(&seen(165_539, 4, ""))).is_err());
        // 65534 is what an id outside the map is shown as.
        assert!(judge_ownership("c", &file(), map(), Ok(&seen(65_534, 65_534, ""))).is_err());
    }

    #[test]
    fn the_map_of_another_container_fails() {
        let neighbour = IdMap::of_container(2);
        assert!(judge_ownership("c", &file(), neighbour, Ok(&seen(165_539, 165_540, "two\n"))).is_err());
    }

    #[test]
    fn other_content_and_a_file_that_cannot_be_read_fail() {
        let wrong = judge_content("c", &file(), Ok(&seen(0, 0, "one\n"))).unwrap_err();
        assert_eq!(wrong, "c: f2 must read \"two\\n\" of layer 2, but reads \"one\\n\"");
        let missing = io::Error::from_raw_os_error(libc::ENOENT);
        assert!(judge_content("c", &file(), Err(&missing)).unwrap_err().contains("cannot be read"));
        assert!(judge_ownership("c", &file(), map(), Err(&missing)).is_err());
    }

    #[test]
    fn files_are_read_where_the_mount_is() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("f2"), "two\n").unwrap();
        let mut verdicts = Verdicts::default();
        check_files(&mut verdicts, "c", root.path(), &[file()], map());
        let oracle = verdicts.into_oracle();
        // No mount, so no map: the content is right and the owner is not.
        assert_eq!(oracle.checks, BTreeMap::from([(IDMAPPED_OWNERSHIP.into(), 1), (LAYER_CONTENT.into(), 1)]));
        assert_eq!(oracle.failures.len(), 1);
        assert!(oracle.failures[0].contains("must be shown as 165539:165540"), "{:?}", oracle.failures);
    }

    #[test]
    fn only_ebusy_refuses_a_mount_in_use() {
        assert_eq!(judge_busy("c", Err(Errno::BUSY)), Ok(()));
        assert!(judge_busy("c", Ok(())).unwrap_err().contains("succeeded under an open file"));
        assert!(judge_busy("c", Err(Errno::INVAL)).unwrap_err().contains("not with EBUSY"));
    }

    #[test]
    fn a_mount_left_behind_fails_the_table() {
        let table = "22 1 0:21 / / rw - rootfs rootfs rw\n31 22 0:26 / /tmp/storm rw shared:1 - tmpfs storm rw\n";
        let after = mount_tree::parse(table).unwrap();
        let mut verdicts = Verdicts::default();
        check_mount_table(&mut verdicts, &after, &after);
        check_mount_table(&mut verdicts, &after[..1], &after);
        let oracle = verdicts.into_oracle();
        assert_eq!(oracle.checks[MOUNT_TABLE], 2);
        assert_eq!(oracle.failures, ["after the storm the tmpfs mount 31 at /tmp/storm is left behind"]);
    }

    #[test]
    fn sentences_are_kept_up_to_a_bound_and_counted_beyond() {
        let failing = |count: usize| {
            let (mut verdicts, mut other) = (Verdicts::default(), Verdicts::default());
            (0..count).for_each(|n| other.add(LAYER_CONTENT, Err(format!("sentence {n}"))));
            verdicts.merge(other);
            verdicts.into_oracle()
        };
        assert_eq!(failing(20).failures.len(), 20);
        assert_eq!(failing(20).failures[19], "sentence 19");
        let many = failing(25);
        assert_eq!((many.failures.len(), many.checks[LAYER_CONTENT]), (20, 25));
        assert_eq!(many.failures[18..], ["sentence 18", "and 6 more failed checks"]);
    }
}
