//! What killed a mutant, from what its boots showed: pure functions.

use crate::machine::{BootLog, End};
use mount_storms::kmsg::MARKER;
use mount_storms::protocol::{GuestEvent, Outcome, TrialResult};
use serde::{Deserialize, Serialize};

/// Letters of a reason that a table shows.
const REASON_SHOWN: usize = 160;

/// What became of a mutant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// Something saw that it is broken.
    Killed {
        /// What saw it.
        by: Killer,
        /// What it saw, in one line.
        why: String,
    },
    /// Nothing did.
    Survived {
        /// What is known of it.
        why: String,
    },
}

impl Verdict {
    /// The trial that killed.
    pub fn trial(&self) -> Option<&str> {
        match self {
            Verdict::Killed { by: Killer::Trial(name), .. } => Some(name),
            _ => None,
        }
    }

    /// Whether it was killed by what a guest that is slow, or cannot work on any kernel, shows as well.
    pub fn needs_whole_run(&self) -> bool {
        matches!(self, Verdict::Killed { by: Killer::Oracle | Killer::Hang | Killer::Guest, .. })
    }
}

/// What can see that a kernel is broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Killer {
    /// A trial, by its full name.
    Trial(String),
    /// An oracle of a storm.
    Oracle,
    /// The kernel itself, in a splat.
    Splat,
    /// The kernel itself, in a panic.
    Panic,
    /// A limit: nothing was heard any more.
    Hang,
    /// The guest could not do its job at all.
    Guest,
}

impl std::fmt::Display for Killer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Killer::Trial(name) => f.write_str(name),
            Killer::Oracle => f.write_str("a storm's oracle"),
            Killer::Splat => f.write_str("a splat"),
            Killer::Panic => f.write_str("a panic"),
            Killer::Hang => f.write_str("a hang"),
            Killer::Guest => f.write_str("the guest"),
        }
    }
}

/// Who killed the kernel of a boot, and why; none if it looks whole. `splats` are what its console shows.
///
/// # Errors
/// The boot says nothing about the kernel: it was stopped, or the machine went away under a kernel that had not complained.
pub fn killer(log: &BootLog, splats: &[String]) -> anyhow::Result<Option<(Killer, String)>> {
    if let Some(failed) = first_failure(&log.events) {
        return Ok(Some(failed));
    }
    let ended_in = |why: &str| match last_trial(&log.events) {
        Some(trial) => one_line(&format!("in {trial}: {why}")),
        None => one_line(why),
    };
    Ok(match &log.end {
        End::Finished => None,
        // An oops comes first and says more than the panic that follows.
        End::Panic(line) => Some((Killer::Panic, ended_in(splats.first().unwrap_or(line)))),
        End::Splat(lines) => Some((Killer::Splat, one_line(&lines.join(" | ")))),
        End::Hang(how) => Some((Killer::Hang, ended_in(how))),
        End::StormFailed(how) => Some((Killer::Oracle, one_line(how))),
        End::GuestFailed(how) => Some((Killer::Guest, one_line(how))),
        End::Died(_) | End::Interrupted => return Err(log.failure().unwrap_or_else(|| anyhow::anyhow!("stopped"))),
    })
}

/// The first trial or oracle that did not hold.
fn first_failure(events: &[GuestEvent]) -> Option<(Killer, String)> {
    events.iter().find_map(|event| match event {
        GuestEvent::Trial(TrialResult { name, outcome: Outcome::Failed { why }, .. }) => {
            Some((Killer::Trial(name.clone()), one_line(why)))
        }
        GuestEvent::Sample(sample) => sample.oracle.failures.first().map(|why| (Killer::Oracle, one_line(why))),
        _ => None,
    })
}

/// How many trials ran and were not skipped.
pub fn trials_run(events: &[GuestEvent]) -> u64 {
    let ran = |event: &&GuestEvent| matches!(event, GuestEvent::Trial(trial) if !matches!(trial.outcome, Outcome::Skipped { .. }));
    events.iter().filter(ran).count() as u64
}

/// The trial that began last.
fn last_trial(events: &[GuestEvent]) -> Option<&str> {
    events.iter().rev().find_map(|event| match event {
        GuestEvent::Note { text } => text.strip_prefix(MARKER),
        _ => None,
    })
}

/// A reason as a table shows it.
fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(REASON_SHOWN) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn log(end: End, events: Vec<GuestEvent>) -> BootLog {
        BootLog { events, end, console: PathBuf::from("console.log"), wall_s: 1.0, summary: None }
    }

    fn trial(name: &str, outcome: Outcome) -> GuestEvent {
        GuestEvent::Trial(TrialResult { name: name.into(), outcome, elapsed_ms: 1 })
    }

    #[test]
    fn the_first_failed_trial_is_the_killer_whatever_came_after() {
        let failed = |why: &str| Outcome::Failed { why: why.into() };
        let events = vec![
            trial("a::b", Outcome::Passed),
            trial("c::d", failed("EBUSY\n  expected")),
            trial("e::f", failed("x")),
        ];
        let found = killer(&log(End::Panic("later".into()), events.clone()), &[]).unwrap();
        assert_eq!(found, Some((Killer::Trial("c::d".into()), "EBUSY expected".into())));
        assert_eq!(trials_run(&events), 3);
    }

    #[test]
    fn a_clean_boot_kills_nobody() {
        let skipped = Outcome::Skipped { why: "one CPU".into() };
        let events = vec![trial("a::b", Outcome::Passed), trial("a::c", skipped)];
        assert_eq!(trials_run(&events), 1);
        assert_eq!(killer(&log(End::Finished, events), &[]).unwrap(), None);
    }

    #[test]
    fn panics_splats_and_hangs_kill_and_name_the_trial_they_ended_in() {
        let begun = |trial: &str| GuestEvent::Note { text: format!("{MARKER}{trial}") };
        let oops = ["BUG: NULL".to_owned()];
        let found = |end| killer(&log(end, vec![begun("a::b"), begun("c::d")]), &oops).unwrap().unwrap();
        assert_eq!(found(End::Panic("Kernel panic".into())), (Killer::Panic, "in c::d: BUG: NULL".into()));
        assert_eq!(found(End::Hang("silent".into())), (Killer::Hang, "in c::d: silent".into()));
        assert_eq!(found(End::Splat(vec!["a".into(), "b".into()])), (Killer::Splat, "a | b".into()));
        assert_eq!(found(End::GuestFailed("no proc".into())).0, Killer::Guest);
        assert_eq!(found(End::StormFailed("umount: EBUSY".into())), (Killer::Oracle, "umount: EBUSY".into()));
    }

    #[test]
    fn a_machine_that_goes_away_says_nothing_about_the_kernel() {
        assert!(killer(&log(End::Died("killed".into()), vec![]), &[]).is_err());
        assert!(killer(&log(End::Interrupted, vec![]), &[]).is_err());
    }

    #[test]
    fn reasons_are_short() {
        assert_eq!(one_line(&"ä ".repeat(200)).chars().count(), REASON_SHOWN + 3);
    }
}
