//! The table of descriptors of a storm's process, as large beforehand as that of a daemon that has run for a while.

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that a storm may have: a tree for each of 100 layers in 512 threads. (containerd.service has LimitNOFILE=infinity.)
const DESCRIPTORS: u64 = 65_536;

/// Raises the limit as far as it goes, and makes room up to it.
///
/// A table that many threads share grows by doubling, and each time it does the caller waits for a grace period (expand_fdtable,
/// fs/file.c): tens of milliseconds, which in a storm would be taken for the cost of open_tree(2).
///
/// # Errors
/// The kernel refuses.
pub fn make_room() -> Result<()> {
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(DESCRIPTORS);
    let limit = hard.min(DESCRIPTORS);
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(hard) })
        .context("cannot raise the number of descriptors")?;
    let any = open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let last = i32::try_from(limit)? - 1;
    drop(fcntl_dupfd_cloexec(&any, last).with_context(|| format!("cannot make room for {limit} descriptors"))?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_afterwards() {
        make_room().unwrap();
        let limit = getrlimit(Resource::Nofile).current.unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap().trim().parse::<u64>().unwrap();
        assert!(size >= limit, "{size} of {limit}");
    }
}
