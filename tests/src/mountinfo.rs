//! The fields of /proc/self/mountinfo that trials look at (Documentation/filesystems/proc.rst, section 3.5).

use anyhow::{Context, Result};
use std::path::Path;

/// One line of mountinfo.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountLine {
    /// Mount id; reused after an unmount.
    pub id: u32,
    /// Id of the mount it stands on.
    pub parent: u32,
    /// Device of its file system, "major:minor".
    pub device: String,
    /// Root of the mount within its file system.
    pub root: String,
    /// Mount point.
    pub point: String,
    /// The mount's own options, comma separated.
    pub options: String,
    /// Peer group, when shared.
    pub shared: Option<u64>,
    /// Peer group it receives from, when a slave.
    pub master: Option<u64>,
    /// Whether it may not be bound.
    pub unbindable: bool,
    /// File system type.
    pub fs_type: String,
}

impl MountLine {
    /// This line with its mount point relative to `root`; nothing when it lies elsewhere or is the root itself.
    pub fn below(mut self, root: &Path) -> Option<MountLine> {
        let below = Path::new(&self.point).strip_prefix(root).ok()?.to_str()?.to_owned();
        self.point = below;
        (!self.point.is_empty()).then_some(self)
    }
}

/// What mountinfo shows to this process, in its order.
///
/// # Errors
/// When /proc is not mounted, or a line has another form than proc.rst says.
pub fn of_this_process() -> Result<Vec<MountLine>> {
    // The thread's own file: after setns(2) or unshare(2) the process' leader may be elsewhere.
    parse(&std::fs::read_to_string("/proc/thread-self/mountinfo").context("cannot read mountinfo")?)
}

/// Parses a mountinfo.
///
/// # Errors
/// The first line that has another form than proc.rst says.
pub fn parse(text: &str) -> Result<Vec<MountLine>> {
    text.lines().map(|line| parse_line(line).with_context(|| format!("mountinfo has the line {line:?}"))).collect()
}

fn parse_line(line: &str) -> Option<MountLine> {
    let (mount, superblock) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let mut parsed = MountLine {
        id: fields.next()?.parse().ok()?,
        parent: fields.next()?.parse().ok()?,
        device: fields.next()?.to_owned(),
        root: unescaped(fields.next()?)?,
        point: unescaped(fields.next()?)?,
        options: fields.next()?.to_owned(),
        fs_type: superblock.split(' ').next()?.to_owned(),
        ..MountLine::default()
    };
    for tag in fields {
        match tag.split_once(':') {
            Some(("shared", group)) => parsed.shared = Some(group.parse().ok()?),
            Some(("master", group)) => parsed.master = Some(group.parse().ok()?),
            Some(_) => {}
            None => parsed.unbindable |= tag == "unbindable",
        }
    }
    Some(parsed)
}

/// The kernel writes space, tab, newline and backslash as three octal digits behind a backslash (seq_path).
fn unescaped(field: &str) -> Option<String> {
    let mut parts = field.split('\\');
    let mut text = parts.next()?.to_owned();
    for part in parts {
        text.push(u8::from_str_radix(part.get(..3)?, 8).ok()?.into());
        text.push_str(&part[3..]);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        "36 35 98:0 /mnt1 /tmp/a rw,noatime shared:1 master:2 propagate_from:7 - ext3 /dev/root rw,errors=continue";

    #[test]
    fn a_line_gives_its_fields() {
        let line = &parse(LINE).unwrap()[0];
        assert_eq!((line.id, line.parent, line.device.as_str(), line.root.as_str()), (36, 35, "98:0", "/mnt1"));
        assert_eq!((line.shared, line.master, line.unbindable), (Some(1), Some(2), false));
        assert_eq!((line.options.as_str(), line.fs_type.as_str()), ("rw,noatime", "ext3"));
    }

    #[test]
    fn a_line_is_below_its_root_or_nothing() {
        let line = parse(LINE).unwrap().remove(0);
        assert_eq!(line.clone().below(Path::new("/tmp")).unwrap().point, "a");
        assert_eq!(line.clone().below(Path::new("/tmp/a")), None);
        assert_eq!(line.below(Path::new("/var")), None);
    }

    #[test]
    fn octal_escapes_become_what_they_stand_for() {
        assert_eq!(unescaped("/a\\040dir\\134x").as_deref(), Some("/a dir\\x"));
        assert_eq!(unescaped("/plain").as_deref(), Some("/plain"));
        assert_eq!(unescaped("/a\\04"), None);
    }

    #[test]
    fn a_cut_line_is_an_error() {
        assert!(parse("36 35 98:0 /mnt1 /mnt2 rw,noatime").is_err());
        assert!(parse("x 35 98:0 / /mnt2 rw - ext3 /dev/root rw").is_err());
    }
}
