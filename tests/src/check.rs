//! The oracles: what must be true of a storm's containers and of the mount table. Reading is apart from judging.

use crate::mount_tree;
use crate::mountinfo::MountLine;
use crate::protocol::Oracle;
use crate::topology::{Container, Expected};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Failures that are told in full; more are only counted.
const TOLD: usize = 20;

/// Counts checks and keeps what failed.
#[derive(Debug, Default)]
pub struct Checks {
    oracle: Oracle,
    untold: u64,
}

impl Checks {
    /// Counts one check of the oracle `name`; `failure` says what was wrong.
    pub fn note(&mut self, name: &str, failure: Option<String>) {
        *self.oracle.checks.entry(name.to_owned()).or_default() += 1;
        match failure {
            Some(failure) if self.oracle.failures.len() < TOLD => {
                self.oracle.failures.push(format!("{name}: {failure}"))
            }
            Some(_) => self.untold += 1,
            None => {}
        }
    }

    /// The result.
    pub fn finish(mut self) -> Oracle {
        if self.untold > 0 {
            self.oracle.failures.push(format!("{} more failed checks", self.untold));
        }
        self.oracle
    }
}

/// What one file looked like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Owner and group.
    pub ids: (u32, u32),
    /// Whole content.
    pub content: String,
}

/// Looks at every expected file of a mounted container, through its overlay.
pub fn container(checks: &mut Checks, container: &Container, files: &[Expected]) {
    for file in files {
        let path = container.rootfs.join(&file.path);
        match look(&path) {
            Ok(seen) => {
                checks.note("idmapped_ownership", ownership(&path, &seen, container.host_id));
                checks.note("layer_content", content(&path, &seen, file));
            }
            Err(error) => checks.note("layer_content", Some(format!("cannot read {}: {error}", path.display()))),
        }
    }
}

fn look(path: &Path) -> std::io::Result<Seen> {
    let metadata = fs::metadata(path)?;
    Ok(Seen { ids: (metadata.uid(), metadata.gid()), content: fs::read_to_string(path)? })
}

/// Files of id 0 on disk must be seen as the container's root through the idmapped layer.
fn ownership(path: &Path, seen: &Seen, host_id: u32) -> Option<String> {
    let expected = (host_id, host_id);
    let wrong = seen.ids != expected;
    wrong.then(|| format!("{} is owned by {:?}, expected {expected:?}", path.display(), seen.ids))
}

fn content(path: &Path, seen: &Seen, file: &Expected) -> Option<String> {
    let wrong = seen.content != file.content;
    wrong.then(|| format!("{} holds {:?}, expected {:?}", path.display(), seen.content, file.content))
}

/// The mount table must be back at its start.
pub fn mount_table(checks: &mut Checks, before: &[MountLine], after: &[MountLine]) {
    let difference = mount_tree::difference(before, after);
    checks.note("mount_table", (!difference.is_empty()).then(|| difference.join("; ")));
}

/// The file that containerd reads in an inspection pass must be the uppermost layer's.
pub fn passwd(found: &[u8], expected: &str) -> Option<String> {
    let wrong = found != expected.as_bytes();
    wrong.then(|| format!("inspection read {:?}, expected {expected:?}", String::from_utf8_lossy(found)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn seen(id: u32, content: &str) -> Seen {
        Seen { ids: (id, id), content: content.into() }
    }

    #[test]
    fn a_dropped_idmap_is_seen() {
        let path = Path::new("/rootfs/layer-0");
        assert_eq!(ownership(path, &seen(100_000, ""), 100_000), None);
        assert!(ownership(path, &seen(0, ""), 100_000).unwrap().contains("(0, 0)"));
    }

    #[test]
    fn wrong_content_is_seen() {
        let file = Expected { path: "layer-0".into(), content: "a".into() };
        assert_eq!(content(Path::new("x"), &seen(0, "a"), &file), None);
        assert!(content(Path::new("x"), &seen(0, "b"), &file).is_some());
        assert!(passwd(b"b", "a").is_some() && passwd(b"a", "a").is_none());
    }

    #[test]
    fn a_missing_layer_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let one = Container { number: 0, snapshot: PathBuf::new(), rootfs: dir.path().into(), host_id: 0 };
        let mut checks = Checks::default();
        container(&mut checks, &one, &[Expected { path: "layer-9".into(), content: String::new() }]);
        assert!(checks.finish().failures[0].contains("cannot read"));
    }

    #[test]
    fn failures_beyond_the_first_are_counted() {
        let mut checks = Checks::default();
        (0..25).for_each(|n| checks.note("x", Some(format!("failure {n}"))));
        let oracle = checks.finish();
        assert_eq!((oracle.checks["x"], oracle.failures.len()), (25, 21));
        assert_eq!(oracle.failures[20], "5 more failed checks");
    }
}
