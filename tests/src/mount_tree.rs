//! The mount table: mountinfo as values, and what changed between two of them.

use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// One mount, as a line of mountinfo shows it (proc_pid_mountinfo(5)); text is left escaped as the kernel wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Mount id; used again once the mount is gone.
    pub id: u32,
    /// Id of the mount it is mounted on.
    pub parent: u32,
    /// Device, "major:minor".
    pub device: String,
    /// Which folder of the file system is mounted.
    pub root: String,
    /// Where, relative to the process's root.
    pub mount_point: String,
    /// Options of the mount.
    pub options: String,
    /// Propagation: "shared:N", "master:N", "propagate_from:N", "unbindable"; empty for a private mount.
    pub propagation: Vec<String>,
    /// Type of the file system.
    pub fs_type: String,
    /// Its source.
    pub source: String,
    /// Options of the superblock.
    pub super_options: String,
}

/// The mount table of this process.
///
/// # Errors
/// /proc is not mounted, or a line is not understood.
pub fn read() -> Result<Vec<Mount>> {
    parse(&std::fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?)
}

/// All mounts of a mountinfo file, in its order.
///
/// # Errors
/// A line that is not understood.
pub fn parse(mountinfo: &str) -> Result<Vec<Mount>> {
    mountinfo.lines().map(|line| parse_line(line).with_context(|| format!("no line of mountinfo: {line:?}"))).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    // The optional fields, of any number, end with a hyphen.
    let (mount, superblock) = line.split_once(" - ")?;
    let mut mount = mount.split(' ');
    let mut superblock = superblock.splitn(3, ' ').map(str::to_owned);
    let mut text = || mount.next().map(str::to_owned);
    Some(Mount {
        id: text()?.parse().ok()?,
        parent: text()?.parse().ok()?,
        device: text()?,
        root: text()?,
        mount_point: text()?,
        options: text()?,
        propagation: mount.map(str::to_owned).collect(),
        fs_type: superblock.next()?,
        source: superblock.next()?,
        super_options: superblock.next()?,
    })
}

/// What `after` has that `before` had not, lacks, or shows otherwise: one sentence each.
pub fn difference(before: &[Mount], after: &[Mount]) -> Vec<String> {
    let (before, after) = (by_id(before), by_id(after));
    let gone = before.values().filter(|mount| !after.contains_key(&mount.id));
    let gone = gone.map(|mount| format!("the {} is gone", named(mount)));
    let others = after.values().filter_map(|mount| match before.get(&mount.id) {
        None => Some(format!("the {} is left behind", named(mount))),
        Some(old) if old == mount => None,
        Some(old) => Some(format!("the {} has changed: it was {old:?} and is {mount:?}", named(old))),
    });
    gone.chain(others).collect()
}

fn by_id(mounts: &[Mount]) -> BTreeMap<u32, &Mount> {
    mounts.iter().map(|mount| (mount.id, mount)).collect()
}

fn named(mount: &Mount) -> String {
    format!("{} mount {} at {}", mount.fs_type, mount.id, mount.mount_point)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 0:21 / / rw,relatime - rootfs rootfs rw
28 22 0:25 / /tmp rw,nosuid shared:7 master:2 - tmpfs none rw,size=10k
31 28 0:26 /snapshots/1/fs /tmp/a\\040b ro - overlay overlay rw,lowerdir=/x - y:/z
";

    #[test]
    fn each_field_is_found() {
        let mounts = parse(TABLE).unwrap();
        assert_eq!(mounts.len(), 3);
        assert_eq!((mounts[1].id, mounts[1].parent, mounts[1].device.as_str()), (28, 22, "0:25"));
        assert_eq!(mounts[1].propagation, ["shared:7", "master:2"]);
        assert_eq!(mounts[2].mount_point, "/tmp/a\\040b");
        assert_eq!(mounts[2].super_options, "rw,lowerdir=/x - y:/z");
        assert!(mounts[0].propagation.is_empty());
    }

    #[test]
    fn a_line_that_is_cut_is_an_error() {
        let error = parse("22 1 0:21 / / rw,rel").unwrap_err();
        assert!(error.to_string().contains("rw,rel"), "{error}");
        assert!(parse("x 1 0:21 / / rw - rootfs rootfs rw").is_err());
    }

    #[test]
    fn the_same_table_has_no_difference() {
        let mounts = parse(TABLE).unwrap();
        assert_eq!(difference(&mounts, &mounts), Vec::<String>::new());
    }

    #[test]
    fn what_is_left_behind_gone_or_changed_is_named() {
        let before = parse(TABLE).unwrap();
        let mut after = before.clone();
        after.remove(0);
        after[0].propagation = vec!["shared:8".into()];
        after.push(Mount { id: 99, mount_point: "/tmp/storm".into(), ..before[1].clone() });
        let sentences = difference(&before, &after);
        assert_eq!(sentences.len(), 3, "{sentences:?}");
        assert_eq!(sentences[0], "the rootfs mount 22 at / is gone");
        assert!(sentences[1].starts_with("the tmpfs mount 28 at /tmp has changed"), "{sentences:?}");
        assert_eq!(sentences[2], "the tmpfs mount 99 at /tmp/storm is left behind");
    }
}
