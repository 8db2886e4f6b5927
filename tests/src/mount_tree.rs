//! The mount table as `/proc/self/mountinfo` shows it (proc_pid_mountinfo(5)).

use std::collections::BTreeMap;

/// One line of mountinfo, as far as the oracles need it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MountLine {
    /// Mount id; reused by the kernel after umount.
    pub id: u64,
    /// Id of the parent.
    pub parent: u64,
    /// Root of the mount within its file system.
    pub root: String,
    /// Where it is mounted, octal escapes resolved.
    pub mountpoint: String,
    /// Per-mount options.
    pub options: String,
    /// Optional fields: "shared:2 master:1".
    pub propagation: String,
    /// File system type.
    pub fs_type: String,
}

/// Parses mountinfo; a line that does not parse is an error that quotes it.
///
/// # Errors
/// The offending line.
pub fn parse(text: &str) -> Result<Vec<MountLine>, String> {
    text.lines().map(|line| parse_line(line).ok_or_else(|| format!("not a line of mountinfo: {line}"))).collect()
}

fn parse_line(line: &str) -> Option<MountLine> {
    let (mount, fs) = line.split_once(" - ")?;
    let mut words = mount.split(' ');
    let mut word = || words.next();
    let (id, parent, _device) = (word()?.parse().ok()?, word()?.parse().ok()?, word()?);
    let (root, mountpoint, options) = (unescape(word()?), unescape(word()?), word()?.to_owned());
    let propagation = words.collect::<Vec<_>>().join(" ");
    Some(MountLine { id, parent, root, mountpoint, options, propagation, fs_type: fs.split(' ').next()?.to_owned() })
}

/// Resolves the octal escapes of seq_path(): space, tab, newline and backslash.
fn unescape(word: &str) -> String {
    let pairs = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    pairs.iter().fold(word.to_owned(), |word, (escape, plain)| word.replace(escape, plain))
}

/// What differs between two mount tables, in sentences; ids and peer group numbers may change, mounts may not.
pub fn difference(before: &[MountLine], after: &[MountLine]) -> Vec<String> {
    let (before, after) = (count(before), count(after));
    let keys: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let amount = |table: &BTreeMap<String, usize>, key: &String| table.get(key).copied().unwrap_or(0);
    keys.into_iter()
        .filter(|key| amount(&before, key) != amount(&after, key))
        .map(|key| format!("{key}: {} before, {} after", amount(&before, key), amount(&after, key)))
        .collect()
}

fn count(table: &[MountLine]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in table {
        let MountLine { root, mountpoint, options, fs_type, .. } = line;
        *counts.entry(format!("{fs_type} {root} on {mountpoint} ({options})")).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "22 1 0:2 / / rw - rootfs rootfs rw\n\
                         23 22 0:21 / /tmp/a\\040b rw,nosuid shared:3 master:1 - tmpfs storm rw,size=1k\n";

    #[test]
    fn fields_and_escapes() {
        let table = parse(TABLE).unwrap();
        assert_eq!(table[1].mountpoint, "/tmp/a b");
        assert_eq!((table[1].propagation.as_str(), table[1].fs_type.as_str()), ("shared:3 master:1", "tmpfs"));
        assert_eq!((table[0].propagation.as_str(), table[0].parent), ("", 1));
    }

    #[test]
    fn a_strange_line_is_quoted() {
        assert!(parse("hello").unwrap_err().contains("hello"));
    }

    #[test]
    fn a_left_mount_is_a_difference_and_a_new_id_is_none() {
        let before = parse(TABLE).unwrap();
        let mut after = before.clone();
        after[1].id = 99;
        assert!(difference(&before, &after).is_empty());
        after.push(after[1].clone());
        let said = difference(&before, &after);
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("/tmp/a b") && said[0].ends_with("1 before, 2 after"), "{said:?}");
    }
}
