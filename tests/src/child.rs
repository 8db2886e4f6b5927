//! A step of a trial in a process of its own, for what cannot be taken back: privileges, a root directory.

use crate::call::Verdict;
use crate::sys::fork;
use anyhow::{Context, ensure};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::io::{Read, Seek, Write};

/// Does `work` in a fork of this process, which must have no other threads, and waits for it. The trial's own limit is the limit: the
/// child is in the trial's process group.
///
/// # Errors
/// What `work` said, or how the child ended.
pub fn in_child(work: impl FnOnce() -> Verdict) -> Verdict {
    let mut said = File::from(rustix::fs::memfd_create("child", MemfdFlags::CLOEXEC)?);
    ensure!(std::fs::read_dir("/proc/self/task")?.count() == 1, "a process with threads must not fork");
    let child = fork(|| match work() {
        Ok(()) => 0,
        Err(error) => {
            let _ = write!(said, "{error:#}");
            1
        }
    });
    let status = waitpid(Pid::from_raw(child.context("fork")?), None).context("cannot wait for the child")?;
    let mut why = String::new();
    said.rewind()?;
    said.read_to_string(&mut why)?;
    ensure!(why.is_empty(), "{why}");
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "the child ended with {status:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    // A test's process has threads, and so must not fork: the suite's own trials use this.
    use super::*;

    #[test]
    fn a_process_with_threads_is_refused() {
        let waiting = std::thread::spawn(|| std::thread::park_timeout(std::time::Duration::from_secs(5)));
        let error = in_child(|| Ok(())).unwrap_err().to_string();
        assert!(error.contains("threads"), "{error}");
        waiting.thread().unpark();
    }
}
