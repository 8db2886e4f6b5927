//! What a spinning vCPU looks at: as long as none of it changes, looking again is a waste of the host's time (pure).
//!
//! Between two `pause` instructions of a loop that waits, a vCPU loads the same words and finds the same values, and stores nothing. When
//! that has happened twice in a row, it will go on happening until one of those words changes: until then the vCPU need not run at all. What
//! cannot be seen is a count kept in a register; so a wait is never skipped for longer than `spin` allows, and looked at again. Only code
//! near a `pause` tells what it loads and stores: a turn that leads through other code may hang on what that looks at, and is no wait that
//! we know (rwsem_down_write_slowpath(), kernel/locking/rwsem.c, looks at the count of the semaphore far from its `pause`).

/// Most loads of a loop that are remembered. The kernel's longest (rwsem_spin_on_owner) makes five.
const MOST: usize = 12;

/// A load: where its word lies in the host, how many bytes, what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Address in the host's memory.
    pub at: usize,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// What the vCPU found, little end first, the rest 0.
    pub found: u64,
}

/// Instructions that a vCPU has executed, by whether they tell their loads and stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Executed {
    /// All.
    pub all: u64,
    /// Those in blocks that tell.
    pub told: u64,
}

/// What a vCPU did between two pauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing but look at the same words as the time before, and find the same.
    Same,
    /// Nothing but look, and something was not as the time before.
    Changed,
    /// More than that, or what cannot be seen.
    Unknown,
}

/// The looks of one vCPU's loop.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    now: Vec<Look>,
    before: Vec<Look>,
    /// Something happened that can not be watched.
    blind: bool,
    /// At the last pause.
    executed: Executed,
}

impl Watch {
    /// The vCPU has loaded a word.
    pub fn load(&mut self, look: Look) {
        if self.now.len() < MOST {
            self.now.push(look);
        } else {
            self.blind = true;
        }
    }

    /// The vCPU has done something that is more than looking, or looked where we cannot.
    pub fn disturb(&mut self) {
        self.blind = true;
    }

    /// The vCPU pauses.
    pub fn pause(&mut self, executed: Executed) -> Turn {
        let last = std::mem::replace(&mut self.executed, executed);
        let told_all = executed.all - last.all == executed.told - last.told;
        let turn = match told_all && !self.blind && !self.now.is_empty() {
            false => Turn::Unknown,
            true if self.now == self.before => Turn::Same,
            true => Turn::Changed,
        };
        std::mem::swap(&mut self.now, &mut self.before);
        self.now.clear();
        self.blind = false;
        turn
    }

    /// Whether a word is no longer what it was when the vCPU last looked; `read` reads the host's memory.
    pub fn changed(&self, read: impl Fn(usize, u8) -> u64) -> bool {
        self.before.iter().any(|look| read(look.at, look.size) != look.found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORD: Look = Look { at: 0x1000, size: 4, found: 1 };

    fn turn(watch: &mut Watch, looks: &[Look]) -> Turn {
        looks.iter().for_each(|look| watch.load(*look));
        let Executed { all, told } = watch.executed;
        watch.pause(Executed { all: all + 5, told: told + 5 })
    }

    #[test]
    fn the_second_equal_turn_is_a_wait() {
        let mut watch = Watch::default();
        assert_eq!(turn(&mut watch, &[WORD]), Turn::Changed);
        assert_eq!(turn(&mut watch, &[WORD]), Turn::Same);
        assert_eq!(turn(&mut watch, &[Look { found: 2, ..WORD }]), Turn::Changed, "something else was found");
        assert_eq!(turn(&mut watch, &[WORD, WORD]), Turn::Changed, "another path was taken");
    }

    #[test]
    fn a_turn_that_does_something_is_none() {
        let mut watch = Watch::default();
        turn(&mut watch, &[WORD]);
        watch.disturb();
        assert_eq!(turn(&mut watch, &[WORD]), Turn::Unknown);
        assert_eq!(turn(&mut watch, &[WORD]), Turn::Same);
        let nothing = Watch::default().pause(Executed::default());
        assert_eq!(nothing, Turn::Unknown, "nothing was looked at: there is nothing to wait for");
        let many = [WORD; MOST + 1];
        turn(&mut watch, &many);
        assert_eq!(turn(&mut watch, &many), Turn::Unknown, "too much to remember");
    }

    #[test]
    fn a_turn_through_code_that_does_not_tell_is_none() {
        let mut watch = Watch::default();
        turn(&mut watch, &[WORD]);
        watch.load(WORD);
        let Executed { all, told } = watch.executed;
        let turned = watch.pause(Executed { all: all + 6, told: told + 5 });
        assert_eq!(turned, Turn::Unknown, "one instruction may have looked elsewhere");
        assert_eq!(turn(&mut watch, &[WORD]), Turn::Same, "the next did not");
    }

    #[test]
    fn a_change_of_any_word_ends_the_wait() {
        let mut watch = Watch::default();
        let looks = [WORD, Look { at: 0x2000, size: 8, found: 9 }];
        turn(&mut watch, &looks);
        turn(&mut watch, &looks);
        assert!(!watch.changed(|at, _| if at == 0x1000 { 1 } else { 9 }));
        assert!(watch.changed(|at, _| if at == 0x1000 { 1 } else { 8 }));
    }
}
