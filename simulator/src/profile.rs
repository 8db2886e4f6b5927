//! Samples in virtual time: where each vCPU is, once in so many instructions.

use crate::ring::Ticks;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Samples of all vCPUs, by stack (innermost address first).
#[derive(Debug, Default)]
pub struct Profile {
    stacks: BTreeMap<Vec<u64>, u64>,
    due: Vec<Ticks>,
}

impl Profile {
    /// How many samples are due of a vCPU that has been awake for so long since it was made: one for each period, several after a pause.
    pub fn due(&mut self, vcpu: usize, spent: Ticks, period: Ticks) -> u64 {
        if self.due.len() <= vcpu {
            self.due.resize(vcpu + 1, 0);
        }
        let due = (spent / period).saturating_sub(self.due[vcpu]);
        self.due[vcpu] += due;
        due
    }

    /// The region begins: what was before is not due any more.
    pub fn begin(&mut self, vcpu: usize, spent: Ticks, period: Ticks) {
        self.due(vcpu, spent, period);
    }

    /// Adds samples.
    pub fn add(&mut self, stack: Vec<u64>, samples: u64) {
        *self.stacks.entry(stack).or_insert(0) += samples;
    }

    /// One line for each stack: addresses in hexadecimal, outermost first, between semicolons; a space; the number of samples.
    pub fn folded(&self) -> String {
        let mut text = String::new();
        for (stack, count) in &self.stacks {
            let frames: Vec<String> = stack.iter().rev().map(|address| format!("{address:x}")).collect();
            let _ = writeln!(text, "{} {count}", frames.join(";"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_due_once_a_period() {
        let mut profile = Profile::default();
        profile.begin(3, 120, 100);
        let due = [150, 199, 200, 250, 950, 999, 1000].map(|spent| profile.due(3, spent, 100));
        assert_eq!(due, [0, 0, 1, 0, 7, 0, 1]);
        assert_eq!(profile.due(1, 250, 100), 2, "each vCPU has its own");
    }

    #[test]
    fn equal_stacks_fold() {
        let mut profile = Profile::default();
        for stack in [vec![0xa, 0xb], vec![0xa, 0xb], vec![0xc]] {
            profile.add(stack, 1);
        }
        assert_eq!(profile.folded(), "b;a 2\nc 1\n");
    }
}
