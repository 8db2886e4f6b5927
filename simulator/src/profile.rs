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
    /// Whether the vCPU's next sample is due at this time of its own clock; sets the one after.
    pub fn due(&mut self, vcpu: usize, clock: Ticks, period: Ticks) -> bool {
        if self.due.len() <= vcpu {
            self.due.resize(vcpu + 1, 0);
        }
        if clock < self.due[vcpu] {
            return false;
        }
        // A vCPU that slept is not sampled for the time it slept.
        self.due[vcpu] = clock - clock % period + period;
        true
    }

    /// Adds a sample.
    pub fn add(&mut self, stack: Vec<u64>) {
        *self.stacks.entry(stack).or_insert(0) += 1;
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
        let due: Vec<bool> = [0, 50, 100, 150, 199, 950, 999, 1000].map(|clock| profile.due(3, clock, 100)).into();
        assert_eq!(due, [true, false, true, false, false, true, false, true]);
        assert!(profile.due(1, 50, 100), "each vCPU has its own");
    }

    #[test]
    fn equal_stacks_fold() {
        let mut profile = Profile::default();
        for stack in [vec![0xa, 0xb], vec![0xa, 0xb], vec![0xc]] {
            profile.add(stack);
        }
        assert_eq!(profile.folded(), "b;a 2\nc 1\n");
    }
}
