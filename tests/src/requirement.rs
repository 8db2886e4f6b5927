//! What a trial needs of the machine: named functions that skip it with a reason.
//!
//! Whether a call exists is judged by the kernel's release and never by trying it: a patched kernel that refuses what it should
//! grant must fail the trial, not skip it.

use crate::call::{Skip, Verdict};
use std::path::Path;

fn require(met: bool, reason: impl FnOnce() -> String) -> Verdict {
    if met { Ok(()) } else { Err(Skip(reason()).into()) }
}

fn kernel(major: u32, minor: u32, what: &str) -> Verdict {
    require(is_linux(major, minor), || format!("{what} needs Linux {major}.{minor}, this is {}", release()))
}

fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Whether this kernel is of that release or a later one.
pub fn is_linux(major: u32, minor: u32) -> bool {
    parse_release(&release()).is_some_and(|have| have >= (major, minor))
}

/// fanotify(7) events of mounts: Linux 6.15.
///
/// # Errors
/// [`Skip`].
pub fn mount_events() -> Verdict {
    kernel(6, 15, "fanotify with FAN_REPORT_MNT")
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Idmapped mounts of tmpfs: Linux 6.3.
///
/// # Errors
/// [`Skip`].
pub fn idmapped_mounts() -> Verdict {
    kernel(6, 3, "an idmapped tmpfs")?;
    user_namespaces()
}

/// User namespaces that root may make.
///
/// # Errors
/// [`Skip`].
pub fn user_namespaces() -> Verdict {
    require(Path::new("/proc/self/ns/user").exists(), || "this kernel has no user namespaces".into())?;
    let limit = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    require(limit.trim() != "0", || "user.max_user_namespaces is 0".into())
}

/// overlayfs, built in or loaded.
///
/// # Errors
/// [`Skip`].
pub fn overlayfs() -> Verdict {
    file_system("overlay")
}

/// ext4 and loop devices.
///
/// # Errors
/// [`Skip`].
pub fn ext4_on_loop() -> Verdict {
    file_system("ext4")?;
    require(Path::new("/dev/loop-control").exists(), || "there is no /dev/loop-control".into())
}

fn file_system(name: &str) -> Verdict {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let found = known.lines().any(|line| line.split_whitespace().last() == Some(name));
    require(found, || format!("/proc/filesystems does not name {name}"))
}

/// statmount(2), listmount(2) and unique mount ids: Linux 6.8.
///
/// # Errors
/// [`Skip`].
pub fn statmount() -> Verdict {
    kernel(6, 8, "statmount")
}

/// The idmap in statmount(2), and all of what may be done with trees that were never attached: Linux 6.15.
///
/// # Errors
/// [`Skip`].
pub fn detached_trees() -> Verdict {
    kernel(6, 15, "a mount on or below a detached tree")
}

/// A mount beneath a locked one takes its lock over. First seen in Linux 7.3, which may not be the
/// first that does it.
///
/// # Errors
/// [`Skip`].
pub fn lock_is_handed_down() -> Verdict {
    kernel(7, 3, "a mount beneath a locked one")?;
    user_namespaces()
}

/// A mount whose mountpoint is removed in another namespace keeps hiding what it covered. First seen in Linux 7.3.
///
/// # Errors
/// [`Skip`].
pub fn removal_leaves_covers() -> Verdict {
    kernel(7, 3, "a cover after a removal elsewhere")
}

/// The copy of an unbindable mount in a new namespace is unbindable as well. First seen in Linux 7.3.
///
/// # Errors
/// [`Skip`].
pub fn copies_stay_unbindable() -> Verdict {
    kernel(7, 3, "an unbindable mount in a copied namespace")
}

/// overlayfs whose mounts may be idmapped themselves. First seen in Linux 7.3.
///
/// # Errors
/// [`Skip`].
pub fn idmapped_overlays() -> Verdict {
    kernel(7, 3, "an idmapped overlay")
}

/// Memory that is free as soon as it is freed. KASAN keeps it in quarantine for a while (mm/kasan/quarantine.c), to see who uses it still.
///
/// # Errors
/// [`Skip`].
pub fn freed_memory_is_free() -> Verdict {
    require(!has_quarantine(), || "KASAN keeps freed memory in quarantine".to_owned())
}

/// Thousands of mounts in seconds. With KASAN each access to memory is a call.
///
/// # Errors
/// [`Skip`].
pub fn thousands_of_mounts_take_seconds() -> Verdict {
    require(!has_quarantine(), || "thousands of mounts take minutes under KASAN".to_owned())
}

/// Whether this kernel has KASAN's quarantine.
pub fn has_quarantine() -> bool {
    std::fs::read_to_string("/proc/kallsyms").unwrap_or_default().contains(" kasan_quarantine_put")
}

/// Allocations that fail on demand: CONFIG_FAULT_INJECTION, FAILSLAB and FAIL_PAGE_ALLOC, chosen in debugfs.
///
/// # Errors
/// [`Skip`].
pub fn fault_injection() -> Verdict {
    let file = "/proc/thread-self/fail-nth";
    require(Path::new(file).exists(), || format!("there is no {file} (CONFIG_FAULT_INJECTION): --lane faults has it"))
}

/// Two CPUs, for trials that race.
///
/// # Errors
/// [`Skip`].
pub fn two_cpus() -> Verdict {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    require(cpus >= 2, || format!("a race needs 2 CPUs, this machine has {cpus}"))
}

/// A kernel of our own, whose global limits we may change: process 1 is this very program.
///
/// # Errors
/// [`Skip`].
pub fn own_kernel() -> Verdict {
    let ours = std::fs::read_link("/proc/1/exe").ok() == std::fs::read_link("/proc/self/exe").ok();
    require(ours, || "it changes a limit of the whole machine, and this machine is not only ours".into())
}

/// The limit of mounts per namespace as a file: CONFIG_PROC_SYSCTL.
///
/// # Errors
/// [`Skip`].
pub fn mount_max() -> Verdict {
    let file = "/proc/sys/fs/mount-max";
    require(Path::new(file).exists(), || format!("there is no {file} (CONFIG_PROC_SYSCTL)"))
}

#[cfg(test)]
mod tests {
    use super::parse_release;

    #[test]
    fn a_release_begins_with_two_numbers() {
        assert_eq!(parse_release("7.3.4"), Some((7, 3)));
        assert_eq!(parse_release("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(parse_release("7.4-rc1"), Some((7, 4)));
        assert_eq!(parse_release("next"), None);
    }
}
