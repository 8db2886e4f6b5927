//! A stage of the work as events: begun, how far, and ended whatever happens.

use crate::event::{Event, Events};
use std::time::{Duration, Instant};

/// How often progress is told. More often is not seen by anybody.
const INTERVAL: Duration = Duration::from_millis(250);

/// A running stage. Dropped without [`Stage::finish`], it is told as failed.
pub struct Stage<'a> {
    events: Events<'a>,
    name: String,
    started: Instant,
    told: Instant,
    ended: bool,
}

impl<'a> Stage<'a> {
    /// Begins a stage.
    pub fn start(events: Events<'a>, name: impl Into<String>) -> Stage<'a> {
        let name = name.into();
        events.hear(&Event::StageStarted { stage: name.clone() });
        let now = Instant::now();
        Stage { events, name, started: now, told: now, ended: false }
    }

    /// Tells how far it is, at a bearable rate; `measure` yields done and total, and is called only when it is time.
    pub fn progress(&mut self, unit: &'static str, measure: impl FnOnce() -> (u64, Option<u64>)) {
        if self.told.elapsed() < INTERVAL {
            return;
        }
        self.told = Instant::now();
        let (done, total) = measure();
        self.events.hear(&Event::StageProgress { stage: self.name.clone(), done, total, unit });
    }

    /// Ends it well.
    pub fn finish(mut self, result: impl Into<String>) {
        self.end(result.into());
    }

    fn end(&mut self, result: String) {
        self.ended = true;
        let elapsed = self.started.elapsed();
        self.events.hear(&Event::StageFinished { stage: self.name.clone(), result, elapsed });
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.end("failed".into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Listener;

    #[derive(Default)]
    struct Heard(Vec<Event>);

    impl Listener for Heard {
        fn hear(&mut self, event: &Event) {
            self.0.push(event.clone());
        }
    }

    fn results(heard: &Heard) -> Vec<&str> {
        let result = |event: &'_ Event| matches!(event, Event::StageFinished { .. });
        let ended = heard.0.iter().filter(|event| result(event));
        ended.map(|event| if let Event::StageFinished { result, .. } = event { result.as_str() } else { "" }).collect()
    }

    #[test]
    fn a_stage_ends_once_and_a_dropped_one_has_failed() {
        let mut heard = Heard::default();
        Stage::start(&mut heard, "a").finish("done");
        drop(Stage::start(&mut heard, "b"));
        assert_eq!(results(&heard), ["done", "failed"]);
    }

    #[test]
    fn progress_is_measured_only_when_it_is_time() {
        let mut heard = Heard::default();
        Stage::start(&mut heard, "a").progress("bytes", || panic!("too early"));
        assert_eq!(heard.0.len(), 2);
    }
}
