//! A user namespace per pass, made as containerd makes it: by a child that lives only to hold it.

use crate::sys::UserNsChild;
use crate::topology::ID_COUNT;
use anyhow::{Context, Result};
use rustix::fd::OwnedFd;
use std::fs::{self, File};

/// Clones the child, writes its maps, opens its namespace; the child is killed and reaped on return.
///
/// # Errors
/// The step that failed.
pub fn open(host_id: u32) -> Result<OwnedFd> {
    let child = UserNsChild::spawn().context("clone CLONE_NEWUSER")?;
    let map = format!("0 {host_id} {ID_COUNT}");
    for name in ["uid_map", "gid_map"] {
        let path = format!("/proc/{}/{name}", child.pid);
        fs::write(&path, &map).with_context(|| format!("writing '{map}' to {path}"))?;
    }
    let path = format!("/proc/{}/ns/user", child.pid);
    Ok(File::open(&path).with_context(|| format!("open {path}"))?.into())
}
