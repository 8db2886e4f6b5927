//! A process beside a trial's own, for what cannot be taken back (privileges, a root directory) and for a second opinion in another
//! namespace.

use crate::call::Verdict;
use crate::sys::fork;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long one side waits for the other: less than a trial may take.
const MEETING_LIMIT: Duration = Duration::from_secs(20);

/// One side of a meeting place.
#[derive(Debug)]
pub struct Meeting(UnixStream);

impl Meeting {
    /// Waits until the other side comes here as well.
    ///
    /// # Errors
    /// The other side is gone, or does not come within twenty seconds.
    pub fn meet(&self) -> Result<()> {
        let mut both = &self.0;
        both.write_all(b"m").and_then(|()| both.read_exact(&mut [0])).context("the other process does not come")
    }
}

/// A child that does its work beside us.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    said: File,
    meeting: Meeting,
}

impl Child {
    /// Forks this process, which must have no other threads. The trial's own limit is the child's: it is in the trial's process group.
    ///
    /// # Errors
    /// As fork(2).
    pub fn start(work: impl FnOnce(&Meeting) -> Verdict) -> Result<Child> {
        let mut said = File::from(rustix::fs::memfd_create("child", MemfdFlags::CLOEXEC)?);
        ensure!(std::fs::read_dir("/proc/self/task")?.count() == 1, "a process with threads must not fork");
        let (here, there) = UnixStream::pair()?;
        for side in [&here, &there] {
            side.set_read_timeout(Some(MEETING_LIMIT))?;
        }
        let pid = fork(|| match work(&Meeting(there)) {
            Ok(()) => 0,
            Err(error) => {
                let _ = write!(said, "{error:#}");
                1
            }
        });
        Ok(Child { pid: Pid::from_raw(pid.context("fork")?), said, meeting: Meeting(here) })
    }

    /// Waits until the child comes to its meeting as well.
    ///
    /// # Errors
    /// What ended the child instead.
    pub fn meet(&mut self) -> Verdict {
        match self.meeting.meet() {
            Ok(()) => Ok(()),
            Err(error) => bail!("{error:#}: {}", self.last_words()?),
        }
    }

    fn last_words(&mut self) -> Result<String> {
        let mut words = String::new();
        self.said.rewind()?;
        self.said.read_to_string(&mut words)?;
        Ok(words)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What it said, or how it ended.
    pub fn join(mut self) -> Verdict {
        let status = waitpid(self.pid, None).context("cannot wait for the child")?;
        let words = self.last_words()?;
        ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{words} (the child ended with {status:?})");
        Ok(())
    }
}

/// Does `work` in a fork of this process and waits for its end.
///
/// # Errors
/// As [`Child::start`] and [`Child::join`].
pub fn in_child(work: impl FnOnce() -> Verdict) -> Verdict {
    Child::start(|_| work())?.join()
}

#[cfg(test)]
mod tests {
    // A test's process has threads, and so must not fork: the suite's own trials use the rest.
    use super::*;

    #[test]
    fn a_process_with_threads_is_refused() {
        let waiting = std::thread::spawn(|| std::thread::park_timeout(Duration::from_secs(5)));
        let error = in_child(|| Ok(())).unwrap_err().to_string();
        assert!(error.contains("threads"), "{error}");
        waiting.thread().unpark();
    }

    #[test]
    fn a_side_that_is_gone_is_an_error_at_once() {
        let (here, there) = UnixStream::pair().unwrap();
        drop(there);
        assert!(Meeting(here).meet().is_err());
    }
}
