//! Whether a mount table is back at its start.

use crate::mountinfo::MountLine;
use std::collections::BTreeMap;

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
        let MountLine { root, point, options, fs_type, .. } = line;
        *counts.entry(format!("{fs_type} {root} on {point} ({options})")).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mountinfo;

    const TABLE: &str = "22 1 0:2 / / rw - rootfs rootfs rw\n\
                         23 22 0:21 / /tmp/a\\040b rw,nosuid shared:3 master:1 - tmpfs storm rw,size=1k\n";

    #[test]
    fn a_left_mount_is_a_difference_and_a_new_id_is_none() {
        let before = mountinfo::parse(TABLE).unwrap();
        let mut after = before.clone();
        after[1].id = 99;
        assert!(difference(&before, &after).is_empty());
        after.push(after[1].clone());
        let said = difference(&before, &after);
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("/tmp/a b") && said[0].ends_with("1 before, 2 after"), "{said:?}");
    }
}
