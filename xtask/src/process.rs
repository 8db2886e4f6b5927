//! Child processes: every wait has a limit, every failure shows the command, its status and the end of its log.

use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a waiting loop looks again. Short enough that no limit is overrun by a noticeable time.
pub const POLL: Duration = Duration::from_millis(20);

/// Lines of a log that an error shows.
const LOG_TAIL_LINES: usize = 15;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Groups that run, each by its leader's process number: make's own children would build on without us, into a folder that we no longer hold.
static RUNNING: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn running() -> MutexGuard<'static, BTreeSet<i32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the first Ctrl-C, or a terminal that goes away, a request to stop in good order, and the second an immediate exit, which kills what still runs.
pub fn watch_interrupts() -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                for &leader in running().iter() {
                    let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
                }
                eprintln!("mountlab: stopped at once; what still ran was killed");
                std::process::exit(Exit::Interrupted as i32);
            }
            eprintln!("mountlab: stopping in good order; Ctrl-C once more to exit at once");
        }
    });
    Ok(())
}

/// Whether Ctrl-C was pressed.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// An error if Ctrl-C was pressed; `what` names what was stopped.
pub fn check_interrupt(what: &str) -> Result<()> {
    if interrupted() {
        return Err(Failure::error(
            Exit::Interrupted,
            format!("interrupted: {what} was stopped; what was finished is kept"),
        ));
    }
    Ok(())
}

/// A running child in its own process group; dropping it kills the group.
pub struct Group {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Group {
    /// Starts `command` in a process group of its own. `setpriv --pdeathsig` in front of it ends it with its parent, even
    /// when the parent is killed with SIGKILL and cannot clean up. (The signal follows the thread that starts the command: keep it.)
    /// stdout and stderr both go to `output`.
    pub fn spawn(command: &Command, output: OwnedFd) -> Result<Group> {
        let mut wrapped = with_parent_death_signal(command);
        wrapped.stdout(output.try_clone()?).stderr(output).process_group(0);
        Group::of(wrapped.spawn()).with_context(|| format!("cannot start `{}`", shown(command)))
    }

    fn of(spawned: io::Result<Child>) -> io::Result<Group> {
        let child = spawned?;
        running().insert(child.id() as i32);
        Ok(Group { child, ended: None })
    }

    /// The exit status, once the child has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            // Once it is reaped its number may become another's: nobody may look at it meanwhile.
            let mut running = running();
            self.ended = self.child.try_wait()?;
            if self.ended.is_some() {
                running.remove(&(self.child.id() as i32));
            }
        }
        Ok(self.ended)
    }

    /// Asks the group to end, then kills it after `grace`. Reaps the child.
    pub fn stop(&mut self, grace: Duration) {
        if self.signal_and_wait(Signal::SIGTERM, grace) {
            return;
        }
        self.signal_and_wait(Signal::SIGKILL, Duration::from_secs(5));
    }

    fn signal_and_wait(&mut self, signal: Signal, limit: Duration) -> bool {
        let _ = killpg(Pid::from_raw(self.child.id() as i32), signal);
        let start = Instant::now();
        while start.elapsed() < limit {
            if !matches!(self.try_wait(), Ok(None)) {
                return true;
            }
            std::thread::sleep(POLL);
        }
        false
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.stop(Duration::from_millis(500));
        }
    }
}

/// `command` behind `setpriv --pdeathsig KILL` (util-linux, always there), keeping its directory and environment; it reads nothing from the
/// terminal unless told so.
pub fn with_parent_death_signal(command: &Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        wrapped.current_dir(dir);
    }
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(key, value),
            None => wrapped.env_remove(key),
        };
    }
    wrapped.stdin(Stdio::null());
    wrapped
}

/// A command to run to its end, with a limit and a log.
pub struct Task {
    command: Command,
    log: Option<PathBuf>,
    limit: Duration,
    exit: Exit,
    hint: String,
}

impl Task {
    /// A task of `command` (an `xshell::Cmd` converts with `.into()`), limited to ten minutes unless told otherwise.
    pub fn new(command: impl Into<Command>) -> Task {
        Task {
            command: command.into(),
            log: None,
            limit: Duration::from_secs(600),
            exit: Exit::Unavailable,
            hint: String::new(),
        }
    }

    /// Writes stdout and stderr to this file instead of a temporary one.
    pub fn log(mut self, path: impl Into<PathBuf>) -> Task {
        self.log = Some(path.into());
        self
    }

    /// The longest the command may run.
    pub fn limit(mut self, limit: Duration) -> Task {
        self.limit = limit;
        self
    }

    /// Exit code of a failure, and what the user should do next.
    pub fn on_failure(mut self, exit: Exit, hint: impl Into<String>) -> Task {
        self.exit = exit;
        self.hint = hint.into();
        self
    }

    /// Runs the command; returns its combined output.
    pub fn run(self) -> Result<String> {
        self.run_watched(|_| ())
    }

    /// Runs the command, calling `watch` with the log so far each [`POLL`] (for progress).
    pub fn run_watched(self, mut watch: impl FnMut(&Path)) -> Result<String> {
        let scratch = tempfile::NamedTempFile::new()?;
        let log = self.log.clone().unwrap_or_else(|| scratch.path().to_owned());
        let file = File::create(&log).with_context(|| format!("cannot write the log {}", log.display()))?;
        let mut wrapped = with_parent_death_signal(&self.command);
        wrapped.stdout(file.try_clone()?).stderr(file).process_group(0);
        let mut group =
            Group::of(wrapped.spawn()).map_err(|error| self.failed(&format!("cannot start: {error}"), &log))?;
        let start = Instant::now();
        let status = loop {
            if let Some(status) = group.try_wait()? {
                break status;
            }
            if interrupted() {
                group.stop(Duration::from_secs(2));
                check_interrupt(&shown(&self.command))?;
            }
            if start.elapsed() > self.limit {
                group.stop(Duration::from_secs(2));
                return Err(self.failed(&format!("ran past its limit of {} s", self.limit.as_secs()), &log));
            }
            watch(&log);
            std::thread::sleep(POLL);
        };
        if !status.success() {
            return Err(self.failed(&status_words(status), &log));
        }
        Ok(String::from_utf8_lossy(&fs::read(&log)?).into_owned())
    }

    fn failed(&self, how: &str, log: &Path) -> anyhow::Error {
        let tail = log_tail(log);
        let kept = self.log.as_ref().map(|log| format!("\nfull log: {}", log.display())).unwrap_or_default();
        let hint = if self.hint.is_empty() { String::new() } else { format!("\nnext: {}", self.hint) };
        Failure::error(self.exit, format!("`{}` {how}\n{tail}{kept}{hint}", shown(&self.command)))
    }
}

/// "exit status 2" or "was killed by signal 9 (SIGKILL)".
pub fn status_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit status {code}"),
        (None, Some(number)) => {
            let name = Signal::try_from(number).map(|signal| signal.as_str()).unwrap_or("unknown signal");
            format!("was killed by signal {number} ({name})")
        }
        (None, None) => "ended without a status".into(),
    }
}

/// The last lines of a log, each indented.
pub fn log_tail(log: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LOG_TAIL_LINES);
    lines[from..].iter().map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n")
}

/// A command as a person would type it.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./,:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;

    fn shell(script: &str) -> Task {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Task::new(command)
    }

    #[test]
    fn output_comes_back() {
        assert_eq!(shell("echo out; echo err >&2").run().unwrap(), "out\nerr\n");
    }

    #[test]
    fn a_failure_shows_command_status_log_and_hint() {
        let error = shell("echo last words; exit 3").on_failure(Exit::NoSpace, "free some space").run().unwrap_err();
        let text = error.to_string();
        for part in ["sh -c", "exit status 3", "last words", "next: free some space"] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
        assert_eq!(exit_code(&error), Exit::NoSpace);
    }

    #[test]
    fn a_limit_ends_the_whole_group() {
        let start = Instant::now();
        let error = shell("sleep 60 & sleep 60").limit(Duration::from_millis(100)).run().unwrap_err();
        assert!(error.to_string().contains("ran past its limit"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_group_is_known_while_it_runs() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let mut group = Group::spawn(&command, File::open("/dev/null").unwrap().into()).unwrap();
        let leader = group.child.id() as i32;
        assert!(running().contains(&leader));
        group.stop(Duration::from_secs(2));
        assert!(!running().contains(&leader));
    }

    #[test]
    fn a_signal_is_named() {
        let text = shell("kill -9 $$").run().unwrap_err().to_string();
        assert!(text.contains("signal 9 (SIGKILL)"), "{text}");
    }

    #[test]
    fn words_with_spaces_are_quoted() {
        let mut command = Command::new("make");
        command.args(["-j2", "A=b c"]);
        assert_eq!(shown(&command), "make -j2 'A=b c'");
    }
}
