//! Goes through all that a machine can do.

use super::machine::{Machine, State, Step, Violation};
use super::program::Word;
use std::collections::HashSet;

/// The most states before it is given up; far more than any scenario has.
const MOST_STATES: usize = 5_000_000;

/// What must not happen but does, and the steps that lead to it.
pub type Bad = (Violation, Vec<String>);

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// How many different states were seen.
    pub states: usize,
    /// How many of them are ends.
    pub ends: usize,
    /// The first violation, with the fewest steps that lead to it.
    pub violation: Option<Bad>,
}

/// Breadth first, so that what is found first is reached in the fewest steps.
pub fn explore(machine: &Machine, words: &[(Word, u8)], readers: u8) -> Found {
    let start = match machine.start(words, readers) {
        Ok(start) => start,
        Err(violation) => return Found { states: 0, ends: 0, violation: Some((violation, Vec::new())) },
    };
    let mut search = Search { machine, seen: HashSet::new(), way: Vec::new(), ends: 0 };
    let mut level = search.fresh(start, Step::default(), usize::MAX);
    while !level.is_empty() {
        match search.level(level) {
            Ok(next) => level = next,
            Err(bad) => return search.found(Some(bad)),
        }
    }
    search.found(None)
}

struct Search<'a> {
    machine: &'a Machine,
    seen: HashSet<State>,
    /// How each state was reached: the last step, and the way before it; that of the first has none.
    way: Vec<(Step, usize)>,
    ends: usize,
}

impl Search<'_> {
    /// Takes one step from each of these.
    fn level(&mut self, level: Vec<(State, usize)>) -> Result<Vec<(State, usize)>, Bad> {
        let mut next = Vec::new();
        for (state, way) in level {
            let end = self.machine.at_end(&state).map_err(|violation| (violation, self.trace(way)))?;
            self.ends += usize::from(end);
            for (step, reached) in self.machine.steps(&state) {
                let reached = reached.map_err(|violation| (violation, self.trace_with(way, step)))?;
                next.extend(self.fresh(reached, step, way));
            }
        }
        Ok(next)
    }

    /// Those of the states that are new, with the way to each.
    fn fresh(&mut self, states: Vec<State>, step: Step, way: usize) -> Vec<(State, usize)> {
        assert!(self.seen.len() < MOST_STATES, "too many states: make the scenario smaller");
        let mut fresh = Vec::new();
        for state in states {
            if self.seen.insert(state.clone()) {
                self.way.push((step, way));
                fresh.push((state, self.way.len() - 1));
            }
        }
        fresh
    }

    fn trace(&self, mut way: usize) -> Vec<String> {
        let mut trace = Vec::new();
        while let Some((step, before)) = self.way.get(way).filter(|(_, before)| *before != usize::MAX) {
            trace.push(self.machine.describe(*step));
            way = *before;
        }
        trace.reverse();
        trace
    }

    fn trace_with(&self, way: usize, last: Step) -> Vec<String> {
        let mut trace = self.trace(way);
        trace.push(self.machine.describe(last));
        trace
    }

    fn found(&self, violation: Option<Bad>) -> Found {
        Found { states: self.seen.len(), ends: self.ends, violation }
    }
}
