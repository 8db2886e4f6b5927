//! Watching a guest: follows its events and console, enforces the limits, and says how it ended.

use super::tail::Tail;
use super::verdict::{self, Seen};
use super::{Boot, BootLog, Limits};
use crate::failure::{Exit, Failure};
use crate::process::{POLL, interrupted};
use anyhow::Result;
use mount_storms::protocol::{CONSOLE_PREFIX, GuestEvent, PROTOCOL, STORM_STAGE};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a guest that has said its last word may take to power off by itself (under TCG about half a second).
const POWER_OFF: Duration = Duration::from_secs(5);

/// How long a panicked kernel may go on printing its trace (panic=-1 ends it at once after that).
const PANIC_TRACE: Duration = Duration::from_secs(3);

/// A machine that has been started.
pub trait Running {
    /// Says how it ended, once it has. Called at each poll, so a machine can also do its own regular work here.
    fn ended(&mut self) -> Result<Option<String>>;
    /// Ends it now; returns when nothing of it is left.
    fn stop(&mut self);
}

/// Name of the event file in a boot's folder.
pub fn events_path(dir: &Path) -> PathBuf {
    dir.join("events.jsonl")
}

/// Name of the console file in a boot's folder.
pub fn console_path(dir: &Path) -> PathBuf {
    dir.join("console.log")
}

/// The last two lines of a program's own log, as part of a sentence: ", having said: ...", or nothing.
pub fn last_said(log: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.as_slice() {
        [] => String::new(),
        [.., before, last] => format!(", having said: {before}; {last}"),
        [last] => format!(", having said: {last}"),
    }
}

/// Follows `running` until it has ended, one way or the other.
///
/// # Errors
/// The guest speaks another protocol or runs another kernel than it was given: no verdict can be trusted then.
pub fn watch(running: &mut dyn Running, boot: &Boot<'_>, on_event: &mut dyn FnMut(&GuestEvent)) -> Result<BootLog> {
    let mut watcher = Watcher::new(boot, on_event);
    let outcome = watcher.follow(running);
    running.stop();
    let seen = outcome?;
    // What a silent machine says on being stopped is about the stopping.
    if !matches!(seen, Seen::Silent(_)) {
        watcher.read()?;
    }
    watcher.console.push_str(&watcher.console_tail.rest());
    Ok(BootLog {
        end: verdict::judge(seen, &watcher.events, &watcher.console),
        events: watcher.events,
        console: console_path(boot.dir),
        wall_s: watcher.start.elapsed().as_secs_f64(),
        summary: None,
    })
}

struct Watcher<'a> {
    limits: Limits,
    release: Option<&'a str>,
    on_event: &'a mut dyn FnMut(&GuestEvent),
    event_tail: Tail,
    console_tail: Tail,
    events: Vec<GuestEvent>,
    console: String,
    last_word: Option<Seen>,
    start: Instant,
    last_event: Option<Instant>,
}

impl<'a> Watcher<'a> {
    fn new(boot: &'a Boot<'_>, on_event: &'a mut dyn FnMut(&GuestEvent)) -> Watcher<'a> {
        Watcher {
            limits: boot.limits,
            release: boot.kernel.map(|kernel| kernel.release.as_str()),
            on_event,
            event_tail: Tail::new(&events_path(boot.dir)),
            console_tail: Tail::new(&console_path(boot.dir)),
            events: Vec::new(),
            console: String::new(),
            last_word: None,
            start: Instant::now(),
            last_event: None,
        }
    }

    fn follow(&mut self, running: &mut dyn Running) -> Result<Seen> {
        loop {
            // Asked before reading: what a machine wrote before it ended is then read below.
            let ended = running.ended()?;
            self.read()?;
            if let Some(seen) = self.last_word.clone() {
                self.wait_for_end(running, &seen)?;
                return Ok(seen);
            }
            if let Some(how) = ended {
                return Ok(Seen::Ended(how));
            }
            if interrupted() {
                return Ok(Seen::Interrupted);
            }
            if let Some(limit) = self.limit_passed() {
                return Ok(Seen::Silent(limit));
            }
            std::thread::sleep(POLL);
        }
    }

    fn wait_for_end(&mut self, running: &mut dyn Running, seen: &Seen) -> Result<()> {
        let limit = if matches!(seen, Seen::Panicked) { PANIC_TRACE } else { POWER_OFF };
        let start = Instant::now();
        while start.elapsed() < limit && !interrupted() && running.ended()?.is_none() {
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn limit_passed(&self) -> Option<String> {
        let passed = |since: Instant, limit: Duration| since.elapsed() > limit;
        let words = |what: &str, limit: Duration| Some(format!("{what} for {:.1} s", limit.as_secs_f64()));
        match self.last_event {
            None if passed(self.start, self.limits.hello) => words("no hello", self.limits.hello),
            Some(last) if passed(last, self.limits.silence) => words("no event", self.limits.silence),
            _ if passed(self.start, self.limits.total) => words("not done, running", self.limits.total),
            _ => None,
        }
    }

    fn read(&mut self) -> Result<()> {
        for line in self.console_tail.lines()? {
            self.console_line(&line)?;
        }
        for line in self.event_tail.lines()? {
            self.event_line(&line)?;
        }
        Ok(())
    }

    fn console_line(&mut self, line: &str) -> Result<()> {
        if let Some((_, event)) = line.split_once(CONSOLE_PREFIX) {
            return self.event_line(event);
        }
        if crate::console::panic_line(line).is_some() {
            self.last_word = Some(Seen::Panicked);
        }
        self.console.push_str(line);
        self.console.push('\n');
        Ok(())
    }

    /// A line that is no event ends the boot: a lost sample must not pass in silence.
    fn event_line(&mut self, line: &str) -> Result<()> {
        let event = serde_json::from_str(line).unwrap_or_else(|error| GuestEvent::Failed {
            stage: "reading the guest's events".into(),
            error: format!("line {} is no event ({error}): {line}", self.events.len() + 1),
        });
        self.check_hello(&event)?;
        self.last_event = Some(Instant::now());
        (self.on_event)(&event);
        self.note_last_word(&event);
        self.events.push(event);
        Ok(())
    }

    /// After its last word a guest says nothing more; the first counts.
    fn note_last_word(&mut self, event: &GuestEvent) {
        let word = match event {
            GuestEvent::Done => Seen::Done,
            GuestEvent::Failed { stage, error } if stage == STORM_STAGE => Seen::StormFailed(error.clone()),
            GuestEvent::Failed { stage, error } => Seen::Failed(format!("{stage}: {error}")),
            _ => return,
        };
        self.last_word.get_or_insert(word);
    }

    fn check_hello(&self, event: &GuestEvent) -> Result<()> {
        let GuestEvent::Hello { protocol, kernel_release, .. } = event else { return Ok(()) };
        if *protocol != PROTOCOL {
            let message = format!("the guest speaks protocol {protocol}, this is {PROTOCOL}; rebuild lab-guest");
            return Err(Failure::error(Exit::Unavailable, message));
        }
        match self.release {
            Some(release) if release != kernel_release => Err(other_kernel(release, kernel_release)),
            _ => Ok(()),
        }
    }
}

fn other_kernel(expected: &str, found: &str) -> anyhow::Error {
    let message = format!(
        "the guest runs kernel {found}, not {expected}: nothing it measures would be about {expected}\n\
         next: rebuild the kernel, or see whether the cache holds an image of another build"
    );
    Failure::error(Exit::Unavailable, message)
}
