//! How a boot ended, from what was seen: one pure function.

use super::{BootLog, End};
use crate::console;
use crate::failure::{Exit, Failure};
use mount_storms::protocol::GuestEvent;

/// Lines of splats that a message shows.
const SPLAT_LINES_SHOWN: usize = 5;

/// Why watching stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The guest's last line was `Done`.
    Done,
    /// The guest's last line was `Failed`; what it said.
    Failed(String),
    /// The same of a storm that had begun.
    StormFailed(String),
    /// A panic appeared on the console.
    Panicked,
    /// The machine ended by itself; how.
    Ended(String),
    /// A limit passed; which.
    Silent(String),
    /// Ctrl-C.
    Interrupted,
}

/// The verdict. What the console shows counts for more than what the guest says: a guest can be done and the kernel broken.
pub fn judge(seen: Seen, events: &[GuestEvent], console: &str) -> End {
    if seen == Seen::Interrupted {
        return End::Interrupted;
    }
    if let Some(line) = console::panic_line(console) {
        return End::Panic(line);
    }
    let splats = console::judge(console);
    match seen {
        Seen::Done | Seen::Failed(_) | Seen::StormFailed(_) if !splats.is_empty() => End::Splat(splats),
        Seen::Done if !said_hello(events) => {
            End::GuestFailed("it was done without a hello: which kernel ran is unknown".into())
        }
        Seen::Done => End::Finished,
        Seen::Failed(how) => End::GuestFailed(how),
        Seen::StormFailed(how) => End::StormFailed(how),
        Seen::Silent(limit) => End::Hang(format!("{limit}; {}", last_words(console, &splats))),
        Seen::Ended(how) => End::Died(format!("{how}; {}", last_words(console, &splats))),
        // The console line that was taken for a panic is judged above; it cannot be missing here but for a changed policy.
        Seen::Panicked => End::Panic(last_words(console, &splats)),
        Seen::Interrupted => End::Interrupted,
    }
}

fn said_hello(events: &[GuestEvent]) -> bool {
    events.iter().any(|event| matches!(event, GuestEvent::Hello { .. }))
}

fn last_words(console: &str, splats: &[String]) -> String {
    if let Some(first) = splats.first() {
        return format!("the console shows: {first}");
    }
    match console.lines().rfind(|line| !line.trim().is_empty()) {
        Some(line) => format!("last console line: {line}"),
        None => "the console is empty".into(),
    }
}

impl BootLog {
    /// The error that this boot's end stands for; `None` when it finished.
    pub fn failure(&self) -> Option<anyhow::Error> {
        let (exit, what) = match &self.end {
            End::Finished => return None,
            End::GuestFailed(how) => (Exit::Unavailable, format!("the guest could not do its job: {how}")),
            End::StormFailed(how) => {
                (Exit::Oracle, format!("the storm could not be made as containerd makes it: {how}"))
            }
            End::Panic(line) => (Exit::GuestPanic, format!("the guest's kernel panicked: {line}")),
            End::Splat(lines) => (Exit::GuestSplat, format!("the guest's console is not clean:\n{}", shown(lines))),
            End::Hang(how) => (Exit::GuestHang, format!("the guest hangs: {how}")),
            End::Died(how) => (Exit::MachineDied, format!("the machine went away under the guest: {how}")),
            End::Interrupted => (Exit::Interrupted, "interrupted: the boot was stopped".into()),
        };
        Some(Failure::error(exit, format!("{what}\nconsole: {}", self.console.display())))
    }
}

fn shown(lines: &[String]) -> String {
    let mut text: Vec<String> = lines.iter().take(SPLAT_LINES_SHOWN).map(|line| format!("  | {line}")).collect();
    if lines.len() > SPLAT_LINES_SHOWN {
        text.push(format!("  | and {} more", lines.len() - SPLAT_LINES_SHOWN));
    }
    text.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;

    const PANIC: &str = "<0>[    1.2] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n";
    const SPLAT: &str = "<4>[    1.2] WARNING: CPU: 0 PID: 1 at fs/namespace.c:1 attach_mnt+0x1/0x2\n";
    const CLEAN: &str = "Linux is up\n";

    fn hello() -> Vec<GuestEvent> {
        vec![GuestEvent::Hello { protocol: 1, kernel_release: "7.3.4".into(), cpus: 2, memory_kib: 1 }]
    }

    #[test]
    fn done_with_a_clean_console_is_finished() {
        assert_eq!(judge(Seen::Done, &hello(), CLEAN), End::Finished);
        assert!(matches!(judge(Seen::Done, &[], CLEAN), End::GuestFailed(_)));
    }

    #[test]
    fn the_console_counts_for_more_than_the_guests_word() {
        assert!(
            matches!(judge(Seen::Done, &hello(), PANIC), End::Panic(line) if line.contains("Attempted to kill init"))
        );
        assert!(matches!(judge(Seen::Done, &hello(), SPLAT), End::Splat(_)));
        assert!(matches!(judge(Seen::Failed("x".into()), &hello(), SPLAT), End::Splat(_)));
        assert!(matches!(judge(Seen::Ended("exit status 0".into()), &hello(), PANIC), End::Panic(_)));
    }

    #[test]
    fn hang_and_death_carry_the_last_console_line() {
        let limit = "no event for 5.0 s".to_owned();
        let End::Hang(how) = judge(Seen::Silent(limit), &hello(), "one\ntwo\n\n") else { panic!("no hang") };
        assert_eq!(how, "no event for 5.0 s; last console line: two");
        let End::Died(how) = judge(Seen::Ended("was killed".into()), &[], "") else { panic!("no death") };
        assert_eq!(how, "was killed; the console is empty");
        let End::Died(how) = judge(Seen::Ended("was killed".into()), &[], SPLAT) else { panic!("no death") };
        assert!(how.contains("WARNING"), "{how}");
    }

    #[test]
    fn ctrl_c_is_never_blamed_on_the_guest() {
        assert_eq!(judge(Seen::Interrupted, &hello(), PANIC), End::Interrupted);
    }

    #[test]
    fn each_end_has_its_exit_code() {
        let exit = |end: End| {
            let log = BootLog { events: vec![], end, console: "/b/console.log".into(), wall_s: 1.0, summary: None };
            log.failure().map(|error| exit_code(&error))
        };
        assert_eq!(exit(End::Finished), None);
        assert_eq!(exit(End::GuestFailed("x".into())), Some(Exit::Unavailable));
        assert_eq!(exit(judge(Seen::StormFailed("EBUSY".into()), &hello(), CLEAN)), Some(Exit::Oracle));
        assert_eq!(exit(End::Panic("x".into())), Some(Exit::GuestPanic));
        assert_eq!(exit(End::Splat(vec!["x".into()])), Some(Exit::GuestSplat));
        assert_eq!(exit(End::Hang("x".into())), Some(Exit::GuestHang));
        assert_eq!(exit(End::Died("x".into())), Some(Exit::MachineDied));
        assert_eq!(exit(End::Interrupted), Some(Exit::Interrupted));
    }
}
