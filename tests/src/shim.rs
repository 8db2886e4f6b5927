//! A pod's shim: a process of its own that mounts the pod's root. It lives as long as the storm, as a shim does as long as its pod.
//!
//! containerd asks its shim over a socket (ttrpc), and so do we: one line of JSON there, one back. The process is started before the clock.

use crate::heap;
use crate::metrics::{CallLog, Calls};
use crate::user_ns::{self, IdMap};
use crate::workload::{Pass, on_linux};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::Duration;

/// The argument with which this program is a shim.
pub const SHIM: &str = "shim";

/// How long a shim may take over one pass. The host's limits are shorter; this one is for a storm that nobody watches.
const PASS_LIMIT: Duration = Duration::from_secs(3600);

/// What a shim answers.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    calls: Calls,
    error: Option<String>,
}

/// A running shim; killed and reaped on drop.
#[derive(Debug)]
pub struct Shim {
    child: Child,
    stream: Mutex<BufReader<UnixStream>>,
}

impl Shim {
    /// Starts one; with a map, its user namespace is made now and kept for all its passes.
    ///
    /// # Errors
    /// No process, no socket, or no user namespace, is to be had.
    pub fn start(map: Option<IdMap>) -> Result<Shim> {
        let (mut ours, theirs) = UnixStream::pair().context("a socket for a shim")?;
        ours.set_read_timeout(Some(PASS_LIMIT))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg(SHIM).stdin(Stdio::from(OwnedFd::from(theirs)));
        let child = command.spawn().context("cannot start a shim")?;
        ours.write_all((serde_json::to_string(&map)? + "\n").as_bytes())?;
        let mut shim = Shim { child, stream: Mutex::new(BufReader::new(ours)) };
        // It is there when it says so: the start of processes is no part of a storm.
        let mut hello = String::new();
        shim.stream.get_mut().map_err(|_| anyhow::anyhow!("a shim's lock is broken"))?.read_line(&mut hello)?;
        ensure!(hello == "ready\n", "a shim did not start: it said {hello:?}");
        Ok(shim)
    }

    /// Its process id, for one who kills it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has the shim run a pass; its calls are logged as if they were our own.
    ///
    /// # Errors
    /// The call that failed in the shim, or the shim is gone.
    pub fn run(&self, pass: &Pass, log: &mut CallLog<'_>) -> Result<()> {
        let Ok(mut stream) = self.stream.lock() else { bail!("a thread that used the shim panicked") };
        let order = serde_json::to_string(pass)? + "\n";
        stream.get_mut().write_all(order.as_bytes()).context("cannot reach the shim")?;
        let mut line = String::new();
        stream.read_line(&mut line).context("the shim does not answer")?;
        let answer: Answer =
            serde_json::from_str(&line).with_context(|| format!("the shim is gone: it said {line:?}"))?;
        log.absorb(answer.calls);
        answer.error.map_or(Ok(()), |error| bail!("in the shim: {error}"))
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the shim's process does: passes, until the socket on its stdin is closed.
pub fn serve() -> ExitCode {
    // Nothing outlives the storm, however it ends.
    if rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).is_err() {
        return ExitCode::from(3);
    }
    match serve_on_stdin() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-guest shim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve_on_stdin() -> Result<()> {
    let stream = UnixStream::from(rustix::io::dup(rustix::stdio::stdin())?);
    let mut answers = stream.try_clone()?;
    let mut orders = BufReader::new(stream).lines();
    let Some(map) = orders.next() else { return Ok(()) };
    let map: Option<IdMap> = serde_json::from_str(&map?)?;
    let user_ns = map.map(|map| user_ns::open(map, false)).transpose()?;
    // A shim has run for a while when it mounts its pod's root.
    heap::keep();
    heap::warm();
    answers.write_all(b"ready\n")?;
    for order in orders {
        let pass: Pass = serde_json::from_str(&order?)?;
        let beat = Default::default();
        let mut log = CallLog::new(&beat);
        let done = on_linux(pass.recorded, &mut log, |kernel, log| match &user_ns {
            Some(user_ns) => pass.run_in(kernel, user_ns, log),
            None => pass.run(kernel, log),
        });
        let error = done.err().map(|error| format!("{error:#}"));
        let answer = serde_json::to_string(&Answer { calls: log.into_calls(), error })? + "\n";
        answers.write_all(answer.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Beat, CallKind};

    #[test]
    fn an_answer_carries_calls_and_error() {
        let beat = Beat::default();
        let mut log = CallLog::new(&beat);
        log.time(CallKind::OpenTree, || Ok::<_, ()>(())).unwrap();
        log.add_busy();
        let text = serde_json::to_string(&Answer { calls: log.into_calls(), error: Some("EPERM".into()) }).unwrap();
        let answer: Answer = serde_json::from_str(&text).unwrap();
        let mut ours = CallLog::new(&beat);
        let before = beat.count();
        ours.absorb(answer.calls);
        assert_eq!((ours.busy(), beat.count() - before), (1, 1));
        assert_eq!(answer.error.as_deref(), Some("EPERM"));
    }
}
