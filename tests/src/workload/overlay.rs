//! The overlay mount with containerd's option string.

use super::{Kind, Pass, Starter};
use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount};
use std::ffi::CString;
use std::path::{Path, PathBuf};

/// containerd goes to relative paths when the options reach this length: the page size less 512, because the kernel copies one page
/// (core/mount/mount_linux.go).
const LONGEST_OPTIONS: usize = 4096 - 512;

/// Mounts the overlay of `lower` (uppermost first) on `target`.
pub fn mount_overlay(
    starter: &mut Starter<'_>,
    pass: &Pass<'_>,
    lower: &[PathBuf],
    target: &Path,
    kind: Kind,
) -> Result<()> {
    let absolute = options(pass, lower, kind);
    let result = if absolute.len() < LONGEST_OPTIONS {
        let absolute = CString::new(absolute)?;
        starter.calls.time("overlay_mount", || mount("overlay", target, "overlay", MountFlags::empty(), &*absolute))
    } else {
        let relative = CString::new(options(pass, &relative(lower, &pass.dir), kind))?;
        starter.calls.time("overlay_mount", || mount_from(&pass.dir, target, &relative))
    };
    result.with_context(|| format!("mounting the overlay {}", target.display()))
}

/// The option string, in containerd's order: lowerdir last.
fn options(pass: &Pass<'_>, lower: &[PathBuf], kind: Kind) -> String {
    let lower = lower.iter().map(|dir| dir.to_string_lossy()).collect::<Vec<_>>().join(":");
    let (work, upper) = (pass.container.work(), pass.container.upper());
    match kind {
        Kind::Rootfs => format!("workdir={},upperdir={},index=off,lowerdir={lower}", work.display(), upper.display()),
        Kind::Inspection => format!("index=off,lowerdir={lower}"),
    }
}

fn relative(lower: &[PathBuf], dir: &Path) -> Vec<PathBuf> {
    lower.iter().map(|path| path.strip_prefix(dir).unwrap_or(path).to_owned()).collect()
}

/// Mounts from within `dir`. A thread of its own gives up its share of the working directory first, as containerd's does.
fn mount_from(dir: &Path, target: &Path, options: &CString) -> rustix::io::Result<()> {
    let mount_there = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).map_err(|errno| errno_of(errno as i32))?;
        rustix::process::chdir(dir)?;
        mount("overlay", target, "overlay", MountFlags::empty(), &**options)
    };
    std::thread::scope(|scope| scope.spawn(mount_there).join().unwrap_or(Err(rustix::io::Errno::IO)))
}

fn errno_of(raw: i32) -> rustix::io::Errno {
    rustix::io::Errno::from_raw_os_error(raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Container;

    fn with_pass<T>(test: impl FnOnce(&Pass<'_>) -> T) -> T {
        let container = Container { number: 0, snapshot: "/s/active-0".into(), rootfs: "/r".into(), host_id: 1 };
        let user_ns = std::fs::File::open("/dev/null").unwrap().into();
        test(&Pass { container: &container, dir: "/s/tmp/T".into(), user_ns })
    }

    #[test]
    fn options_come_in_containerds_order() {
        let lower = ["/s/tmp/T/0".into(), "/s/tmp/T/1".into()];
        with_pass(|pass| {
            assert_eq!(
                options(pass, &lower, Kind::Rootfs),
                "workdir=/s/active-0/work,upperdir=/s/active-0/fs,index=off,lowerdir=/s/tmp/T/0:/s/tmp/T/1"
            );
            assert_eq!(options(pass, &lower, Kind::Inspection), "index=off,lowerdir=/s/tmp/T/0:/s/tmp/T/1");
        });
    }

    #[test]
    fn long_options_become_relative() {
        let lower = ["/s/tmp/T/0".into(), "/elsewhere".into()];
        assert_eq!(relative(&lower, Path::new("/s/tmp/T")), [PathBuf::from("0"), PathBuf::from("/elsewhere")]);
    }
}
