//! Remounts: read-only for a mount or for the whole file system, against those who write.

use super::trials;
use mount_storms::call::{Refused, Verdict};
use mount_storms::scratch::Scratch;
use nix::errno::Errno;
use nix::mount::MsFlags;

trials!("remount":
    a_writer_anywhere_refuses_a_readonly_file_system,
    a_readonly_file_system_is_readonly_through_every_mount,
    a_readonly_bind_leaves_the_file_system_writable,
    a_writer_on_this_mount_refuses_a_readonly_bind,
    a_directory_that_is_no_mount_cannot_be_remounted,
);

/// The whole file system read-only.
const READONLY: MsFlags = MsFlags::MS_REMOUNT.union(MsFlags::MS_RDONLY);

/// One mount read-only.
const READONLY_BIND: MsFlags = READONLY.union(MsFlags::MS_BIND);

/// One file system at two places.
fn two_places(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    s.write("disk/file", "content")?;
    Ok(s.bind("disk", "view")?)
}

fn a_writer_anywhere_refuses_a_readonly_file_system(s: &Scratch) -> Verdict {
    two_places(s)?;
    let writer = s.open_writer("view/file")?;
    s.make("disk", READONLY).refused_with(Errno::EBUSY)?;
    s.write("disk/file", "still writable")?;
    drop(writer);
    Ok(s.make("disk", READONLY)?)
}

fn a_readonly_file_system_is_readonly_through_every_mount(s: &Scratch) -> Verdict {
    two_places(s)?;
    s.make("disk", READONLY)?;
    s.write("disk/file", "").refused_with(Errno::EROFS)?;
    s.write("view/file", "").refused_with(Errno::EROFS)?;
    s.make("disk", MsFlags::MS_REMOUNT)?;
    Ok(s.write("view/file", "writable again")?)
}

fn a_readonly_bind_leaves_the_file_system_writable(s: &Scratch) -> Verdict {
    two_places(s)?;
    let _writer = s.open_writer("disk/file")?;
    s.make("view", READONLY_BIND)?;
    s.write("view/file", "").refused_with(Errno::EROFS)?;
    Ok(s.write("disk/file", "writable")?)
}

fn a_writer_on_this_mount_refuses_a_readonly_bind(s: &Scratch) -> Verdict {
    two_places(s)?;
    let writer = s.open_writer("view/file")?;
    s.make("view", READONLY_BIND).refused_with(Errno::EBUSY)?;
    drop(writer);
    Ok(s.make("view", READONLY_BIND)?)
}

fn a_directory_that_is_no_mount_cannot_be_remounted(s: &Scratch) -> Verdict {
    two_places(s)?;
    s.dir("disk/plain")?;
    s.make("disk/plain", READONLY_BIND).refused_with(Errno::EINVAL)
}
