//! What happens while mountlab works, as values: whoever works reports these, and never knows the screen.

use crate::machine::End;
use mount_storms::protocol::GuestEvent;
use std::time::Duration;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A stage began ("build mainline").
    StageStarted {
        /// Its name; the same in the events that follow.
        stage: String,
    },
    /// How far a stage is.
    StageProgress {
        /// Which.
        stage: String,
        /// Units done.
        done: u64,
        /// Units in all, if known.
        total: Option<u64>,
        /// Of what: "bytes", "objects", "boots".
        unit: &'static str,
    },
    /// A stage came to its end.
    StageFinished {
        /// Which.
        stage: String,
        /// What came of it: "from the cache", "8 patches applied". May be empty.
        result: String,
        /// Real time it took.
        elapsed: Duration,
    },
    /// Something good to know.
    Note(String),
    /// Something that may spoil the answer.
    Warning(String),
    /// A boot began.
    BootStarted {
        /// Which: "patched, boot 2 of 5".
        boot: String,
    },
    /// A guest spoke.
    GuestSpoke {
        /// Which boot.
        boot: String,
        /// What it said.
        event: GuestEvent,
    },
    /// A boot ended.
    BootEnded {
        /// Which.
        boot: String,
        /// How.
        end: End,
        /// Real time it took, in seconds.
        wall_s: f64,
    },
}

/// Whoever wants to know.
pub trait Listener {
    /// Called once per event, in order.
    fn hear(&mut self, event: &Event);
}

/// Where workers send events.
pub type Events<'a> = &'a mut dyn Listener;
