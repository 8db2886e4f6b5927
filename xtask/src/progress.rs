//! Events on stderr: bars with the time left on a terminal, plain lines elsewhere.

use crate::event::{Event, Listener};
use crate::machine::End;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use mount_storms::kmsg::MARKER;
use mount_storms::protocol::{GuestEvent, Outcome};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often a plain log repeats how far a stage is.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// How often a bar moves by itself, so that a waiting one is seen to live.
const TICK: Duration = Duration::from_millis(200);

/// The listener that fits this process's stderr.
pub fn listener() -> Box<dyn Listener> {
    if std::io::stderr().is_terminal() {
        Box::new(Bars::new(ProgressDrawTarget::stderr()))
    } else {
        Box::new(Lines::default())
    }
}

/// Plain lines on stderr, not too many of them.
#[derive(Default)]
struct Lines {
    said: BTreeMap<String, Instant>,
}

impl Listener for Lines {
    fn hear(&mut self, event: &Event) {
        if self.is_due(event, Instant::now())
            && let Some(line) = line(event)
        {
            eprintln!("{line}");
        }
    }
}

impl Lines {
    /// Lets progress pass once per interval, starting one interval after the beginning, and everything else always.
    fn is_due(&mut self, event: &Event, now: Instant) -> bool {
        let Some(name) = progress_of(event) else { return true };
        let last = self.said.entry(name.to_owned()).or_insert(now);
        let due = now.duration_since(*last) >= PLAIN_INTERVAL;
        if due {
            *last = now;
        }
        due
    }
}

/// The stage or boot whose progress this is, if it is progress.
fn progress_of(event: &Event) -> Option<&str> {
    match event {
        Event::StageProgress { stage, .. } => Some(stage),
        Event::GuestSpoke { boot, event: GuestEvent::Progress { .. } } => Some(boot),
        _ => None,
    }
}

/// An event as one line; `None` for those that only move a bar.
fn line(event: &Event) -> Option<String> {
    Some(match event {
        Event::StageStarted { stage } => format!("{stage} ..."),
        Event::StageProgress { stage, done, total, unit } => format!("{stage}: {}", share(*done, *total, unit)),
        Event::StageFinished { stage, result, elapsed } if result.is_empty() => {
            format!("{stage}: {}", seconds(*elapsed))
        }
        Event::StageFinished { stage, result, elapsed } => format!("{stage}: {result}, {}", seconds(*elapsed)),
        Event::Note(text) => format!("note: {text}"),
        Event::Warning(text) => format!("warning: {text}"),
        Event::BootStarted { boot } => format!("{boot} ..."),
        Event::GuestSpoke { boot, event } => return guest_line(boot, event),
        Event::BootEnded { boot, end, wall_s } => format!("{boot}: {}, {wall_s:.1} s", end_words(end)),
    })
}

fn guest_line(boot: &str, event: &GuestEvent) -> Option<String> {
    Some(match event {
        GuestEvent::Hello { kernel_release, cpus, .. } => format!("{boot}: Linux {kernel_release} on {cpus} CPUs"),
        // For the log of events: a line per trial is too many for a screen.
        GuestEvent::Note { text } if text.starts_with(MARKER) => return None,
        GuestEvent::Note { text } => format!("{boot}: {text}"),
        GuestEvent::Progress { done, total, unit } => format!("{boot}: {}", share(*done, Some(*total), unit)),
        GuestEvent::Trial(trial) => match &trial.outcome {
            Outcome::Passed => return None,
            Outcome::Failed { why } => format!("{boot}: FAILED {}: {why}", trial.name),
            Outcome::Skipped { why } => format!("{boot}: skipped {}: {why}", trial.name),
        },
        GuestEvent::Failed { stage, error } => format!("{boot}: {stage}: {error}"),
        GuestEvent::Sample(_) | GuestEvent::Load(_) | GuestEvent::Done => return None,
    })
}

fn share(done: u64, total: Option<u64>, unit: &str) -> String {
    match total {
        Some(total) => format!("{done} of {total} {unit}"),
        None => format!("{done} {unit}"),
    }
}

fn seconds(elapsed: Duration) -> String {
    format!("{:.1} s", elapsed.as_secs_f64())
}

/// The verdict in a word or two, and its reason.
fn end_words(end: &End) -> String {
    match end {
        End::Finished => "done".into(),
        End::GuestFailed(how) | End::StormFailed(how) => format!("FAILED ({how})"),
        End::Panic(line) => format!("PANIC ({line})"),
        End::Splat(lines) => format!("SPLAT ({})", lines.first().map_or("", String::as_str)),
        End::Hang(how) => format!("HANG ({how})"),
        End::Died(how) => format!("DIED ({how})"),
        End::Interrupted => "interrupted".into(),
    }
}

/// Bars, one per running stage or boot, with finished ones left above as lines.
struct Bars {
    all: MultiProgress,
    running: BTreeMap<String, ProgressBar>,
}

impl Bars {
    fn new(target: ProgressDrawTarget) -> Bars {
        Bars { all: MultiProgress::with_draw_target(target), running: BTreeMap::new() }
    }

    fn start(&mut self, name: &str) {
        let bar = self.all.add(ProgressBar::no_length().with_style(spinner()).with_prefix(name.to_owned()));
        bar.enable_steady_tick(TICK);
        self.running.insert(name.to_owned(), bar);
    }

    fn advance(&mut self, name: &str, done: u64, total: Option<u64>, unit: &str) {
        let Some(bar) = self.running.get(name) else { return };
        if let Some(total) = total
            && bar.length() != Some(total)
        {
            bar.set_length(total);
            bar.set_style(bar_style(unit));
        }
        bar.set_position(done);
        bar.set_message(unit.to_owned());
    }

    fn finish(&mut self, name: &str) {
        if let Some(bar) = self.running.remove(name) {
            bar.finish_and_clear();
        }
    }

    fn say(&self, event: &Event) {
        if let Some(line) = line(event) {
            // Only a closed stderr can refuse a line, and then nobody reads it.
            let _ = self.all.println(line);
        }
    }
}

impl Listener for Bars {
    fn hear(&mut self, event: &Event) {
        match event {
            Event::StageStarted { stage: name } | Event::BootStarted { boot: name } => self.start(name),
            Event::StageProgress { stage, done, total, unit } => self.advance(stage, *done, *total, unit),
            Event::GuestSpoke { boot, event: GuestEvent::Progress { done, total, unit } } => {
                self.advance(boot, *done, Some(*total), unit);
            }
            Event::StageFinished { stage: name, .. } | Event::BootEnded { boot: name, .. } => {
                self.finish(name);
                self.say(event);
            }
            Event::Note(_) | Event::Warning(_) | Event::GuestSpoke { .. } => self.say(event),
        }
    }
}

fn spinner() -> ProgressStyle {
    style("{spinner} {prefix} {elapsed} {pos} {msg}")
}

fn bar_style(unit: &str) -> ProgressStyle {
    let position = if unit == "bytes" { "{bytes}/{total_bytes}" } else { "{pos}/{len} {msg}" };
    style(&format!("{{spinner}} {{prefix}} [{{bar:30}}] {position}, {{elapsed}}, {{eta}} left"))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates above are well formed").progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use mount_storms::protocol::TrialResult;

    fn progress(done: u64) -> Event {
        Event::StageProgress { stage: "build".into(), done, total: Some(900), unit: "objects" }
    }

    fn guest(event: GuestEvent) -> Option<String> {
        line(&Event::GuestSpoke { boot: "patched 1/5".into(), event })
    }

    #[test]
    fn plain_progress_is_rare_and_the_rest_is_not_held_back() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert!(!lines.is_due(&progress(1), at(0)));
        assert!(!lines.is_due(&progress(2), at(9_999)));
        assert!(lines.is_due(&progress(3), at(10_000)));
        assert!(!lines.is_due(&progress(4), at(10_001)));
        assert!(lines.is_due(&Event::Note("x".into()), at(10_002)));
    }

    #[test]
    fn lines_say_what_and_how_long() {
        assert_eq!(line(&progress(300)).unwrap(), "build: 300 of 900 objects");
        let elapsed = Duration::from_millis(1250);
        let finished = Event::StageFinished { stage: "build".into(), result: "from the cache".into(), elapsed };
        assert_eq!(line(&finished).unwrap(), "build: from the cache, 1.2 s");
        let ended = Event::BootEnded { boot: "b".into(), end: End::Hang("no event for 5 s".into()), wall_s: 6.0 };
        assert_eq!(line(&ended).unwrap(), "b: HANG (no event for 5 s), 6.0 s");
    }

    #[test]
    fn a_guests_samples_and_passed_trials_are_quiet() {
        let trial = |outcome| GuestEvent::Trial(TrialResult { name: "mount::x".into(), outcome, elapsed_ms: 1 });
        assert_eq!(guest(GuestEvent::Done), None);
        assert_eq!(guest(trial(Outcome::Passed)), None);
        let failed = guest(trial(Outcome::Failed { why: "2 is not 1".into() })).unwrap();
        assert_eq!(failed, "patched 1/5: FAILED mount::x: 2 is not 1");
    }

    #[test]
    fn a_bar_lives_from_start_to_finish() {
        let mut bars = Bars::new(ProgressDrawTarget::hidden());
        bars.hear(&Event::StageStarted { stage: "build".into() });
        bars.hear(&progress(300));
        let bar = bars.running["build"].clone();
        assert_eq!((bar.position(), bar.length()), (300, Some(900)));
        bars.hear(&Event::StageFinished { stage: "build".into(), result: String::new(), elapsed: Duration::ZERO });
        assert!(bar.is_finished() && bars.running.is_empty());
    }
}
